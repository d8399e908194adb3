"""Velodyne: VLP-16, Puck Hi-Res, VLP-32C, HDL-32E, VLS-128, HDL-64E; velodyne-decoder computes the points.

A packet is 1206 bytes: 12 blocks (flag, azimuth in 0.01°, 32 returns), microseconds since the hour, return mode, model.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError, missing_package, nearest
from pipeline.files import open_regular
from pipeline.sensors.lidar.packet_decoder import points_array
from pipeline.sensors.lidar.rotating import Head, Rotating

PACKET_BYTES = 1206
_HEADS = struct.Struct("<" + "HH96x" * 12 + "IBB")
_FLAGS = {0xEEFF, 0xDDFF, 0xCCFF, 0xBBFF}  # of the laser banks, as little-endian numbers
# Factory byte → model. HDL-64E sends none, so its model is an option.
_MODELS = {0x21: "HDL32E", 0x22: "VLP16", 0x24: "PuckHiRes", 0x28: "VLP32C", 0xA1: "VLS128"}
# Duration of a packet's firings, by factory byte; with two returns a packet has half the firings. HDL-64E: 0.
_PACKET_NS = {0x21: 552_960, 0x22: 1_327_104, 0x24: 1_327_104, 0x28: 663_552, 0xA1: 159_900, 0: 288_000}
_DUAL = 0x39
_US = 1000
_HOUR_US = 3_600_000_000
_TURN_IN_PACKET = 6000  # 0.01°: at 20 turns a second a packet spans some 10°, an HDL-64E's less


class Velodyne(Rotating):
    """A Velodyne lidar. Of two returns both become points."""

    port = 2368

    def __init__(
        self,
        *,
        cut_deg: float = 180.0,
        model: str | None = None,
        calibration: str | None = None,
        min_range_m: float = 0.1,
        max_range_m: float = 300.0,
    ) -> None:
        """
        Args:
            cut_deg: The azimuth at which sweeps begin (degrees, 0 ≤ a < 360; 0: straight ahead). Default 180: behind,
                so that no object ahead is cut in two.
            model: The model; null: from the packets. An HDL-64E does not send it and needs "HDL64E_S2" or "HDL64E_S3"
                and its calibration.
            calibration: The sensor's own calibration, a YAML file of the ROS driver's or VeloView's form. null: the
                model's nominal one.
            min_range_m: Nearer points are left out (m, ≥ 0). Default 0.1.
            max_range_m: Farther points are left out (m). Default 300: farther than any model measures.
        """
        super().__init__(cut_deg)
        if not 0 <= min_range_m < max_range_m:
            raise ValueError(f"min_range_m must lie from 0 to max_range_m, found {min_range_m} and {max_range_m}.")
        self._model, self._calibration, self._range_m = model, calibration, (min_range_m, max_range_m)
        self._packet_model = 0  # the factory byte of the packets so far
        self._others: list[int] = []  # differing ones of the latest packets

    def open(self) -> None:
        try:
            import velodyne_decoder
        except ModuleNotFoundError as error:
            raise missing_package("velodyne-decoder", self.where, "lidar") from error
        self._package: Any = velodyne_decoder
        models = velodyne_decoder.Model.__members__
        if self._model is not None and self._model not in models:
            message = f"{self.where}: model: found '{self._model}'"
            raise ConfigError(f"{message}, expected one of {', '.join(models)}.{nearest(self._model, models)}")
        try:
            self._decoder = velodyne_decoder.ScanDecoder(self._config(self._model))
        except RuntimeError as error:
            fix = "Set options: {calibration: file.yml}, of the ROS driver's or VeloView's form"
            raise ConfigError(
                f"{self.where}: {self._model} cannot be decoded without its sensor's calibration ({error}). {fix}"
            ) from error

    def _config(self, model: str | None) -> Any:
        package = self._package
        calibration = None
        if self._calibration is not None:
            open_regular(Path(self._calibration)).close()  # no pipe
            try:
                calibration = package.Calibration.read(self._calibration)
            except Exception as error:  # whatever the file leads the library to
                raise ConfigError(f"{self.where}: calibration {self._calibration}: cannot be read: {error}") from error
        return package.Config(
            model=None if model is None else package.Model.__members__[model],
            calibration=calibration,
            min_range=self._range_m[0],
            max_range=self._range_m[1],
            timestamp_first_packet=True,
        )

    def describe(self) -> str:
        return f"Velodyne {self._model or _MODELS.get(self._packet_model, '')}".strip()

    def head(self, packet: bytes) -> Head | None:
        if len(packet) != PACKET_BYTES:
            return None
        *heads, since_hour_us, mode, model = _HEADS.unpack(packet)
        azimuths = heads[1::2]
        if not _FLAGS.issuperset(heads[::2]) or max(azimuths) >= 36000 or since_hour_us >= _HOUR_US:
            return None
        if (azimuths[-1] - azimuths[0]) % 36000 > _TURN_IN_PACKET or not (self._model or self._is_model(model)):
            return None
        if self._model is not None:  # an HDL-64E has other data at the bytes of mode and model
            model = next((byte for byte, name in _MODELS.items() if name == self._model), 0)
        span_ns = _PACKET_NS[model] // (2 if model and mode == _DUAL else 1)
        return Head(since_hour_us * _US, azimuths[0] / 100, span_ns)

    def _is_model(self, model: int) -> bool:
        """Whether that factory byte is the sensor's. One corrupt packet does not change it; three that agree do."""
        if model == self._packet_model:
            self._others.clear()
            return True
        self._others = [*self._others[-2:], model]
        if model not in _MODELS or (self._packet_model and self._others != [model] * 3):
            return False
        self._packet_model = model
        self._decoder = self._package.ScanDecoder(self._config(_MODELS[model]))
        return True

    def points(self, packets: list[bytes], offsets_ns: list[int]) -> npt.NDArray[np.float32]:
        if len(packets) > 1 and not _are_even(packets, offsets_ns):
            # The package derives a point's time from its packet's, without the wrap of the hour and without reordering.
            each = [self.points([raw], [0]) for raw in packets]
            for points, offset_ns in zip(each, offsets_ns, strict=True):
                points[:, 4] += offset_ns / NS
            return np.concatenate(each)
        vector = self._package.PacketVector()
        for raw in packets:
            vector.append(
                self._package.VelodynePacket(0.0, list(raw))
            )  # a list is converted 2.5 times as fast as bytes
        _, rows = self._decoder.decode(vector)
        return points_array(rows[:, :3], rows[:, 3] / 255, rows[:, 4])


def _are_even(packets: list[bytes], offsets_ns: list[int]) -> bool:
    first_us, last_us = (int.from_bytes(raw[1200:1204], "little") for raw in (packets[0], packets[-1]))
    return (last_us - first_us) * _US == offsets_ns[-1] - offsets_ns[0] and all(a <= b for a, b in pairwise(offsets_ns))
