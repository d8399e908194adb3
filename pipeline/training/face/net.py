"""The face-expression network. B is the batch.

Example:
    logits, embedding = FaceNet()(faces)      # (B, 1, 48, 48) -> (B, 7), (B, 256)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACE_LABELS = 7


class Residual(nn.Module):
    """Two 3×3 convolutions with a shortcut; stride 2 halves height and width."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != channels_in:
            # Average pooling before the 1×1 convolution uses all pixels; a strided 1×1 would skip three in four.
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class FaceNet(nn.Module):
    """A residual network for 48×48 grey faces, 2.8 M parameters.

    The number of channels grows as the resolution shrinks, so that every stage costs about the same: the narrow
    16-channel stem makes full resolution affordable on a laptop.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (32, 64, 128, 256),
        blocks: tuple[int, ...] = (1, 2, 2, 2),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        stem = channels[0] // 2
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        channels_in = stem
        for width, depth in zip(channels, blocks, strict=True):
            for block in range(depth):
                stages.append(Residual(channels_in, width, stride=2 if block == 0 else 1))
                channels_in = width
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels_in, FACE_LABELS)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(faces)  # (B, 16, 48, 48)
        x = self.stages(x)  # (B, 256, 3, 3)
        embedding = x.mean(dim=(2, 3))  # (B, 256)
        return self.head(self.dropout(embedding)), embedding


class MirroredFaceNet(nn.Module):
    """The exported network: averages the embeddings of a face and of its mirror image.

    Expressions are symmetric, so a difference between the two is error. The head is linear: averaged embeddings give
    averaged logits.
    """

    def __init__(self, net: FaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        faces_and_mirrored = torch.cat([faces, faces.flip(3)])  # (2 B, 1, 48, 48)
        _, embedding = self.net(faces_and_mirrored)  # (2 B, 256)
        embedding = embedding.unflatten(0, (2, -1)).mean(dim=0)  # (B, 256)
        return self.net.head(embedding), embedding
