"""Sound against picture by claps or flashes: events that are both visible and audible, timed to a fraction of a frame.

A light that comes on during an exposure makes that picture partly as bright as the next: the share is the time within
the frame, also with a rolling shutter. Hands that stop between two pictures have moved part of the way: the same holds
for movement instead of light. Either way a frame gives a step response, and all events together give the offset.

Example:
    pictures, microphone = FlashDetector(), ClapDetector()
    for frame in camera_frames: pictures.add(image_bgr, frame.capture_ns)
    for frame in sound_frames: microphone.add(samples, frame.capture_ns, frame.duration_ns)
    offset = match(pictures.events(), microphone.events())
    offset.offset_ms        # ADDED to the microphone's times; positive: the sound's timestamps are too early
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from calibration.pose import Floats

GRID = 12  # blocks of the picture in each direction: a lamp or two hands fill a few of them
MIN_EVENTS = 5
MAX_S = 1.0  # largest offset that is searched
TOGETHER_S = 0.04  # a pair of events within this of the common offset belongs together
RIVAL = 0.8  # share of the best offset's votes that makes another one ambiguous: a regular beat fits at several offsets
APART_S = 0.25  # two claps closer than this are one and its echo
LOUD = 8.0  # times the usual level, and this share of the loudest
LOUD_SHARE = 0.2
ONSET_SHARE = 0.2  # of its peak: where the sound begins
# Hands slow down before they meet: an error common to all claps, so averaging does not reduce it.
HANDS_S = 0.005
FLASH_SIGMAS, STILL_SIGMAS = 12.0, 6.0  # noise levels that a change of light, or a movement, must exceed


class VisualEvent(NamedTuple):
    """Times (s) and heights (0 before, 1 after) of the frames around a step, and the longest integration time."""

    times_s: Floats
    heights: Floats
    period_s: float
    hands: bool = False


class ClapOffset(NamedTuple):
    offset_ms: float
    sigma_ms: float
    events: int
    unknown: str = ""

    @property
    def interval_ms(self) -> tuple[float, float]:
        half = 2.1 * self.sigma_ms  # 95 % of a t distribution with some 20 degrees of freedom
        return self.offset_ms - half, self.offset_ms + half


@dataclass
class FlashDetector:
    """Brightness and movement of every picture, in blocks; detects flashes of light, or hands that stop."""

    times_ns: list[int] = field(default_factory=list)
    light: list[Floats] = field(default_factory=list)  # (GRID²,) mean grey of each block
    movement: list[Floats] = field(default_factory=list)  # mean change since the picture before
    _before: np.ndarray | None = None

    def add(self, image: np.ndarray, capture_ns: int) -> None:
        """image: (h, w, 3) or (h, w) uint8."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        small = cv2.resize(grey, (GRID * 8, GRID * 8), interpolation=cv2.INTER_AREA).astype(np.float32)
        change = np.abs(small - self._before) if self._before is not None else np.zeros_like(small)
        self._before = small
        self.times_ns.append(capture_ns)
        self.light.append(_blocks(small))
        self.movement.append(_blocks(change))

    def events(self) -> list[VisualEvent]:
        """Flashes if there are any, else claps of hands."""
        if len(self.times_ns) < 10:
            return []
        times = np.array(self.times_ns) / 1e9
        return _flashes(times, np.array(self.light)) or _stops(times, np.array(self.movement))


@dataclass
class ClapDetector:
    """The sound level of every millisecond; detects sharp sounds."""

    times_s: list[Floats] = field(default_factory=list)
    levels: list[Floats] = field(default_factory=list)

    def add(self, samples: np.ndarray, capture_ns: int, duration_ns: int) -> None:
        if len(samples) < 2 or duration_ns <= 0:
            return
        rate_hz = len(samples) * 1e9 / duration_ns
        size = max(1, round(rate_hz / 1000))
        edge = np.diff(
            samples.astype(np.float64), prepend=float(samples[0])
        )  # high pass: a clap has a sharp onset, a voice does not
        count = len(samples) // size
        if not count:
            return
        level = np.abs(edge[: count * size]).reshape(count, size).max(1)
        self.times_s.append(np.asarray(capture_ns / 1e9 + (np.arange(count) + 0.5) * size / rate_hz))
        self.levels.append(np.asarray(level, np.float64))

    def events(self) -> Floats:
        """(n,) seconds at which a sharp sound began."""
        if not self.levels:
            return np.empty(0)
        times, level = np.concatenate(self.times_s), np.concatenate(self.levels)
        usual = float(np.median(level)) + 1e-7
        limit = max(LOUD * usual, LOUD_SHARE * float(np.percentile(level, 99.9)))
        onsets: list[float] = []
        index = 0
        loud = np.flatnonzero(level > limit)
        while index < len(loud):
            first = loud[index]
            within = slice(first, first + 30)
            peak = first + int(np.argmax(level[within]))
            begins = first
            while begins > 0 and begins > peak - 20 and level[begins - 1] > max(ONSET_SHARE * level[peak], 2 * usual):
                begins -= 1
            onsets.append(float(times[begins]))
            index = int(np.searchsorted(loud, first + round(APART_S * 1000)))
        return np.array(onsets)


