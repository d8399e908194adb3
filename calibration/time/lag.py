"""The lag of one signal behind another: the peak of their cross-correlation with its interval, or why it is unknown.

Pure: series in, a Lag out. Chance is judged by Bartlett's formula, because smooth signals correlate by chance far more
often than noise does. The interval comes from leaving out one block of time after the other (jackknife).

Example:
    lag = find_lag(mouth, voice, max_s=0.5)
    lag.offset_ms, lag.sigma_ms          # ADDED to the second signal's times to align it with the first
    lag.unknown                          # "" or the reason why the numbers must not be used
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from calibration.pose import Floats

STEP_S = 0.005
BLOCKS = 10
STUDENT = 2.26  # 95 % of a t distribution with BLOCKS − 1 degrees of freedom
MIN_S = 5.0  # overlap of both signals
CHANCE_SIGMAS = 4.5  # one lag is searched among about a hundred independent ones: 3e-6 each
RIVAL = 0.75  # relative height of another peak that makes the lag ambiguous
VAGUE_MS = 60.0  # half width of an interval that is too wide to be useful
SLOW_S = 1.5  # slower changes are light, pose and volume, not the signal
GAP_S = 0.5  # a longer time without a sample is a gap in the signal


class Series(NamedTuple):
    """times_s: (n,) rising, values: (n,)."""

    times_s: Floats
    values: Floats


class Lag(NamedTuple):
    offset_ms: float
    sigma_ms: float
    correlation: float  # at the peak
    unknown: str = ""

    @property
    def interval_ms(self) -> tuple[float, float]:
        """95 %."""
        half = STUDENT * self.sigma_ms
        return self.offset_ms - half, self.offset_ms + half


NOTHING = Lag(math.nan, math.nan, 0.0)


def find_lag(first: Series, second: Series, *, max_s: float = 0.5) -> Lag:
    """max_s: lags from −max_s to max_s are searched. Rates and gaps of the two signals may differ."""
    if len(first.times_s) < 10 or len(second.times_s) < 10:
        return NOTHING._replace(unknown="one of the two signals is missing")
    begin = max(first.times_s[0], second.times_s[0]) - max_s
    end = min(first.times_s[-1], second.times_s[-1]) + max_s
    if end - begin - 2 * max_s < MIN_S:
        return NOTHING._replace(
            unknown=f"the two overlap for {max(0.0, end - begin - 2 * max_s):.1f} s, {MIN_S:.0f} s are needed"
        )
    grid = np.arange(begin, end, STEP_S)
    a, a_there = _sampled(first, grid)
    b, b_there = _sampled(second, grid)
    if not a.any() or not b.any():
        return NOTHING._replace(unknown=f"the {'first' if not a.any() else 'second'} signal never changes")
    reach = round(max_s / STEP_S)
    products, energy_a, energy_b = _by_block(a, b, a_there, b_there, reach)
    curve = _curve(products.sum(0), energy_a.sum(0), energy_b.sum(0))
    peak = int(np.argmax(curve))
    height = float(curve[peak])
    sigmas = height / _chance(a, b)  # relative to chance
    lag_s = _refined(curve, peak)
    lag = NOTHING._replace(offset_ms=1000 * (lag_s - reach) * STEP_S, correlation=height)
    if peak in (0, len(curve) - 1):
        return lag._replace(unknown=f"the best agreement lies at the end of the searched range, ±{1000 * max_s:.0f} ms")
    if sigmas < CHANCE_SIGMAS:
        return lag._replace(
            unknown=f"the signals agree no better than by chance "
            f"(correlation {height:.2f}, {sigmas:.1f} of {CHANCE_SIGMAS} σ)"
        )
    if (rival := _rival(curve, peak)) > RIVAL * height:
        return lag._replace(
            unknown=f"another lag fits nearly as well (correlation {rival:.2f} of {height:.2f}): the signal repeats"
        )
    without = []
    for out in range(BLOCKS):
        keep = np.arange(BLOCKS) != out
        part = _curve(products[keep].sum(0), energy_a[keep].sum(0), energy_b[keep].sum(0))
        without.append(_refined(part, int(np.argmax(part))) * STEP_S * 1000)
    sigma_ms = math.sqrt((BLOCKS - 1) / BLOCKS * float(np.sum((np.array(without) - np.mean(without)) ** 2)))
    # The resolution of the grid: if blocks agree by chance the interval must not vanish.
    sigma_ms = math.hypot(sigma_ms, 1000 * STEP_S / math.sqrt(12))
    lag = lag._replace(sigma_ms=sigma_ms)
    if STUDENT * sigma_ms > VAGUE_MS:
        return lag._replace(
            unknown=f"parts of the session disagree: the lag is only known to ±{STUDENT * sigma_ms:.0f} ms"
        )
    return lag


def _sampled(series: Series, grid: Floats) -> tuple[Floats, Floats]:
    """(values without their slow part, 1 where there are samples else 0), on the grid."""
    times, values = series
    at = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    there = (times[at] - times[at - 1] < GAP_S) & (grid >= times[0]) & (grid <= times[-1])
    mask = there.astype(np.float64)
    sampled = np.interp(grid, times, values) * mask
    width = round(SLOW_S / STEP_S) | 1
    window = np.hanning(width + 2)[1:-1]
    weight = np.maximum(np.convolve(mask, window, "same"), 1e-9)
    fast = (sampled - np.convolve(sampled, window, "same") / weight) * mask
    spread = fast.std()
    # A few huge values (a cut, a clap) must not dominate.
    return (np.clip(fast / spread, -4, 4) if spread > 1e-9 else np.zeros_like(fast)), mask


def _by_block(a: Floats, b: Floats, a_there: Floats, b_there: Floats, reach: int) -> tuple[Floats, Floats, Floats]:
    """Sums of a·b, a² and b² of each block of time, (BLOCKS, 2·reach + 1) by lag of b, where both have samples."""
    edges = np.linspace(reach, len(a) - reach, BLOCKS + 1).astype(int)
    out = np.zeros((3, BLOCKS, 2 * reach + 1))
    for column, lag in enumerate(range(-reach, reach + 1)):
        moved, moved_there = b[reach - lag : len(b) - reach - lag], b_there[reach - lag : len(b) - reach - lag]
        here, here_there = a[reach : len(a) - reach], a_there[reach : len(a) - reach]
        for row, values in enumerate((here * moved, here**2 * moved_there, moved**2 * here_there)):
            out[row, :, column] = np.add.reduceat(values, edges[:-1] - reach)
    return out[0], out[1], out[2]


def _curve(products: Floats, energy_a: Floats, energy_b: Floats) -> Floats:
    return products / np.sqrt(np.maximum(energy_a * energy_b, 1e-12))


def _chance(a: Floats, b: Floats) -> float:
    """Standard deviation of the correlation of two unrelated signals as smooth as these (Bartlett 1946)."""
    n, most = len(a), min(len(a) // 2, round(2.0 / STEP_S))

    def auto(x: Floats) -> Floats:
        power = np.abs(np.fft.rfft(x, 2 * n)) ** 2
        correlation = np.fft.irfft(power)[:most]
        return correlation / correlation[0]

    return math.sqrt(max(1.0, 1 + 2 * float(np.sum(auto(a)[1:] * auto(b)[1:]))) / n)


def _refined(curve: Floats, peak: int) -> float:
    """Fractional index of the peak, by a parabola through its top."""
    half = 4  # ±20 ms: the top of a peak that is 100 ms wide
    low, high = max(0, peak - half), min(len(curve), peak + half + 1)
    if high - low < 3:
        return float(peak)
    x = np.arange(low, high) - peak
    square, slope, _ = np.polyfit(x, curve[low:high], 2)
    if square >= 0:
        return float(peak)
    return peak + float(np.clip(-slope / (2 * square), -half, half))


def _rival(curve: Floats, peak: int) -> float:
    """The highest other maximum that is separated from the peak by a valley."""
    left, right = peak, peak
    floor = 0.5 * curve[peak]
    while left > 0 and curve[left] > floor:
        left -= 1
    while right < len(curve) - 1 and curve[right] > floor:
        right += 1
    rest = np.concatenate([curve[:left], curve[right + 1 :]])
    return float(rest.max(initial=0.0))
