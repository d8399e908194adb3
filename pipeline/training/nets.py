"""The networks we train ourselves. Shapes stand beside the maths; B is the batch.

Example:
    logits, embedding = FaceNet()(faces)      # (B, 1, 48, 48) -> (B, 7), (B, 256)
    net = VoiceNet([VoiceAnalysis(), SpeakerEncoder.published()], panels)
    logits, embedding = net(windows)          # (B, 2, 64, 300) -> (B, 7), (B, 1024)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACE_LABELS = 7
VOICE_BANDS, VOICE_FRAMES = 64, 300


class Residual(nn.Module):
    """Two 3×3 convolutions and a way around them; stride 2 halves height and width."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels != channels_in:
            # Averaging before the 1×1 keeps the three pixels in four that a strided 1×1 throws away.
            self.around = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.around(x), inplace=True)


class FaceNet(nn.Module):
    """A residual network for 48×48 grey faces, 2.8 M parameters.

    Its channels grow as its pictures shrink, so that no stage costs much more than another: the narrow 16-channel stem
    is what makes full resolution affordable on a laptop's processor.
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
    """What ships: a face and its mirror image, one after the other through the same network, their embeddings averaged.

    An expression has no side, so what differs between the two is error. The head is linear: averaged embeddings are
    averaged logits.
    """

    def __init__(self, net: FaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([faces, faces.flip(3)])  # (2 B, 1, 48, 48)
        _, embedding = self.net(both)  # (2 B, 256)
        embedding = embedding.unflatten(0, (2, -1)).mean(dim=0)  # (B, 256)
        return self.net.head(embedding), embedding


class VoiceNet(nn.Module):
    """Fixed views of the window, and on each of them small perceptrons, trained side by side, that answer with their mean.

    With a thousand clips, two sentences and no GPU, what is looked at is better fixed than learnt: the convolutional networks
    that were tried for the same task took minutes where this takes seconds, and knew unseen actors no better. The two views
    err differently: what phoneticians measure (VoiceAnalysis), and what tells speakers apart (voice_encoder.SpeakerEncoder).
    """

    def __init__(self, views: list[nn.Module], panels: list[Panel]) -> None:
        super().__init__()
        self.views, self.panels = nn.ModuleList(views), nn.ModuleList(panels)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, 64, 300) -> (B, labels) logits, each view counting the same, and (B, 512 for each view)"""
        said = [panel(view(windows)) for view, panel in zip(self.views, self.panels, strict=True)]
        return torch.stack([logits for logits, _ in said]).mean(0), torch.cat([embedding for _, embedding in said], 1)


