"""Training windows for the voice network: a stretch of a clip that ends anywhere in its speech, as another voice would say
it, in another room, through another microphone.

Everything happens to power spectra, where a filter multiplies, a noise adds and a room smears; the window then goes through
the same features.voice_columns as live. B is the batch.

    windows = draw(speech, clips, generator)         # (B,) -> (B, 2, 64, 300)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES, VOICE_HOP, VOICE_RATE_HZ, voice_columns
from pipeline.training.data.speech import SPEEDS, Speech

QUIET = -23.0  # log-power of a column in which nothing sounds
BEFORE, AFTER = 10, 25  # columns before the first and after the last decision of a clip where a window may end
ROOM_COLUMNS = 64  # reverberation further back than 0.64 s is left out
COLUMN_S = VOICE_HOP / VOICE_RATE_HZ
# The power of a noise in one bin is spread like this around its mean. Drawn once: the windows begin anywhere in it.
FLUTTER = torch.empty(20_000, VOICE_BANDS).exponential_(1.0, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Mishaps:
    """How often and how much; levels in dB, times in seconds."""

    pace: tuple[float, float] = (0.9, 1.12)  # columns of the clip per column of the window
    warp: tuple[float, float] = (0.92, 1.08)  # bands: another length of the vocal tract
    tilt_db: float = 5.0  # from the lowest to the highest band
    bumps_db: float = 2.5
    narrow: float = 0.04  # share of windows without the highest bands, and without the lowest
    room: float = 0.2
    room_s: tuple[float, float] = (0.2, 0.8)  # time to fall by 60 dB
    room_db: tuple[float, float] = (0.0, 12.0)  # direct sound above the room's
    noisy: float = 0.3
    noise_db: tuple[float, float] = (10.0, 40.0)  # loudest tenth of the columns above the noise
    calm_db: tuple[float, float] = (55.0, 90.0)  # the same, of the other windows
    silence_before: float = 0.4  # share of windows before whose clip there was quiet, not nothing
    short: float = 0.15  # share that hears only the last 1 to 3 s
    time_masks: tuple[int, int] = (1, 15)  # how many, and columns at most
    band_masks: tuple[int, int] = (0, 8)


@dataclass(frozen=True)
class Chance:
    """What falls differently for each window of a batch."""

    batch: int
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> Tensor:
        """(B, 1)"""
        return torch.empty(self.batch, 1).uniform_(low, high, generator=self.generator)

    def happens(self, share: float) -> Tensor:
        """(B, 1) bool"""
        return self.uniform(0, 1) < share

    def below(self, count: int) -> Tensor:
        """(B,) int64"""
        return torch.randint(count, (self.batch,), generator=self.generator)


EVERYDAY = Mishaps()


def draw(speech: Speech, clips: Tensor, generator: torch.Generator, mishaps: Mishaps = EVERYDAY) -> Tensor:
    """clips: (B,) index into `speech`. Returns (B, 2, 64, 300)."""
    chance = Chance(len(clips), generator)
    mel, heard = _stretch(speech, clips, chance, mishaps)  # (B, 300, 64), (B, 300)
    power = torch.exp(mel)
    power = torch.where(chance.happens(mishaps.room)[:, None], _in_a_room(power, chance, mishaps), power)
    power = power * torch.exp(_colour(chance, mishaps))
    loudest = power.mean(2).topk(VOICE_FRAMES // 10, 1).values.mean(1)  # (B,)
    below_db = torch.where(
        chance.happens(mishaps.noisy), chance.uniform(*mishaps.noise_db), chance.uniform(*mishaps.calm_db)
    )
    flutter = FLUTTER[chance.below(len(FLUTTER) - VOICE_FRAMES)[:, None] + torch.arange(VOICE_FRAMES)]
    noise = loudest[:, None] * 10 ** (-below_db / 10)
    mel = torch.log(power + noise[:, :, None] * torch.exp(_ramp(chance.uniform(-2, 2))) * flutter + 1e-10)
    heard = heard | chance.happens(mishaps.silence_before)
    seen = torch.where(chance.happens(mishaps.short), chance.uniform(VOICE_FRAMES / 3, VOICE_FRAMES), VOICE_FRAMES)
    heard = heard & (torch.arange(VOICE_FRAMES) >= VOICE_FRAMES - seen)
    columns = mel.transpose(1, 2).numpy()  # (B, 64, 300)
    windows = torch.from_numpy(np.stack([voice_columns(m, h) for m, h in zip(columns, heard.numpy(), strict=True)]))
    return _masked(windows, chance, mishaps)


def _stretch(speech: Speech, clips: Tensor, chance: Chance, mishaps: Mishaps) -> tuple[Tensor, Tensor]:
    """(B, 300, 64) log-power and (B, 300) whether the clip had begun."""
    which = chance.below(len(SPEEDS))
    first, count = (torch.from_numpy(a)[clips, which] for a in (speech.first, speech.count))
    early, late = (torch.from_numpy(a)[clips] for a in span(speech))
    faster = torch.tensor(SPEEDS)[which]
    low, high = (early - BEFORE) / faster, torch.minimum((late + AFTER) / faster, count.float())
    end = (low + (high - low).clamp(min=0) * chance.uniform(0, 1)[:, 0])[:, None]  # (B, 1)
    at = end - 1 - torch.arange(VOICE_FRAMES - 1, -1, -1) * chance.uniform(*mishaps.pace)
    sooner = torch.minimum(at.clamp(min=0).floor().long(), count[:, None] - 2)
    share = (at - sooner).clamp(0, 1)[:, :, None]
    stored = torch.from_numpy(speech.mel)
    rows = first[:, None] + sooner
    mel = torch.lerp(stored[rows].float(), stored[rows + 1].float(), share)  # (B, 300, 64)
    begun = at >= 0
    mel = torch.where(begun[:, :, None], mel, QUIET)
    band = (torch.arange(VOICE_BANDS) * chance.uniform(*mishaps.warp)).clamp(max=VOICE_BANDS - 1.001)  # (B, 64)
    lower = band.floor().long()
    below, above = (mel.gather(2, at[:, None].expand(-1, VOICE_FRAMES, -1)) for at in (lower, lower + 1))
    return torch.lerp(below, above, (band - lower)[:, None]), begun


def span(speech: Speech) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) columns heard at the first and at the last decision of each clip."""
    starts = np.searchsorted(speech.due_clip, np.arange(len(speech)))
    ends = np.searchsorted(speech.due_clip, np.arange(len(speech)), side="right") - 1
    return speech.due[starts], speech.due[ends]


