"""Compression of large frames for a network and for recordings, and back.

Example:
    sent = compress(frame)             # Frame, AlignedSet; anything else is returned unchanged
    frame = decompress(sent)           # lossless encodings only

Encodings:
    bgr8             → jpeg          lossy, and not decompressed here: every reader of pictures accepts both
    depth_u16_mm     → depth_png     16-bit PNG, lossless
    points_xyzi_f32  → points_zlib   bytes of equal weight side by side (sign and exponent repeat), then zlib; lossless
    points_xyzit_f32 → points_t_zlib the same
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from pipeline.errors import WireError
from pipeline.frame import AlignedSet, Encoding, Frame, Message
from pipeline.picture_files import decode_picture

JPEG_QUALITY = 90  # faces a few dozen pixels wide must not blur
MAX_POINTS_BYTES = 256 << 20  # of one frame: ten times the largest sweep
ZLIB_LEVEL = 1  # a higher level takes twice the time for 3 % (measured on real sweeps)


def compress(message: Message) -> Message:
    """The message as it is sent to another host."""
    if isinstance(message, AlignedSet):
        return _each_frame(message, compress)
    if not isinstance(message, Frame) or not message.data.size:
        return message
    match message.encoding:
        case "bgr8":
            return _replaced(message, "jpeg", _image_file(".jpg", message.data))
        case "depth_u16_mm":
            return _replaced(message, "depth_png", _image_file(".png", message.data))
        case "points_xyzi_f32":
            return _replaced(message, "points_zlib", _bytes_by_weight(message.data))
        case "points_xyzit_f32":
            return _replaced(message, "points_t_zlib", _bytes_by_weight(message.data))
    return message


def decompress(message: Message) -> Message:
    """Depth and points in their original encoding. Raises WireError when they cannot be decoded."""
    if isinstance(message, AlignedSet):
        return _each_frame(message, decompress)
    if not isinstance(message, Frame):
        return message
    match message.encoding:
        case "depth_png":
            return _replaced(message, "depth_u16_mm", _depth(message.data))
        case "points_zlib":
            return _replaced(message, "points_xyzi_f32", _points(message.data, 4))
        case "points_t_zlib":
            return _replaced(message, "points_xyzit_f32", _points(message.data, 5))
    return message


def is_compressed(message: object) -> bool:
    """Whether `decompress` would change it."""
    if isinstance(message, AlignedSet):
        return any(is_compressed(frame) for many in message.frames.values() for frame in many)
    return isinstance(message, Frame) and message.encoding in ("depth_png", "points_zlib", "points_t_zlib")


def _each_frame(aligned: AlignedSet, change: Callable[[Any], Any]) -> AlignedSet:
    frames = {stream: tuple(change(frame) for frame in many) for stream, many in aligned.frames.items()}
    return msgspec.structs.replace(aligned, frames=frames)


def _replaced(frame: Frame, encoding: Encoding, data: np.ndarray) -> Frame:
    return msgspec.structs.replace(frame, encoding=encoding, data=data)


def _image_file(kind: str, image: np.ndarray) -> np.ndarray:
    import cv2

    option = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, ZLIB_LEVEL]
    encoded: np.ndarray = cv2.imencode(kind, image, option)[1]
    return encoded.reshape(-1)


def _depth(data: np.ndarray) -> np.ndarray:
    import cv2

    image: np.ndarray | None = decode_picture(data, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 2:
        raise WireError("a depth image is not a 16-bit PNG")
    return image


def _bytes_by_weight(points: np.ndarray) -> np.ndarray:
    by_weight = np.ascontiguousarray(points.view(np.uint8).reshape(*points.shape, 4).transpose(1, 2, 0))
    return np.frombuffer(zlib.compress(by_weight.data, ZLIB_LEVEL), np.uint8)


def _points(data: np.ndarray, columns: int) -> np.ndarray:
    inflating = zlib.decompressobj()
    try:
        raw = inflating.decompress(data.data, MAX_POINTS_BYTES)
        if not inflating.eof:  # a small message can announce gigabytes
            raise ValueError(f"cut short, or more than {MAX_POINTS_BYTES >> 20} MiB")
        by_weight = np.frombuffer(raw, np.uint8).reshape(columns, 4, -1)
    except (zlib.error, ValueError) as error:
        raise WireError(f"points cannot be decompressed: {error}") from error
    return np.ascontiguousarray(by_weight.transpose(2, 0, 1)).view(np.float32).reshape(-1, columns)
