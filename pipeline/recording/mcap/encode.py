"""Messages → the bytes of a recording, by the schemas of schemas.py. Knows no files.

Frames are protobuf; predictions, health and aligned sets (without their frames' payload) are JSON objects whose last
member, `exact`, is the value to the bit (base64 of msgpack). decode.py is the way back.

Example:
    kind = kind_of(frame)                      # "foxglove.RawImage"
    data = encode(frame, utc_offset_ns, "cam") # bytes
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Health, Message, Prediction
from pipeline.recording.mcap.decode import S16_FULL, from_s16
from pipeline.recording.mcap.schemas import (
    AUDIO,
    CALIBRATION,
    DATA_TAG,
    DTYPES,
    FRAME,
    IMAGE,
    MESSAGE_CLASSES,
    POINTS,
    RAW_IMAGE,
)

COMPRESSED = {"jpeg": "jpeg", "depth_png": "png"}  # our encoding → Foxglove's format
# (dtype, dimensions) → Foxglove's encoding, for each of ours
RAW = {"bgr8": {("|u1", 3): "bgr8", ("|u1", 2): "mono8"}, "depth_u16_mm": {("<u2", 2): "mono16"}}
# Our encodings that one of Foxglove's schemas can carry.
WELL_KNOWN = (*COMPRESSED, *RAW, "pcm_f32", "points_xyzi_f32", "points_xyzit_f32")
POINT_COLUMNS = {"points_xyzi_f32": 4, "points_xyzit_f32": 5}
POINT_FIELDS = ("x", "y", "z", "reflectance", "time_s")
FLOAT32 = 7  # PackedElementField.NumericType


def kind_of(message: Message) -> str:
    """The name of the schema that a message is written by."""
    if not isinstance(message, Frame):
        return f"sensorium.{type(message).__name__}"
    data, encoding = message.data, message.encoding
    if encoding in COMPRESSED and data.size and data.ndim == 1 and data.dtype == np.uint8:
        return IMAGE
    if data.size and (data.dtype.str, data.ndim) in RAW.get(encoding, {}) and (data.ndim == 2 or data.shape[2] == 3):
        return RAW_IMAGE
    if encoding == "pcm_f32" and data.size and data.ndim == 1 and data.dtype == np.float32 and message.duration_ns:
        return AUDIO
    if data.ndim == 2 and data.dtype == np.float32 and data.shape[1] == POINT_COLUMNS.get(encoding):
        return POINTS
    return FRAME


def encode(message: Message, utc_offset_ns: int, frame_id: str) -> bytes:
    """A message's bytes, by the schema `kind_of(message)`.

    Args:
        message: A frame, aligned set, prediction or health.
        utc_offset_ns: Monotonic + offset = UTC (ns), for the time stamp of Foxglove's schemas.
        frame_id: The sensor's name in the rig.

    Raises:
        TypeError: An array's dtype is none of DTYPES.
    """
    if not isinstance(message, Frame):
        return _encode_json(message)
    kind, data = kind_of(message), np.ascontiguousarray(message.data)
    if data.dtype.str not in DTYPES:
        raise TypeError(f"cannot record an array of {data.dtype}. Supported: {', '.join(DTYPES)}")
    head = MESSAGE_CLASSES[FRAME](
        stream=message.stream,
        seq=message.seq,
        capture_ns=message.capture_ns,
        duration_ns=message.duration_ns,
        publish_ns=message.publish_ns,
        clock_error_ns=message.clock_error_ns,
        encoding=message.encoding,
        reason=message.reason,
        dtype=data.dtype.str,
        shape=data.shape,
    )
    if kind == FRAME:
        return _encode_own(head, message.encoding, data)
    return _encode_foxglove(kind, head, message, data, _utc(message.capture_ns, utc_offset_ns), frame_id)


def _encode_foxglove(kind: str, head: Any, message: Frame, data: np.ndarray, utc_ns: int, frame_id: str) -> bytes:
    """One of Foxglove's messages, with `head` (a sensorium.Frame) as its field `sensorium`."""
    stamped = MESSAGE_CLASSES[kind]()
    stamped.timestamp.seconds, stamped.timestamp.nanos = divmod(utc_ns, NS)
    payload: Any = data.data.cast("B") if data.size else b""
    if kind == IMAGE:
        stamped.frame_id, stamped.format = frame_id, COMPRESSED[message.encoding]
    elif kind == RAW_IMAGE:
        stamped.frame_id, stamped.encoding = frame_id, RAW[message.encoding][data.dtype.str, data.ndim]
        stamped.height, stamped.width, stamped.step = *data.shape[:2], data.strides[0]
    elif kind == AUDIO:
        stamped.format, stamped.number_of_channels = "pcm-s16", 1
        stamped.sample_rate = round(len(data) * NS / message.duration_ns)
        coarse = _to_s16(data)
        if from_s16(coarse).tobytes() != data.tobytes():  # the sound has more than 16 bits
            head.exact = data.tobytes()
        payload = coarse.tobytes()
    else:
        stamped.frame_id, stamped.point_stride, stamped.pose.orientation.w = frame_id, 4 * data.shape[1], 1.0
        for i, name in enumerate(POINT_FIELDS[: data.shape[1]]):
            stamped.fields.add(name=name, offset=4 * i, type=FLOAT32)
    stamped.sensorium.CopyFrom(head)
    # Protobuf accepts fields in any order: the payload is appended by hand, which saves copying megabytes twice.
    return b"".join((stamped.SerializeToString(), _varint(DATA_TAG[kind]), _varint(len(payload)), payload))


