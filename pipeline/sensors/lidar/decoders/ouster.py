"""Ouster: OS0, OS1, OS2, OSDome of any profile; ouster-sdk reads the packets and computes the points.

A packet has a few columns of a frame, each with its number and the sensor's time; frames begin where the encoder is at
0, and sweeps are cut there. The packet format and the direction of each beam are in the sensor's metadata only.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError, DeviceError, missing_package
from pipeline.files import read_text
from pipeline.sensors.lidar.packet_decoder import (
    LATE,
    LOST,
    MALFORMED,
    TWICE,
    PacketDecoder,
    SensorClock,
    Sweep,
    points_array,
)

NEAR_FRAMES = 8  # a frame number farther from the newest than this needs a second packet to confirm it
SILENCE_NS = NS // 2  # likewise for the sensor's time
MAX_NS = 1 << 62  # a later time is invalid
HTTP_TIMEOUT_S = 5
MAX_METADATA_BYTES = 1 << 20
MAX_SIZE = (
    1 << 14
)  # of each size in the metadata: the SDK allocates what it says, and a sensor has at most 4096 columns
GET_METADATA = (
    "Save it once, from a host that reaches the sensor: "
    "curl http://SENSOR/api/v1/sensor/metadata > metadata.json, and set options: {metadata: metadata.json}; "
    "or have it requested: options: {address: os-122000000000.local}."
)


class OusterPackets(PacketDecoder):
    """The common part of the decoders of lidar and IMU packets: the metadata."""

    def __init__(self, metadata: str | None, address: str | None) -> None:
        super().__init__()
        if metadata is not None and address is not None:
            raise ValueError("set either metadata (a file) or address (of the sensor).")
        self._metadata, self._address = metadata, address
        self.sensor: Any = None  # SensorInfo, once the metadata is known

    def open(self) -> None:
        try:
            import ouster.sdk.core
        except ModuleNotFoundError as error:
            raise missing_package("ouster-sdk", self.where, "ouster") from error
        self.sdk: Any = ouster.sdk.core
        if self._metadata is not None:
            try:
                text = read_text(Path(self._metadata), most=MAX_METADATA_BYTES)
            except ConfigError as error:
                raise ConfigError(f"{self.where}: metadata {error}. {GET_METADATA}") from error
            self.take_metadata(text)
        elif self._address is not None:
            self.take_metadata(self._request(self._address))

    def take_metadata(self, text: str) -> None:
        named = " ".join(filter(None, ("metadata", self._metadata, self._address)))
        try:
            _check_sizes(json.loads(text))
            self.sensor = self.sdk.SensorInfo(text)
            self.format = self.sdk.PacketFormat(self.sensor)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
            raise ConfigError(f"{self.where}: {named}: not an Ouster's: {_short(error)}. {GET_METADATA}") from error

    def describe(self) -> str:
        return f"Ouster {self.sensor.prod_line} {self.sensor.fw_rev}" if self.sensor else "Ouster"

    def needs_metadata(self) -> str:
        return (
            ""
            if self.sensor is not None
            else f"an Ouster's packets cannot be read without the sensor's metadata. {GET_METADATA}"
        )

    def _request(self, address: str) -> str:
        """From the sensor itself; not by the SDK, whose request blocks every thread of the process until the answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # sensors are in the local network
        try:
            with opener.open(f"http://{address}/api/v1/sensor/metadata", timeout=HTTP_TIMEOUT_S) as answer:
                return str(answer.read(MAX_METADATA_BYTES).decode())
        except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: no address, no text
            why = getattr(error, "reason", error)
            fix = "Is it on, and is that its address?"
            raise DeviceError(
                f"{self.where}: the sensor at {address} does not send its metadata: {why}. {fix}", retry=True
            ) from error


def _check_sizes(tree: object, where: str = "") -> None:
    """Raises ValueError for a whole number of columns, rows or pixels that no sensor has."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, int) and any(word in key for word in ("column", "pixel", "row", "beam_count")):
                if not -MAX_SIZE <= value <= MAX_SIZE:
                    raise ValueError(f"{where}{key} is {value}, expected at most {MAX_SIZE}")
            _check_sizes(value, f"{where}{key}.")
    elif isinstance(tree, list):
        for value in tree[:MAX_SIZE]:
            _check_sizes(value, where)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


class _Columns(NamedTuple):
    """A packet's header."""

    frame: int
    first: int  # the number of its first column
    times_ns: list[int]  # of each column, the sensor's
    valid: list[bool]  # of each column
    span_ns: tuple[int, int] | None  # of the valid ones; None: there are none


