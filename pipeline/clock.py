"""Clocks: the time of a run, and a device's own timestamps converted to the host's monotonic clock.

A node gets its clock and never reads the system's, so that tests and replays control time.

Example:
    clock = LiveClock(start_ns=begin)
    clock.sleep_until(clock.start_ns + pts_ns)
    capture_ns = sample_clock.stamp_chunk(first_index=n, count=320, arrival_ns=clock.now_ns())
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

NS = 1_000_000_000


class Clock(Protocol):
    """The time of a run. start_ns: when it began; a file source's capture_ns is start_ns + the file's timestamp."""

    start_ns: int

    def now_ns(self) -> int: ...

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        """Wait until `when_ns`. Returns False when `interrupt` was set before that."""
        ...


class _Sleepers:
    """The threads that sleep until a clock's time, so that nobody takes their silence for a failure."""

    def __init__(self) -> None:
        self.thread_ids: set[int] = set()

    def __enter__(self) -> None:
        self.thread_ids.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self.thread_ids.discard(threading.get_ident())


class LiveClock:
    """The host's monotonic clock, which all processes of one host share."""

    def __init__(self, start_ns: int | None = None) -> None:
        self.start_ns = time.monotonic_ns() if start_ns is None else start_ns
        self._sleepers = _Sleepers()

    def is_sleeping(self, thread_id: int) -> bool:
        """Whether that thread waits in this clock."""
        return thread_id in self._sleepers.thread_ids

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        with self._sleepers:
            while (left_ns := when_ns - time.monotonic_ns()) > 0:
                if interrupt is None:
                    time.sleep(left_ns / NS)
                elif interrupt.wait(left_ns / NS):
                    return False
        return interrupt is None or not interrupt.is_set()


class ManualClock:
    """Time that moves only by `advance` and by sleeping: for tests."""

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


class ReplayClock:
    """The clock of a replay: it runs `speed` times as fast as the host's clock, and stops while paused.

    It stands at `start_ns`, a moment of the recorded run, until `begin`. At speed 0 (as fast as possible) no source
    waits for it, and it runs at the host's speed.
    """

    def __init__(self, start_ns: int, speed: float = 1.0) -> None:
        self.start_ns = start_ns
        self._speed = speed or 1.0
        self._at_ns = start_ns  # this clock's time when the host's was _host_ns
        self._host_ns: int | None = None  # None: it stands still
        self._running = threading.Event()
        self._sleepers = _Sleepers()

    def is_sleeping(self, thread_id: int) -> bool:
        """Whether that thread waits in this clock."""
        return thread_id in self._sleepers.thread_ids

    def begin(self, host_ns: int) -> None:
        self._host_ns = host_ns
        self._running.set()

    def now_ns(self) -> int:
        host_ns = self._host_ns
        return (
            self._at_ns if host_ns is None else self._at_ns + round(max(0, time.monotonic_ns() - host_ns) * self._speed)
        )

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def pause(self) -> None:
        if self._host_ns is not None:
            self._at_ns, self._host_ns = self.now_ns(), None
            self._running.clear()

    def resume(self) -> None:
        if self._host_ns is None:
            self.begin(time.monotonic_ns())

    def wait_while_paused(self, interrupt: threading.Event) -> bool:
        """Returns False when `interrupt` was set meanwhile."""
        with self._sleepers:
            while not self._running.wait(0.05):
                if interrupt.is_set():
                    return False
        return True

    def sleep_until(self, when_ns: int, interrupt: threading.Event | None = None) -> bool:
        with self._sleepers:
            while (left_ns := when_ns - self.now_ns()) > 0:
                if interrupt is not None and interrupt.is_set():
                    return False
                # In short steps: it may be paused meanwhile.
                wait_s = 0.02 if self._host_ns is None else min(0.1, left_ns / NS / self._speed)
                (time.sleep if interrupt is None else interrupt.wait)(wait_s)
        return interrupt is None or not interrupt.is_set()


