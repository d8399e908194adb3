"""One ROS message → frames. Knows message types by name and field; knows nothing of bags or files.

Frames have the header's stamp as capture_ns and the bag's time as publish_ns. What a frame has no place for (a point's
ring, a covariance) is listed once a topic in `notes`. Sensors' packets are stored byte for byte: their decoders read
them on replay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Encoding, Frame
from pipeline.picture_files import decode_picture
from pipeline.recording.importers.file_frames import as_picture

# Types of drivers' packages that rosbags lacks, for bags from before 2023, which hold no definitions.
DRIVER_TYPES = {
    "velodyne_msgs/msg/VelodynePacket": "builtin_interfaces/Time stamp\nuint8[1206] data",
    "velodyne_msgs/msg/VelodyneScan": "std_msgs/Header header\nvelodyne_msgs/VelodynePacket[] packets",
    "pandar_msgs/msg/PandarPacket": "builtin_interfaces/Time stamp\nuint8[1500] data\nuint32 size",
    "pandar_msgs/msg/PandarScan": "std_msgs/Header header\npandar_msgs/PandarPacket[] packets",
    "nebula_msgs/msg/NebulaPacket": "builtin_interfaces/Time stamp\nuint8[] data",
    "nebula_msgs/msg/NebulaPackets": "std_msgs/Header header\nnebula_msgs/NebulaPacket[] packets",
    "ouster_msgs/msg/PacketMsg": "uint8[] buf",
    "ouster_sensor_msgs/msg/PacketMsg": "uint8[] buf",
    "audio_common_msgs/msg/AudioData": "uint8[] data",
    "audio_common_msgs/msg/AudioDataStamped": "std_msgs/Header header\naudio_common_msgs/AudioData audio",
    "audio_common_msgs/msg/AudioInfo": (
        "uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\nstring coding_format"
    ),
}
POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}  # sensor_msgs/PointField
INTENSITIES = ("intensity", "reflectivity", "reflectance", "i", "intensities")
BAYER = {
    "bayer_rggb8": cv2.COLOR_BayerBG2BGR,
    "bayer_bggr8": cv2.COLOR_BayerRG2BGR,
    "bayer_gbrg8": cv2.COLOR_BayerGR2BGR,
    "bayer_grbg8": cv2.COLOR_BayerGB2BGR,
}
# ROS encoding of a picture → (channels, OpenCV's conversion to BGR; None: it is BGR).
PICTURES: dict[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "8UC4": (4, cv2.COLOR_BGRA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, cv2.COLOR_GRAY2BGR),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUY2),
    **{name: (1, code) for name, code in BAYER.items()},
}
PCM = {"S16LE": "<i2", "S16BE": ">i2", "S32LE": "<i4", "F32LE": "<f4", "S8": "i1", "pcm-s16": "<i2", "pcm-f32": "<f4"}


@dataclass
class Topic:
    """The state of one topic while its messages are read."""

    stream: str
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    intensity_scale: float | None = None  # set by the first sweep
    sound: tuple[int, int, str] | None = None  # sample rate (Hz), channels, a key of PCM

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


Convert = Callable[[Any, Topic, int], Iterator[Frame]]


def stamp_ns(header_or_stamp: Any, log_ns: int) -> int:
    """The time of a builtin_interfaces/Time or a header with one; the bag's time where a driver left it at 0."""
    stamp = getattr(header_or_stamp, "stamp", header_or_stamp)
    at_ns = int(stamp.sec) * NS + int(stamp.nanosec)
    return at_ns if at_ns > 0 else log_ns


def _frame(
    topic: Topic, message: Any, log_ns: int, encoding: Encoding, data: npt.NDArray[Any], duration_ns: int = 0
) -> Frame:
    capture_ns = stamp_ns(message.header, log_ns)
    return Frame(topic.stream, -1, capture_ns, encoding, data, duration_ns=duration_ns, publish_ns=log_ns)


def image(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """sensor_msgs/Image, whose rows may be padded."""
    height, width, kind = int(message.height), int(message.width), str(message.encoding)
    if kind in ("16UC1", "mono16", "32FC1"):
        dtype = ("<" if not message.is_bigendian else ">") + ("f4" if kind == "32FC1" else "u2")
        values = _rows(message, height, width * np.dtype(dtype).itemsize).view(dtype)
        if kind == "mono16":
            topic.note("mono16: stored as 16-bit numbers, with the encoding of depth")
        if kind == "32FC1":  # metres, with NaN where there is no reading
            topic.note("32FC1: metres are rounded to millimetres")
            values = np.nan_to_num(values * 1000.0, nan=0.0, posinf=0.0, neginf=0.0).round().clip(0, 65535)
        yield _frame(topic, message, log_ns, "depth_u16_mm", np.ascontiguousarray(values, np.uint16))
        return
    if kind not in PICTURES:
        raise ConfigError(f"pictures of encoding '{kind}', which is not supported")
    channels, code = PICTURES[kind]
    pixels = _rows(message, height, width * channels).reshape(height, width, channels)
    yield _frame(topic, message, log_ns, "bgr8", pixels.copy() if code is None else cv2.cvtColor(pixels, code))


def _rows(message: Any, height: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    data = np.asarray(message.data, np.uint8)
    step = int(message.step) or row_bytes
    if not height or not row_bytes or step < row_bytes or len(data) < step * height:
        raise ConfigError(
            f"a picture of {message.width}×{message.height} {message.encoding} "
            f"with {len(data)} bytes: its size does not match"
        )
    return np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row_bytes])


