"""Sweeps: the packets of a lidar in a recording or a bag → the sweeps that nodes/lidar.py sends live.

Example:
    lidar:  {use: replay, path: drive.mcap}                     # a stream of packets
    lidar/metadata: {use: replay, path: drive.mcap}             # of an Ouster: needed to read the packets
    points: {use: sweeps, sensor: ouster, inputs: [lidar, lidar/metadata]}

The arrival time of a packet is its frame's capture time, so that a replay gives the same sweeps at every speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Frame, silence
from pipeline.node import Arrival, Transform
from pipeline.sensors.lidar.packet_decoder import PacketDecoder, Sweep, make

METADATA = ("calibration", "text_utf8")


class Sweeps(Transform):
    """Inputs: the packets and, where the sensor needs it, its metadata."""

    consumes: ClassVar[tuple[type, ...]] = (Frame,)
    produces: ClassVar[type | None] = Frame

    def __init__(self, *, sensor: str, options: dict[str, Any] | None = None) -> None:
        """
        Args:
            sensor: "velodyne", "ouster", "hesai", "ouster_imu", or module:Name of a PacketDecoder.
            options: Of the sensor's decoder (docs/lidar.md): cut_deg, min_range_m, max_range_m, …
        """
        self.sensor, self.options = sensor, options
        self._decoder: PacketDecoder = make(sensor, options, where="sweeps")
        self._seq = 0
        self._waits = False  # for the metadata
        self._metadata_from: set[str] = set()  # inputs that may bring it
        self._error_ns = 0  # of the packets' own times

    def open(self) -> None:
        self._decoder = make(self.sensor, self.options, where=f"sweeps '{self.name}'")
        self._decoder.open()
        self._waits = bool(self._decoder.needs_metadata())
        self._metadata_from = set(self.context.inputs)
        if self._waits and len(self.context.inputs) == 1:
            fix = "Or read the recording's: inputs: [lidar, lidar/metadata]."
            raise ConfigError(f"sweeps '{self.name}': {self._decoder.needs_metadata()} {fix}")

    def ready_for(self, source: str) -> bool:
        """Packets that arrive before the metadata stay in their queue."""
        info = self.context.info(source) if self._waits else None
        return info is None or info.encoding != "packet"

    def process(self, arrival: Arrival) -> Iterator[Frame]:
        frame = arrival.message
        assert isinstance(frame, Frame)
        if frame.encoding == "packet":
            if self._waits:
                self._count({"packets before the sensor's metadata": 1})
                return
            self._error_ns = frame.clock_error_ns
            yield from self._frames(self._decoder.take(frame.data.tobytes(), frame.capture_ns))
        elif frame.encoding in METADATA and self._waits:
            self._decoder.take_metadata(frame.data.tobytes().decode(errors="replace"))
            self._waits = False
            self.context.metrics.facts["device"] = self._decoder.describe()
        elif frame.encoding == "none" and arrival.source not in self._metadata_only():
            yield from self._frames(self._decoder.finish())
            yield self._numbered(silence(self.name, frame.capture_ns, frame.reason))
        elif frame.encoding not in (*METADATA, "none"):
            self._count({f"{frame.encoding}: no packets": 1})

    def ended(self, source: str, arrival_ns: int) -> Iterable[Frame]:
        self._metadata_from.discard(source)
        if self._waits and not [s for s in self._metadata_from if self.ready_for(s)]:
            raise ConfigError(f"sweeps '{self.name}': none of its inputs has it: {self._decoder.needs_metadata()}")
        return ()

    def finish(self) -> Iterator[Frame]:
        yield from self._frames(self._decoder.finish())
        self.context.metrics.facts["device"] = self._decoder.describe()

    def _metadata_only(self) -> set[str]:
        infos = {source: self.context.info(source) for source in self.context.inputs}
        return {source for source, info in infos.items() if info is not None and info.encoding in METADATA}

    def _frames(self, sweeps: Iterable[Sweep]) -> Iterator[Frame]:
        for sweep in sweeps:
            self._count(self._decoder.take_lost())
            yield self._numbered(sweep.frame(self.name, more_error_ns=self._error_ns))
        self._count(self._decoder.take_lost())

    def _count(self, lost: dict[str, int]) -> None:
        for reason, count in lost.items():
            if count:
                self.context.metrics.drop(self.name, reason, count)

    def _numbered(self, frame: Frame) -> Frame:
        self._seq += 1
        return msgspec.structs.replace(frame, seq=self._seq - 1, publish_ns=self.context.clock.now_ns())
