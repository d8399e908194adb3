"""Clocks: who says what time it is, and how a device's own stamps become times on the host's monotonic clock.

A node is given its clock and never asks the system for the time, so that tests and replay own time.

    clock = LiveClock(start_ns=begin)
    clock.sleep_until(clock.start_ns + pts_ns)
    capture_ns = sample_clock.stamp(first_index=n, count=320, arrival_ns=clock.now_ns())
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

NS = 1_000_000_000


class Clock(Protocol):
    """start_ns: the moment the run began; a file source's capture_ns is start_ns + its own time stamp."""

    start_ns: int

    def now_ns(self) -> int: ...

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        """Wait until `when_ns`. Returns False when `interrupt` was set before that."""
        ...


class LiveClock:
    """The host's monotonic clock, which all processes of one host share."""

    def __init__(self, start_ns: int | None = None) -> None:
        self.start_ns = time.monotonic_ns() if start_ns is None else start_ns

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        while (left_ns := when_ns - time.monotonic_ns()) > 0:
            if interrupt is None:
                time.sleep(left_ns / NS)
            elif interrupt.wait(left_ns / NS):
                return False
        return interrupt is None or not interrupt.is_set()


class ManualClock:
    """Time that moves only when told to: for tests. Sleeping moves it."""

    def __init__(self, start_ns: int = 0) -> None:
        self.start_ns = start_ns
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, by_ns: int) -> None:
        self._now_ns += by_ns

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        self._now_ns = max(self._now_ns, when_ns)
        return interrupt is None or not interrupt.is_set()


class SampleClock:
    """Sample index → capture time, for a device that counts samples evenly and delivers them with jitter.

    A callback can be late but never early, so of each block of stamps only the least delayed one is kept, and a line
    (offset and rate) is fitted through the kept ones by least squares. The window forgets, so a wandering rate is
    followed. Single stamps are never trusted.
    """

    BLOCK_NS = NS // 2
    WINDOW_BLOCKS = 60
    # Sound cards are within ±200 ppm of their nominal rate; beyond twice that the fit is being fooled by a burst.
    MAX_RATE_ERROR = 400e-6
    # A jump this large is a lost buffer or a suspended host, not jitter: start over rather than smear it.
    STEP_NS = 200_000_000

    def __init__(self, sample_rate_hz: float) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.steps = 0  # how often the stamps jumped
        self._reset()

    def _reset(self) -> None:
        self._kept: deque[tuple[int, float]] = deque(maxlen=self.WINDOW_BLOCKS)  # (index, least delayed offset, ns)
        self._block: tuple[int, float] | None = None
        self._block_start = 0
        self._origin: int | None = None
        self._intercept_ns = 0.0
        self._slope = 0.0  # relative rate error: −50e-6 is a clock 50 ppm slow
        self._spread_ns = 0.0
        self._behind = 0

    def stamp(self, *, first_index: int, count: int, arrival_ns: int) -> int:
        """Capture time (ns) of sample `first_index`, of a chunk of `count` samples whose *last* sample arrived at `arrival_ns`."""
        nominal_ns = (first_index + count) * NS / self.sample_rate_hz
        if self._origin is None:
            self._origin = arrival_ns - round(nominal_ns)
        offset_ns = float(arrival_ns - self._origin) - nominal_ns
        expected_ns = self._offset_at(first_index + count)
        if self._kept and abs(offset_ns - expected_ns) > self.STEP_NS:
            # One late callback is jitter; half a second of them is a step.
            self._behind += count
            if self._behind > self.sample_rate_hz / 2 or offset_ns < expected_ns:
                self.steps += 1
                self._reset()
                return self.stamp(first_index=first_index, count=count, arrival_ns=arrival_ns)
        else:
            self._behind = 0
            self._observe(first_index + count, offset_ns)
        at_first_ns = first_index * NS / self.sample_rate_hz + self._offset_at(first_index)
        return self._origin + round(at_first_ns)

    @property
    def rate_error(self) -> float:
        """Fitted relative error of the device's rate: true rate ≈ nominal × (1 + rate_error)."""
        return -self._slope

    @property
    def error_ns(self) -> int:
        """Bound on the fit's own error: the spread of the least delayed stamps around the line."""
        return round(2 * self._spread_ns)

    def _observe(self, index: int, offset_ns: float) -> None:
        block_samples = self.sample_rate_hz * self.BLOCK_NS / NS
        if self._block is None or index - self._block_start >= block_samples:
            if self._block is not None:
                self._kept.append(self._block)
            self._block, self._block_start = (index, offset_ns), index
        elif offset_ns < self._block[1]:
            self._block = (index, offset_ns)
        else:
            return
        self._fit()

    def _fit(self) -> None:
        points = [*self._kept, self._block] if self._block else list(self._kept)
        if len(points) < 6:  # 3 s: before that a slope would be noise
            self._slope, self._intercept_ns = 0.0, min(offset for _, offset in points)
            self._spread_ns = max(offset for _, offset in points) - self._intercept_ns
            return
        n = len(points)
        mean_t = sum(i for i, _ in points) / n * NS / self.sample_rate_hz
        mean_o = sum(o for _, o in points) / n
        var = cov = 0.0
        for index, offset in points:
            dt = index * NS / self.sample_rate_hz - mean_t
            var += dt * dt
            cov += dt * (offset - mean_o)
        self._slope = max(-self.MAX_RATE_ERROR, min(self.MAX_RATE_ERROR, cov / var))
        self._intercept_ns = mean_o - self._slope * mean_t
        residuals = sorted(abs(o - self._offset_at(i)) for i, o in points)
        self._spread_ns = residuals[int(0.9 * (n - 1))]

    def _offset_at(self, index: int) -> float:
        return self._intercept_ns + self._slope * index * NS / self.sample_rate_hz


class PtsClock:
    """Presentation time stamps of a network stream → host time.

    The steps of PTS are right but their epoch is arbitrary, and arrival is capture plus a delay that jitters but has a
    floor. The least delayed frame of the last seconds ties the two together.
    """

    WINDOW_NS = 10 * NS
    STEP_NS = NS  # PTS that jump by more than this against arrival have been restarted

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()  # (arrival, arrival − pts), rising in the second: a running minimum
        self.steps = 0

    def stamp(self, pts_ns: int, arrival_ns: int) -> int:
        """Host time of the frame with `pts_ns` that arrived at `arrival_ns`; never later than its arrival."""
        offset_ns = arrival_ns - pts_ns
        if self._seen and abs(offset_ns - self._seen[0][1]) > self.STEP_NS:
            self.steps += 1
            self._seen.clear()
        while self._seen and self._seen[-1][1] >= offset_ns:
            self._seen.pop()
        self._seen.append((arrival_ns, offset_ns))
        while self._seen[0][0] < arrival_ns - self.WINDOW_NS:
            self._seen.popleft()
        return pts_ns + self._seen[0][1]

    @property
    def error_ns(self) -> int:
        """How far the running minimum has moved within the window: what the anchoring may be off by."""
        return self._seen[-1][1] - self._seen[0][1] if self._seen else 0
