"""Hesai PandarXT-32, by its manual: packets of 1080 bytes, 8 blocks of 32 channels, decoded here, since no maintained
package does it.

pre-header 6 (EE FF 06 01 …) · header 6 (lasers, blocks, …, unit of distance) · 8 × (azimuth in 0.01°, 32 × (distance,
reflectance, reserved)) · tail 28 (… return mode, motor's speed, date and time to the second, microseconds, …). Numbers
are little-endian.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.files import read_text
from pipeline.sensors.lidar.packet_decoder import points_array
from pipeline.sensors.lidar.rotating import Head, Rotating

PACKET_BYTES, LASERS, BLOCKS = 1080, 32, 8
_START = b"\xee\xff\x06\x01"
_RETURN = np.dtype([("distance", "<u2"), ("reflectance", "u1"), ("reserved", "u1")])
_BLOCK = np.dtype([("azimuth", "<u2"), ("returns", _RETURN, LASERS)])
_PACKET = np.dtype([("head", "u1", 12), ("blocks", _BLOCK, BLOCKS), ("tail", "u1", 28)])
_UNIT_AT, _MODE_AT, _DATE_AT, _US_AT = 9, 1062, 1065, 1071
_SINGLE = (0x33, 0x37, 0x38)  # first, strongest, last; all others send two blocks of each moment
_BLOCK_NS, _LAST_BLOCK_NS = 50_000, 5_632  # from block to block; from the packet's own time to its last block
_LASER_S, _FIRST_LASER_S = 1.512e-6, 0.28e-6
MAX_ANGLES_BYTES = 1 << 20
_TURN_IN_PACKET = 2000  # 0.01°: at 20 turns a second 8 blocks of one return span 2.9°


class Hesai(Rotating):
    """A Hesai PandarXT-32. Of two returns both become points."""

    port = 2368
    wrap_ns = 1 << 62  # its packets have the date too

    def __init__(
        self,
        *,
        cut_deg: float = 180.0,
        calibration: str | None = None,
        min_range_m: float = 0.1,
        max_range_m: float = 200.0,
    ) -> None:
        """
        Args:
            cut_deg: The azimuth at which sweeps begin (degrees, 0 ≤ a < 360; 0: straight ahead). Default 180: behind,
                so that no object ahead is cut in two.
            calibration: The sensor's own file of angles (CSV: Laser id, Elevation, Azimuth, in degrees), from its web
                page or PandarView. null: the nominal angles, which may be wrong by 0.1°, 2 cm at 10 m.
            min_range_m: Nearer points are left out (m, ≥ 0). Default 0.1.
            max_range_m: Farther points are left out (m). Default 200: farther than it measures.
        """
        super().__init__(cut_deg)
        if not 0 <= min_range_m < max_range_m:
            raise ValueError(f"min_range_m must lie from 0 to max_range_m, found {min_range_m} and {max_range_m}.")
        self._calibration, self._range_m = calibration, (min_range_m, max_range_m)
        self.elevation_deg, self.azimuth_deg = 15.0 - np.arange(LASERS), np.zeros(LASERS)
        self._second: tuple[bytes, int] = (b"", 0)  # a date as sent, and as nanoseconds since 1970

    def open(self) -> None:
        if self._calibration is not None:
            self.elevation_deg, self.azimuth_deg = _angles(Path(self._calibration), self.where)

    def describe(self) -> str:
        return f"Hesai XT32, {Path(self._calibration).name if self._calibration else 'nominal angles'}"

    def head(self, packet: bytes) -> Head | None:
        if (
            len(packet) != PACKET_BYTES
            or packet[:4] != _START
            or packet[6] != LASERS
            or packet[7] != BLOCKS
            or not packet[_UNIT_AT]
        ):
            return None
        first, last = (
            int.from_bytes(packet[at : at + 2], "little") for at in (12, 12 + (BLOCKS - 1) * _BLOCK.itemsize)
        )
        since_second_us = int.from_bytes(packet[_US_AT : _US_AT + 4], "little")
        second_ns = self._second_ns(packet[_DATE_AT : _DATE_AT + 6])
        turned = (last - first) % 36000
        if (
            first >= 36000
            or last >= 36000
            or turned > _TURN_IN_PACKET
            or since_second_us >= 1_000_000
            or second_ns is None
        ):
            return None
        moments = BLOCKS if packet[_MODE_AT] in _SINGLE else BLOCKS // 2
        stamp_ns = second_ns + since_second_us * 1000 + _LAST_BLOCK_NS - (moments - 1) * _BLOCK_NS
        return Head(stamp_ns, first / 100, moments * _BLOCK_NS)

    def points(self, packets: list[bytes], offsets_ns: list[int]) -> npt.NDArray[np.float32]:
        raw = np.frombuffer(b"".join(packets), _PACKET)
        blocks = raw["blocks"]
        unit_m = raw["head"][:, _UNIT_AT].astype(np.float32)[:, None, None] / 1000
        range_m = blocks["returns"]["distance"] * unit_m  # (packet, block, laser)
        reflectance = blocks["returns"]["reflectance"] * np.float32(1 / 255)
        single = np.isin(raw["tail"][:, _MODE_AT - PACKET_BYTES], _SINGLE)
        moment = np.where(single[:, None], np.arange(BLOCKS), np.arange(BLOCKS) // 2)
        since_s = (
            (np.array(offsets_ns)[:, None] + moment * _BLOCK_NS)[..., None] / NS
            + _LASER_S * np.arange(LASERS)
            + _FIRST_LASER_S
        )
        valid = (range_m >= max(self._range_m[0], 1e-3)) & (range_m <= self._range_m[1])
        # Where both returns are the same, the second block repeats the first.
        distance = blocks["returns"]["distance"]
        valid[:, 1::2] &= single[:, None, None] | (distance[:, 1::2] != distance[:, ::2])
        azimuth = np.radians(blocks["azimuth"][..., None] / 100 + self.azimuth_deg)
        elevation = np.broadcast_to(np.radians(self.elevation_deg), range_m.shape)
        range_m, azimuth, elevation = range_m[valid], azimuth[valid], elevation[valid]
        flat = range_m * np.cos(elevation)
        # Azimuth turns to the right of straight ahead, valid from above.
        xyz = np.stack([flat * np.cos(azimuth), -flat * np.sin(azimuth), range_m * np.sin(elevation)], axis=1)
        return points_array(xyz, reflectance[valid], since_s[valid])

    def _second_ns(self, date: bytes) -> int | None:
        if date != self._second[0]:
            try:
                when = datetime(1900 + date[0], *date[1:6], tzinfo=UTC)  # type: ignore[arg-type, misc]
            except ValueError:
                return None
            self._second = (date, round(when.timestamp()) * NS)
        return self._second[1]


def _angles(path: Path, where: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(elevation, azimuth) in degrees, by laser."""
    text = read_text(path, most=MAX_ANGLES_BYTES)
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row and row[0].strip().isdecimal()]
        angles = np.array([[float(row[1]), float(row[2])] for row in sorted(rows, key=lambda row: int(row[0]))])
    except (ValueError, IndexError, csv.Error) as error:
        raise ConfigError(
            f"{where}: calibration {path}: cannot be read: {error}. Expected lines of: Laser id,Elevation,Azimuth"
        ) from error
    if angles.shape != (LASERS, 2) or not np.isfinite(angles).all():
        raise ConfigError(
            f"{where}: calibration {path}: {len(angles)} lines of angles, expected {LASERS}: it is of another sensor"
        )
    return angles[:, 0], angles[:, 1]
