"""Another host's clock: its times → this host's, with a bound on the error. Pure: wire.py sends the pings.

Example:
    host_clock = HostClock()
    host_clock.exchange(t1_ns, t2_ns, t3_ns, t4_ns)          # a ping's four stamps, again and again
    capture_ns, error_ns = host_clock.to_local(frame.capture_ns)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pipeline.clock import NS


class HostClock:
    """Another host's monotonic clock → this host's, from four-stamp pings, with a bound on the error.

    A ping leaves here at t1, gets there at t2, is answered at t3 and is back at t4. Nothing arrives before it was sent,
    so local − remote is at least t1 − t2 and at most t4 − t3: an interval as wide as the round trip, and right however
    unequal the two ways were. Of each second only the ping with the shortest round trip is kept. Any two kept intervals
    bound the drift between them; the drift carries each of them to the present, where the offset must lie in all. It is
    taken in the middle: the bound is half of the best round trip or less, plus what the drift may have added since.

    A ping that contradicts the bound proves that one of the clocks jumped (a restart, a sleep); all before it is
    forgotten. Otherwise mapped times never go back: a better estimate is approached at the rate SLEW, and the bound says so.
    `exchange` belongs to one thread; the others may be called from any.
    """

    BLOCK_NS, BLOCKS = NS, 64
    MAX_DRIFT = 500e-6  # as much as time synchronisation may turn a clock; crystals are ten times better
    WANDER = 1e-6  # how far the drift itself may move within the window, a degree or two of temperature
    SLEW = 0.01  # 20 ms of sound then move by 0.2 ms against each other, less than a seam
    READY_AFTER = 8  # pings; the first few may all have been unlucky

    def __init__(self) -> None:
        self.exchanges = 0  # since the last jump
        self.jumps = 0
        self._kept: list[tuple[int, int, int]] = []  # remote time, least and most that local − remote was then
        self._block_ends_ns = 0
        self._line: _Line | None = None

    @property
    def known(self) -> bool:
        return self._line is not None

    @property
    def ready(self) -> bool:
        """Enough pings for a first estimate that later ones will not move much: before, it is not slewed but replaced."""
        return self.known and self.exchanges >= self.READY_AFTER

    @property
    def error_ns(self) -> int:
        """The bound at the last ping."""
        return self._line.error_ns + abs(self._line.ahead_ns) if self._line else 0

    @property
    def drift(self) -> float:
        """+20e-6: their clock runs 20 ppm slower than ours."""
        return self._line.drift if self._line else 0.0

    def exchange(self, t1_ns: int, t2_ns: int, t3_ns: int, t4_ns: int) -> None:
        """One ping: t1 sent and t4 back by our clock, t2 received and t3 answered by theirs."""
        turned_ns = math.ceil(self.MAX_DRIFT * abs(t3_ns - t2_ns))
        min_ns, max_ns = t1_ns - t2_ns - turned_ns, t4_ns - t3_ns + turned_ns
        if max_ns < min_ns:
            return  # a clock jumped in the middle of it
        before = self._line
        if before is None or not before.agrees(t3_ns, min_ns, max_ns):
            self.jumps += before is not None
            self.exchanges, before = 0, None
            self._kept.clear()
        self.exchanges += 1
        ping = (t3_ns, min_ns, max_ns)
        if not self._kept or t3_ns >= self._block_ends_ns:
            self._block_ends_ns = t3_ns + self.BLOCK_NS
            self._kept = [*self._kept[-self.BLOCKS + 1 :], ping]
        elif max_ns - min_ns <= self._kept[-1][2] - self._kept[-1][1]:
            self._kept[-1] = ping
        self._line = self._fit(ping, before if self.exchanges > self.READY_AFTER else None)

    def to_local(self, remote_ns: int) -> tuple[int, int]:
        """(our time, bound on its error) of a moment near the last ping. Only once `known`."""
        assert self._line is not None, "no ping has come back yet"
        return self._line.to_local(remote_ns)

    def admits(self, sent_ns: int, arrival_ns: int) -> bool:
        """False when what arrived here at arrival_ns cannot have been sent there at sent_ns: a clock has jumped.

        Nothing is `known` then until the next ping comes back.
        """
        line = self._line
        if line is None:
            return False
        local_ns, error_ns = line.to_local(sent_ns)
        if local_ns - error_ns <= arrival_ns:
            return True
        self._line, self.jumps = None, self.jumps + 1
        return False

    def _fit(self, newest: tuple[int, int, int], before: _Line | None) -> _Line:
        """The line through all intervals that are kept; the older half of them goes when the drift has wandered too far."""
        while True:
            at_ns, base_ns = newest[0], newest[1]
            age, least, most = (np.array([*self._kept, newest], np.int64) - (at_ns, base_ns, base_ns)).T.astype(
                np.float64
            )
            age = -age
            apart = np.maximum(age[:, None] - age, 0.0)  # [a, b]: b is so much later than a
            with np.errstate(divide="ignore", invalid="ignore"):
                drifts_least = np.where(apart > 0, (least - most[:, None]) / apart, -np.inf)
                drifts_most = np.where(apart > 0, (most - least[:, None]) / apart, np.inf)
            drift_least = max(float(drifts_least.max()) - self.WANDER, -self.MAX_DRIFT)
            drift_most = min(float(drifts_most.min()) + self.WANDER, self.MAX_DRIFT)
            now_least, now_most = float((least + drift_least * age).max()), float((most + drift_most * age).min())
            if drift_least <= drift_most and now_least <= now_most:
                break
            self._kept = self._kept[(len(self._kept) + 1) // 2 :]
        offset_ns = base_ns + round((now_least + now_most) / 2)
        ahead_ns = before.to_local(at_ns)[0] - at_ns - offset_ns if before else 0
        return _Line(
            at_ns,
            offset_ns,
            math.ceil((now_most - now_least) / 2),
            (drift_least + drift_most) / 2,
            (drift_most - drift_least) / 2,
            ahead_ns,
            self.SLEW,
        )


class _Line(NamedTuple):
    """local − remote at remote time `at_ns` and around it."""

    at_ns: int
    offset_ns: int
    error_ns: int
    drift: float
    drift_error: float
    ahead_ns: int  # by which mapped times still lie ahead of it, because an earlier line did
    slew: float

    def to_local(self, remote_ns: int) -> tuple[int, int]:
        since_ns = remote_ns - self.at_ns
        ahead_ns = max(0, abs(self.ahead_ns) - round(self.slew * max(since_ns, 0)))
        offset_ns = self.offset_ns + round(self.drift * since_ns) + int(math.copysign(ahead_ns, self.ahead_ns))
        return remote_ns + offset_ns, self.error_ns + math.ceil(self.drift_error * abs(since_ns)) + ahead_ns

    def agrees(self, remote_ns: int, min_ns: int, max_ns: int) -> bool:
        """Whether the offset can lie both on this line and between the two."""
        since_ns = remote_ns - self.at_ns
        middle_ns, error_ns = (
            self.offset_ns + self.drift * since_ns,
            self.error_ns + self.drift_error * abs(since_ns) + 1,
        )
        return middle_ns - error_ns <= max_ns and min_ns <= middle_ns + error_ns