def compressed_image(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """JPEG as it is; PNG, also of 16 bits, to the bit."""
    data, format = np.asarray(message.data, np.uint8), str(message.format)
    if "compressedDepth" in format:
        data = data[12:]  # a header of the image transport stands before the PNG
    if data[:2].tobytes() == b"\xff\xd8":
        if decode_picture(data, cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
            raise ConfigError("JPEG pictures that are damaged")
        yield _frame(topic, message, log_ns, "jpeg", data.copy())
        return
    decoded = decode_picture(data, cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ConfigError(f"compressed pictures of format '{format[:40]}', which is not supported")
    yield _frame(topic, message, log_ns, *as_picture(decoded, depth_per_mm=1.0, where=topic.stream))


def point_cloud(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """sensor_msgs/PointCloud2 as x y z and a reflectance in [0, 1], without points that have no position."""
    fields = {str(f.name): (int(f.offset), int(f.datatype)) for f in message.fields}
    step, width, height = int(message.point_step), int(message.width), int(message.height)
    row = int(message.row_step) or step * width
    data = np.asarray(message.data, np.uint8)
    if not {"x", "y", "z"} <= fields.keys() or step < 12 or row < step * width or len(data) < row * height:
        raise ConfigError(
            f"a cloud of {width}×{height} points with the fields {', '.join(fields)} "
            f"and {len(data)} bytes: its layout is not supported"
        )
    raw = np.ascontiguousarray(data[: row * height].reshape(height, row)[:, : step * width]).reshape(-1, step)
    order = ">" if message.is_bigendian else "<"
    brightness = next((name for name in INTENSITIES if name in fields), "")
    points = np.zeros((len(raw), 4), np.float32)
    for column, name in enumerate(("x", "y", "z", brightness)):
        if name:
            offset, kind = fields[name]
            if kind not in POINT_TYPES or offset + np.dtype(POINT_TYPES[kind]).itemsize > step:
                raise ConfigError(f"a cloud whose field {name} lies outside its points")
            size = np.dtype(POINT_TYPES[kind]).itemsize
            points[:, column] = np.ascontiguousarray(raw[:, offset : offset + size]).view(order + POINT_TYPES[kind])[
                :, 0
            ]
    if brightness and len(points):
        points[:, 3] /= _intensity_scale(topic, POINT_TYPES[fields[brightness][1]], points[:, 3])
    if rest := [name for name in fields if name not in ("x", "y", "z", brightness)]:
        topic.note(f"of each point only x, y, z and {brightness or 'no reflectance'} are stored, not {', '.join(rest)}")
    valid = np.isfinite(points).all(axis=1)
    if not valid.all():
        topic.note("points without a position (NaN) are left out")
    yield _frame(topic, message, log_ns, "points_xyzi_f32", points[valid])


def _intensity_scale(topic: Topic, dtype: str, values: npt.NDArray[np.float32]) -> float:
    """The intensity that means a reflectance of 1: an integer type's maximum; for floats by the first sweep."""
    if topic.intensity_scale is None:
        largest = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
        scale = {"u1": 255.0, "u2": 65535.0}.get(dtype, 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0)
        topic.intensity_scale = scale
        if scale != 1:
            topic.note(f"reflectance = intensity / {scale:.0f}")
    return topic.intensity_scale


def laser_scan(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """A planar scan as points of its own plane (z = 0); rays without an echo are left out."""
    ranges = np.asarray(message.ranges, np.float32)
    angles = message.angle_min + np.arange(len(ranges)) * message.angle_increment
    intensities = np.asarray(message.intensities, np.float32)
    points = np.zeros((len(ranges), 4), np.float32)
    points[:, 0], points[:, 1] = ranges * np.cos(angles), ranges * np.sin(angles)
    if len(intensities) == len(ranges) and len(ranges):
        points[:, 3] = intensities / _intensity_scale(topic, "f4", intensities)
    valid = np.isfinite(points).all(axis=1) & (ranges >= message.range_min) & (ranges <= message.range_max)
    duration_ns = (
        max(0, round(float(message.time_increment) * len(ranges) * NS)) if np.isfinite(message.time_increment) else 0
    )
    topic.note("rays without an echo are left out")
    yield _frame(topic, message, log_ns, "points_xyzi_f32", points[valid], duration_ns)


def imu(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    parts = (message.linear_acceleration, message.angular_velocity)
    topic.note("orientation and covariances are not stored")
    yield _frame(topic, message, log_ns, "imu_f64", np.array([v for p in parts for v in (p.x, p.y, p.z)], np.float64))


def camera_info(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """sensor_msgs/CameraInfo as JSON, its numbers unchanged. ROS 1 names the arrays D K R P, ROS 2 d k r p."""
    arrays = {key: [float(v) for v in getattr(message, key, getattr(message, key.lower(), ()))] for key in "DKRP"}
    fields = {
        "kind": "camera_info",
        "frame_id": str(message.header.frame_id),
        "width": int(message.width),
        "height": int(message.height),
        "distortion_model": str(message.distortion_model),
        **arrays,
    }
    yield _frame(topic, message, log_ns, "calibration", np.frombuffer(json.dumps(fields).encode(), np.uint8))


def text(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    yield Frame(
        topic.stream, -1, log_ns, "text_utf8", np.frombuffer(str(message.data).encode(), np.uint8), publish_ns=log_ns
    )


def packets(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """A driver's message of packets: each packet is a frame with its own stamp.

    `size`: the bytes used of a fixed field.
    """
    for packet in message.packets:
        data = np.asarray(packet.data, np.uint8)
        data = data[: int(packet.size)] if hasattr(packet, "size") else data
        capture_ns = stamp_ns(packet.stamp if hasattr(packet, "stamp") else message.header, log_ns)
        yield Frame(topic.stream, -1, capture_ns, "packet", data.copy(), publish_ns=log_ns)


def packet(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    yield Frame(topic.stream, -1, log_ns, "packet", np.asarray(message.buf, np.uint8).copy(), publish_ns=log_ns)


def sound(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """audio_common's data. Without a header a chunk ended when the bag stored it, so its length is subtracted."""
    if topic.sound is None:
        raise ConfigError("sound without an AudioInfo topic that says its sample format (S16LE, …)")
    rate_hz, channels, kind = topic.sound
    samples = _mono(np.asarray(getattr(message, "audio", message).data, np.uint8), channels, kind)
    duration_ns = len(samples) * NS // rate_hz
    stamped = hasattr(message, "header")
    capture_ns = stamp_ns(message.header, log_ns) if stamped else log_ns - duration_ns
    if not stamped:
        topic.note("this topic has no stamps: its sound has the bag's times")
    yield Frame(topic.stream, -1, capture_ns, "pcm_f32", samples, duration_ns=duration_ns, publish_ns=log_ns)


def raw_audio(message: Any, topic: Topic, log_ns: int) -> Iterator[Frame]:
    """foxglove_msgs/RawAudio."""
    if str(message.format) not in PCM or int(message.sample_rate) <= 0:
        raise ConfigError(f"sound of format '{message.format}', which is not supported")
    samples = _mono(np.asarray(message.data, np.uint8), int(message.number_of_channels), str(message.format))
    duration_ns = len(samples) * NS // int(message.sample_rate)
    yield Frame(topic.stream, -1, stamp_ns(message.timestamp, log_ns), "pcm_f32", samples, duration_ns, log_ns)


def _mono(raw: npt.NDArray[np.uint8], channels: int, kind: str) -> npt.NDArray[np.float32]:
    dtype = np.dtype(PCM[kind])
    if channels < 1 or len(raw) % (dtype.itemsize * channels):
        raise ConfigError(f"sound of {channels} channels in {len(raw)} bytes of {kind}: its size does not match")
    values = np.frombuffer(raw.tobytes(), dtype).astype(np.float32).reshape(-1, channels).mean(axis=1)
    return np.asarray(values / (1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max) + 1.0), np.float32)


# Message type → its converter, and the encoding of its stream.
CONVERTERS: dict[str, tuple[Convert, Encoding]] = {
    "sensor_msgs/msg/Image": (image, "bgr8"),
    "sensor_msgs/msg/CompressedImage": (compressed_image, "jpeg"),
    "sensor_msgs/msg/PointCloud2": (point_cloud, "points_xyzi_f32"),
    "sensor_msgs/msg/LaserScan": (laser_scan, "points_xyzi_f32"),
    "sensor_msgs/msg/Imu": (imu, "imu_f64"),
    "sensor_msgs/msg/CameraInfo": (camera_info, "calibration"),
    "std_msgs/msg/String": (text, "text_utf8"),
    "audio_common_msgs/msg/AudioData": (sound, "pcm_f32"),
    "audio_common_msgs/msg/AudioDataStamped": (sound, "pcm_f32"),
    "foxglove_msgs/msg/RawAudio": (raw_audio, "pcm_f32"),
}


def converter(msgtype: str, fields: list[str]) -> tuple[Convert, Encoding] | None:
    """The converter of a type; any type with a field `packets`, or with `buf` alone, holds a sensor's packets."""
    if msgtype in CONVERTERS:
        return CONVERTERS[msgtype]
    if "packets" in fields:
        return packets, "packet"
    return (packet, "packet") if fields == ["buf"] else None
