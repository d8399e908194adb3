"""Labels of a recording: which label holds from when to when. A stream of frames with the encoding "label".

A label holds from its capture_ns on: for its duration_ns, or, where that is 0 (a key press), until the next label of
the stream. An empty text ends a label without beginning another.

A CSV of intervals has seconds since the first picture (else the first frame) of the recording:

    start_s,end_s,label
    0.0,7.5,sad
    9.0,,happy                      without an end: until the next, or the recording's end

Example:
    add_labels(Path("talk.mcap"), Path("talk.csv"), Path("talk-labelled.mcap"))     # talk.mcap stays as it is
    Labels.read(reader).at(capture_ns)                                              # "sad"; "" where no label holds
"""

from __future__ import annotations

import bisect
import csv
import io
import math
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.files import read_text
from pipeline.frame import FOREVER_NS, Frame, StreamInfo
from pipeline.installation import COMMAND
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

STREAM = "label"
PICTURES = ("bgr8", "jpeg")
MAX_BYTES = 16 << 20  # of a CSV: a million intervals
EXPECTED = "expected start_s,end_s,label, such as 0.0,7.5,sad"
PAGE_LABELS = StreamInfo(STREAM, "label", description="from the page's number keys")


class Interval(NamedTuple):
    begin_ns: int
    end_ns: int | None  # None: until the next
    label: str


@dataclass(frozen=True)
class Labels:
    """Intervals in the order of their begin. Where two overlap, the one that began later holds."""

    intervals: tuple[Interval, ...]

    @classmethod
    def of(cls, frames: Iterable[Frame]) -> Labels:
        intervals = [
            Interval(f.capture_ns, f.end_ns if f.duration_ns else None, bytes(f.data).decode("utf-8", "replace"))
            for f in frames
            if f.encoding == "label"
        ]
        return cls(tuple(sorted(intervals, key=lambda interval: interval.begin_ns)))

    @classmethod
    def read(cls, reader: Reader, stream: str | None = None) -> Labels:
        """The labels of a recording. stream: which stream; None: the only one with labels.

        Raises ConfigError when there is none, or several to choose from.
        """
        names = [name for name, info in reader.streams.items() if info.encoding == "label"]
        if stream is None and len(names) > 1:
            raise ConfigError(
                f"{reader.path}: several streams hold labels: {', '.join(names)}. Say which: --labels NAME"
            )
        if not names or (stream is not None and stream not in names):
            fix = f"Add them: {COMMAND} label REC.mcap INTERVALS.csv OUT.mcap"
            raise ConfigError(f"{reader.path}: it has no labels{f' called {stream!r}' if stream else ''}. {fix}")
        return cls.of(m for _, m, _ in reader.messages([stream or names[0]]) if isinstance(m, Frame))

    @property
    def names(self) -> tuple[str, ...]:
        """Each label once, in the order in which they first hold."""
        return tuple(dict.fromkeys(interval.label for interval in self.intervals if interval.label))

    def at(self, time_ns: int) -> str:
        """The label that holds at that moment; "": none does."""
        last = bisect.bisect_right(self.intervals, time_ns, key=lambda interval: interval.begin_ns)
        for i in reversed(range(last)):
            interval = self.intervals[i]
            if i == last - 1 if interval.end_ns is None else time_ns < interval.end_ns:
                return interval.label
        return ""


def page_labels(messages: queue.SimpleQueue[str], seq: int) -> Iterator[Frame]:
    """The labels that the page sent since the last call, as frames.

    messages: each {"label": "happy", "at_ns": …}. seq: of the first frame.
    """
    while not messages.empty():
        message = msgspec.json.decode(messages.get(), type=_PageLabel)
        text = np.frombuffer(message.label.encode(), np.uint8)
        yield Frame(STREAM, seq, message.at_ns, "label", text, publish_ns=message.at_ns)
        seq += 1


class _PageLabel(msgspec.Struct):
    label: str
    at_ns: int