def _blocks(small: np.ndarray) -> Floats:
    side = small.shape[0] // GRID
    return np.asarray(small.reshape(GRID, side, GRID, side).mean((1, 3)).ravel(), np.float64)


def _flashes(times: Floats, light: Floats) -> list[VisualEvent]:
    """Sudden increases of brightness, in the blocks where they are largest."""
    rise = np.diff(light, axis=0)
    noise = 1.4826 * np.median(np.abs(rise), axis=0) + 0.3
    strength = _often(rise) / noise
    if strength.max() < FLASH_SIGMAS:
        return []
    lit = strength > 0.5 * strength.max()
    series = light[:, lit].mean(1)
    period = float(np.median(np.diff(times)))
    base = _running_median(series)
    height = series - base
    limit = 0.3 * float(_often(height))
    if limit < FLASH_SIGMAS * float(np.median(noise)) / 4:
        return []
    events: list[VisualEvent] = []
    for k in np.flatnonzero((height[1:-3] > limit) & (height[:-4] <= limit)) + 1:
        if events and times[k] - events[-1].times_s[2] < APART_S:
            continue
        # The step is complete after one or two frames; a shorter flash never reaches a plateau.
        top = float(max(height[k], height[k + 1]))
        if k < 2 or height[k - 2] > 0.2 * top or not _brighter(light[k - 2], light[k], light[k + 1]):
            continue
        if height[k + 1] < 0.5 * top:  # over within the frame: it identifies the frame, but no time within it
            around = times[k] + period * np.array([-1.0, -0.5, 0.0, 0.5])
            events.append(VisualEvent(around, np.array([0.0, 0.0, 0.5, 1.0]), period))
            continue
        near = slice(k - 2, k + 2)
        events.append(VisualEvent(times[near], np.clip(height[near] / top, 0, 1), period))
    return events


def _brighter(before: Floats, now: Floats, after: Floats) -> bool:
    """Whether the picture becomes brighter as a whole; a bright object that moves makes other places darker."""
    change = np.where(np.abs(now - before) > np.abs(after - before), now, after) - before
    return bool(change.sum() > 0.6 * np.abs(change).sum())


def _stops(times: Floats, movement: Floats) -> list[VisualEvent]:
    """Hands that move fast and stop: where movement falls, in all blocks in which anything moves."""
    noise = 1.4826 * np.median(np.abs(movement - np.median(movement, axis=0)), axis=0) + 0.2
    peaks = _often(movement) / noise
    if peaks.max() < STILL_SIGMAS:
        return []
    series = movement[:, peaks > STILL_SIGMAS].mean(1)  # all blocks with any movement: a hand crosses many of them
    series = np.maximum(series - np.median(series), 0)
    period = float(np.median(np.diff(times)))
    moving = series[series > max(0.1 * float(_often(series)), 4 * float(np.median(series)))]
    limit = 0.8 * float(np.percentile(moving, 75)) if len(moving) else math.inf  # hands close faster than they open
    events: list[VisualEvent] = []
    for k in range(2, len(series) - 2):
        # k − 1 is the last interval of full speed, k the one in which the movement ends, k + 1 the one after.
        before, after = series[k - 1], series[k + 1]
        if before < limit or after > 0.35 * before or series[k - 1] < series[k] or series[k - 2] < 0.3 * before:
            continue
        if events and times[k] - events[-1].times_s[1] < APART_S:
            continue
        middle = (times[k - 2 : k + 2] + times[k - 3 : k + 1]) / 2 if k >= 3 else times[k - 2 : k + 2] - period / 2
        still = np.clip(1 - (series[k - 2 : k + 2] - after) / max(before - after, 1e-9), 0, 1)
        still[:2] = 0.0
        events.append(VisualEvent(middle, still, period, hands=True))
    return events


