"""Another host's clock: its times → this host's, with a bound on the error. No I/O: clock_exchange.py sends the pings.

Example:
    host_clock = HostClock()
    host_clock.exchange(t1_ns, t2_ns, t3_ns, t4_ns)          # the four stamps of each ping
    capture_ns, error_ns = host_clock.to_local(frame.capture_ns)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.clock import NS


class HostClock:
    """Another host's monotonic clock → this host's, from four-stamp pings, with a bound on the error.

    A ping is sent here at t1, received there at t2, answered at t3, and its answer received here at t4. Nothing arrives
    before it was sent, so local − remote is at least t1 − t2 and at most t4 − t3: an interval as wide as the round
    trip, and correct however unequal the two directions are. Of each second only the ping with the shortest round trip
    is stored. Any two stored intervals bound the drift between them; with the drift each of them is extrapolated to the
    present, where the offset must lie in all. The estimate is the middle: the bound is half of the best round trip or
    less, plus what the drift may have added since.

    A ping that contradicts the bound proves that one of the clocks jumped (its host was restarted or suspended); all
    earlier pings are then discarded. Otherwise mapped times never go back: a better estimate is approached at the rate
    SLEW, and the bound includes the rest. `exchange` belongs to one thread; the others may be called from any.
    """

    BLOCK_NS, BLOCKS = NS, 64
    MAX_DRIFT = 500e-6  # the largest correction that time synchronisation applies; crystals are ten times better
    WANDER = 1e-6  # how far the drift itself may move within the window, a degree or two of temperature
    SLEW = 0.01  # consecutive 20 ms chunks of sound then shift by at most 0.2 ms against each other
    READY_AFTER = 8  # pings; the first few may all have been slow

    def __init__(self) -> None:
        self.exchanges = 0  # since the last jump
        self.jumps = 0
        self._intervals: list[tuple[int, int, int]] = []  # remote time, min and max of local − remote then
        self._block_ends_ns = 0
        self._estimate: _Estimate | None = None

    @property
    def known(self) -> bool:
        return self._estimate is not None

    @property
    def ready(self) -> bool:
        """Enough pings for an estimate that later ones change little. Until then each replaces the last one."""
        return self.known and self.exchanges >= self.READY_AFTER

    @property
    def error_ns(self) -> int:
        """The bound at the last ping."""
        return self._estimate.error_ns + abs(self._estimate.ahead_ns) if self._estimate else 0

    @property
    def drift(self) -> float:
        """+20e-6: the other clock runs 20 ppm slower than this host's."""
        return self._estimate.drift if self._estimate else 0.0

    def exchange(self, t1_ns: int, t2_ns: int, t3_ns: int, t4_ns: int) -> None:
        """One ping: t1 sent and t4 returned by this host's clock, t2 received and t3 answered by the other's."""
        correction_ns = math.ceil(self.MAX_DRIFT * abs(t3_ns - t2_ns))
        min_ns, max_ns = t1_ns - t2_ns - correction_ns, t4_ns - t3_ns + correction_ns
        if max_ns < min_ns:
            return  # a clock jumped during this ping
        before = self._estimate
        if before is None or not before.agrees(t3_ns, min_ns, max_ns):
            self.jumps += before is not None
            self.exchanges, before = 0, None
            self._intervals.clear()
        self.exchanges += 1
        ping = (t3_ns, min_ns, max_ns)
        if not self._intervals or t3_ns >= self._block_ends_ns:
            self._block_ends_ns = t3_ns + self.BLOCK_NS
            self._intervals = [*self._intervals[-self.BLOCKS + 1 :], ping]
        elif max_ns - min_ns <= self._intervals[-1][2] - self._intervals[-1][1]:
            self._intervals[-1] = ping
        self._estimate = self._fit(ping, before if self.exchanges > self.READY_AFTER else None)

    def to_local(self, remote_ns: int) -> tuple[int, int]:
        """(local time, bound on its error) of a moment near the last ping. Only once `known`."""
        assert self._estimate is not None, "no ping was answered yet"
        return self._estimate.to_local(remote_ns)

    def admits(self, sent_ns: int, arrival_ns: int) -> bool:
        """False when a message of arrival_ns cannot have been sent at sent_ns (remote time): a clock has jumped.

        The clock is then not `known` until the next ping is answered.
        """
        estimate = self._estimate
        if estimate is None:
            return False
        local_ns, error_ns = estimate.to_local(sent_ns)
        if local_ns - error_ns <= arrival_ns:
            return True
        self._estimate, self.jumps = None, self.jumps + 1
        return False

    def _fit(self, newest: tuple[int, int, int], before: _Estimate | None) -> _Estimate:
        """From all stored intervals. Discards their older half when no drift, within WANDER, explains them all."""
        while True:
            at_ns, base_ns = newest[0], newest[1]
            age, min_offset, max_offset = (
                np.array([*self._intervals, newest], np.int64) - (at_ns, base_ns, base_ns)
            ).T.astype(np.float64)
            age = -age
            apart = np.maximum(age[:, None] - age, 0.0)  # [a, b]: how much later b is than a
            with np.errstate(divide="ignore", invalid="ignore"):
                min_drifts = np.where(apart > 0, (min_offset - max_offset[:, None]) / apart, -np.inf)
                max_drifts = np.where(apart > 0, (max_offset - min_offset[:, None]) / apart, np.inf)
            min_drift = max(float(min_drifts.max()) - self.WANDER, -self.MAX_DRIFT)
            max_drift = min(float(max_drifts.min()) + self.WANDER, self.MAX_DRIFT)
            min_now, max_now = float((min_offset + min_drift * age).max()), float((max_offset + max_drift * age).min())
            if min_drift <= max_drift and min_now <= max_now:
                break
            self._intervals = self._intervals[(len(self._intervals) + 1) // 2 :]
        offset_ns = base_ns + round((min_now + max_now) / 2)
        ahead_ns = before.to_local(at_ns)[0] - at_ns - offset_ns if before else 0
        return _Estimate(
            at_ns,
            offset_ns,
            math.ceil((max_now - min_now) / 2),
            (min_drift + max_drift) / 2,
            (max_drift - min_drift) / 2,
            ahead_ns,
            self.SLEW,
        )


class _Estimate(NamedTuple):
    """local − remote at remote time `at_ns` and around it."""

    at_ns: int
    offset_ns: int
    error_ns: int
    drift: float
    drift_error: float
    ahead_ns: int  # by which mapped times still differ from it, after an earlier estimate; see SLEW
    slew: float

    def to_local(self, remote_ns: int) -> tuple[int, int]:
        since_ns = remote_ns - self.at_ns
        ahead_ns = max(0, abs(self.ahead_ns) - round(self.slew * max(since_ns, 0)))
        offset_ns = self.offset_ns + round(self.drift * since_ns) + int(math.copysign(ahead_ns, self.ahead_ns))
        return remote_ns + offset_ns, self.error_ns + math.ceil(self.drift_error * abs(since_ns)) + ahead_ns

    def agrees(self, remote_ns: int, min_ns: int, max_ns: int) -> bool:
        """Whether the offset can lie both within this estimate's bound and between min_ns and max_ns."""
        since_ns = remote_ns - self.at_ns
        middle_ns, error_ns = (
            self.offset_ns + self.drift * since_ns,
            self.error_ns + self.drift_error * abs(since_ns) + 1,
        )
        return middle_ns - error_ns <= max_ns and min_ns <= middle_ns + error_ns