class DelayFloor:
    """A counter's time → host time, when readings arrive late by an unknown amount and never early.

    The offset arrival − counter is drift plus delay, so the true line is the lower bound of the points. Of each short
    block only the least delayed reading is retained; the lower convex hull of those is the bound so far, and the line
    is fitted to the hull's middle half (its ends rest on one reading each) and moved down until no reading lies below
    it. Bursts of late readings do not move it; old readings leave the window, so a drifting rate is followed. No clock
    can observe a constant delay: it belongs in the rig file.

    Emitted times never decrease: where the fit or the counter does, they stand still, and `error_ns` bounds the error
    meanwhile.
    """

    BLOCK_NS = NS // 4
    WINDOW_NS = 32 * NS
    RATE_AFTER_NS = 2 * NS  # before that a fitted slope is mostly noise, and the nominal rate is the better estimate
    MAX_RATE_ERROR = 500e-6  # sound cards and cameras are within ±200 ppm: a larger slope is a wrong fit
    UNKNOWN_RATE_ERROR = 200e-6
    # Largest delay of the first reading: a driver's buffer. n readings divide it by n.
    FIRST_ERROR_NS = 50_000_000
    JUMP_SPREADS = 4  # where jitter alone is that wide, a jump must be wider
    # A jump must last this long on the host's clock to count: a queue that empties after a stall does not.
    CONFIRM_NS = NS
    LARGE_JUMP_NS, CONFIRM_LARGE_NS = NS // 2, NS // 10

    def __init__(self, jump_ns: int) -> None:
        """jump_ns: readings this far off the line, all of them, are a jump of the counter and not jitter."""
        self.jump_ns = jump_ns
        self.steps = 0  # how often the counter jumped
        self.error_ns = self.FIRST_ERROR_NS  # bound on the error of the last emitted time, constant delay apart
        self.rate_error = 0.0  # +50e-6: the counter runs 50 ppm fast
        self._emitted_ns: int | None = None
        self._restart()

    def _restart(self) -> None:
        self._block_minima: deque[tuple[int, int]] = (
            deque()
        )  # per block: (counter, offset) of its least delayed reading
        self._block_end_ns: int | None = None
        self._readings = 0
        self._slope = 0.0
        self._base_ns = 0  # offset of the line at counter _origin_ns
        self._origin_ns = 0
        self._spread_ns = 0
        self._late: list[tuple[int, int, int]] = []  # (arrival, counter, offset) of readings a jump above the line

    def stamp(self, start_ns: int, end_ns: int, arrival_ns: int) -> int:
        """Host time at counter `start_ns`, for what spans [start, end] and arrived, whole, at `arrival_ns`."""
        self._observe(end_ns, arrival_ns - end_ns, arrival_ns)
        fitted_ns = start_ns + self._offset_at(start_ns)
        host_ns = self._emitted_ns = fitted_ns if self._emitted_ns is None else max(self._emitted_ns, fitted_ns)
        self.error_ns = self._fit_error_ns() + host_ns - fitted_ns
        return host_ns

    def _observe(self, counter_ns: int, offset_ns: int, arrival_ns: int) -> None:
        late_ns = offset_ns - self._offset_at(counter_ns)
        jump_ns = max(self.jump_ns, self.JUMP_SPREADS * self._spread_ns)
        backwards = bool(self._block_minima) and counter_ns < self._block_minima[-1][0] - jump_ns
        if self._readings and (late_ns < -jump_ns or backwards):
            # Nothing arrives early: all earlier readings were delayed, or the counter jumped. Either way they are
            # obsolete.
            self.steps += backwards or self._spans_ns() >= self.RATE_AFTER_NS
            self._restart()
        elif self._readings and late_ns > jump_ns:
            self._late.append((arrival_ns, counter_ns, offset_ns))
            if not self._jump_confirmed(arrival_ns):
                return
            late, self.steps = self._late, self.steps + 1
            self._restart()
            for _, late_counter_ns, late_offset_ns in late[:-1]:
                self._add(late_counter_ns, late_offset_ns)
        else:
            self._late.clear()
        self._add(counter_ns, offset_ns)

    def _jump_confirmed(self, now_ns: int) -> bool:
        lasted_ns = now_ns - self._late[0][0]
        min_ns = min(offset - self._offset_at(counter) for _, counter, offset in self._late)
        return lasted_ns >= (self.CONFIRM_LARGE_NS if min_ns > self.LARGE_JUMP_NS else self.CONFIRM_NS)

    def _add(self, counter_ns: int, offset_ns: int) -> None:
        self._readings += 1
        late_ns = offset_ns - self._offset_at(counter_ns)
        if self._block_end_ns is None or counter_ns >= self._block_end_ns:
            self._block_end_ns = counter_ns + self.BLOCK_NS
            self._block_minima.append((counter_ns, offset_ns))
            while self._block_minima[0][0] < counter_ns - self.WINDOW_NS:
                self._block_minima.popleft()
        elif offset_ns - self._offset_at(counter_ns) < self._block_minima[-1][1] - self._offset_at(
            self._block_minima[-1][0]
        ):
            self._block_minima[-1] = (counter_ns, offset_ns)
            if late_ns > 0:
                return  # above the line: the fit can wait until the block ends
        else:
            return
        self._fit()

    def _spans_ns(self) -> int:
        return self._block_minima[-1][0] - self._block_minima[0][0] if self._block_minima else 0

    def _fit(self) -> None:
        self._origin_ns = self._block_minima[0][0]
        base_ns = self._block_minima[0][1]
        x = np.array([counter - self._origin_ns for counter, _ in self._block_minima], np.float64)
        y = np.array([offset - base_ns for _, offset in self._block_minima], np.float64)
        self._slope = 0.0
        if self._spans_ns() >= self.RATE_AFTER_NS:
            hull_x, hull_y = _lower_hull(x, y)
            middle = np.linspace(0.25, 0.75, 31) * (x[-1] - x[0]) + x[0]
            floor = np.interp(middle, hull_x, hull_y)
            t = middle - middle.mean()
            self._slope = float(np.clip(t @ floor / (t @ t), -self.MAX_RATE_ERROR, self.MAX_RATE_ERROR))
        above = y - self._slope * x
        self._base_ns = base_ns + math.floor(above.min())
        self._spread_ns = int(np.quantile(above - above.min(), 0.9))
        self.rate_error = -self._slope / (1 + self._slope)

    def _offset_at(self, counter_ns: int) -> int:
        return self._base_ns + round(self._slope * (counter_ns - self._origin_ns))

    def _fit_error_ns(self) -> int:
        error_ns = self._spread_ns + self.FIRST_ERROR_NS // max(self._readings, 1)
        if self._spans_ns() < self.RATE_AFTER_NS:
            error_ns += round(self.UNKNOWN_RATE_ERROR * self._spans_ns())
        if self._late:  # jitter, or a jump that is not confirmed yet
            error_ns += min(offset - self._offset_at(counter) for _, counter, offset in self._late)
        return error_ns


