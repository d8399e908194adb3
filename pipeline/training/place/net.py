"""EfficientNet-Lite0 (Google, 2020), written plainly, with a head for places and with grey pictures as its input.

It begins with ImageNet weights from a pinned package (models/assets.toml, Apache-2.0). Those were trained with TensorFlow's
padding, which is lopsided for even sizes and the usual one for sizes of the form 32k + 1, such as features.PLACE_PX: so the
padding here is the usual one, and the sizes are 225, 113, 57, 29, 15, 8.

    net = start_net(classes=15)
    frozen = net.early(x)             # (B, 1, 225, 225) -> (B, 192, 8, 8): never trained here, so computed once
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
# The top's rows of cells, of 8, that are averaged apart: what is sky, what is far and what is ground tells places apart, and
# left from right does not. Among what was tried, worth one to two points (models/place.md).
BANDS = ((0, 3), (2, 6), (5, 8))
EARLY = 14  # blocks before `late`; the two that follow and the top hold 45 % of the weights
# kernel, stride, widening, channels, blocks
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
    """Convolution and norm; `bend`: and a rectifier that ends at 6."""

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, bend: bool = True
    ) -> None:
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(after, eps=EPSILON, momentum=0.01)
        super().__init__(convolution, norm, *([nn.ReLU6(inplace=True)] if bend else []))


class Block(nn.Module):
    """Widen each place's channels, look around per channel, narrow again; the input is added where the shape is kept."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = before * widening
        self.widen = Unit(before, wide, 1) if widening > 1 else None
        self.look = Unit(wide, wide, kernel, stride=stride, groups=wide)
        self.narrow = Unit(wide, after, 1, bend=False)
        self.added = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else self.widen(x)
        y = self.narrow(self.look(y))
        return x + y if self.added else y


def rooted(embedding: Tensor) -> Tensor:
    """What the head sees of an embedding: its root, so that a few strong channels do not decide alone."""
    return torch.sqrt(embedding + 1e-3)


class PlaceNet(nn.Module):
    """(B, 1, 225, 225) -> logits (B, classes), embedding (B, 3840). 3.4 M parameters."""

    frozen = ("stem.", *(f"blocks.{index}." for index in range(EARLY)))  # the names of what training leaves as it is

    def __init__(self, classes: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = Unit(1, 32, 3, stride=2)
        blocks, before = [], 32
        for kernel, stride, widening, after, count in STAGES:
            for index in range(count):
                blocks.append(Block(before, after, kernel, stride if index == 0 else 1, widening))
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
    """A PlaceNet with ImageNet's weights and a head of zeros. weights: the package's file; None: fetched and checked by its
    hash. Raises ConfigError when it does not hold an EfficientNet-Lite0."""
    path = weights or assets.path(START)
    stored = torch.load(path, weights_only=True, map_location="cpu")
    net = PlaceNet(classes)
    theirs = [
        value
        for name, value in stored.items()
        if not name.startswith("_fc") and not name.endswith("num_batches_tracked")
    ]
    ours = [
        (name, value)
        for name, value in net.state_dict().items()
        if not name.startswith("head") and not name.endswith("num_batches_tracked")
    ]  # both in the order of the layers
    # All three colours were scaled alike, so a grey picture's answer is that of the filters' sum over them.
    theirs[0] = theirs[0].sum(dim=1, keepdim=True)
    if [value.shape for value in theirs] != [value.shape for _, value in ours]:
        raise ConfigError(f"{path}: not the weights of an EfficientNet-Lite0. Fetch it again: {assets.PULL} {START}")
    net.load_state_dict({name: value for (name, _), value in zip(ours, theirs, strict=True)}, strict=False)
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net