class Panel(nn.Module):
    """Perceptrons on one view of the window. Mean logits are mean log-probabilities, but for what softmax takes out."""

    def __init__(self, measures: int, labels: int, *, members: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(measures))
        self.register_buffer("spread", torch.ones(measures))
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.2), nn.Linear(measures, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
            for _ in range(members)
        )
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleList(nn.Linear(hidden, labels) for _ in range(members))

    def forward(self, measures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, measures) -> (B, labels), (B, 512)"""
        embedding = self.embed(measures)  # members × (B, 128)
        return self.answers(embedding).mean(0), torch.cat(embedding, 1)

    def embed(self, measures: Tensor) -> list[Tensor]:
        """(B, measures) -> of each member (B, 128)"""
        x = ((measures - self.middle) / self.spread).clamp(-4, 4)
        return [member(x) for member in self.members]

    def answers(self, embedding: list[Tensor]) -> Tensor:
        """(members, B, labels) logits"""
        return torch.stack([head(self.dropout(x)) for head, x in zip(self.heads, embedding, strict=True)])


class VoiceAnalysis(nn.Module):
    """A log-mel window to what phoneticians measure: spectrum, voice quality, melody, loudness and their pace. Nothing is learnt.

    Nothing further than 36 dB below the loud columns is looked at: how far a recording's noise lies below the voice tells how
    loud the actor was on that day, and nothing in the next room. Everything is weighed by how loud a column is, so pauses
    and what was not heard count nothing. Of each course over time the mean and the deviations above and below it are taken,
    of its differences the deviation.
    """

    MEASURES = 605
    CEPSTRA, LAGS = 24, range(4, 26)  # lags of the comb in half bands, 23 Hz each below 1 kHz: a melody of 90 to 600 Hz
    FLOOR = 0.4  # of the 60 dB of the input
    WIDTHS = 5, 9, 17, 33  # columns
    LOUD, STEEP = 0.15, 25.0  # of what is left: half weight, and how sharp the edge is

    def __init__(self) -> None:
        super().__init__()
        band = torch.arange(VOICE_BANDS) + 0.5
        cosines = torch.cos(torch.arange(self.CEPSTRA)[:, None] * torch.pi * band / VOICE_BANDS) / 8
        self.register_buffer("cosines", cosines, persistent=False)  # (24, 64)
        finer = F.interpolate(torch.eye(40)[None], scale_factor=2.0, mode="linear", align_corners=False)[0].T
        self.register_buffer("finer", finer.contiguous(), persistent=False)  # (80, 40)
        # Moving means as matrices: a runtime multiplies in a tenth of the time that it takes to average over a long reach.
        quick = [_moving_mean(VOICE_FRAMES, width) - _moving_mean(VOICE_FRAMES, 2 * width - 1) for width in self.WIDTHS]
        self.register_buffer(
            "quick", torch.stack(quick).transpose(1, 2).contiguous(), persistent=False
        )  # (4, 300, 300)
        self.register_buffer(
            "peaks", (torch.eye(43) - _moving_mean(43, 7))[:40].contiguous(), persistent=False
        )  # (40, 43)
        self.register_buffer("lag", torch.tensor([[float(lag)] for lag in self.LAGS]), persistent=False)
        self.register_buffer("low", torch.arange(1.0, 14.0)[:, None], persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, 2, 64, 300) -> (B, MEASURES)"""
        mel, heard = (
            F.relu(windows[:, 0] - self.FLOOR) / (1 - self.FLOOR),
            windows[:, 1, :1],
        )  # (B, 64, 300), (B, 1, 300)
        level = mel.mean(1, keepdim=True)  # (B, 1, 300)
        loud = torch.sigmoid((level - self.LOUD) * self.STEEP) * heard + 1e-4
        share = loud / loud.sum(2, keepdim=True)
        found = course(mel, share)
        steps = self._difference(mel, heard, 2)
        found += [(steps.abs() * share).sum(2), (F.relu(steps) * share).sum(2)]
        cepstra = self.cosines @ mel  # (B, 24, 300)
        found += course(cepstra, share)
        found += [deviation(self._difference(cepstra, heard, n), share) for n in (2, 6, 15)]

        peaks = self.peaks @ mel[:, :43]  # (B, 40, 300)
        fine = self.finer @ peaks  # (B, 80, 300)
        comb = torch.stack([(fine[:, : 80 - lag] * fine[:, lag:]).mean(1) for lag in self.LAGS], 1) * 50  # (B, 22, 300)
        pitch = (torch.softmax(comb * 6, 1) * self.lag).sum(1, keepdim=True) / 10
        voiced = comb.amax(1, keepdim=True)
        sung = share * torch.sigmoid((voiced - 0.5) * 4) + 1e-6
        sung = sung / sung.sum(2, keepdim=True)
        found += course(comb, share) + course(pitch, sung)
        lowest = (torch.softmax(peaks[:, 1:14] * 30, 1) * self.low).sum(1, keepdim=True) / 5
        found += course(lowest, sung)
        rest = torch.cat([voiced, level * 3], 1)
        found += course(rest, share)
        found += [
            deviation(self._difference(x, heard, 3), w)
            for x, w in ((comb, share), (rest, share), (pitch, sung), (lowest, sung))
        ]

        # How much of the movement of eight regions and of the whole is fast, and how much slow.
        groups = torch.cat([mel.reshape(-1, 8, 8, VOICE_FRAMES).mean(2), level], 1) * heard
        found += [torch.sqrt(((groups @ self.quick[i]) ** 2 * share).sum(2) + 1e-6) for i in range(len(self.WIDTHS))]
        found.append(loud.sum(2) / heard.sum(2).clamp(min=1))
        return torch.cat(found, 1)

    @staticmethod
    def _difference(x: Tensor, heard: Tensor, reach: int) -> Tensor:
        """x (B, C, 300) a little later minus a little earlier; 0 where either was not heard."""
        there = heard[:, :, 2 * reach :] * heard[:, :, : -2 * reach]
        return F.pad((x[:, :, 2 * reach :] - x[:, :, : -2 * reach]) * there, (reach, reach))


def _moving_mean(count: int, width: int) -> Tensor:
    """(count, count): of each place the mean over `width` around it, of as many as there are."""
    return F.avg_pool1d(torch.eye(count)[None], width, 1, width // 2, count_include_pad=False)[0].T


def deviation(x: Tensor, share: Tensor) -> Tensor:
    mean = (x * share).sum(2, keepdim=True)
    return torch.sqrt(((x - mean) ** 2 * share).sum(2) + 1e-5)


def course(x: Tensor, share: Tensor) -> list[Tensor]:
    """x (B, C, 300): mean, and deviation of what lies above and of what lies below it, each (B, C)."""
    mean = (x * share).sum(2)
    around = x - mean[:, :, None]
    above, below = F.relu(around), F.relu(-around)
    return [mean, torch.sqrt((above * above * share).sum(2) + 1e-5), torch.sqrt((below * below * share).sum(2) + 1e-5)]
