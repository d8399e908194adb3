"""A published speaker encoder, trained on thousands of voices, as a fixed feature extractor.

Resemblyzer's encoder (Jemine; GE2E, Wan et al. 2018): three LSTM layers over 40 mel powers every 10 ms. Its weights are
used as published and never trained further; its states are features for our MLPs. B is the batch.

Example:
    states = SpeakerEncoder.published()(windows)      # (B, 2, 64, 300) -> (B, 1536)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import assets
from pipeline.preprocessing import VOICE_BANDS, VOICE_RANGE_DB, VOICE_RATE_HZ, VOICE_WINDOW

ASSET = "speaker-encoder"
BANDS, WINDOW = 40, 400  # of the encoder: mel bands, and samples of a spectrum
AUDIBLE = 1e-3  # columns more than 30 dB below the loudest one do not count for the level
LEVEL = 1e-3  # mean square that the encoder expects: -30 dB of full scale


class SpeakerEncoder(nn.Module):
    """Converts the last columns to the encoder's input; returns the last state and the mean over time of each layer."""

    COLUMNS, WIDTH, LAYERS = 48, 256, 3  # columns: of 300, as many as fit into 10 ms per decision
    MEASURES = 2 * LAYERS * WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.LSTM(BANDS if i == 0 else self.WIDTH, self.WIDTH, batch_first=True) for i in range(self.LAYERS)
        )
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        to_encoder, shares = _bands()
        self.register_buffer("to_encoder", torch.from_numpy(to_encoder), persistent=False)  # (40, 64)
        self.register_buffer("shares", torch.from_numpy(shares)[:, None], persistent=False)  # (64, 1)

    @classmethod
    def published(cls) -> SpeakerEncoder:
        """With the published weights. Raises AssetError when they are not available."""
        stored = torch.load(assets.path(ASSET), map_location="cpu", weights_only=True)["model_state"]
        encoder = cls()
        for i, layer in enumerate(encoder.layers):
            layer.load_state_dict({name: stored[f"lstm.{name.removesuffix('0')}{i}"] for name in layer.state_dict()})
        return encoder.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """(B, 2, 64, 300) -> (B, MEASURES)"""
        x = self.powers(windows)[:, -self.COLUMNS :]  # (B, COLUMNS, 40)
        states = []
        for layer in self.layers:
            x, _ = layer(x)  # (B, COLUMNS, 256)
            states += [x[:, -1], x.mean(1)]
        return torch.cat(states, 1)

    def powers(self, windows: Tensor) -> Tensor:
        """(B, 2, 64, 300) -> (B, 300, 40): mel powers like the encoder's own front end, 0 without sound."""
        valid = windows[:, 1, :1]  # (B, 1, 300)
        power = torch.exp((windows[:, 0] - 1) * (VOICE_RANGE_DB / 10 * math.log(10))) * valid  # (B, 64, 300)
        square = (power * self.shares).sum(1, keepdim=True)  # (B, 1, 300) mean square of the sound
        audible = (square > AUDIBLE * square.amax(2, keepdim=True)).float() * valid
        level = (square * audible).sum(2, keepdim=True) / audible.sum(2, keepdim=True).clamp(min=1)  # (B, 1, 1)
        return (self.to_encoder @ power * (LEVEL / level.clamp(min=1e-9))).transpose(1, 2)


def _bands() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(40, 64) from the powers of our bands to the encoder's, and (64,) the contribution of ours to the mean square.

    The spectrum is interpolated linearly between the centres of our bands and multiplied by the encoder's triangular
    filters (area 1 in Hz). The factors convert between our scale (a full-scale sine has power 1) and that of a Hann
    window.
    """

    def mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)

    def edges(low_hz: float, bands: int) -> npt.NDArray[np.float64]:
        mels = np.linspace(mel(low_hz), mel(VOICE_RATE_HZ / 2), bands + 2)
        return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))

    step_hz = 5.0
    hz = np.arange(step_hz / 2, VOICE_RATE_HZ / 2, step_hz)[:, None]
    ours, theirs = edges(50.0, VOICE_BANDS), edges(0.0, BANDS)
    rising = (hz - theirs[:-2]) / (theirs[1:-1] - theirs[:-2])
    triangles = np.maximum(0, np.minimum(rising, (theirs[2:] - hz) / (theirs[2:] - theirs[1:-1])))  # (hz, 40)
    interpolation = np.stack([np.interp(hz[:, 0], ours[1:-1], one) for one in np.eye(VOICE_BANDS)], 1)  # (hz, 64)
    # A Hann window's squares add up to 3/8 of its samples, and its values to half: ours is divided by a quarter of
    # them.
    our_noise, their_noise = (
        3 / 8 * VOICE_WINDOW / (VOICE_WINDOW / 4) ** 2,
        3 / 8 * WINDOW,
    )  # in a bin, of mean square 1
    to_encoder = (triangles / triangles.sum(0)).T @ interpolation * (their_noise / our_noise * WINDOW / VOICE_RATE_HZ)
    # A band stands for as many of the bins, of which half as many as the window has samples make up the mean square.
    share = interpolation.sum(0) * step_hz * VOICE_WINDOW / VOICE_RATE_HZ / (VOICE_WINDOW / 2) / our_noise
    return to_encoder.astype(np.float32), share.astype(np.float32)
