"""Synthetic: a generated stream of any encoding with exactly known contents. No hardware needed.

Example:
    camera:     {use: synthetic, encoding: bgr8, rate_hz: 30, width_px: 640, height_px: 360, jitter_ms: 3}
    microphone: {use: synthetic, encoding: pcm_f32, rate_hz: 50, delay_ms: 20}
    lidar:      {use: synthetic, encoding: points_xyzi_f32, rate_hz: 10, drop_percent: 1, seed: 7}

Every picture shows its own number (`picture_number` reads it, also from a JPEG), sound is one chirp a second (its
position gives the time), a series is a sine of the capture time. The same options give the same stream, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from pipeline.clock import NS, Clock
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Source
from pipeline.sensors.delivery import SimulatedFrame, delivered

NUMBER_BITS = 24  # half a million seconds at 30 Hz
SERIES_HZ = 0.5
CHIRP_FROM_HZ, CHIRP_TO_HZ = 200.0, 2000.0

Generated = Literal["bgr8", "pcm_f32", "series_f32", "depth_u16_mm", "points_xyzi_f32", "imu_f64"]


class Synthetic(Source):
    """A generated stream."""

    def __init__(
        self,
        *,
        encoding: Generated = "bgr8",
        rate_hz: float = 30.0,
        width_px: int = 640,
        height_px: int = 360,
        sample_rate_hz: int = 16000,
        points: int = 4096,
        channels: int = 1,
        jitter_ms: float = 0.0,
        delay_ms: float = 0.0,
        delay_jitter_ms: float = 0.0,
        drop_percent: float = 0.0,
        count: int | None = None,
        seed: int = 0,
        realtime: bool = True,
    ) -> None:
        """
        Args:
            encoding: bgr8, pcm_f32, series_f32, depth_u16_mm, points_xyzi_f32 or imu_f64.
            rate_hz: Frames per second (> 0); a frame of pcm_f32 is a chunk of 1/rate_hz.
            width_px: Width of a picture (px, at least 96 for bgr8, so that it can show its number).
            height_px: Height of a picture (px, at least 32 for bgr8).
            sample_rate_hz: Sample rate of pcm_f32 (≥ rate_hz).
            points: Number of points of points_xyzi_f32.
            channels: Number of values of series_f32.
            jitter_ms: Each capture deviates by up to ± this from the regular grid (ms, below half a period). Sound is
                always sampled evenly.
            delay_ms: Each frame is delivered this long after it is complete (ms).
            delay_jitter_ms: A random 0 to this is added to delay_ms (ms).
            drop_percent: Probability that a frame is lost before delivery (%, 0 ≤ p < 100); lost frames are counted and
                leave gaps in `seq`.
            count: Number of frames after which the stream ends. null: endless.
            seed: Of the jitter and the losses.
            realtime: false delivers as fast as the receivers read, with the same capture times.
        """
        if rate_hz <= 0:
            raise ConfigError(f"rate_hz must be above 0, not {rate_hz}.")
        if encoding == "bgr8" and (width_px < 4 * NUMBER_BITS or height_px < 32):
            raise ConfigError(f"a picture must be at least {4 * NUMBER_BITS}×32 to show its number.")
        if not 0 <= 2 * jitter_ms < 1000 / rate_hz:
            raise ConfigError(f"jitter_ms must be below half a period ({500 / rate_hz:g} ms): frames come in order.")
        if not 0 <= drop_percent < 100:
            raise ConfigError(f"drop_percent must be from 0 to below 100, not {drop_percent}.")
        if encoding == "pcm_f32" and sample_rate_hz < rate_hz:
            raise ConfigError("sample_rate_hz must not be below rate_hz: a chunk needs a sample.")
        self.encoding, self.rate_hz = encoding, rate_hz
        self.width_px, self.height_px = width_px, height_px
        self.sample_rate_hz, self.points, self.channels = sample_rate_hz, points, channels
        self.jitter_ns, self.delay_ns = round(jitter_ms * 1e6), round(delay_ms * 1e6)
        self.delay_jitter_ns = round(delay_jitter_ms * 1e6)
        self.drop_percent, self.count, self.seed, self.realtime = drop_percent, count, seed, realtime

    def info(self) -> StreamInfo:
        channels = {"bgr8": 3, "points_xyzi_f32": 4, "imu_f64": 6, "series_f32": self.channels}.get(self.encoding, 1)
        what = f"generated, seed {self.seed}"
        return StreamInfo(self.name, self.encoding, self.rate_hz, channels, self.name, what)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return delivered(self, clock, self._simulate(clock), realtime=self.realtime)

    def _simulate(self, clock: Clock) -> Iterator[SimulatedFrame]:
        random = np.random.default_rng(self.seed)
        number = 0
        while self.count is None or number < self.count:
            # All three are always drawn, so that one option does not change the effect of the others.
            jitter, delay, fate = random.uniform([-1, 0, 0], [1, 1, 100])
            delay_ns = self.delay_ns + round(delay * self.delay_jitter_ns)
            yield SimulatedFrame(self._frame(number, clock.start_ns, jitter), delay_ns, fate < self.drop_percent)
            number += 1

    def _frame(self, number: int, start_ns: int, jitter: float) -> Frame:
        if self.encoding == "pcm_f32":
            first, end = (round(n * self.sample_rate_hz / self.rate_hz) for n in (number, number + 1))
            first_ns, end_ns = (index * NS // self.sample_rate_hz for index in (first, end))
            data = chirp(first, end - first, self.sample_rate_hz)
            return Frame(self.name, -1, start_ns + first_ns, "pcm_f32", data, duration_ns=end_ns - first_ns)
        since_start_ns = round(number * NS / self.rate_hz + jitter * self.jitter_ns)
        return Frame(self.name, -1, start_ns + since_start_ns, self.encoding, self._data(number, since_start_ns))

    def _data(self, number: int, since_start_ns: int) -> np.ndarray:
        value = series(since_start_ns)
        match self.encoding:
            case "bgr8":
                return picture(number, self.width_px, self.height_px, self.borrow)
            case "series_f32":
                return np.full(self.channels, value, np.float32)
            case "imu_f64":
                return np.array([0.0, 0.0, 9.81, 0.0, 0.0, value])
            case "depth_u16_mm":  # a wall that moves between 1 m and 3 m
                depth = self.borrow((self.height_px, self.width_px), np.uint16)
                depth.fill(2000 + round(1000 * value))
                return depth
            case _:  # a ring of posts around the sensor, at the wall's distance
                angle = np.linspace(0, 2 * np.pi, self.points, endpoint=False, dtype=np.float32)
                range_m = np.float32(2 + value)
                height = np.linspace(-1, 1, self.points, dtype=np.float32)
                points = self.borrow((self.points, 4), np.float32)
                return np.stack(
                    [range_m * np.cos(angle), range_m * np.sin(angle), height, np.abs(height)], axis=1, out=points
                )


def series(since_start_ns: int) -> float:
    """The value of a generated series at a time since the run's start, in [-1, 1]."""
    return float(np.sin(2 * np.pi * SERIES_HZ * since_start_ns / NS))


