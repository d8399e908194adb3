"""What every importer gives: the streams that a recording of somebody else's holds, and their frames with true times.

Owns the small things that all formats share: reading a picture file as it is, reading a time as people write it, numbering
frames, counting what is left out. Knows nothing of MCAP: pipeline/recording/importers/importer.py writes.

    opened = Opened("EuRoC", {"cam0": StreamInfo("cam0", "bgr8", 20.0)}, frames(), expected=3682)
    opened.left_out["imu0"]["a line without seven numbers"] += 1
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Encoding, Frame, StreamInfo
from pipeline.rig.rig import Rig

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_FILE_BYTES = 1 << 30  # a picture, a sweep or a table larger than this is none


@dataclass
class Opened:
    """frames is read once, in the file's own order; infos may grow while it is read, but holds a stream before its first
    frame. left_out: where it was → why it is not in the recording → how many; complete once frames has ended."""

    format: str  # for people: "KITTI raw"
    infos: dict[str, StreamInfo]
    frames: Iterator[Frame]
    expected: int | None = None  # frames, for the progress
    left_out: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    notes: list[str] = field(default_factory=list)  # what a user must know of the times or numbers
    rig: Callable[[Callable[[str], str]], Rig] | None = (
        None  # their stream → its name in the recording; the sensors' rig
    )


class Item(NamedTuple):
    """A frame of a folder, read when its turn comes."""

    capture_ns: int
    stream: str
    read: Callable[[], Frame]


def from_items(format: str, infos: Sequence[StreamInfo], items: Sequence[Item], notes: Sequence[str] = ()) -> Opened:
    """Reads the items by time. One that cannot be read is counted with its error, and does not end the import."""
    opened = Opened(format, {info.stream: info for info in infos}, iter(()), len(items), notes=list(notes))

    def frames() -> Iterator[Frame]:
        for item in sorted(items, key=lambda item: item.capture_ns):
            try:
                yield item.read()
            except ConfigError as error:
                opened.left_out[item.stream][str(error)] += 1

    opened.frames = numbered(frames())
    return opened


def rate_hz(times_ns: Sequence[int]) -> float | None:
    """Of the median step; None for fewer than two, or no step."""
    step_ns = float(np.median(np.diff(np.array(times_ns, np.int64)))) if len(times_ns) > 1 else 0.0
    return round(NS / step_ns, 3) if step_ns > 0 else None


def pictures_in(folder: Path) -> list[Path]:
    """By name; a name of digits by its number."""
    found = (
        [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()] if folder.is_dir() else []
    )
    return sorted(found, key=lambda p: (int(p.stem) if p.stem.isdecimal() else -1, p.name))


def numbered(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Each stream counted from 0 in the order of its frames: an import drops none."""
    seqs: defaultdict[str, Iterator[int]] = defaultdict(count)
    for frame in frames:
        yield msgspec.structs.replace(frame, seq=next(seqs[frame.stream]))


def stream_name(topic: str, taken: Container[str]) -> str:
    """ "/camera/image raw" → "camera/image_raw": what a node may be called; numbered where another topic has the name."""
    name = "".join(c if c.isalnum() or c in "_-/" else "_" for c in topic.strip("/")) or "topic"
    return name if name not in taken else next(f"{name}_{n}" for n in count(2) if f"{name}_{n}" not in taken)


def text_frame(stream: str, capture_ns: int, text: str | bytes, encoding: Encoding = "calibration") -> Frame:
    raw = text.encode() if isinstance(text, str) else text
    return Frame(stream, -1, capture_ns, encoding, np.frombuffer(raw, np.uint8), publish_ns=capture_ns)


def read_bytes(path: Path) -> bytes:
    """ConfigError that names the file, also for one that is absurdly large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size >> 20} MiB, expected less than {MAX_FILE_BYTES >> 20}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_lines(path: Path) -> list[str]:
    """Without comments and empty lines."""
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def picture_frame(stream: str, capture_ns: int, path: Path, *, depth_per_mm: float = 1.0, **fields: Any) -> Frame:
    """A picture file as a frame: JPEG as it is, 16 bits of grey as depth, all else as "bgr8" (grey three times).

    depth_per_mm: the file's units in a millimetre. Raises ConfigError where the file is missing, or cannot be decoded.
    """
    raw = np.frombuffer(read_bytes(path), np.uint8)
    image: npt.NDArray[Any] | None = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
    if image is None:
        raise ConfigError(f"{path}: a picture that cannot be decoded: it is broken or cut off")
    if raw[:2].tobytes() == b"\xff\xd8":
        return Frame(stream, -1, capture_ns, "jpeg", raw, **fields)
    encoding, data = as_picture(image, depth_per_mm=depth_per_mm, where=str(path))
    return Frame(stream, -1, capture_ns, encoding, data, **fields)


def as_picture(image: npt.NDArray[Any], *, depth_per_mm: float, where: str) -> tuple[Encoding, npt.NDArray[Any]]:
    """(h, w[, 1, 3 or 4]) uint8 → "bgr8"; (h, w) uint16 → "depth_u16_mm", rounded to the millimetre."""
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
    """KITTI's .bin: float32 x y z reflectance, to the bit."""
    raw = read_bytes(path)
    if len(raw) % 16:
        raise ConfigError(
            f"{path}: {len(raw)} bytes are no whole number of points (x y z reflectance, float32): cut off?"
        )
    points = np.frombuffer(raw, "<f4").reshape(-1, 4)
    return Frame(stream, -1, capture_ns, "points_xyzi_f32", points, **fields)


def numbers(line: str, *, where: str, count: int | None = None) -> npt.NDArray[np.float64]:
    """The numbers of a line, between commas or blanks. ConfigError for what is none, or for another count."""
    try:
        found = np.array([float(word) for word in re.split(r"[,\s]+", line.strip(", \t")) if word], np.float64)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, expected numbers") from error
    if count is not None and len(found) != count:
        raise ConfigError(f"{where}: {len(found)} numbers, expected {count}")
    if not np.isfinite(found).all():
        raise ConfigError(f"{where}: a number that is not finite")
    return found


def seconds_ns(text: str, *, where: str) -> int:
    """ "1305031453.359684" → nanoseconds, exactly: a float would be off by 100 ns. ConfigError for no number."""
    try:
        value = Decimal(text.strip())
        if not value.is_finite() or abs(value) > 1 << 33:
            raise InvalidOperation
        return int(value * NS)
    except InvalidOperation:
        raise ConfigError(f"{where}: found '{text[:40]}', expected a time in seconds") from None


def time_ns(text: str, *, where: str) -> int:
    """A time as people write it: seconds with or without a fraction, milli-, micro- or nanoseconds since 1970 (told by their
    size), or "2011-09-26 13:02:25.964389445" (UTC where it says nothing else). ConfigError for anything else."""
    text = text.strip()
    dated = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?", text)
    if dated:
        day, clock, fraction, zone = dated.groups()
        try:
            when = datetime.fromisoformat(f"{day}T{clock}{(zone or 'Z').replace('Z', '+00:00')}")
        except ValueError as error:
            raise ConfigError(f"{where}: {error}, found '{text[:40]}'") from error
        since = when - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * NS + int((fraction or "0").ljust(9, "0"))
    if re.fullmatch(r"\d{12,20}", text):
        for digits, unit in ((14, 1_000_000), (17, 1_000)):  # 13 digits: ms, 16: µs, 19: ns, from 2001 to 2286
            if len(text) < digits:
                return int(text) * unit
        return int(text)
    return seconds_ns(text, where=where)
