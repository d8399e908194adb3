"""EfficientNet-Lite0 (Google, 2020) with a head for places and one grey input channel.

It begins with ImageNet weights from a pinned package (models/assets.toml, Apache-2.0). Those were trained with
TensorFlow's padding, which is asymmetric for even sizes but symmetric for sizes of the form 32k + 1, such as
preprocessing.PLACE_PX: so the padding here is symmetric, and the sizes are 225, 113, 57, 29, 15, 8.

Example:
    net = start_net(classes=15)
    frozen = net.early(x)             # (B, 1, 225, 225) -> (B, 192, 8, 8): frozen, so computed once
    logits, embedding = net.late(frozen)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import assets
from pipeline.errors import ConfigError

START = "efficientnet-lite0"  # in models/assets.toml
TOP = 1280
# Rows of the 8×8 top feature map that are averaged separately: sky, distance and ground distinguish places; left and
# right do not. Worth one to two points of accuracy (models/place.md).
BANDS = ((0, 3), (2, 6), (5, 8))
EARLY = 14  # blocks before `late`; the two that follow and the top hold 45 % of the weights
# kernel, stride, expansion, channels, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
EPSILON = 1e-3  # TensorFlow's, which the start weights were trained with


class Unit(nn.Sequential):
    """Convolution, norm and, with `activation`, ReLU6."""

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: bool = True
    ) -> None:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(after, eps=EPSILON, momentum=0.01)
        super().__init__(convolution, norm, *([nn.ReLU6(inplace=True)] if activation else []))


class Block(nn.Module):
    """Inverted residual: expand the channels, depthwise convolution, project; with a shortcut where the shape is
    unchanged.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = before * expansion
        self.expand = Unit(before, expanded, 1) if expansion > 1 else None
        self.depthwise = Unit(expanded, expanded, kernel, stride=stride, groups=expanded)
        self.project = Unit(expanded, after, 1, activation=False)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


def rooted(embedding: Tensor) -> Tensor:
    """Input of the head: the square root of the embedding, so that a few strong channels do not dominate."""
    return torch.sqrt(embedding + 1e-3)


class PlaceNet(nn.Module):
    """(B, 1, 225, 225) -> logits (B, classes), embedding (B, 3840). 3.4 M parameters."""

    # prefixes of the parameters that are not trained
    frozen = ("stem.", *(f"blocks.{index}." for index in range(EARLY)))

    def __init__(self, classes: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = Unit(1, 32, 3, stride=2)
        blocks, before = [], 32
        for kernel, stride, expansion, after, count in STAGES:
            for index in range(count):
                blocks.append(Block(before, after, kernel, stride if index == 0 else 1, expansion))
                before = after
        self.blocks = nn.ModuleList(blocks)
        self.top = Unit(before, TOP, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(len(BANDS) * TOP, classes)

    def early(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, 32, 113, 113)
        for block in self.blocks[:EARLY]:
            x = block(x)
        return x  # (B, 192, 8, 8)

    def late(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks[EARLY:]:
            x = block(x)  # (B, 320, 8, 8)
        x = self.top(x)  # (B, 1280, 8, 8)
        embedding = torch.cat([x[:, :, begin:end].mean(dim=(2, 3)) for begin, end in BANDS], dim=1)  # (B, 3840)
        return self.head(self.dropout(rooted(embedding))), embedding

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.late(self.early(x))


class Early(nn.Module):
    """The frozen part alone, for export."""

    def __init__(self, net: PlaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.net.early(x),)


def start_net(classes: int, weights: Path | None = None) -> PlaceNet:
    """A PlaceNet with ImageNet weights and a head of zeros.

    Args:
        classes: Number of labels.
        weights: The file of the package. None: fetched, and checked by its hash.

    Raises ConfigError when the file does not hold an EfficientNet-Lite0.
    """
    path = weights or assets.path(START)
    stored = torch.load(path, weights_only=True, map_location="cpu")
    net = PlaceNet(classes)
    stored_weights = [
        value
        for name, value in stored.items()
        if not name.startswith("_fc") and not name.endswith("num_batches_tracked")
    ]
    own_weights = [
        (name, value)
        for name, value in net.state_dict().items()
        if not name.startswith("head") and not name.endswith("num_batches_tracked")
    ]  # both in the order of the layers
    # All three colours were scaled alike, so a grey picture needs the sum of the filters over them.
    stored_weights[0] = stored_weights[0].sum(dim=1, keepdim=True)
    if [value.shape for value in stored_weights] != [value.shape for _, value in own_weights]:
        raise ConfigError(f"{path}: not the weights of an EfficientNet-Lite0. Fetch it again: {assets.PULL} {START}")
    net.load_state_dict(
        {name: value for (name, _), value in zip(own_weights, stored_weights, strict=True)}, strict=False
    )
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net
