"""Sound against picture by claps or flashes: each is heard once and seen once, and a picture says when within a frame.

    seen, heard = Seen(), Heard()
    for frame in pictures: seen.add(image_bgr, frame.capture_ns)
    for frame in sound: heard.add(samples, frame.capture_ns, frame.duration_ns)
    offset = match(seen.events(), heard.events())
    offset.offset_ms                     # what is ADDED to the microphone's times; positive: the sound is stamped too early

A light that comes on during an exposure makes that picture partly as bright as the next: the share is the time within the
frame, also with a rolling shutter. Hands that stop between two pictures have moved part of the way: the same, with the
distance moved in place of the light. Either way a frame gives a step response, and all events together give the offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from calibration.pose import Floats

GRID = 12  # the picture in so many blocks each way: a lamp or two hands fill a few of them
MIN_EVENTS = 5
MAX_S = 1.0  # offsets looked for
TOGETHER_S = 0.04  # a pair of events within this of the common offset belongs together
RIVAL = 0.8  # of the votes: claps in a regular beat fit at several offsets
APART_S = 0.25  # two claps closer than this are one, with its echo
LOUD = 8.0  # times the usual level, and this share of the loudest
LOUD_SHARE = 0.2
ONSET_SHARE = 0.2  # of its peak: the sound begins
HANDS_S = 0.005  # hands slow down before they meet, and flesh gives: common to all claps, so no number of them averages it out
FLASH_SIGMAS, STILL_SIGMAS = 12.0, 6.0  # how far above its own noise a change of light, a movement counts


class SeenEvent(NamedTuple):
    """Times (s) and heights (0 before, 1 after) of the frames around a step, and how long one integrates at most."""

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
class Seen:
    """Light and movement of every picture, in blocks."""

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

    def events(self) -> list[SeenEvent]:
        """Flashes if there are any, else claps of hands."""
        if len(self.times_ns) < 10:
            return []
        times = np.array(self.times_ns) / 1e9
        return _flashes(times, np.array(self.light)) or _stops(times, np.array(self.movement))


@dataclass
class Heard:
    """The level of every millisecond."""

    times_s: list[Floats] = field(default_factory=list)
    levels: list[Floats] = field(default_factory=list)

    def add(self, samples: np.ndarray, capture_ns: int, duration_ns: int) -> None:
        if len(samples) < 2 or duration_ns <= 0:
            return
        rate_hz = len(samples) * 1e9 / duration_ns
        size = max(1, round(rate_hz / 1000))
        edge = np.diff(
            samples.astype(np.float64), prepend=float(samples[0])
        )  # high pass: a clap is sharp, a voice is not
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
        found: list[float] = []
        index = 0
        loud = np.flatnonzero(level > limit)
        while index < len(loud):
            first = loud[index]
            within = slice(first, first + 30)
            peak = first + int(np.argmax(level[within]))
            begins = first
            while begins > 0 and begins > peak - 20 and level[begins - 1] > max(ONSET_SHARE * level[peak], 2 * usual):
                begins -= 1
            found.append(float(times[begins]))
            index = int(np.searchsorted(loud, first + round(APART_S * 1000)))
        return np.array(found)


def _blocks(small: np.ndarray) -> Floats:
    side = small.shape[0] // GRID
    return np.asarray(small.reshape(GRID, side, GRID, side).mean((1, 3)).ravel(), np.float64)


def _flashes(times: Floats, light: Floats) -> list[SeenEvent]:
    """Steps up of the light, in the blocks where it steps most."""
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
    events: list[SeenEvent] = []
    for k in np.flatnonzero((height[1:-3] > limit) & (height[:-4] <= limit)) + 1:
        if events and times[k] - events[-1].times_s[2] < APART_S:
            continue
        # The step is complete one or two frames on; a flash shorter than that never reaches a plateau of its own.
        top = float(max(height[k], height[k + 1]))
        if k < 2 or height[k - 2] > 0.2 * top or not _brighter(light[k - 2], light[k], light[k + 1]):
            continue
        if height[k + 1] < 0.5 * top:  # gone again within the frame: it says which frame, no more
            around = times[k] + period * np.array([-1.0, -0.5, 0.0, 0.5])
            events.append(SeenEvent(around, np.array([0.0, 0.0, 0.5, 1.0]), period))
            continue
        near = slice(k - 2, k + 2)
        events.append(SeenEvent(times[near], np.clip(height[near] / top, 0, 1), period))
    return events


def _brighter(before: Floats, now: Floats, after: Floats) -> bool:
    """A light makes the picture brighter; something bright that moves makes other places darker."""
    change = np.where(np.abs(now - before) > np.abs(after - before), now, after) - before
    return bool(change.sum() > 0.6 * np.abs(change).sum())


def _stops(times: Floats, movement: Floats) -> list[SeenEvent]:
    """Hands that move fast and stop: the movement's fall, in all blocks where anything moves."""
    noise = 1.4826 * np.median(np.abs(movement - np.median(movement, axis=0)), axis=0) + 0.2
    peaks = _often(movement) / noise
    if peaks.max() < STILL_SIGMAS:
        return []
    series = movement[:, peaks > STILL_SIGMAS].mean(1)  # wherever anything ever moves: a hand crosses many blocks
    series = np.maximum(series - np.median(series), 0)
    period = float(np.median(np.diff(times)))
    moving = series[series > max(0.1 * float(_often(series)), 4 * float(np.median(series)))]
    limit = 0.8 * float(np.percentile(moving, 75)) if len(moving) else math.inf  # hands close faster than they open
    events: list[SeenEvent] = []
    for k in range(2, len(series) - 2):
        # k − 1 is the last interval of full speed, k the one in which it ends, k + 1 the rest.
        before, after = series[k - 1], series[k + 1]
        if before < limit or after > 0.35 * before or series[k - 1] < series[k] or series[k - 2] < 0.3 * before:
            continue
        if events and times[k] - events[-1].times_s[1] < APART_S:
            continue
        middle = (times[k - 2 : k + 2] + times[k - 3 : k + 1]) / 2 if k >= 3 else times[k - 2 : k + 2] - period / 2
        still = np.clip(1 - (series[k - 2 : k + 2] - after) / max(before - after, 1e-9), 0, 1)
        still[:2] = 0.0
        events.append(SeenEvent(middle, still, period, hands=True))
    return events