def chirp(first_index: int, count: int, sample_rate_hz: int) -> np.ndarray:
    """(count,) float32: one rising chirp a second, from CHIRP_FROM_HZ to CHIRP_TO_HZ, by absolute sample index."""
    t_s = (np.arange(first_index, first_index + count) % sample_rate_hz) / sample_rate_hz
    turns = CHIRP_FROM_HZ * t_s + (CHIRP_TO_HZ - CHIRP_FROM_HZ) / 2 * t_s**2
    return (0.5 * np.sin(2 * np.pi * turns)).astype(np.float32)


def picture(number: int, width_px: int, height_px: int, borrow: Callable[..., np.ndarray] = np.empty) -> np.ndarray:
    """(h, w, 3) uint8: a bar that moves to the right, under a band of NUMBER_BITS fields, highest bit first, white =
    1."""
    image = borrow((height_px, width_px, 3), np.uint8)
    image.fill(64)
    bar_px = max(1, width_px // 40)
    left_px = number * bar_px % width_px
    image[:, left_px : left_px + bar_px] = (0, 160, 255)
    edges = np.linspace(0, width_px, NUMBER_BITS + 1).astype(int)
    for bit in range(NUMBER_BITS):
        image[: height_px // 4, edges[bit] : edges[bit + 1]] = 255 * (number >> (NUMBER_BITS - 1 - bit) & 1)
    return image


def picture_number(image: np.ndarray) -> int:
    """The number that `picture` drew; reads through JPEG and scaling."""
    height_px, width_px = image.shape[:2]
    centres = ((np.arange(NUMBER_BITS) + 0.5) * width_px / NUMBER_BITS).astype(int)
    bits = image[height_px // 8, centres].mean(axis=1) > 127
    return int("".join("1" if bit else "0" for bit in bits), 2)