def _in_a_room(power: Tensor, chance: Chance, mishaps: Mishaps) -> Tensor:
    """What was heard comes back, ever fainter: a recursive filter over time, by doubling its reach."""
    kept = torch.exp(-math.log(1e6) * COLUMN_S / chance.uniform(*mishaps.room_s))[:, :, None]
    tail, reach = power.clone(), 1
    while reach < ROOM_COLUMNS:
        tail[:, reach:] += kept**reach * tail[:, :-reach].clone()
        reach *= 2
    below = 10 ** (-chance.uniform(*mishaps.room_db) / 10)[:, :, None]
    room = below * (1 - kept) * tail
    return torch.cat([power[:, :1], power[:, 1:] + room[:, :-1]], 1)


def _ramp(height: Tensor) -> Tensor:
    """(B, 1) -> (B, 1, 64) from minus half of it to plus half of it."""
    return height[:, :, None] * torch.linspace(-0.5, 0.5, VOICE_BANDS)


def _colour(chance: Chance, mishaps: Mishaps) -> Tensor:
    """(B, 1, 64) natural log of what a microphone does to the power of each band."""
    band, uniform = torch.arange(VOICE_BANDS), chance.uniform
    gain_db = _ramp(uniform(-mishaps.tilt_db, mishaps.tilt_db))[:, 0]  # (B, 64)
    for _ in range(2):
        gain_db = gain_db + uniform(0, mishaps.bumps_db) * torch.cos(
            uniform(0.02, 0.25) * band + uniform(0, 2 * math.pi)
        )
    gain_db = gain_db - 30.0 * (chance.happens(mishaps.narrow) & (band > uniform(36, 62)))
    gain_db = gain_db - 30.0 * (chance.happens(mishaps.narrow) & (band < uniform(0, 10)))
    return gain_db[:, None] * (math.log(10) / 10)


def _masked(windows: Tensor, chance: Chance, mishaps: Mishaps) -> Tensor:
    """SpecAugment (Park 2019). A hidden stretch of time counts as not heard, as a dropout does."""
    column, band = torch.arange(VOICE_FRAMES), torch.arange(VOICE_BANDS)
    heard, kept = torch.ones(len(windows), VOICE_FRAMES), torch.ones(len(windows), VOICE_BANDS)
    for _ in range(mishaps.time_masks[0]):
        begin, length = chance.uniform(0, VOICE_FRAMES), chance.uniform(0, mishaps.time_masks[1])
        heard = heard.masked_fill((column >= begin) & (column < begin + length), 0)
    for _ in range(mishaps.band_masks[0]):
        begin, length = chance.uniform(0, VOICE_BANDS), chance.uniform(0, mishaps.band_masks[1])
        kept = kept.masked_fill((band >= begin) & (band < begin + length), 0)
    windows[:, 0] *= kept[:, :, None]
    return windows * heard[:, None, None]
