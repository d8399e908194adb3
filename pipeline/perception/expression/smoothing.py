"""Labels that do not flicker: a hidden Markov model over time, smoothed with a fixed lag.

An expression lasts for a while; each answer is evidence of it. With a lag of L the label reported now is that of the
moment L ago, given all answers since: L is the delay it adds. Advances by capture times alone; a rate twice as high is
not twice the evidence.

Example:
    smoother = FixedLag(labels=7, lag_ms=400)
    probs = smoother.update(probs, frame.capture_ns)      # (7,) float32, of the moment 400 ms ago
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DWELL_MS = 1500.0  # an expression's mean stay
INDEPENDENT_MS = 300.0  # answers nearer than this repeat each other: the face's own smoothing has that memory
PAUSE_MS = 2000.0  # after a longer gap the smoother starts again


class FixedLag:
    """The smoother of one stream of answers.

    Args:
        labels: Their number.
        lag_ms: How much later an answer is reported (ms, ≥ 0).
        dwell_ms: An expression's mean duration (ms, > 0).
    """

    def __init__(self, labels: int, *, lag_ms: float, dwell_ms: float = DWELL_MS) -> None:
        if lag_ms < 0 or dwell_ms <= 0:
            raise ValueError("lag_ms must be at least 0, dwell_ms above 0")
        self._labels, self.lag_ns, self._dwell_ns = labels, round(lag_ms * 1e6), dwell_ms * 1e6
        # (capture_ns, chance to have stayed since the one before, likelihood, filtered), oldest first
        self._steps: deque[tuple[int, float, npt.NDArray[np.float64], npt.NDArray[np.float64]]] = deque()

    def update(self, probs: Floats, capture_ns: int) -> Floats:
        """probs: (labels,). The same or an earlier moment changes nothing."""
        last = self._steps[-1] if self._steps else None
        if last is not None and not 0 <= capture_ns - last[0] < PAUSE_MS * 1e6:
            self._steps.clear()
            last = None
        if last is None or capture_ns > last[0]:
            elapsed_ns = capture_ns - last[0] if last else INDEPENDENT_MS * 1e6
            stays = math.exp(-elapsed_ns / self._dwell_ns)
            before = self._move(last[3], stays) if last else np.full(self._labels, 1 / self._labels)
            likelihood = np.maximum(probs.astype(np.float64), 1e-6) ** min(1.0, elapsed_ns / (INDEPENDENT_MS * 1e6))
            now = before * likelihood
            self._steps.append((capture_ns, stays, likelihood, now / now.sum()))
            while len(self._steps) > 1 and self._steps[1][0] <= capture_ns - self.lag_ns:
                self._steps.popleft()
        return self._smoothed()

    def _smoothed(self) -> Floats:
        """The oldest remembered step, given all later ones."""
        later = np.ones(self._labels)
        steps = list(self._steps)
        for _, stays, likelihood, _ in reversed(steps[1:]):
            later = self._move(later * likelihood, stays)
            later /= later.sum()
        smoothed = steps[0][3] * later
        return np.asarray(smoothed / smoothed.sum(), np.float32)

    def _move(self, belief: npt.NDArray[np.float64], stays: float) -> npt.NDArray[np.float64]:
        """An expression that ends is followed by any other with equal chance; the matrix is symmetric, so it serves
        backwards too."""
        return np.asarray(stays * belief + (1 - stays) * belief.sum() / self._labels)


def towards(
    before: npt.NDArray[np.float32], now: npt.NDArray[np.float32], elapsed_ns: int, constant_ns: float
) -> npt.NDArray[np.float32]:
    """Exponential mean after `elapsed_ns` of `now`: how much counts depends on the time between frames, not on their
    number."""
    share = 1.0 if constant_ns <= 0 else 1 - math.exp(-elapsed_ns / constant_ns)
    return np.asarray(before + np.float32(share) * (now - before), dtype=np.float32)
