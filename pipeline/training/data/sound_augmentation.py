"""Draws augmented training windows of clips: another speaker, another room, another microphone, noise and masks.

A window ends anywhere in the speech of its clip. The augmentation works on power spectra, where a filter multiplies,
noise adds and reverberation smears; the window then passes preprocessing.voice_columns, as live. B is the batch.

Example:
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

QUIET = -23.0  # log power of a silent column
BEFORE, AFTER = 10, 25  # columns before the first and after the last decision of a clip where a window may end
ROOM_COLUMNS = 64  # reverberation is cut off after 0.64 s
COLUMN_S = VOICE_HOP / VOICE_RATE_HZ
# Exponentially distributed power of noise in one bin around its mean. Drawn once; a window starts anywhere in it.
FLUTTER = torch.empty(20_000, VOICE_BANDS).exponential_(1.0, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Augmentation:
    """How often a window is changed, and how much; levels in dB, times in seconds."""

    pace: tuple[float, float] = (0.9, 1.12)  # columns of the clip per column of the window
    warp: tuple[float, float] = (0.92, 1.08)  # bands: another vocal tract length
    tilt_db: float = 5.0  # from the lowest to the highest band
    bumps_db: float = 2.5
    narrow: float = 0.04  # share of windows without the highest bands, and share without the lowest
    room: float = 0.2
    room_s: tuple[float, float] = (0.2, 0.8)  # time to fall by 60 dB
    room_db: tuple[float, float] = (0.0, 12.0)  # direct sound above reverberation
    noisy: float = 0.3
    noise_db: tuple[float, float] = (10.0, 40.0)  # loudest tenth of the columns above the noise
    calm_db: tuple[float, float] = (55.0, 90.0)  # the same for the other windows
    silence_before: float = 0.4  # share of windows with silence, instead of nothing received, before the clip
    short: float = 0.15  # share with only the last 1 to 3 s valid
    time_masks: tuple[int, int] = (1, 15)  # number, and maximum columns of each
    band_masks: tuple[int, int] = (0, 8)


@dataclass(frozen=True)
class BatchRandom:
    """Random numbers for each window of a batch."""

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


VOICE_AUGMENTATION = Augmentation()


def draw(
    speech: Speech, clips: Tensor, generator: torch.Generator, augmentation: Augmentation = VOICE_AUGMENTATION
) -> Tensor:
    """clips: (B,) index into `speech`. Returns (B, 2, 64, 300)."""
    random = BatchRandom(len(clips), generator)
    mel, valid = _stretch(speech, clips, random, augmentation)  # (B, 300, 64), (B, 300)
    power = torch.exp(mel)
    power = torch.where(random.happens(augmentation.room)[:, None], _in_a_room(power, random, augmentation), power)
    power = power * torch.exp(_colour(random, augmentation))
    loudest = power.mean(2).topk(VOICE_FRAMES // 10, 1).values.mean(1)  # (B,)
    below_db = torch.where(
        random.happens(augmentation.noisy),
        random.uniform(*augmentation.noise_db),
        random.uniform(*augmentation.calm_db),
    )
    flutter = FLUTTER[random.below(len(FLUTTER) - VOICE_FRAMES)[:, None] + torch.arange(VOICE_FRAMES)]
    noise = loudest[:, None] * 10 ** (-below_db / 10)
    mel = torch.log(power + noise[:, :, None] * torch.exp(_ramp(random.uniform(-2, 2))) * flutter + 1e-10)
    valid = valid | random.happens(augmentation.silence_before)
    length = torch.where(
        random.happens(augmentation.short), random.uniform(VOICE_FRAMES / 3, VOICE_FRAMES), VOICE_FRAMES
    )
    valid = valid & (torch.arange(VOICE_FRAMES) >= VOICE_FRAMES - length)
    columns = mel.transpose(1, 2).numpy()  # (B, 64, 300)
    windows = torch.from_numpy(np.stack([voice_columns(m, h) for m, h in zip(columns, valid.numpy(), strict=True)]))
    return _masked(windows, random, augmentation)


def _stretch(speech: Speech, clips: Tensor, random: BatchRandom, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """A part of each clip, resampled in time and frequency.

    Returns (B, 300, 64) log power and (B, 300), False before the clip starts.
    """
    which = random.below(len(SPEEDS))
    first, count = (torch.from_numpy(a)[clips, which] for a in (speech.first, speech.count))
    early, late = (torch.from_numpy(a)[clips] for a in span(speech))
    faster = torch.tensor(SPEEDS)[which]
    low, high = (early - BEFORE) / faster, torch.minimum((late + AFTER) / faster, count.float())
    end = (low + (high - low).clamp(min=0) * random.uniform(0, 1)[:, 0])[:, None]  # (B, 1)
    at = end - 1 - torch.arange(VOICE_FRAMES - 1, -1, -1) * random.uniform(*augmentation.pace)
    before = torch.minimum(at.clamp(min=0).floor().long(), count[:, None] - 2)
    share = (at - before).clamp(0, 1)[:, :, None]
    stored = torch.from_numpy(speech.mel)
    rows = first[:, None] + before
    mel = torch.lerp(stored[rows].float(), stored[rows + 1].float(), share)  # (B, 300, 64)
    started = at >= 0
    mel = torch.where(started[:, :, None], mel, QUIET)
    band = (torch.arange(VOICE_BANDS) * random.uniform(*augmentation.warp)).clamp(max=VOICE_BANDS - 1.001)  # (B, 64)
    lower = band.floor().long()
    below, above = (mel.gather(2, at[:, None].expand(-1, VOICE_FRAMES, -1)) for at in (lower, lower + 1))
    return torch.lerp(below, above, (band - lower)[:, None]), started


def span(speech: Speech) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) columns received at the first and at the last decision of each clip."""
    starts = np.searchsorted(speech.due_clip, np.arange(len(speech)))
    ends = np.searchsorted(speech.due_clip, np.arange(len(speech)), side="right") - 1
    return speech.due[starts], speech.due[ends]