def encode_calibration(
    camera: str, *, width_px: int, height_px: int, matrix: np.ndarray, distortion: np.ndarray, model: str, utc_ns: int
) -> bytes:
    """A foxglove.CameraCalibration. The fields are those of Writer.calibration; utc_ns: its time stamp."""
    message = MESSAGE_CLASSES[CALIBRATION](frame_id=camera, width=width_px, height=height_px, distortion_model=model)
    message.timestamp.seconds, message.timestamp.nanos = divmod(utc_ns, NS)
    message.D.extend(float(d) for d in np.ravel(distortion))
    message.K.extend(float(k) for k in np.ravel(matrix))
    message.R.extend(float(r) for r in np.eye(3).ravel())
    message.P.extend(float(p) for p in np.hstack([matrix, np.zeros((3, 1))]).ravel())
    serialized: bytes = message.SerializeToString()
    return serialized


def _encode_own(head: Any, encoding: str, data: np.ndarray) -> bytes:
    head.exact = data.tobytes()
    if encoding in ("imu_f64", "series_f32"):
        head.values.extend(data.ravel().tolist())
    elif encoding in ("text_utf8", "label") and data.dtype == np.uint8:
        head.text = data.tobytes().decode("utf-8", "replace")
    serialized: bytes = head.SerializeToString()
    return serialized


def _encode_json(message: AlignedSet | Prediction | Health) -> bytes:
    if isinstance(message, Prediction):
        plain = message.record()
    elif isinstance(message, Health):
        plain = {"publish_ns": message.publish_ns, "nodes": [msgspec.structs.asdict(node) for node in message.nodes]}
    else:
        message = without_payload(message)
        plain = {name: value for name, value in msgspec.structs.asdict(message).items() if name != "frames"}
        plain["receipts"] = [msgspec.structs.asdict(receipt) for receipt in message.receipts]
    return msgspec.json.encode(plain | {"exact": _PACKER.encode(message)})


def without_payload(aligned: AlignedSet) -> AlignedSet:
    """The same set with empty arrays: its frames' payloads are in the frames' own streams."""
    frames = {
        stream: tuple(
            Frame(
                f.stream,
                f.seq,
                f.capture_ns,
                f.encoding,
                duration_ns=f.duration_ns,
                publish_ns=f.publish_ns,
                clock_error_ns=f.clock_error_ns,
                reason=f.reason,
            )
            for f in with_payload
        )
        for stream, with_payload in aligned.frames.items()
    }
    return msgspec.structs.replace(aligned, frames=frames)


def _array_out(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    if not isinstance(array, np.ndarray) or array.dtype.str not in DTYPES:
        raise TypeError(f"cannot record a {type(array).__name__}")
    return array.dtype.str, array.shape, array.tobytes()


_PACKER = msgspec.msgpack.Encoder(enc_hook=_array_out)


def _to_s16(samples: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        coarse: np.ndarray = np.clip(np.nan_to_num(np.rint(samples * S16_FULL)), -32768, 32767).astype("<i2")
    return coarse


def _utc(monotonic_ns: int, utc_offset_ns: int) -> int:
    """0 for a time that has no UTC: the watermark of a finished source, or a time before 1970."""
    return max(0, monotonic_ns + utc_offset_ns) if monotonic_ns < FOREVER_NS else 0


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
