"""What every importer returns: the streams of a recording in another format, and their frames with their capture times.

Owns what all formats share: numbering frames, naming streams, counting what is left out. file_frames.py reads single
files; importer.py writes the recording.

Example:
    source = ImportSource("EuRoC", {"cam0": StreamInfo("cam0", "bgr8", 20.0)}, frames(), expected=3682)
    source.left_out["imu0"]["a line without seven numbers"] += 1
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.rig.rig import Rig

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_FILE_BYTES = 1 << 30  # a picture, a sweep or a table larger than this is none


@dataclass
class ImportSource:
    """A recording in another format, opened.

    frames is read once, in the file's own order. infos may grow while it is read, but holds a stream before its first
    frame. left_out is complete once frames has ended.
    """

    format: str  # for people: "KITTI raw"
    infos: dict[str, StreamInfo]
    frames: Iterator[Frame]
    expected: int | None = None  # how many frames, for the progress line
    # Topic or stream → why a message is not in the recording → how many.
    left_out: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    notes: list[str] = field(default_factory=list)  # what a user must know about the times or numbers
    # Returns the sensors' rig; its argument maps a stream of the source to its name in the recording.
    rig: Callable[[Callable[[str], str]], Rig] | None = None


class Item(NamedTuple):
    """A frame of a folder, not read yet."""

    capture_ns: int
    stream: str
    read: Callable[[], Frame]


def from_items(
    format: str, infos: Sequence[StreamInfo], items: Sequence[Item], notes: Sequence[str] = ()
) -> ImportSource:
    """A folder's frames in the order of time. One that cannot be read is counted with its error; the import goes on."""
    source = ImportSource(format, {info.stream: info for info in infos}, iter(()), len(items), notes=list(notes))

    def frames() -> Iterator[Frame]:
        for item in sorted(items, key=lambda item: item.capture_ns):
            try:
                yield item.read()
            except ConfigError as error:
                source.left_out[item.stream][str(error)] += 1

    source.frames = numbered(frames())
    return source


def rate_hz(times_ns: Sequence[int]) -> float | None:
    """The rate of the median step; None for fewer than two times, or equal ones."""
    step_ns = float(np.median(np.diff(np.array(times_ns, np.int64)))) if len(times_ns) > 1 else 0.0
    return round(NS / step_ns, 3) if step_ns > 0 else None


def numbered(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames with `seq` from 0 on in each stream: an import drops none."""
    seqs: defaultdict[str, Iterator[int]] = defaultdict(count)
    for frame in frames:
        yield msgspec.structs.replace(frame, seq=next(seqs[frame.stream]))


def stream_name(topic: str, taken: Container[str]) -> str:
    """A topic such as "/camera/image raw" → "camera/image_raw": a valid node name, numbered where it is taken."""
    name = "".join(c if c.isalnum() or c in "_-/" else "_" for c in topic.strip("/")) or "topic"
    return name if name not in taken else next(f"{name}_{n}" for n in count(2) if f"{name}_{n}" not in taken)
