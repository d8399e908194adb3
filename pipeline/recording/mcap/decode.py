"""The bytes of a recording → messages, the same to the bit. encode.py is the way there. Knows no files.

Example:
    frame = decode("foxglove.RawImage", data)
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Health, Message, Prediction
from pipeline.recording.mcap.schemas import AUDIO, CALIBRATION, DTYPES, FRAME, MESSAGE_CLASSES

S16_FULL = 32768.0  # sound in [-1, 1) → 16 bit


def decode(kind: str, data: bytes) -> Message:
    """A message from its bytes. kind: its schema's name. Raises ValueError for anything that is not such a message."""
    try:
        return _decode_frame(kind, data) if kind in MESSAGE_CLASSES else _decode_json(kind, data)
    except Exception as error:  # protobuf, msgspec and numpy each raise their own
        raise ValueError(f"not a {kind}: {error}") from error


def decode_calibration(data: bytes) -> Any:
    """A foxglove.CameraCalibration: width, height, distortion_model, D, K (9 numbers, by row). Raises ValueError."""
    return decode_foxglove(CALIBRATION, data)


def decode_foxglove(kind: str, data: bytes) -> Any:
    """A protobuf message of one of Foxglove's schemas, also one that another program wrote. Raises ValueError."""
    try:
        return MESSAGE_CLASSES[kind].FromString(data)
    except Exception as error:
        raise ValueError(f"not a {kind}: {error}") from error


def _decode_frame(kind: str, data: bytes) -> Frame:
    message = MESSAGE_CLASSES[kind].FromString(data)
    head = message if kind == FRAME else message.sensorium
    dtype, shape = DTYPES[head.dtype], tuple(head.shape)
    if kind == FRAME or head.exact:
        payload = np.frombuffer(head.exact, dtype)
    elif kind == AUDIO:
        payload = from_s16(np.frombuffer(message.data, "<i2"))
    else:
        payload = np.frombuffer(message.data, dtype)
    if not head.stream or min(shape, default=0) < 0:
        raise ValueError("the fields of sensorium.Frame are missing or invalid")
    if not re.fullmatch(r"\w{1,40}", head.encoding):  # export names files by it
        raise ValueError(f"'{head.encoding[:40]}' is not the name of an encoding")
    for name in ("capture_ns", "publish_ns", "duration_ns", "clock_error_ns"):
        if not -FOREVER_NS <= getattr(head, name) <= FOREVER_NS:
            raise ValueError(f"{name} is {getattr(head, name)}, a time that is never reached")
    return Frame(
        head.stream,
        head.seq,
        head.capture_ns,
        head.encoding,
        payload.reshape(shape),
        head.duration_ns,
        head.publish_ns,
        head.clock_error_ns,
        head.reason,
    )


class _Exact(msgspec.Struct):
    exact: bytes


def _decode_json(kind: str, data: bytes) -> Message:
    message: Message = _UNPACKERS[kind].decode(msgspec.json.decode(data, type=_Exact).exact)
    return message


def _array_in(kind: type, raw: Any) -> np.ndarray:
    dtype, shape, data = raw
    return np.frombuffer(data, DTYPES[dtype]).reshape([int(n) for n in shape])


_UNPACKERS: dict[str, Any] = {
    f"sensorium.{kind.__name__}": msgspec.msgpack.Decoder(kind, dec_hook=_array_in)
    for kind in (AlignedSet, Prediction, Health)
}


def from_s16(coarse: np.ndarray) -> np.ndarray:
    return np.asarray(coarse.astype(np.float32) / np.float32(S16_FULL))