def _in_a_room(power: Tensor, random: BatchRandom, augmentation: Augmentation) -> Tensor:
    """Reverberation: an exponentially decaying recursive filter over time, computed by doubling its reach."""
    decay = torch.exp(-math.log(1e6) * COLUMN_S / random.uniform(*augmentation.room_s))[:, :, None]
    tail, reach = power.clone(), 1
    while reach < ROOM_COLUMNS:
        tail[:, reach:] += decay**reach * tail[:, :-reach].clone()
        reach *= 2
    below = 10 ** (-random.uniform(*augmentation.room_db) / 10)[:, :, None]
    room = below * (1 - decay) * tail
    return torch.cat([power[:, :1], power[:, 1:] + room[:, :-1]], 1)


def _ramp(height: Tensor) -> Tensor:
    """(B, 1) -> (B, 1, 64) a line over the bands from minus half to plus half of `height`."""
    return height[:, :, None] * torch.linspace(-0.5, 0.5, VOICE_BANDS)


def _colour(random: BatchRandom, augmentation: Augmentation) -> Tensor:
    """(B, 1, 64) natural log of the power gain of a random microphone in each band."""
    band, uniform = torch.arange(VOICE_BANDS), random.uniform
    gain_db = _ramp(uniform(-augmentation.tilt_db, augmentation.tilt_db))[:, 0]  # (B, 64)
    for _ in range(2):
        gain_db = gain_db + uniform(0, augmentation.bumps_db) * torch.cos(
            uniform(0.02, 0.25) * band + uniform(0, 2 * math.pi)
        )
    gain_db = gain_db - 30.0 * (random.happens(augmentation.narrow) & (band > uniform(36, 62)))
    gain_db = gain_db - 30.0 * (random.happens(augmentation.narrow) & (band < uniform(0, 10)))
    return gain_db[:, None] * (math.log(10) / 10)


def _masked(windows: Tensor, random: BatchRandom, augmentation: Augmentation) -> Tensor:
    """SpecAugment (Park 2019). Masked time counts as not received, as a dropout does."""
    column, band = torch.arange(VOICE_FRAMES), torch.arange(VOICE_BANDS)
    valid, bands = torch.ones(len(windows), VOICE_FRAMES), torch.ones(len(windows), VOICE_BANDS)
    for _ in range(augmentation.time_masks[0]):
        begin, length = random.uniform(0, VOICE_FRAMES), random.uniform(0, augmentation.time_masks[1])
        valid = valid.masked_fill((column >= begin) & (column < begin + length), 0)
    for _ in range(augmentation.band_masks[0]):
        begin, length = random.uniform(0, VOICE_BANDS), random.uniform(0, augmentation.band_masks[1])
        bands = bands.masked_fill((band >= begin) & (band < begin + length), 0)
    windows[:, 0] *= bands[:, :, None]
    return windows * valid[:, None, None]
