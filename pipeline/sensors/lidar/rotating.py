"""Packets of a rotating lidar → sweeps cut at a fixed azimuth: the common part of Velodyne and Hesai, without formats.

A packet has the sensor's own time and the azimuth of its first firing. Between packets the azimuth rises evenly, so the
time at which it passes the cut is known to the microsecond, and points are divided by their time: a packet that
contains the cut belongs to both sweeps. Missing packets show in the steps of the sensor's time, which are equal
otherwise.

Damaged packets are expected. A packet whose time or azimuth is inconsistent with the previous ones is held back: if the
next one is consistent with it, the sensor's clock was set (or its motor changed speed), else it was malformed. Packets
in the wrong order are assigned to their sweep by time as long as it has not been sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.sensors.lidar.packet_decoder import LATE, LOST, MALFORMED, TWICE, PacketDecoder, SensorClock, Sweep

DECODE_AT = 24  # packets decoded together: spreads the work over the revolution, so that little is left at its end
REORDER_NS = 100_000_000  # an older packet was not reordered on the network: the sensor's clock was set back
SILENCE_NS = NS // 2  # no packet for so long: the sweep in progress is sent incomplete
SLOWEST_TURN_NS = (
    NS  # a revolution takes 50 to 200 ms: beyond this the head is standing still, and sweeps are cut by time
)
RATE_AFTER_NS = 20_000_000  # over less than this, the azimuth's steps of 0.01° are too coarse for a rate
AZIMUTH_DEG = 20.0  # largest difference from the azimuth predicted by the last revolution's rate


class Head(NamedTuple):
    """The fields of a packet that are read before it is decoded."""

    stamp_ns: int  # the sensor's time of its first firing, which wraps
    azimuth_deg: float  # of its first firing, rising with time
    span_ns: int  # from its first to its last firing


class _Packet(NamedTuple):
    device_ns: int  # the sensor's time, unwrapped
    angle_deg: float  # azimuth, unwrapped


class Rotating(PacketDecoder, ABC):
    """cut_deg: the sensor's own azimuth at which sweeps begin. A subclass reads one vendor's packets: head(),
    points()."""

    wrap_ns = 3600 * NS  # after which the sensor's time starts again at 0

    _times_ns: list[int]  # of the packets since the start of the sweep
    _ahead: int  # packets missing between the start of the sweep and the first of those
    _waiting: list[tuple[int, bytes]]  # to be decoded together
    _decoded: list[tuple[int, npt.NDArray[np.float32]]]  # (origin, points)

    def __init__(self, cut_deg: float) -> None:
        super().__init__()
        if not 0 <= cut_deg < 360:
            raise ValueError(f"cut_deg must be from 0 up to 360, not {cut_deg}.")
        self.cut_deg = cut_deg
        self.clock = SensorClock()
        self._newest: _Packet | None = None  # None: the next packet begins a sweep
        self._time: tuple[int, int, int] | None = None  # stamp, unwrapped time and arrival of the newest packet of all
        self._host_ns = 0  # host time of the newest packet
        self._suspect: tuple[Head, bytes, int] | None = None
        self._step_ns = 0.0  # between two packets, measured on the sweeps so far
        self._degrees_per_ns = 0.0
        self._missing = 0  # of the sweep sent last: late packets are subtracted before it is counted as lost
        self._capture_ns = -(1 << 62)
        self._begin()

    @abstractmethod
    def head(self, packet: bytes) -> Head | None:
        """The packet's header; None: it is no packet of this sensor."""

    @abstractmethod
    def points(self, packets: list[bytes], offsets_ns: list[int]) -> npt.NDArray[np.float32]:
        """(n, 5) of packets whose first firings are offsets_ns after a common origin; seconds since that origin.

        Raises ValueError or RuntimeError where one of them cannot be decoded.
        """

    # Packets

    def feed(self, packet: bytes, arrival_ns: int) -> Iterator[Sweep]:
        head = self.head(packet)
        if head is None:
            self.lost[MALFORMED] += 1
            return
        suspect, self._suspect = self._suspect, None
        if self._follows(head, arrival_ns):
            self.lost[MALFORMED] += suspect is not None
        elif suspect is not None and self._pair(suspect[0], head):
            yield from self._restart(suspect)
        else:
            self.lost[MALFORMED] += suspect is not None
            self._suspect = (head, packet, arrival_ns)
            return
        yield from self._accept(head, packet, arrival_ns)

    def finish(self) -> Iterator[Sweep]:
        self.lost[MALFORMED] += self._suspect is not None
        self._suspect = None
        yield from self._close_early("the packets ended")
        self.lost[LOST] += self._missing
        self._missing = 0

    def _since(self, stamp_ns: int, before_ns: int) -> int:
        half_ns = self.wrap_ns // 2
        return (stamp_ns - before_ns + half_ns) % self.wrap_ns - half_ns

    def _follows(self, head: Head, arrival_ns: int) -> bool:
        if self._newest is None or self._time is None:
            return True
        since_ns = self._since(head.stamp_ns, self._time[0])
        if not -REORDER_NS < since_ns < SILENCE_NS:
            return False
        if since_ns > REORDER_NS and since_ns - (arrival_ns - self._time[2]) > REORDER_NS:
            return False  # a jump of the sensor's clock, not lost packets: the host's clock did not advance
        if not self._degrees_per_ns:
            return True
        expected_deg = self._newest.angle_deg + since_ns * self._degrees_per_ns
        return abs((head.azimuth_deg - expected_deg + 180) % 360 - 180) < AZIMUTH_DEG

    def _pair(self, first: Head, second: Head) -> bool:
        turned_deg = (second.azimuth_deg - first.azimuth_deg + 180) % 360 - 180
        return abs(self._since(second.stamp_ns, first.stamp_ns)) < REORDER_NS and abs(turned_deg) < 2 * AZIMUTH_DEG

    def _restart(self, first: tuple[Head, bytes, int]) -> Iterator[Sweep]:
        """Two packets are consistent with each other but not with those before: a gap, a clock that was set, a head
        that jumped."""
        assert self._time is not None
        stamp_ns, _, arrived_ns = self._time
        since_ns, waited_ns = self._since(first[0].stamp_ns, stamp_ns), first[2] - arrived_ns
        silent = since_ns >= SILENCE_NS and abs(since_ns - waited_ns) < REORDER_NS
        yield from self._close_early(
            f"no packets for {waited_ns / NS:.1f} s" if silent else "the sensor's time or head jumped"
        )
        if silent and self._step_ns:
            self.lost[LOST] += max(0, round(since_ns / self._step_ns) - 1)
        yield from self._accept(*first)

    def _accept(self, head: Head, raw: bytes, arrival_ns: int) -> Iterator[Sweep]:
        self.good += 1
        before, device_ns = self._newest, head.stamp_ns
        if self._time is not None:
            device_ns = self._time[1] + self._since(head.stamp_ns, self._time[0])
        if before is None:
            newest = _Packet(device_ns, head.azimuth_deg)
            self._start_ns, self._start_deg = newest
        elif device_ns <= before.device_ns:
            self._reordered(device_ns, raw)
            return
        else:
            newest = _Packet(device_ns, before.angle_deg + self._turned_deg(before, device_ns, head.azimuth_deg))
            yield from self._pass_cut(before, newest)
        self._newest, self._time = newest, (head.stamp_ns, device_ns, arrival_ns)
        self._host_ns = self.clock.stamp(device_ns, device_ns + head.span_ns, arrival_ns)
        if not self._degrees_per_ns and device_ns - self._start_ns > RATE_AFTER_NS:
            self._degrees_per_ns = (newest.angle_deg - self._start_deg) / (device_ns - self._start_ns)
        self._buffer(device_ns, raw)

    def _turned_deg(self, before: _Packet, device_ns: int, azimuth_deg: float) -> float:
        turned_deg = (azimuth_deg - before.angle_deg) % 360
        if self._degrees_per_ns:  # whole turns without packets
            expected_deg = (device_ns - before.device_ns) * self._degrees_per_ns
            return turned_deg + 360 * max(0, round((expected_deg - turned_deg) / 360))
        return turned_deg if turned_deg < 180 else 0.0  # the encoder's noise while the head stands still

    def _reordered(self, device_ns: int, raw: bytes) -> None:
        if device_ns in self._times_ns:
            self.lost[TWICE] += 1
            return
        if device_ns < self._start_ns:
            self.lost[LATE] += 1
            self._missing = max(0, self._missing - 1)
            return
        if self._ahead and device_ns < min(self._times_ns, default=device_ns):
            self._ahead -= 1
        self._buffer(device_ns, raw)

    def _buffer(self, device_ns: int, raw: bytes) -> None:
        self._times_ns.append(device_ns)
        self._waiting.append((device_ns, raw))
        if len(self._waiting) >= DECODE_AT:
            self._decode()

    def _decode(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        origin_ns = waiting[0][0]
        try:
            points = self.points([raw for _, raw in waiting], [at_ns - origin_ns for at_ns, _ in waiting])
        except (ValueError, RuntimeError, IndexError):
            if len(waiting) == 1:  # its header was valid, the rest is not
                self.lost[MALFORMED] += 1
                return
            for one in waiting:
                self._waiting = [one]
                self._decode()
            return
        if len(points):
            self._decoded.append((origin_ns, points))

    # Sweeps

    def _begin(self) -> None:
        self._start_ns, self._start_deg = 0, 0.0
        self._times_ns, self._ahead, self._waiting, self._decoded = [], 0, [], []

    def _pass_cut(self, before: _Packet, after: _Packet) -> Iterator[Sweep]:
        """Send the sweep if the cut lies between two packets."""
        turn = (after.angle_deg - self.cut_deg) // 360
        first_turn = (before.angle_deg - self.cut_deg) // 360 + 1
        if turn >= first_turn:
            turned_deg, took_ns = after.angle_deg - before.angle_deg, after.device_ns - before.device_ns

            def passed_ns(number: float) -> int:
                return before.device_ns + round((number * 360 + self.cut_deg - before.angle_deg) / turned_deg * took_ns)

            whole_deg, whole_ns = after.angle_deg - self._start_deg, after.device_ns - self._start_ns
            if whole_ns > RATE_AFTER_NS:
                self._degrees_per_ns = whole_deg / whole_ns
            end_deg = first_turn * 360 + self.cut_deg
            # Where whole revolutions are missing, the next sweep begins at the last cut before `after`.
            yield self._close(passed_ns(first_turn), end_deg, after.device_ns, begin_ns=passed_ns(turn))
            self._start_deg = turn * 360 + self.cut_deg
        elif after.device_ns - self._start_ns > SLOWEST_TURN_NS:
            yield self._close(after.device_ns, after.angle_deg, after.device_ns, why="the head hardly turns")
            self._start_deg = after.angle_deg

    def _close_early(self, why: str) -> Iterator[Sweep]:
        """Send a sweep that will not be finished; the next packet begins another."""
        if self._newest is not None and self._times_ns:
            step_ns = round(self._step_ns) or 1
            end_ns = self._newest.device_ns + step_ns
            end_deg = self._newest.angle_deg + self._degrees_per_ns * step_ns
            yield self._close(end_ns, end_deg, end_ns, why=why)
        self._newest, self._degrees_per_ns = None, 0.0
        self._begin()

    def _close(self, end_ns: int, end_deg: float, next_ns: int, *, begin_ns: int | None = None, why: str = "") -> Sweep:
        """The points from _start_ns to end_ns. next_ns: of the first packet behind them; begin_ns: of the next
        sweep."""
        self._decode()
        start_ns, own, rest = self._start_ns, [], []
        begin_ns = begin_ns or end_ns
        for origin_ns, points in self._decoded:
            start_s, end_s, begin_s = ((at_ns - origin_ns) / NS for at_ns in (start_ns, end_ns, begin_ns))
            seconds = points[:, 4]
            if seconds.max() >= end_s:
                rest.append((origin_ns, points[seconds >= begin_s]))
                points = points[seconds < end_s]
            points[:, 4] -= start_s  # may be slightly negative: some lasers fire before their packet's own time
            own.append(points)
        reason = self._count_missing(end_ns, end_deg - self._start_deg, next_ns, begin_ns, why)
        host_ns = self._host_ns if self._newest is None else self._host_ns - (self._newest.device_ns - start_ns)
        capture_ns = self._capture_ns = max(host_ns, self._capture_ns + 1)
        data = np.concatenate(own) if own else np.empty((0, 5), np.float32)
        self._decoded = [(origin_ns, points) for origin_ns, points in rest if len(points)]
        self._times_ns, self._start_ns = [], begin_ns
        return Sweep(capture_ns, end_ns - start_ns, self.clock.error_ns + capture_ns - host_ns, data, reason)

    def _count_missing(self, end_ns: int, turned_deg: float, next_ns: int, begin_ns: int, why: str) -> str:
        """Count the missing packets of the sweep. Returns a sentence about them, "" when it is complete."""
        self.lost[LOST] += self._missing  # of the sweep before: its packets cannot arrive any more
        times_ns = np.sort(np.array([*self._times_ns, next_ns], np.int64))
        steps_ns = np.diff(times_ns)
        if np.count_nonzero(steps_ns) > 8:
            self._step_ns = float(np.median(steps_ns[steps_ns > 0]))
        holes = (
            np.maximum(np.round(steps_ns / self._step_ns) - 1, 0).astype(int)
            if self._step_ns
            else np.zeros(len(steps_ns), int)
        )
        missing, last = self._ahead + int(holes[:-1].sum()), int(holes[-1]) if len(holes) else 0
        # The last gap spans the cut: its part behind the cut is missing from the next sweep.
        expected_ns = times_ns[-2] + self._step_ns * np.arange(1, last + 1) if last else np.empty(0)
        missing += int((expected_ns < end_ns).sum())
        self._ahead = int((expected_ns >= begin_ns).sum())
        self.lost[LOST] += last - int((expected_ns < end_ns).sum()) - self._ahead
        self._missing = missing
        parts = []
        if turned_deg < 359:
            parts.append(f"only {max(turned_deg, 0):.0f}° of a turn: {why or 'the packets began there'}")
        if missing:
            without_deg = min(turned_deg, missing * self._step_ns * turned_deg / max(end_ns - self._start_ns, 1))
            parts.append(
                f"{missing} of {missing + len(self._times_ns)} packets missing, {without_deg:.0f}° without points"
            )
        return "; ".join(parts)
