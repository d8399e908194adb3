"""MCAP files of other programs with Foxglove's well-known schemas (protobuf): pictures, sound, points, calibration.

Other topics are listed with their schema's name. A recording of Sensorium needs no import, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Encoding, Frame, StreamInfo
from pipeline.installation import COMMAND
from pipeline.recording.importers import ros_messages
from pipeline.recording.importers.ros_messages import Topic
from pipeline.recording.importers.source import ImportSource, numbered, stream_name
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.decode import decode_foxglove
from pipeline.recording.mcap.file_reader import McapReader

ROS2 = "ros2"
# PackedElementField.NumericType → sensor_msgs/PointField, so that one reader of clouds does for both.
NUMERIC_TYPES = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 7, 8: 8}


def looks_like(path: Path) -> bool:
    """Whether an MCAP file is not ROS 2's. The header, which follows the magic, begins with the profile's name."""
    with path.open("rb") as file:
        head = file.read(64)
    return ROS2.encode() not in head[17:40]


def open_mcap(path: Path) -> ImportSource:
    """Raises ConfigError when the file is broken, not closed, or a recording of Sensorium."""
    reader = McapReader(path, unclosed=False)
    if any(entry.name == "sensorium" for entry in reader.metadata):
        reader.close()
        raise ConfigError(f"{path}: it is a recording already. Play it with: {COMMAND} replay CONFIG {path}")
    opened = ImportSource("Foxglove MCAP", {}, iter(()), reader.index.counts.total())
    topics: dict[int, tuple[Topic, str]] = {}
    for channel in reader.index.channels.values():
        schema = reader.index.schemas.get(channel.schema_id)
        kind = schema.name if schema is not None and channel.message_encoding == "protobuf" else ""
        if kind in CONVERTERS:
            stream = stream_name(channel.topic, opened.infos)
            topics[channel.id] = (Topic(stream, opened.left_out[channel.topic]), kind)
            opened.infos[stream] = StreamInfo(stream, CONVERTERS[kind][1], None, 1, stream, f"{channel.topic} ({kind})")
        else:
            what = f"{schema.name if schema is not None else 'no schema'}, {channel.message_encoding or 'no encoding'}"
            opened.left_out[channel.topic][f"{what}: this type is not supported"] = reader.index.counts[channel.id]
    opened.frames = numbered(_frames(reader, topics, opened))
    return opened


def _frames(reader: McapReader, topics: dict[int, tuple[Topic, str]], opened: ImportSource) -> Iterator[Frame]:
    try:
        for log_ns, id, data in reader.messages(topics.keys(), 0, 1 << 64):
            topic, kind = topics[id]
            try:
                yield from CONVERTERS[kind][0](decode_foxglove(kind, data), topic, log_ns)
            except ConfigError as error:
                topic.left_out[str(error)] += 1
            except (ValueError, OverflowError, TypeError) as error:
                topic.left_out[f"messages that cannot be decoded ({type(error).__name__})"] += 1
        opened.notes += [f"{topic.stream}: {note}" for topic, _ in topics.values() for note in topic.notes]
    finally:
        reader.close()


def _like_ros(message: Any, **fields: Any) -> SimpleNamespace:
    """A message with a ROS header, for the converters of ROS messages."""
    stamp = SimpleNamespace(sec=message.timestamp.seconds, nanosec=message.timestamp.nanos)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp, frame_id=message.frame_id), **fields)


def _raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _image(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    fields = {name: getattr(message, name) for name in ("height", "width", "encoding", "step")}
    return ros_messages.image(_like_ros(message, data=_raw(message.data), is_bigendian=False, **fields), topic, log_ns)


def _compressed(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    return ros_messages.compressed_image(
        _like_ros(message, data=_raw(message.data), format=message.format), topic, log_ns
    )


def _points(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    fields = [
        SimpleNamespace(name=f.name, offset=f.offset, datatype=NUMERIC_TYPES.get(f.type, 0)) for f in message.fields
    ]
    stride = message.point_stride
    count = len(message.data) // stride if stride else 0
    cloud = _like_ros(
        message,
        fields=fields,
        point_step=stride,
        row_step=stride * count,
        width=count,
        height=1,
        data=_raw(message.data),
        is_bigendian=False,
    )
    if message.HasField("pose") and (message.pose.position.x or message.pose.position.y or message.pose.position.z):
        topic.note("the cloud's own pose is not applied")
    return ros_messages.point_cloud(cloud, topic, log_ns)


def _audio(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    stamp = SimpleNamespace(sec=message.timestamp.seconds, nanosec=message.timestamp.nanos)
    fields = {name: getattr(message, name) for name in ("format", "sample_rate", "number_of_channels")}
    return ros_messages.raw_audio(SimpleNamespace(timestamp=stamp, data=_raw(message.data), **fields), topic, log_ns)


def _calibration(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    at_ns = message.timestamp.seconds * NS + message.timestamp.nanos or log_ns
    fields = {
        "kind": "camera_info",
        "frame_id": message.frame_id,
        "width": message.width,
        "height": message.height,
        "distortion_model": message.distortion_model,
        **{key: list(getattr(message, key)) for key in "DKRP"},
    }
    yield Frame(topic.stream, -1, at_ns, "calibration", _raw(json.dumps(fields).encode()), publish_ns=log_ns)


CONVERTERS: dict[str, tuple[Callable[[Any, Topic, int], Iterator[Frame]], Encoding]] = {
    schemas.RAW_IMAGE: (_image, "bgr8"),
    schemas.IMAGE: (_compressed, "jpeg"),
    schemas.POINTS: (_points, "points_xyzi_f32"),
    schemas.AUDIO: (_audio, "pcm_f32"),
    schemas.CALIBRATION: (_calibration, "calibration"),
}
