"""Reads pictures of a board from files, folders, patterns, media files and recordings.

A picture that cannot be read is yielded with its problem instead of being skipped silently. Media files and recordings
are sampled four times a second: neighbouring pictures show the same.

Example:
    for picture in pictures(["left"], stream=None): picture.name, picture.gray or picture.problem
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import ConfigError, nearest
from pipeline.files import read_bytes
from pipeline.frame import Frame, misfit
from pipeline.picture_files import decode_picture
from pipeline.sensors import media

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MAX_FILE_BYTES = 1 << 30
LOOK_EVERY_NS = 250_000_000  # a board that is moved by hand is somewhere else after a quarter of a second


@dataclass(frozen=True)
class Picture:
    """gray: (h, w) uint8, None with a problem. path: its file, None for a picture of a stream."""

    name: str
    gray: np.ndarray | None
    path: Path | None = None
    problem: str = ""


def pictures(sources: Sequence[str], *, stream: str | None = None) -> Iterator[Picture]:
    """stream: the stream of a recording to read. ConfigError if there are no pictures, with what is there instead."""
    for source in sources:
        path = Path(source).expanduser()
        if path.suffix == ".mcap":
            yield from _of_recording(path, stream)
        elif path.suffix.lower() in media.SUFFIXES:
            yield from _of_media(path)
        else:
            yield from map(_of_file, files(source))


def is_stream(source: str) -> bool:
    """Whether this is a media file or a recording: many pictures, of which only a few are used."""
    return Path(source).suffix == ".mcap" or Path(source).suffix.lower() in media.SUFFIXES


def files(source: str) -> list[Path]:
    """The picture files of a folder, of a pattern (quoted: 'data/left*.jpg') or one file, sorted by name."""
    path = Path(source).expanduser()
    if path.is_dir():
        pictures = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES]
        if not pictures:
            others = sorted({p.suffix or p.name for p in path.iterdir()})
            inside = f"It holds: {', '.join(others[:6])}" if others else "It is empty"
            raise ConfigError(f"{source}: no pictures in this folder. {inside}. Pictures are: {', '.join(SUFFIXES)}")
        return pictures
    if any(sign in source for sign in "*?["):
        pictures = [p for p in sorted(path.parent.glob(path.name)) if p.suffix.lower() in SUFFIXES]
        if not pictures:
            raise ConfigError(f"{source}: no picture matches this pattern. Pictures are: {', '.join(SUFFIXES)}")
        return pictures
    if path.is_file():
        return [path]
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise ConfigError(
        f"{source}: there is no such folder or file.{nearest(path.name, beside)} "
        "Name a folder of pictures, a picture, a quoted pattern ('left*.jpg'), a media file or a recording"
    )


def _of_file(path: Path) -> Picture:
    try:
        data = np.frombuffer(read_bytes(path, most=MAX_FILE_BYTES), np.uint8)
    except ConfigError as error:
        return Picture(path.name, None, path, str(error).partition(": ")[2])
    # As the sensor recorded it: a phone that was rotated between two pictures is still one camera.
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    gray = decode_picture(data, flags)
    if gray is None:
        return Picture(path.name, None, path, "cannot be decoded: truncated, or not a picture")
    return Picture(path.name, gray, path)


def _of_media(path: Path) -> Iterator[Picture]:
    with media.open_file(str(path), "video", where="calibrate") as opened:
        next_ns = 0
        for frame in opened.frames():
            time_ns = opened.time_ns(frame) if frame is not None else None
            if frame is None or time_ns is None or time_ns < next_ns:
                continue
            next_ns = time_ns + LOOK_EVERY_NS
            yield Picture(f"{path.name} at {time_ns / 1e9:.2f} s", np.array(frame.to_ndarray(format="gray")))


def _of_recording(path: Path, stream: str | None) -> Iterator[Picture]:
    from pipeline.recording.reader import Reader

    with Reader(path, unclosed=True) as reader:
        cameras = [n for n, info in reader.streams.items() if info.encoding in ("bgr8", "jpeg")]
        if stream is None:
            if len(cameras) != 1:
                here = ", ".join(cameras) or f"none (streams: {', '.join(reader.streams)})"
                raise ConfigError(
                    f"{path}: it has several cameras or none. Streams with pictures: {here}. Select one with --stream"
                )
            stream = cameras[0]
        if stream not in cameras:
            raise ConfigError(
                f"{path}: '{stream}' has no pictures. Streams with pictures: {', '.join(cameras)}."
                f"{nearest(stream, cameras)}"
            )
        start_ns, next_ns = reader.span_ns[0], 0
        for _, message, log_ns in reader.messages([stream]):
            if not isinstance(message, Frame) or log_ns < next_ns or not message.data.size or misfit(message):
                continue
            next_ns = log_ns + LOOK_EVERY_NS
            name = f"{path.name} at {(log_ns - start_ns) / 1e9:.2f} s"
            if message.encoding == "jpeg":
                gray = decode_picture(message.data, cv2.IMREAD_GRAYSCALE)
                yield Picture(name, gray, None, "" if gray is not None else "cannot be decoded")
            else:
                yield Picture(name, cv2.cvtColor(message.data, cv2.COLOR_BGR2GRAY))
