"""The sound-event network: fixed features of a log-mel window, and an MLP ensemble on them. B is the batch.

Example:
    # (B, 2, 64, 300) -> (B, labels), (B, 128 a member)
    logits, embedding = SoundNet(SoundAnalysis(), ensemble)(windows)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES
from pipeline.training.mlp_ensemble import MlpEnsemble
from pipeline.training.window_statistics import course, deviation, difference


class SoundAnalysis(nn.Module):
    """Features independent of level: spectrum and its changes, roughness, tonality, onsets, levels over time, and
    rhythm.

    Nothing is learnt.

    Only valid (received) columns count. The mean of each quantity over time, and its deviations above and below, are
    taken
    twice: over all valid columns, and weighted towards the loud ones.
    """

    CEPSTRA, GROUPS, LAGS = 20, 8, 150  # lags: columns, up to 1.5 s between two ticks, barks or blades
    STEPS = 1, 3, 10  # columns before and after, of a difference
    LEVELS = torch.linspace(0.05, 0.95, 10)  # of the 60 dB of the input
    RATES_HZ = torch.tensor([0.5, 0.8, 1.2, 1.8, 2.6, 3.6, 5.0, 7.0, 9.5, 12.5, 16.0, 20.0, 25.0, 31.0, 38.0, 46.0])

    def __init__(self) -> None:
        super().__init__()
        band, column = torch.arange(VOICE_BANDS) + 0.5, torch.arange(VOICE_FRAMES)
        cosines = torch.cos(torch.arange(self.CEPSTRA)[:, None] * torch.pi * band / VOICE_BANDS) / 8
        self.register_buffer("cosines", cosines, persistent=False)  # (20, 64)
        smooth = F.avg_pool1d(torch.eye(VOICE_BANDS)[None], 7, 1, 3, count_include_pad=False)[0].T
        self.register_buffer("fine", (torch.eye(VOICE_BANDS) - smooth).contiguous(), persistent=False)  # (64, 64)
        turns = column[:, None] / 100 * self.RATES_HZ * 2 * torch.pi  # (300, rates)
        self.register_buffer("waves", torch.cat([turns.cos(), turns.sin()], 1), persistent=False)  # (300, 2 × rates)
        # Autocorrelation from the power spectrum, as matrix products, which every engine computes fast.
        size = 2 * VOICE_FRAMES
        angle = 2 * torch.pi * torch.arange(VOICE_FRAMES + 1) / size
        self.register_buffer(
            "spectrum",
            torch.cat([(column[:, None] * angle).cos(), (column[:, None] * angle).sin()], 1),
            persistent=False,
        )
        once = torch.full((VOICE_FRAMES + 1, 1), 2.0)
        once[0] = once[-1] = 1.0
        self.register_buffer(
            "back", once * (angle[:, None] * torch.arange(self.LAGS)).cos() / size, persistent=False
        )  # (301, lags)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, 2, 64, 300) -> (B, MEASURES)"""
        mel, valid = windows[:, 0], windows[:, 1, :1]  # (B, 64, 300), (B, 1, 300)
        even = valid / valid.sum(2, keepdim=True).clamp(min=1)
        level = mel.mean(1, keepdim=True)  # (B, 1, 300)
        loud = torch.sigmoid((level - level.amax(2, keepdim=True) * 0.7) * 20) * valid + 1e-4
        loud = loud / loud.sum(2, keepdim=True)
        cepstra = self.cosines @ mel  # (B, 20, 300)
        tones = self.fine @ mel  # the level above the neighbouring bands
        groups = torch.cat([mel.reshape(-1, self.GROUPS, 8, VOICE_FRAMES).mean(2), level], 1)  # (B, 9, 300)
        rough = torch.cat(
            [
                tones.abs().mean(1, keepdim=True),
                tones.amax(1, keepdim=True),
                tones.reshape(-1, self.GROUPS, 8, VOICE_FRAMES).amax(2),
            ],
            1,
        )  # (B, 10, 300)
        features: list[Tensor] = []
        for share in (even, loud):
            features += [(mel * share).sum(2)]
            for x in (cepstra, rough, groups):
                features += course(x, share)
        features.append(torch.sqrt((tones * tones * loud).sum(2) + 1e-5))
        for reach in self.STEPS:
            step = difference(torch.cat([cepstra, groups], 1), valid, reach)
            features += [deviation(step, even), deviation(step, loud)]
            step = difference(mel, valid, reach).reshape(-1, self.GROUPS, 8, VOICE_FRAMES)
            features += [(step.abs().mean(2) * even).sum(2), (F.relu(step).mean(2) ** 2 * even).sum(2) * 10]
        # Share of time that each region is above each level: small for a bark, all of it for rain.
        above = torch.sigmoid((groups[:, :, None] - self.LEVELS[:, None]) * 15) * even[:, :, None]  # (B, 9, 10, 300)
        features.append(above.sum(3).flatten(1))
        # Rhythm of the level of every region, and of its rises.
        rises = F.relu(difference(groups, valid, 1))
        for x in (groups, rises):
            centred = (x - (x * even).sum(2, keepdim=True)) * valid
            spread = (centred * centred).sum(2, keepdim=True) + 0.05
            waves = centred @ self.waves
            cos, sin = waves.chunk(2, 2)
            features.append(torch.log((cos * cos + sin * sin) / spread + 0.1).flatten(1))  # (B, 9 × rates)
            cos, sin = (centred @ self.spectrum).chunk(2, 2)
            autocorrelation = ((cos * cos + sin * sin) @ self.back) / spread  # (B, 9, lags)
            features += [
                autocorrelation[:, :, a:b].amax(2)
                for a, b in ((2, 4), (4, 7), (7, 11), (11, 18), (18, 30), (30, 50), (50, 85), (85, 150))
            ]
            features += [autocorrelation[:, :, a:b].amin(2) for a, b in ((2, 7), (7, 18), (18, 50), (50, 150))]
        features.append(valid.mean(2))
        return torch.cat(features, 1)


class SoundNet(nn.Module):
    def __init__(self, analysis: SoundAnalysis, ensemble: MlpEnsemble) -> None:
        super().__init__()
        self.analysis, self.ensemble = analysis, ensemble

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, 64, 300) -> (B, labels) logits, (B, 128 a member)"""
        logits, embedding = self.ensemble(self.analysis(windows))
        return logits, embedding
