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
from pipeline.training.mlp_ensemble import MlpEnsemble
from pipeline.training.window_statistics import course, deviation, difference


class VoiceNet(nn.Module):
    """Fixed feature extractors ("views") on the window, and an ensemble of small MLPs on each; their logits are
    averaged.

    With a thousand clips, two sentences and no GPU, fixed features work better than learnt ones: convolutional networks
    took minutes where this takes seconds, and were no better on unseen actors. The two views make different errors:
    phonetic measures (VoiceAnalysis), and the states of a speaker encoder (speaker_encoder.SpeakerEncoder).
    """

    def __init__(self, views: list[nn.Module], ensembles: list[MlpEnsemble]) -> None:
        super().__init__()
        self.views, self.ensembles = nn.ModuleList(views), nn.ModuleList(ensembles)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, 64, 300) -> (B, labels) logits, each view counting the same, and (B, 512 for each view)"""
        outputs = [ensemble(view(windows)) for view, ensemble in zip(self.views, self.ensembles, strict=True)]
        return torch.stack([logits for logits, _ in outputs]).mean(0), torch.cat(
            [embedding for _, embedding in outputs], 1
        )


class VoiceAnalysis(nn.Module):
    """Phonetic measures of a log-mel window: spectrum, voice quality, pitch, loudness and their rates. Nothing is
    learnt.

    Levels more than 36 dB below the loud columns are cut off: the distance from the voice to the noise floor correlates
    with the actor's loudness within one recording session, but not in another room. Columns are weighted by loudness,
    so that pauses and columns that were not received do not count. The features are the mean of each quantity over
    time, its deviations above and below, and the deviation of its differences.
    """

    MEASURES = 605
    CEPSTRA, LAGS = 24, range(4, 26)  # lags of the comb in half bands, 23 Hz each below 1 kHz: pitch from 90 to 600 Hz
    FLOOR = 0.4  # of the 60 dB of the input
    WIDTHS = 5, 9, 17, 33  # columns
    LOUD, STEEP = 0.15, 25.0  # of the voicing_and_level: level of half weight, and steepness of the edge

    def __init__(self) -> None:
        super().__init__()
        band = torch.arange(VOICE_BANDS) + 0.5
        cosines = torch.cos(torch.arange(self.CEPSTRA)[:, None] * torch.pi * band / VOICE_BANDS) / 8
        self.register_buffer("cosines", cosines, persistent=False)  # (24, 64)
        upsample = F.interpolate(torch.eye(40)[None], scale_factor=2.0, mode="linear", align_corners=False)[0].T
        self.register_buffer("upsample", upsample.contiguous(), persistent=False)  # (80, 40)
        # Moving means as matrices: multiplication takes a tenth of the time of average pooling with long kernels.
        fast_motion = [
            _moving_mean(VOICE_FRAMES, width) - _moving_mean(VOICE_FRAMES, 2 * width - 1) for width in self.WIDTHS
        ]
        self.register_buffer(
            "fast_motion", torch.stack(fast_motion).transpose(1, 2).contiguous(), persistent=False
        )  # (4, 300, 300)
        self.register_buffer(
            "peaks", (torch.eye(43) - _moving_mean(43, 7))[:40].contiguous(), persistent=False
        )  # (40, 43)
        self.register_buffer("lag", torch.tensor([[float(lag)] for lag in self.LAGS]), persistent=False)
        self.register_buffer("bands", torch.arange(1.0, 14.0)[:, None], persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, 2, 64, 300) -> (B, MEASURES)"""
        mel = F.relu(windows[:, 0] - self.FLOOR) / (1 - self.FLOOR)  # (B, 64, 300)
        valid = windows[:, 1, :1]  # (B, 1, 300), 1 where a column was received
        level = mel.mean(1, keepdim=True)  # (B, 1, 300)
        loudness = torch.sigmoid((level - self.LOUD) * self.STEEP) * valid + 1e-4
        share = loudness / loudness.sum(2, keepdim=True)
        features = course(mel, share)
        steps = difference(mel, valid, 2)
        features += [(steps.abs() * share).sum(2), (F.relu(steps) * share).sum(2)]
        cepstra = self.cosines @ mel  # (B, 24, 300)
        features += course(cepstra, share)
        features += [deviation(difference(cepstra, valid, n), share) for n in (2, 6, 15)]

        peaks = self.peaks @ mel[:, :43]  # (B, 40, 300)
        fine = self.upsample @ peaks  # (B, 80, 300)
        comb = torch.stack([(fine[:, : 80 - lag] * fine[:, lag:]).mean(1) for lag in self.LAGS], 1) * 50  # (B, 22, 300)
        pitch = (torch.softmax(comb * 6, 1) * self.lag).sum(1, keepdim=True) / 10
        voiced = comb.amax(1, keepdim=True)
        voiced_share = share * torch.sigmoid((voiced - 0.5) * 4) + 1e-6
        voiced_share = voiced_share / voiced_share.sum(2, keepdim=True)
        features += course(comb, share) + course(pitch, voiced_share)
        pitch_band = (torch.softmax(peaks[:, 1:14] * 30, 1) * self.bands).sum(1, keepdim=True) / 5
        features += course(pitch_band, voiced_share)
        voicing_and_level = torch.cat([voiced, level * 3], 1)
        features += course(voicing_and_level, share)
        features += [
            deviation(difference(x, valid, 3), w)
            for x, w in ((comb, share), (voicing_and_level, share), (pitch, voiced_share), (pitch_band, voiced_share))
        ]

        # Energy of the modulation of eight regions and of the whole, by speed.
        groups = torch.cat([mel.reshape(-1, 8, 8, VOICE_FRAMES).mean(2), level], 1) * valid
        features += [
            torch.sqrt(((groups @ self.fast_motion[i]) ** 2 * share).sum(2) + 1e-6) for i in range(len(self.WIDTHS))
        ]
        features.append(loudness.sum(2) / valid.sum(2).clamp(min=1))
        return torch.cat(features, 1)


def _moving_mean(count: int, width: int) -> Tensor:
    """(count, count): a moving mean of `width`, over fewer values at the ends."""
    return F.avg_pool1d(torch.eye(count)[None], width, 1, width // 2, count_include_pad=False)[0].T
