"""Files as frames, and the readers that all folder formats share: text lines, numbers, times.

Every error is a ConfigError that names the file, and the line where there is one.

Example:
    picture_frame("cam0", capture_ns, folder / "000001.png")
    time_ns("2011-09-26 13:02:25.964389445", where="timestamps.txt:1")
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import files
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Encoding, Frame
from pipeline.picture_files import decode_picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_FILE_BYTES = 1 << 30  # of a picture, a sweep or a table
MAX_TIME_S = 1 << 33  # 272 years after 1970: larger numbers are not seconds


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; names of digits by their number."""
    if not folder.is_dir():
        return []
    paths = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
    return sorted(paths, key=lambda p: (int(p.stem) if p.stem.isdecimal() else -1, p.name))


def text_frame(stream: str, capture_ns: int, text: str | bytes, encoding: Encoding = "calibration") -> Frame:
    raw = text.encode() if isinstance(text, str) else text
    return Frame(stream, -1, capture_ns, encoding, np.frombuffer(raw, np.uint8), publish_ns=capture_ns)


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises ConfigError for one that cannot be read, or is larger than MAX_FILE_BYTES."""
    return files.read_bytes(path, most=MAX_FILE_BYTES)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without comments and empty lines. Raises ConfigError for a file that is not text."""
    lines = files.read_text(path, most=MAX_FILE_BYTES).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def picture_frame(stream: str, capture_ns: int, path: Path, *, depth_per_mm: float = 1.0, **fields: Any) -> Frame:
    """A picture file as a frame: JPEG as it is, 16-bit grey as depth, all else as "bgr8" (grey three times).

    Args:
        stream: The frame's stream.
        capture_ns: Its capture time (ns).
        path: The file.
        depth_per_mm: The file's depth units in a millimetre.
        **fields: Other fields of the frame.

    Raises:
        ConfigError: The file is missing, or cannot be decoded.
    """
    raw = np.frombuffer(read_bytes(path), np.uint8)
    image: npt.NDArray[Any] | None = decode_picture(raw, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ConfigError(f"{path}: a picture that cannot be decoded: it is damaged or cut off. Copy it again")
    if raw[:2].tobytes() == b"\xff\xd8":
        return Frame(stream, -1, capture_ns, "jpeg", raw, **fields)
    encoding, data = as_picture(image, depth_per_mm=depth_per_mm, where=str(path))
    return Frame(stream, -1, capture_ns, encoding, data, **fields)


def as_picture(image: npt.NDArray[Any], *, depth_per_mm: float, where: str) -> tuple[Encoding, npt.NDArray[Any]]:
    """(h, w[, 1, 3 or 4]) uint8 → "bgr8"; (h, w) uint16 → "depth_u16_mm", rounded to the millimetre.

    where: of the picture, for the ConfigError when it is neither.
    """
    if image.dtype == np.uint16 and image.ndim == 2:
        if depth_per_mm == 1.0:
            return "depth_u16_mm", np.ascontiguousarray(image)
        return "depth_u16_mm", np.round(image / depth_per_mm).astype(np.uint16)
    if image.dtype != np.uint8:
        raise ConfigError(f"{where}: a picture of {image.dtype} {image.shape}, expected 8 bits, or 16 bits of depth")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 3:
        return "bgr8", np.ascontiguousarray(image)
    code = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}.get(channels)
    if code is None:
        raise ConfigError(f"{where}: a picture of {channels} channels, expected 1, 3 or 4")
    return "bgr8", cv2.cvtColor(image, code)


def sweep_frame(stream: str, capture_ns: int, path: Path, **fields: Any) -> Frame:
    """A sweep in KITTI's .bin format: float32 x y z reflectance, to the bit."""
    raw = read_bytes(path)
    if len(raw) % 16:
        raise ConfigError(
            f"{path}: {len(raw)} bytes, expected a multiple of 16 (x y z reflectance, float32). "
            "It is cut off: copy it again"
        )
    points = np.frombuffer(raw, "<f4").reshape(-1, 4)
    return Frame(stream, -1, capture_ns, "points_xyzi_f32", points, **fields)


def series_frame(stream: str, capture_ns: int, line: str, *, where: str) -> Frame:
    """The numbers of a line as a "series_f32" frame."""
    values = numbers(line, where=where).astype(np.float32)
    return Frame(stream, -1, capture_ns, "series_f32", values, publish_ns=capture_ns)


def numbers(line: str, *, where: str, count: int | None = None) -> npt.NDArray[np.float64]:
    """The numbers of a line, separated by commas or blanks. Raises ConfigError for other text, or another count."""
    try:
        values = np.array([float(word) for word in re.split(r"[,\s]+", line.strip(", \t")) if word], np.float64)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, expected numbers") from error
    if count is not None and len(values) != count:
        raise ConfigError(f"{where}: {len(values)} numbers, expected {count}")
    if not np.isfinite(values).all():
        raise ConfigError(f"{where}: a number that is not finite (NaN or infinity), expected finite numbers")
    return values


def seconds_ns(text: str, *, where: str) -> int:
    """Seconds such as "1305031453.359684" → nanoseconds, exactly; a float would be off by 100 ns.

    Raises ConfigError for other text.
    """
    try:
        value = Decimal(text.strip())
        if not value.is_finite() or abs(value) > MAX_TIME_S:
            raise InvalidOperation
        return int(value * NS)
    except ArithmeticError:  # of decimal: no number, or one with an exponent without end
        raise ConfigError(f"{where}: found '{text[:40]}', expected a time in seconds") from None


def time_ns(text: str, *, where: str) -> int:
    """A time as people write it, in nanoseconds.

    Seconds with or without a fraction; milli-, micro- or nanoseconds since 1970, recognised by the number of digits;
    or a date such as "2011-09-26 13:02:25.964389445", in UTC unless it has a zone. Raises ConfigError for anything
    else.
    """
    text = text.strip()
    dated = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?", text)
    if dated:
        day, clock, fraction, zone = dated.groups()
        try:
            when = datetime.fromisoformat(f"{day}T{clock}{(zone or 'Z').replace('Z', '+00:00')}")
        except ValueError as error:
            raise ConfigError(f"{where}: found '{text[:40]}', expected a date: {error}") from error
        since = when - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * NS + int((fraction or "0").ljust(9, "0"))
    if re.fullmatch(r"\d{12,20}", text):
        for digits, unit in ((14, 1_000_000), (17, 1_000)):  # 13 digits: ms, 16: µs, 19: ns, from 2001 to 2286
            if len(text) < digits:
                return int(text) * unit
        return whole_ns(text, where=where)
    return seconds_ns(text, where=where)


def whole_ns(text: str, *, where: str) -> int:
    """Digits as nanoseconds. Raises ConfigError for other text, and for a time that is never reached."""
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > MAX_TIME_S * NS:
        raise ConfigError(f"{where}: found '{text[:40]}', expected a time in nanoseconds, at most {MAX_TIME_S * NS}")
    return int(text)