def _lower_hull(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Lower convex hull of points sorted by x (Andrew's monotone chain)."""
    hull: list[tuple[float, float]] = []
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) >= 2:
            (ax, ay), (bx, by) = hull[-2:]
            if (by - ay) * (px - bx) < (py - by) * (bx - ax):
                break
            hull.pop()
        hull.append((px, py))
    return [px for px, _ in hull], [py for _, py in hull]


class SampleClock(DelayFloor):
    """Sample index → capture time, for a device that counts samples evenly and delivers them with jitter."""

    # Less than a driver's smallest buffer: when one is lost, every later sample is late by as much.
    JUMP_NS = 5_000_000

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__(self.JUMP_NS)
        self.sample_rate_hz = sample_rate_hz

    def stamp_chunk(self, first_index: int, count: int, arrival_ns: int) -> int:
        """Capture time of sample `first_index`, of `count` samples whose last one arrived at `arrival_ns`."""
        start_ns, end_ns = (index * NS // self.sample_rate_hz for index in (first_index, first_index + count))
        return self.stamp(start_ns, end_ns, arrival_ns)


class PtsClock(DelayFloor):
    """Presentation timestamps of a network stream → host time: right differences, arbitrary epoch."""

    # A network may delay everything by half a second for a while; a jump beyond this is a restarted stream.
    JUMP_NS = NS

    def __init__(self) -> None:
        super().__init__(self.JUMP_NS)

    def stamp_frame(self, pts_ns: int, arrival_ns: int) -> int:
        """Host time of the frame with `pts_ns` that arrived at `arrival_ns`; never later than its arrival."""
        return self.stamp(pts_ns, pts_ns, arrival_ns)


class HeaderClock:
    """Header `X-Timestamp` of an MJPEG part → host time.

    Written as seconds with a decimal point ("1700000000.123456") or as integer nanoseconds. On the same host it may be
    CLOCK_MONOTONIC or UTC: whichever makes it a plausible moment just before the arrival. Any other epoch (another
    host, a camera that counts from its own start) is fitted to the arrivals like a presentation timestamp.
    """

    MAX_AGE_NS = 5 * NS  # a stamp older than this on arrival belongs to another clock
    SECONDS_BELOW = 10**11  # as seconds the year 5138, as nanoseconds 100 s after boot

    def __init__(self, clock: Clock, *, same_host: bool) -> None:
        self._clock, self._same_host = clock, same_host
        self._pts_clock = PtsClock()

    def stamp(self, header: str | None, arrival_ns: int) -> tuple[int, int] | None:
        """(host time, bound on its error); None where the header holds no usable time."""
        stamp_ns = self.parse(header)
        if stamp_ns is None:
            return None
        if self._same_host:
            offset_ns, error_ns = utc_offset_ns(self._clock)
            for host_ns, bound_ns in ((stamp_ns, 0), (stamp_ns - offset_ns, error_ns)):
                if 0 <= arrival_ns - host_ns <= self.MAX_AGE_NS:
                    return host_ns, bound_ns
        return self._pts_clock.stamp_frame(stamp_ns, arrival_ns), self._pts_clock.error_ns

    @classmethod
    def parse(cls, header: str | None) -> int | None:
        matched = re.fullmatch(r"(\d{1,19})(?:\.(\d+))?", header or "")
        if not matched:
            return None
        whole, fraction = int(matched[1]), matched[2]
        if fraction is None and whole >= cls.SECONDS_BELOW:
            return whole
        return whole * NS + int((fraction or "0").ljust(9, "0")[:9])


def offset_to_monotonic(read_ns: Callable[[], int], clock: Clock, tries: int = 7) -> tuple[int, int]:
    """(offset, error bound): other clock + offset = host's monotonic clock.

    The other clock is read between two readings of ours; the tightest of a few attempts counts. Which clock it is need
    not be known: a sound card may report CLOCK_REALTIME or CLOCK_MONOTONIC.
    """
    best: tuple[int, int] | None = None
    for _ in range(tries):
        before_ns, other_ns, after_ns = clock.now_ns(), read_ns(), clock.now_ns()
        error_ns = (after_ns - before_ns + 1) // 2
        if best is None or error_ns < best[1]:
            best = ((before_ns + after_ns) // 2 - other_ns, error_ns)
    assert best is not None
    return best


def utc_offset_ns(clock: Clock) -> tuple[int, int]:
    """(offset, error bound): the host's monotonic clock + offset = UTC, at this moment."""
    monotonic_minus_utc_ns, error_ns = offset_to_monotonic(time.time_ns, clock)
    return -monotonic_minus_utc_ns, error_ns