def read_csv(path: Path) -> list[Interval]:
    """The intervals of a CSV, in ns since the recording's first picture.

    Raises ConfigError with the line that is not one.
    """
    text = read_text(path, most=MAX_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error
    intervals = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#") or (number == 1 and cells[0] in ("start_s", "seconds")):
            continue
        if len(cells) == 2:  # seconds,label: the format of `evaluate stream`
            cells.insert(1, "")
        where = f"{path}:{number}"
        if len(cells) != 3 or not cells[2]:
            raise ConfigError(f"{where}: found '{','.join(row)[:60]}', {EXPECTED}")
        begin_ns, end_ns = _seconds_ns(cells[0], where), _seconds_ns(cells[1], where) if cells[1] else None
        if end_ns is not None and end_ns <= begin_ns:
            raise ConfigError(
                f"{where}: it ends at {cells[1]} s, before it begins at {cells[0]} s. Swap start_s and end_s"
            )
        intervals.append(Interval(begin_ns, end_ns, cells[2]))
    if not intervals:
        raise ConfigError(f"{path}: it has no intervals, {EXPECTED}")
    intervals.sort(key=lambda interval: interval.begin_ns)
    for before, after in pairwise(intervals):
        if before.end_ns is not None and before.end_ns > after.begin_ns:
            both = f"'{before.label}' until {before.end_ns / NS:g} s, '{after.label}' from {after.begin_ns / NS:g} s"
            raise ConfigError(f"{path}: two intervals overlap: {both}. End the first before the second begins")
    return intervals


def begin_ns(reader: Reader) -> int:
    """The capture time of 0 s in a CSV: of the first picture, as in a player, or else of the first frame."""
    pictures = [name for name, info in reader.streams.items() if info.encoding in PICTURES and reader.counts[name]]
    for _, message, _ in reader.messages(pictures or None):
        if isinstance(message, Frame) and message.encoding != "none":
            return message.capture_ns
    return reader.span_ns[0]


def add_labels(recording: Path, intervals: Path, out: Path, *, stream: str = STREAM) -> int:
    """Copy a recording and add labels as one more stream.

    Args:
        recording: The recording; it is not changed.
        intervals: The CSV of intervals.
        out: The copy. A file that exists is refused.
        stream: The name of the new stream.

    Returns:
        How many labels were added.

    Raises:
        ConfigError: An interval begins after the recording's end, or the stream or `out` exists already.
    """
    labels = read_csv(intervals)
    with Reader(recording) as reader:
        if stream in reader.streams:
            raise ConfigError(f"{recording}: it has a stream '{stream}' already. Choose another name: --stream NAME")
        zero_ns, (_, last_ns) = begin_ns(reader), reader.span_ns
        for interval in labels:
            if zero_ns + interval.begin_ns > last_ns:
                ends = f"{(last_ns - zero_ns) / NS:.1f} s"
                raise ConfigError(
                    f"{intervals}: '{interval.label}' begins at {interval.begin_ns / NS:g} s; "
                    f"the recording ends at {ends}"
                )
        frames = label_frames(labels, stream, zero_ns, last_ns)
        with Writer(out, about=reader.about | {"labelled_with": intervals.name}) as writer:
            copy(reader, writer, frames)
    return len(frames)


def label_frames(intervals: list[Interval], stream: str, zero_ns: int, last_ns: int) -> list[Frame]:
    """Intervals as frames. An interval without an end lasts until the next begins, or until the recording ends.

    zero_ns: the capture time of 0 s. last_ns: the recording's last log time.
    """
    frames = []
    for i, (begin_ns, end_ns, label) in enumerate(intervals):
        next_ns = intervals[i + 1].begin_ns if i + 1 < len(intervals) else max(last_ns - zero_ns, begin_ns + 1)
        at_ns, until_ns = zero_ns + begin_ns, zero_ns + (next_ns if end_ns is None else end_ns)
        data = np.frombuffer(label.encode(), np.uint8)
        frames.append(Frame(stream, i, at_ns, "label", data, duration_ns=until_ns - at_ns, publish_ns=at_ns))
    return frames


def copy(reader: Reader, writer: Writer, more: list[Frame]) -> None:
    """Write everything of a recording and more frames of labels, in the order of their times."""
    for info in reader.streams.values():
        writer.stream(info)
    for name in dict.fromkeys(frame.stream for frame in more):
        writer.stream(StreamInfo(name, "label", None, 1, "", "labels, from a CSV of intervals"))
    for name, notes in reader.notes.items():
        for note in notes:
            writer.note(name, note)
    for name, data in reader.attachments().items():
        writer.attach(name, data)
    for camera, calibration in reader.calibrations.items():
        matrix, distortion = np.array(list(calibration.K)).reshape(3, 3), np.array(list(calibration.D))
        writer.calibration(
            camera,
            width_px=calibration.width,
            height_px=calibration.height,
            matrix=matrix,
            distortion=distortion,
            model=calibration.distortion_model,
            log_ns=reader.span_ns[0],
        )
    remaining = sorted(more, key=lambda frame: frame.capture_ns, reverse=True)
    for stream, message, log_ns in reader.messages():
        while remaining and remaining[-1].capture_ns <= log_ns:
            writer.write(remaining[-1].stream, remaining[-1], log_ns=remaining.pop().capture_ns)
        writer.write(stream, message, log_ns=log_ns)
    while remaining:
        writer.write(remaining[-1].stream, remaining[-1], log_ns=remaining.pop().capture_ns)


def _seconds_ns(text: str, where: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < FOREVER_NS / NS:
        raise ConfigError(f"{where}: found '{text[:40]}', expected seconds since the recording's first picture")
    return round(seconds * NS)