def _often(series: Floats) -> Floats:
    """What is reached MIN_EVENTS times: a maximum that one accident does not make."""
    return np.asarray(np.partition(series, -MIN_EVENTS, axis=0)[-MIN_EVENTS])


def _running_median(series: Floats, width: int = 31) -> Floats:
    padded = np.pad(series, width // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def match(seen: list[SeenEvent], heard: Floats) -> ClapOffset:
    """Pairs what was seen with what was heard, and fits the offset that explains how bright or fast each frame was."""
    nothing = ClapOffset(math.nan, math.nan, 0)
    if len(seen) < MIN_EVENTS or len(heard) < MIN_EVENTS:
        told = f"{len(seen)} claps or flashes were seen and {len(heard)} heard, {MIN_EVENTS} of both are needed"
        return nothing._replace(unknown=told)
    at = np.array([_rough(event) for event in seen])
    apart = (at[:, None] - heard[None]).ravel()
    apart = apart[np.abs(apart) < MAX_S]
    if not len(apart):
        return nothing._replace(unknown=f"nothing seen lies within {MAX_S:.0f} s of anything heard")
    votes = (np.abs(apart[:, None] - apart[None]) < TOGETHER_S).sum(1)
    common = float(np.median(apart[np.abs(apart - apart[np.argmax(votes)]) < TOGETHER_S]))
    others = votes[np.abs(apart - common) > 3 * TOGETHER_S]
    if len(others) and others.max() > RIVAL * votes.max():
        return nothing._replace(unknown="the claps come in a regular beat and fit at several offsets: clap irregularly")
    pairs = []
    for event, when in zip(seen, at, strict=True):
        nearest = heard[np.argmin(np.abs(heard + common - when))]
        if abs(nearest + common - when) < 1.5 * TOGETHER_S:
            pairs.append((event, float(nearest)))
    if len(pairs) < MIN_EVENTS:
        return nothing._replace(
            unknown=f"only {len(pairs)} of {len(seen)} that were seen were also heard, {MIN_EVENTS} are needed"
        )
    offset_s = _fitted(pairs, common)
    without = np.array([_fitted(pairs[:i] + pairs[i + 1 :], offset_s, near=True) for i in range(len(pairs))])
    n = len(pairs)
    sigma_s = math.sqrt((n - 1) / n * float(np.sum((without - without.mean()) ** 2)))
    # Frames that show nothing but before and after leave this much open, whatever the scatter says; flashes shorter than a
    # frame, anywhere in it, leave more.
    period_s, short = pairs[0][0].period_s, float(np.mean([np.any(event.heights == 0.5) for event, _ in pairs]))
    sigma_s = math.hypot(sigma_s, period_s / math.sqrt(12) / n, short * period_s / math.sqrt(12 * n))
    if pairs[0][0].hands:
        sigma_s = math.hypot(sigma_s, HANDS_S)
    return ClapOffset(1000 * offset_s, 1000 * sigma_s, n)


def _rough(event: SeenEvent) -> float:
    """When the step passes one half, by linear interpolation."""
    above = int(np.argmax(event.heights >= 0.5))
    if above == 0:
        return float(event.times_s[0])
    low, high = event.heights[above - 1], event.heights[above]
    share = (0.5 - low) / max(high - low, 1e-9)
    return float(event.times_s[above - 1] + share * (event.times_s[above] - event.times_s[above - 1]))


def _fitted(pairs: list[tuple[SeenEvent, float]], common: float, *, near: bool = False) -> float:
    """The offset whose steps fit the frames best, over all integration times from a tenth of a period to a whole one."""
    period = float(np.median([event.period_s for event, _ in pairs]))
    times = np.array([event.times_s - heard for event, heard in pairs])  # (n, 4) from the sound's beginning
    heights = np.array([event.heights for event, _ in pairs])
    reach = period / 8 if near else 1.2 * period
    offsets = common + np.arange(-reach, reach, 0.00025)
    best = (math.inf, common)
    for share in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0):
        window = share * period
        model = np.clip(0.5 + (times[None] - offsets[:, None, None]) / window, 0, 1)
        # Absolute differences: an event that was mistaken for one must not move the others.
        cost = np.abs(model - heights).sum(2)
        total = np.minimum(cost, 1.0).sum(1)
        lowest = float(total.min())
        if lowest < best[0]:
            # Often a whole stretch explains all frames equally well: its middle.
            flat = offsets[total <= lowest + 1e-6 + 0.01 * len(pairs)]
            best = (lowest, float(flat.mean()))
    return best[1]
