"""The voice-expression network: fixed views of a log-mel window, and an MLP ensemble on each. B is the batch.

Example:
    net = VoiceNet([VoiceAnalysis(), SpeakerEncoder.published()], ensembles)
    logits, embedding = net(windows)          # (B, 2, 64, 300) -> (B, 7), (B, 1024)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES
from pipeline.training.mlp_ensemble import Panel
from pipeline.training.window_statistics import course, deviation, difference


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
        steps = difference(mel, heard, 2)
        found += [(steps.abs() * share).sum(2), (F.relu(steps) * share).sum(2)]
        cepstra = self.cosines @ mel  # (B, 24, 300)
        found += course(cepstra, share)
        found += [deviation(difference(cepstra, heard, n), share) for n in (2, 6, 15)]

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
            deviation(difference(x, heard, 3), w)
            for x, w in ((comb, share), (rest, share), (pitch, sung), (lowest, sung))
        ]

        # How much of the movement of eight regions and of the whole is fast, and how much slow.
        groups = torch.cat([mel.reshape(-1, 8, 8, VOICE_FRAMES).mean(2), level], 1) * heard
        found += [torch.sqrt(((groups @ self.quick[i]) ** 2 * share).sum(2) + 1e-6) for i in range(len(self.WIDTHS))]
        found.append(loud.sum(2) / heard.sum(2).clamp(min=1))
        return torch.cat(found, 1)


def _moving_mean(count: int, width: int) -> Tensor:
    """(count, count): of each place the mean over `width` around it, of as many as there are."""
    return F.avg_pool1d(torch.eye(count)[None], width, 1, width // 2, count_include_pad=False)[0].T