class Ouster(OusterPackets):
    """An Ouster lidar. Of two returns both become points."""

    port = 7502

    def __init__(
        self,
        *,
        metadata: str | None = None,
        address: str | None = None,
        min_range_m: float = 0.1,
        max_range_m: float = 500.0,
    ) -> None:
        """
        Args:
            metadata: The sensor's metadata, a JSON file.
            address: The sensor's address, to request the metadata from it instead. The destination of its packets is
                set on its own web page.
            min_range_m: Nearer points are left out (m, ≥ 0). Default 0.1.
            max_range_m: Farther points are left out (m). Default 500: farther than any model measures.
        """
        super().__init__(metadata, address)
        if not 0 <= min_range_m < max_range_m:
            raise ValueError(f"min_range_m must lie from 0 to max_range_m, found {min_range_m} and {max_range_m}.")
        self._range_mm = (min_range_m * 1000, max_range_m * 1000)
        self.clock = SensorClock()
        self._frame: int | None = None  # the number of the one in progress
        self._newest_ns: int | None = None  # the newest column's time, on the sensor's clock
        self._host_ns = 0  # and on the host's
        self._suspect: tuple[_Columns, bytes, int] | None = None
        self._sent: int | None = None  # the frame that was sent last
        self._missing = 0  # packets of it: late ones are subtracted before they are counted as lost
        self._capture_ns = -(1 << 62)

    def take_metadata(self, text: str) -> None:
        super().take_metadata(text)
        layout = self.sensor.format
        self.rate_hz = float(layout.fps) if layout.fps else None
        first, last = layout.column_window
        columns = np.arange(self.sensor.w)
        self._window = (
            (columns >= first) & (columns <= last) if first <= last else (columns >= first) | (columns <= last)
        )
        self._per_packet = int(layout.columns_per_packet)
        self._whole = len(np.unique(columns[self._window] // self._per_packet))  # packets of a frame
        self._lut = self.sdk.XYZLutFloat(self.sensor, False)
        self._id, self._width = int(self.sensor.init_id), int(self.sensor.w)  # legacy packets have no id
        fields = set(self.format.fields)
        self._returns = [
            (r, i) for r, i in (("RANGE", "REFLECTIVITY"), ("RANGE2", "REFLECTIVITY2")) if {r, i} <= fields
        ]
        if not self._returns:
            raise ConfigError(
                f"{self.where}: the sensor's profile {layout.udp_profile_lidar} has no ranges. "
                "Choose another on its page"
            )
        self._clear()

    def _clear(self) -> None:
        height, width = self.sensor.h, self.sensor.w
        self._ranges = {r: np.zeros((height, width), np.uint32) for r, _ in self._returns}
        self._brightness = {i: np.zeros((height, width), np.uint16) for _, i in self._returns}
        self._times_ns = np.zeros(width, np.int64)
        self._valid = np.zeros(width, bool)
        self._arrived: set[int] = set()  # packets of the frame, by the number of their first column

    def feed(self, packet: bytes, arrival_ns: int) -> Iterator[Sweep]:
        columns = self._columns(packet)
        if columns is None:
            self.lost[MALFORMED] += 1
            return
        suspect, self._suspect = self._suspect, None
        if self._follows(columns):
            self.lost[MALFORMED] += suspect is not None
        elif suspect is not None and self._pair(suspect[0], columns):
            yield from self._close("the sensor's time or frame number jumped, or it was silent")
            self._frame = self._newest_ns = self._sent = None
            yield from self._accept(*suspect)
        else:
            self.lost[MALFORMED] += suspect is not None
            self._suspect = (columns, packet, arrival_ns)
            return
        yield from self._accept(columns, packet, arrival_ns)

    def finish(self) -> Iterator[Sweep]:
        self.lost[MALFORMED] += self._suspect is not None
        self._suspect = None
        yield from self._close("the packets ended")
        self.lost[LOST] += self._missing
        self._missing, self._sent = 0, None

    def _columns(self, packet: bytes) -> _Columns | None:
        if self.sensor is None or len(packet) != self.format.lidar_packet_size:
            return None
        head, buffer = self.sdk.ColHeader, np.frombuffer(packet, np.uint8)
        # Lists are faster than arrays for sixteen numbers.
        ids = self.format.packet_header(head.MEASUREMENT_ID, buffer).tolist()
        if ids[0] % self._per_packet or ids[-1] >= self._width or ids != list(range(ids[0], ids[0] + len(ids))):
            return None
        if self._id and self.format.init_id(buffer) not in (0, self._id):
            return None  # of another sensor, or from before its settings were changed
        valid = [bool(status & 1) for status in self.format.packet_header(head.STATUS, buffer).tolist()]
        times_ns = self.format.packet_header(head.TIMESTAMP, buffer).tolist()
        valid_ns = [at_ns for at_ns, is_valid in zip(times_ns, valid, strict=True) if is_valid]
        span_ns = (valid_ns[0], valid_ns[-1]) if valid_ns else None
        if span_ns is not None and (span_ns[0] <= 0 or span_ns[1] > MAX_NS or span_ns[1] - span_ns[0] > SILENCE_NS):
            return None
        if valid_ns != sorted(valid_ns):
            return None
        return _Columns(int(self.format.frame_id(buffer)), ids[0], times_ns, valid, span_ns)

    def _ahead(self, frame: int, of: int) -> int:
        """By how many frames, across the wrap of their number; negative: older."""
        wrap = int(self.format.max_frame_id) + 1
        return (frame - of + wrap // 2) % wrap - wrap // 2

    def _follows(self, columns: _Columns) -> bool:
        newest = self._frame if self._frame is not None else self._sent
        if newest is not None and abs(self._ahead(columns.frame, newest)) > NEAR_FRAMES:
            return False
        return (
            self._newest_ns is None or columns.span_ns is None or abs(columns.span_ns[1] - self._newest_ns) < SILENCE_NS
        )

    def _pair(self, first: _Columns, second: _Columns) -> bool:
        if abs(self._ahead(second.frame, first.frame)) > 1:
            return False
        return first.span_ns is None or second.span_ns is None or abs(second.span_ns[0] - first.span_ns[0]) < SILENCE_NS

    def _accept(self, columns: _Columns, packet: bytes, arrival_ns: int) -> Iterator[Sweep]:
        self.good += 1
        number = columns.first // self._per_packet
        newest = self._frame if self._frame is not None else self._sent
        ahead = 1 if newest is None else self._ahead(columns.frame, newest)
        if ahead < 0 or (ahead == 0 and self._frame is None):  # its frame has been sent
            in_last = self._sent is not None and columns.frame == self._sent and self._missing
            self.lost[LATE if in_last or ahead < 0 else TWICE] += 1
            self._missing -= 1 if in_last else 0
            return
        if ahead == 0 and number in self._arrived:
            self.lost[TWICE] += 1
            return
        if ahead > 0 and self._frame is not None:
            yield from self._close()
        if ahead > 0:
            self.lost[LOST] += self._whole * (ahead - 1)  # frames without any packet
            self._frame = columns.frame
        self._stamp(columns, arrival_ns)
        place = slice(columns.first, columns.first + self._per_packet)
        buffer = np.frombuffer(packet, np.uint8)
        for ranges, brightness in self._returns:
            self._ranges[ranges][:, place] = self.format.packet_field(ranges, buffer)
            self._brightness[brightness][:, place] = self.format.packet_field(brightness, buffer)
        self._times_ns[place], self._valid[place] = columns.times_ns, columns.valid
        self._arrived.add(number)
        if len(self._arrived) == self._whole:
            yield from self._close()

    def _stamp(self, columns: _Columns, arrival_ns: int) -> None:
        if columns.span_ns is not None and (self._newest_ns is None or columns.span_ns[1] > self._newest_ns):
            first_ns, self._newest_ns = columns.span_ns
            self._host_ns = self.clock.stamp(first_ns, self._newest_ns, arrival_ns) + self._newest_ns - first_ns

    def _close(self, why: str = "") -> Iterator[Sweep]:
        """Send the frame in progress, whole or not."""
        if self._frame is None:
            return
        self.lost[LOST] += self._missing
        self._sent, self._frame = self._frame, None
        self._missing = self._whole - len(self._arrived)
        without_deg = 360 * self._missing * self._per_packet / self.sensor.w
        reason = f"{self._missing} of {self._whole} packets missing, {without_deg:.0f}° without points"
        columns = np.flatnonzero(self._valid & self._window)
        if len(columns) and self._newest_ns is not None:
            yield self._sweep(columns, reason if self._missing else "", why)
        self._clear()

    def _sweep(self, columns: npt.NDArray[np.int64], reason: str, why: str) -> Sweep:
        assert self._newest_ns is not None
        window = np.flatnonzero(self._window)
        first, last = int(columns[0]), int(columns[-1])
        nominal_ns = NS / (self.rate_hz or 10.0) / self.sensor.w
        period_ns = (self._times_ns[last] - self._times_ns[first]) / (last - first) if last > first else nominal_ns
        start_ns = int(self._times_ns[first]) - round((first - window[0]) * period_ns)
        host_ns = self._host_ns - (self._newest_ns - start_ns)
        capture_ns = self._capture_ns = max(host_ns, self._capture_ns + 1)
        seconds = ((self._times_ns - start_ns) / NS).astype(np.float32)
        parts = []
        for ranges, brightness in self._returns:
            range_mm = self._ranges[ranges]
            valid = (range_mm >= max(1, self._range_mm[0])) & (range_mm <= self._range_mm[1]) & self._valid
            where = np.flatnonzero(valid)  # a quarter of the time of a mask over all coordinates
            xyz = self._lut(range_mm).reshape(-1, 3)[where]
            reflectance = np.minimum(self._brightness[brightness].ravel()[where] * np.float32(1 / 255), 1)
            parts.append(points_array(xyz, reflectance, seconds[where % len(seconds)]))
        reasons = "; ".join(part for part in (reason, why) if part)
        duration_ns = round((int(window[-1]) - int(window[0]) + 1) * period_ns)
        error_ns = self.clock.error_ns + capture_ns - host_ns
        return Sweep(capture_ns, duration_ns, error_ns, parts[0] if len(parts) == 1 else np.concatenate(parts), reasons)
