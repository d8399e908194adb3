"""Recognises lidars by their packets during an import, so that the config beside the recording decodes them.

Example:
    lidars = LidarStreams()
    for frame in lidars.watch(frames): ...
    lidars.recognised()                       # {"lidar": LidarPackets("velodyne_vlp16")}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.frame import Frame
from pipeline.sensors.lidar.packet_decoder import is_ouster, recognise

MAX_EXAMINED = 4  # packets of a stream: the first may be a sensor's telemetry
MIN_METADATA_BYTES = 500  # an Ouster's metadata is longer; short texts are not parsed


class LidarPackets(NamedTuple):
    """A stream of packets that a decoder of pipeline/sensors/lidar/ reads."""

    sensor: str
    metadata: str = ""  # the stream of the sensor's metadata, for sensors that need it
    decoded: str = "points_xyzit_f32"  # the encoding of what the decoder sends


class LidarStreams:
    """Which streams hold a known lidar's packets, and which its metadata."""

    def __init__(self) -> None:
        self._sensors: dict[str, str] = {}
        self._examined: Counter[str] = Counter()
        self._metadata: list[str] = []  # streams with an Ouster's

    def watch(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.encoding == "packet":
                self._examine_packet(frame)
            elif frame.encoding in ("calibration", "text_utf8") and frame.stream not in self._metadata:
                self._examine_text(frame)
            yield frame

    def _examine_packet(self, frame: Frame) -> None:
        self._examined[frame.stream] += 1
        if not self._sensors.get(frame.stream) and self._examined[frame.stream] <= MAX_EXAMINED:
            self._sensors[frame.stream] = recognise(frame.data.tobytes())

    def _examine_text(self, frame: Frame) -> None:
        if len(frame.data) > MIN_METADATA_BYTES and is_ouster(frame.data.tobytes().decode(errors="replace")):
            self._metadata.append(frame.stream)

    def recognised(self) -> dict[str, LidarPackets]:
        """By stream."""
        lidars = {stream: LidarPackets(sensor) for stream, sensor in self._sensors.items() if sensor}
        for metadata in self._metadata:
            # Streams beside it by name: ouster/metadata and ouster/lidar_packets of ROS drivers, lidar/metadata and
            # lidar of our captures.
            place = metadata.rpartition("/")[0]
            others = [s for s in self._sensors if s not in lidars]
            beside = [s for s in others if s == place or s.rpartition("/")[0] == place]
            points = [s for s in beside or others if "imu" not in s]
            imus = [s for s in others if "imu" in s and s.rpartition("/")[0] in (place, place.rpartition("/")[0])]
            lidars |= {stream: LidarPackets("ouster", metadata) for stream in points[:1]}
            lidars |= {stream: LidarPackets("ouster_imu", metadata, "imu_f64") for stream in imus[:1] if points}
        return lidars
