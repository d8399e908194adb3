"""Rendered: one sensor of a small drive that our own code renders. Rendered, not real. No hardware and no data needed.

Example:
    lidar:  {use: rendered, sensor: lidar, beams: 32}
    camera: {use: rendered, sensor: camera, trigger_ms: 40}      # taken when the lidar looks ahead
    depth:  {use: rendered, sensor: depth, trigger_ms: 40}

Nodes with the same seed show the same street at the same time, in any process: the drive begins with the run. The
timeline of the drive is in pipeline/sensors/rendered/traffic.py, the poses of the sensors in
configs/rigs/rendered.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.clock import NS, Clock
from pipeline.errors import ConfigError
from pipeline.frame import Encoding, Frame, StreamInfo
from pipeline.node import Source
from pipeline.sensors.delivery import SimulatedFrame, delivered

if TYPE_CHECKING:
    from pipeline.sensors.rendered.drive import Drive

Sensor = Literal["camera", "lidar", "depth"]
ENCODINGS: dict[str, Encoding] = {"camera": "bgr8", "lidar": "points_xyzit_f32", "depth": "depth_u16_mm"}
SIZES_PX = {"camera": (640, 360), "depth": (320, 180)}


class Rendered(Source):
    """One simulated sensor of the rendered drive."""

    def __init__(
        self,
        *,
        sensor: Sensor = "camera",
        rate_hz: float = 10.0,
        width_px: int | None = None,
        height_px: int | None = None,
        beams: int = 32,
        seed: int = 0,
        trigger_ms: float = 0.0,
        start_s: float = 0.0,
        count: int | None = None,
        drop_percent: float = 0.0,
        delay_ms: float = 0.0,
        realtime: bool = True,
    ) -> None:
        """
        Args:
            sensor: "camera" (bgr8), "lidar" (points_xyzit_f32) or "depth" (depth_u16_mm).
            rate_hz: Frames per second (> 0); a sweep lasts 1/rate_hz. Default 10: a usual lidar.
            width_px: Width of a picture (px, 16 to 4096). Default 640, of depth 320. Another size needs another rig
                file (python -m pipeline.sensors.rendered --help).
            height_px: Height of a picture (px, 16 to 4096). Default 360, of depth 180.
            beams: Beams of the lidar: 16, 32 or 64.
            seed: Another seed gives another street and other noise. All nodes of a run need the same one.
            trigger_ms: Every capture is this long after the regular grid (ms, ≥ 0). With 40 a picture is taken when the
                lidar, at 10 Hz, looks straight ahead.
            start_s: The second of the drive at which the run begins (s, ≥ 0).
            count: Number of frames after which the stream ends. null: endless.
            drop_percent: Probability that a frame is lost before delivery (%, 0 ≤ p < 100); lost frames are counted and
                leave gaps in `seq`.
            delay_ms: Each frame is delivered this long after it is complete (ms, ≥ 0).
            realtime: false delivers as fast as the receivers read, with the same capture times.
        """
        if sensor not in ENCODINGS:
            raise ConfigError(f"sensor: found '{sensor}', expected one of {', '.join(ENCODINGS)}.")
        if rate_hz <= 0:
            raise ConfigError(f"rate_hz must be above 0, not {rate_hz}.")
        if beams not in (16, 32, 64):
            raise ConfigError(f"beams: found {beams}, expected 16, 32 or 64.")
        if trigger_ms < 0 or start_s < 0 or delay_ms < 0:
            raise ConfigError("trigger_ms, start_s and delay_ms must not be below 0.")
        if not 0 <= drop_percent < 100:
            raise ConfigError(f"drop_percent must be from 0 to below 100, not {drop_percent}.")
        if sensor == "lidar" and (width_px or height_px):
            raise ConfigError("width_px and height_px are of a picture: a lidar has beams.")
        wide, high = SIZES_PX.get(sensor, (0, 0))
        self.size_px = (width_px or wide, height_px or high)
        if sensor != "lidar" and not (16 <= self.size_px[0] <= 4096 and 16 <= self.size_px[1] <= 4096):
            raise ConfigError(f"a picture is 16 to 4096 px wide and high, not {self.size_px[0]}×{self.size_px[1]}.")
        self.sensor, self.rate_hz, self.beams, self.seed = sensor, rate_hz, beams, seed
        self.trigger_ns, self.start_ns, self.delay_ns = (
            round(trigger_ms * 1e6),
            round(start_s * NS),
            round(delay_ms * 1e6),
        )
        self.count, self.drop_percent, self.realtime = count, drop_percent, realtime
        self._drive: Drive | None = None

    def open(self) -> None:
        from pipeline.sensors.rendered.drive import Drive  # OpenCV: not for who only lists the nodes

        wide, high = self.size_px
        match self.sensor:
            case "camera":
                self._drive = Drive(seed=self.seed, width_px=wide, height_px=high)
                self._drive.camera(0)  # the first one paints the sky, which must not make it late
            case "depth":
                self._drive = Drive(seed=self.seed, depth_width_px=wide, depth_height_px=high)
            case _:
                self._drive = Drive(seed=self.seed, beams=self.beams)

    def close(self) -> None:
        self._drive = None

    def info(self) -> StreamInfo:
        what = f"{self.beams} beams" if self.sensor == "lidar" else "{}×{}".format(*self.size_px)
        channels = {"camera": 3, "lidar": 5, "depth": 1}[self.sensor]
        about = f"rendered, not real: {what}, seed {self.seed}"
        return StreamInfo(self.name, ENCODINGS[self.sensor], self.rate_hz, channels, self.sensor, about)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return delivered(self, clock, self._simulate(clock), realtime=self.realtime)

    def _simulate(self, clock: Clock) -> Iterator[SimulatedFrame]:
        """The world is known ahead of time, so a frame is ready when its sensor's would be."""
        random = np.random.default_rng([self.seed, 21])
        number = 0
        while self.count is None or number < self.count:
            if (
                self.realtime
                and (late := self._late(number, clock))
                and (self.count is None or number + late < self.count)
            ):
                random.random(late)
                self.dropped(late, "rendered too slowly")
                number += late
            yield SimulatedFrame(
                self._frame(number, clock.start_ns), self.delay_ns, random.random() * 100 < self.drop_percent
            )
            number += 1

    def _late(self, number: int, clock: Clock) -> int:
        """How many frames a machine that cannot keep up leaves out: those whose time was over a whole period ago."""
        due_ns = (
            clock.start_ns
            + self.trigger_ns
            + self.delay_ns
            + round((number + (self.sensor == "lidar")) * NS / self.rate_hz)
        )
        return max(0, int((clock.now_ns() - due_ns) * self.rate_hz // NS))

    def _frame(self, number: int, start_ns: int) -> Frame:
        assert self._drive is not None, "open() comes first"
        since_ns = round(number * NS / self.rate_hz) + self.trigger_ns
        at_ns = self.start_ns + since_ns
        duration_ns = 0
        match self.sensor:
            case "camera":
                data = self._drive.camera(at_ns, self.borrow((self.size_px[1], self.size_px[0], 3), np.uint8))
            case "depth":
                data = self._drive.depth(at_ns)
            case _:
                duration_ns = round((number + 1) * NS / self.rate_hz) + self.trigger_ns - since_ns
                data = self._drive.sweep(at_ns, duration_ns)
        return Frame(self.name, -1, start_ns + since_ns, ENCODINGS[self.sensor], data, duration_ns=duration_ns)