def _often(series: Floats) -> Floats:
    """The value that is reached MIN_EVENTS times: a maximum that a single outlier does not determine."""
    return np.asarray(np.partition(series, -MIN_EVENTS, axis=0)[-MIN_EVENTS])


def _running_median(series: Floats, width: int = 31) -> Floats:
    padded = np.pad(series, width // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def match(visual: list[VisualEvent], sounds_s: Floats) -> ClapOffset:
    """Pairs visible with audible events, and fits the offset that explains the brightness or speed in each frame.

    sounds_s: (n,) seconds.
    """
    nothing = ClapOffset(math.nan, math.nan, 0)
    if len(visual) < MIN_EVENTS or len(sounds_s) < MIN_EVENTS:
        counts = f"{len(visual)} claps or flashes in the picture, {len(sounds_s)} in the sound"
        reason = f"{counts}; {MIN_EVENTS} of each are needed"
        return nothing._replace(unknown=reason)
    at = np.array([_rough(event) for event in visual])
    apart = (at[:, None] - sounds_s[None]).ravel()
    apart = apart[np.abs(apart) < MAX_S]
    if not len(apart):
        return nothing._replace(unknown=f"no event in the picture lies within {MAX_S:.0f} s of one in the sound")
    votes = (np.abs(apart[:, None] - apart[None]) < TOGETHER_S).sum(1)
    common = float(np.median(apart[np.abs(apart - apart[np.argmax(votes)]) < TOGETHER_S]))
    others = votes[np.abs(apart - common) > 3 * TOGETHER_S]
    if len(others) and others.max() > RIVAL * votes.max():
        return nothing._replace(unknown="the claps come in a regular beat and fit at several offsets: clap irregularly")
    pairs = []
    for event, when in zip(visual, at, strict=True):
        nearest = sounds_s[np.argmin(np.abs(sounds_s + common - when))]
        if abs(nearest + common - when) < 1.5 * TOGETHER_S:
            pairs.append((event, float(nearest)))
    if len(pairs) < MIN_EVENTS:
        return nothing._replace(
            unknown=f"only {len(pairs)} of {len(visual)} events in the picture match a sound, {MIN_EVENTS} are needed"
        )
    offset_s = _fitted(pairs, common)
    without = np.array([_fitted(pairs[:i] + pairs[i + 1 :], offset_s, near=True) for i in range(len(pairs))])
    n = len(pairs)
    sigma_s = math.sqrt((n - 1) / n * float(np.sum((without - without.mean()) ** 2)))
    # Even without scatter, frames that only show before and after leave this uncertainty; flashes shorter than a frame
    # leave more.
    period_s, short = pairs[0][0].period_s, float(np.mean([np.any(event.heights == 0.5) for event, _ in pairs]))
    sigma_s = math.hypot(sigma_s, period_s / math.sqrt(12) / n, short * period_s / math.sqrt(12 * n))
    if pairs[0][0].hands:
        sigma_s = math.hypot(sigma_s, HANDS_S)
    return ClapOffset(1000 * offset_s, 1000 * sigma_s, n)


def _rough(event: VisualEvent) -> float:
    """Time (s) at which the step passes one half, by linear interpolation."""
    above = int(np.argmax(event.heights >= 0.5))
    if above == 0:
        return float(event.times_s[0])
    low, high = event.heights[above - 1], event.heights[above]
    share = (0.5 - low) / max(high - low, 1e-9)
    return float(event.times_s[above - 1] + share * (event.times_s[above] - event.times_s[above - 1]))


def _fitted(pairs: list[tuple[VisualEvent, float]], common: float, *, near: bool = False) -> float:
    """The offset (s) whose steps fit the frames best, over integration times from a tenth to a whole period."""
    period = float(np.median([event.period_s for event, _ in pairs]))
    times = np.array([event.times_s - sound_s for event, sound_s in pairs])  # (n, 4) since the onset of the sound
    heights = np.array([event.heights for event, _ in pairs])
    reach = period / 8 if near else 1.2 * period
    offsets = common + np.arange(-reach, reach, 0.00025)
    best = (math.inf, common)
    for share in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0):
        window = share * period
        model = np.clip(0.5 + (times[None] - offsets[:, None, None]) / window, 0, 1)
        # Absolute differences: a false event must not move the others.
        cost = np.abs(model - heights).sum(2)
        total = np.minimum(cost, 1.0).sum(1)
        lowest = float(total.min())
        if lowest < best[0]:
            # Often a whole interval explains all frames equally well: take its middle.
            flat = offsets[total <= lowest + 1e-6 + 0.01 * len(pairs)]
            best = (lowest, float(flat.mean()))
    return best[1]
