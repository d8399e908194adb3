"""Deskew: sweeps as if the lidar had stood still while it turned, by an IMU or odometry.

Example:
    points: {use: deskew, inputs: [lidar, imu]}
    points: {use: deskew, inputs: [lidar, imu, odometry], rig: rig.yaml}

imu: `imu_f64`, m/s² x3 and rad/s x3, of which the gyroscope gives the rotation. odometry: `series_f32`, velocity in m/s
    x3 and, where there is no IMU, rad/s x3. Both in the lidar's own axes, or rotated into them by the rig (the sensors'
    names in it are the nodes'). A sweep waits until the motion up to its end is known; without motion it is sent
    unchanged, with a `reason`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import ClassVar

import msgspec
import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.node import Arrival, Transform
from pipeline.rig.rig_file import load_rig
from pipeline.sensors.lidar.deskew import Motion, deskew, from_rates

HISTORY_NS = 2 * NS  # of motion: far more than a sweep and its wait
GAP_NS = NS // 5  # across a longer gap the motion is unknown
MAX_WAITING = 8  # sweeps: a source of motion that is later than that has stopped


class Deskew(Transform):
    """Points come out as `points_xyzi_f32`, seen from the pose at capture_ns; sweeps with unknown motion unchanged."""

    consumes: ClassVar[tuple[type, ...]] = (Frame,)
    produces: ClassVar[type | None] = Frame

    def __init__(self, *, max_wait_ms: float = 100.0, rig: str | None = None) -> None:
        """
        Args:
            max_wait_ms: How long a sweep may wait for the motion up to its end (ms, ≥ 0). Default 100: one sweep at 10
                Hz.
            rig: A rig file, where the motion's sensors are rotated against the lidar.
        """
        if max_wait_ms < 0:
            raise ConfigError(f"max_wait_ms must be 0 or more, not {max_wait_ms}.")
        self._max_wait_ns, self._rig = round(max_wait_ms * 1e6), rig
        self._sweeps: deque[tuple[Frame, int]] = deque()  # and their arrival
        self._turning: deque[tuple[int, np.ndarray]] = deque()  # time, rad/s
        self._moving: deque[tuple[int, np.ndarray]] = deque()  # time, m/s
        self._seq = 0

    def open(self) -> None:
        if len(self.context.inputs) < 2:
            raise ConfigError(
                f"deskew '{self.name}': inputs: a lidar and a source of its motion, such as [lidar, imu]."
            )
        self._turn_into_lidar: dict[str, np.ndarray] = {}
        if self._rig is not None:
            rig = load_rig(self._rig)
            lidar, *others = self.context.inputs
            self._turn_into_lidar = {name: rig.transform(lidar, name)[:3, :3] for name in others}

    def process(self, arrival: Arrival) -> Iterator[Frame]:
        frame = arrival.message
        assert isinstance(frame, Frame)
        if frame.encoding == "points_xyzit_f32":
            self._sweeps.append((frame, arrival.arrival_ns))
        elif frame.encoding == "imu_f64" and len(frame.data) == 6:
            self._add_motion(self._turning, arrival.source, frame.capture_ns, frame.data[3:6])
        elif frame.encoding == "series_f32" and len(frame.data) in (3, 6):
            self._add_motion(self._moving, arrival.source, frame.capture_ns, frame.data[:3])
            if len(frame.data) == 6:
                self._add_motion(self._turning, arrival.source, frame.capture_ns, frame.data[3:])
        elif frame.encoding == "none" and arrival.source == self.context.inputs[0]:
            yield from self._send_all()
            yield self._numbered(msgspec.structs.replace(frame, stream=self.name))
        elif frame.encoding != "none":
            self.context.metrics.drop(arrival.source, f"{frame.encoding}: neither sweeps with times nor motion")
        yield from self._ready(arrival.arrival_ns)

    def wake_ns(self) -> int | None:
        return self._sweeps[0][1] + self._max_wait_ns if self._sweeps else None

    def advance(self, now_ns: int) -> Iterator[Frame]:
        yield from self._ready(now_ns)

    def ended(self, source: str, arrival_ns: int) -> Iterable[Frame]:
        return self._send_all() if source == self.context.inputs[0] else ()

    def finish(self) -> Iterable[Frame]:
        return self._send_all()

    def _add_motion(self, known: deque[tuple[int, np.ndarray]], source: str, at_ns: int, values: np.ndarray) -> None:
        if (known and at_ns <= known[-1][0]) or not np.isfinite(values).all():
            self.context.metrics.drop(source, "motion out of order, or not finite")
            return
        turn = self._turn_into_lidar.get(source)
        known.append((at_ns, values.astype(np.float64) if turn is None else turn @ values))
        while known[0][0] < at_ns - HISTORY_NS:
            known.popleft()

    def _ready(self, now_ns: int) -> Iterator[Frame]:
        while self._sweeps:
            sweep, arrival_ns = self._sweeps[0]
            known = [k[-1][0] >= sweep.end_ns for k in (self._turning, self._moving) if k]
            if (
                not (known and all(known))
                and now_ns - arrival_ns < self._max_wait_ns
                and len(self._sweeps) <= MAX_WAITING
            ):
                return
            self._sweeps.popleft()
            yield self._deskewed(sweep)

    def _send_all(self) -> Iterator[Frame]:
        while self._sweeps:
            yield self._deskewed(self._sweeps.popleft()[0])

    def _deskewed(self, sweep: Frame) -> Frame:
        motion = self._motion(sweep)
        if isinstance(motion, str):
            reason = "; ".join(filter(None, (sweep.reason, f"not de-skewed: {motion}")))
            return self._numbered(msgspec.structs.replace(sweep, stream=self.name, reason=reason))
        points = deskew(sweep.data, sweep.capture_ns, motion)
        return self._numbered(msgspec.structs.replace(sweep, stream=self.name, encoding="points_xyzi_f32", data=points))

    def _motion(self, sweep: Frame) -> Motion | str:
        """The motion during the sweep; or why it is unknown."""
        times_ns = {at_ns for known in (self._turning, self._moving) for at_ns, _ in known}
        nearby_ns = sorted(t for t in times_ns if sweep.capture_ns - GAP_NS <= t <= sweep.end_ns + GAP_NS)
        if not nearby_ns:
            return "no motion was received"
        first_ns, last_ns = nearby_ns[0], nearby_ns[-1]
        gap_ns = max((after - before for before, after in pairwise(nearby_ns)), default=0)
        if first_ns > sweep.capture_ns or last_ns < sweep.end_ns - GAP_NS // 2 or gap_ns > GAP_NS:
            first_ms, last_ms = (round((t - sweep.capture_ns) / 1e6) for t in (first_ns, last_ns))
            return f"motion is known from {first_ms} to {last_ms} ms of it, with gaps of up to {gap_ns / 1e6:.0f} ms"
        return from_rates(nearby_ns, self._rates(self._turning, nearby_ns), self._rates(self._moving, nearby_ns))

    def _rates(self, known: deque[tuple[int, np.ndarray]], times_ns: list[int]) -> np.ndarray:
        """(m, 3) at those times; zero where no input has this kind of motion."""
        if not known:
            return np.zeros((len(times_ns), 3))
        at_ns = np.array([t for t, _ in known], np.int64)
        values = np.stack([v for _, v in known])
        since = np.array(times_ns, np.int64) - at_ns[0]
        return np.stack([np.interp(since, at_ns - at_ns[0], values[:, axis]) for axis in range(3)], axis=1)

    def _numbered(self, frame: Frame) -> Frame:
        self._seq += 1
        return msgspec.structs.replace(frame, seq=self._seq - 1, publish_ns=self.context.clock.now_ns())
