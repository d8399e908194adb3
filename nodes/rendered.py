"""Rendered: one sensor of a small drive that our own code renders. Rendered, not real. No hardware and no data needed.

    lidar:  {use: rendered, sensor: lidar, beams: 32}
    camera: {use: rendered, sensor: camera, trigger_ms: 40}      # taken when the lidar looks ahead
    depth:  {use: rendered, sensor: depth, trigger_ms: 40}

Nodes with the same seed show the same street at the same time, in whatever processes they run: the drive begins with the run. What
happens in it stands in pipeline/sensors/rendered/traffic.py, where the sensors sit in configs/rigs/rendered.yaml.
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
    """sensor: camera (bgr8), lidar (points_xyzit_f32) or depth (depth_u16_mm).

    rate_hz: frames a second; a sweep lasts 1/rate_hz. width_px, height_px: of a picture (default: 640×360, depth 320×180);
    another size needs another rig file (python -m pipeline.sensors.rendered --help). beams: of the lidar, 16, 32 or 64.
    seed: another street, other noise; give all nodes the same one. trigger_ms: every capture comes this long after the even grid;
    with 40 a picture is taken just when the lidar, at 10 Hz, looks ahead. start_s: the second of the drive to begin with.
    count: frames until it ends; null: forever. drop_percent: chance of a frame being lost before delivery; it is counted,
    and leaves a gap in `seq`. delay_ms: each frame is delivered this long after it is complete. realtime: false delivers as
    fast as readers take it, with the same capture times.
    """

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
        return delivered(self, clock, self._made(clock), realtime=self.realtime)

    def _made(self, clock: Clock) -> Iterator[SimulatedFrame]:
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
