"""Labels: what was so from when to when. A stream of a recording like any other, of frames with the encoding "label".

A label holds from its capture_ns on: for its duration_ns, or, where that is 0 (a key that was pressed), until the next label of the
stream. An empty text ends one without beginning another.

    start_s,end_s,label             a CSV of intervals; seconds since the first picture (else the first frame) of the recording
    0.0,7.5,sad
    9.0,,happy                      without an end: until the next, or the recording's end

    add_labels(Path("talk.mcap"), Path("talk.csv"), Path("talk-labelled.mcap"))     # talk.mcap stays as it is
    Labels.read(reader).at(capture_ns)                                              # "sad", or "" for unlabelled
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
from pipeline.frame import FOREVER_NS, Frame, StreamInfo
from pipeline.installation import COMMAND
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

STREAM = "label"
PICTURES = ("bgr8", "jpeg")
EXPECTED = "expected start_s,end_s,label, such as 0.0,7.5,sad"


class Interval(NamedTuple):
    begin_ns: int
    end_ns: int | None  # None: until the next
    label: str


@dataclass(frozen=True)
class Labels:
    """Intervals by their begin; of two that overlap the one that began later holds."""

    intervals: tuple[Interval, ...]

    @classmethod
    def of(cls, frames: Iterable[Frame]) -> Labels:
        found = [
            Interval(f.capture_ns, f.end_ns if f.duration_ns else None, bytes(f.data).decode("utf-8", "replace"))
            for f in frames
            if f.encoding == "label"
        ]
        return cls(tuple(sorted(found, key=lambda interval: interval.begin_ns)))

    @classmethod
    def read(cls, reader: Reader, stream: str | None = None) -> Labels:
        """stream None: the only one with labels. ConfigError where there is none, or several to choose from."""
        here = [name for name, info in reader.streams.items() if info.encoding == "label"]
        if stream is None and len(here) > 1:
            raise ConfigError(
                f"{reader.path}: several streams hold labels: {', '.join(here)}. Say which: --labels NAME"
            )
        if not here or (stream is not None and stream not in here):
            fix = f"Add them: {COMMAND} label REC.mcap INTERVALS.csv OUT.mcap"
            raise ConfigError(f"{reader.path}: no {f'labels called {stream!r}' if stream else 'labels'} in it. {fix}")
        return cls.of(m for _, m, _ in reader.messages([stream or here[0]]) if isinstance(m, Frame))

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


def heard_labels(heard: queue.SimpleQueue[str], seq: int) -> Iterator[Frame]:
    """What the page said since: {"label": "happy", "at_ns": …} each. seq: of the first."""
    while not heard.empty():
        said = msgspec.json.decode(heard.get(), type=_Said)
        text = np.frombuffer(said.label.encode(), np.uint8)
        yield Frame(STREAM, seq, said.at_ns, "label", text, publish_ns=said.at_ns)
        seq += 1


class _Said(msgspec.Struct):
    label: str
    at_ns: int


def read_csv(path: Path) -> list[Interval]:
    """Times since the recording's first picture, in nanoseconds. ConfigError with the line for what is no interval."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), skipinitialspace=True, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    intervals = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#") or (number == 1 and cells[0] in ("start_s", "seconds")):
            continue
        if len(cells) == 2:  # seconds,label: the truth of `evaluate stream`
            cells.insert(1, "")
        where = f"{path}:{number}"
        if len(cells) != 3 or not cells[2]:
            raise ConfigError(f"{where}: found '{','.join(row)[:60]}', {EXPECTED}")
        begin_ns, end_ns = _seconds_ns(cells[0], where), _seconds_ns(cells[1], where) if cells[1] else None
        if end_ns is not None and end_ns <= begin_ns:
            raise ConfigError(f"{where}: it ends at {cells[1]} s, before it has begun at {cells[0]} s")
        intervals.append(Interval(begin_ns, end_ns, cells[2]))
    if not intervals:
        raise ConfigError(f"{path}: no intervals in it, {EXPECTED}")
    intervals.sort(key=lambda interval: interval.begin_ns)
    for before, after in pairwise(intervals):
        if before.end_ns is not None and before.end_ns > after.begin_ns:
            both = f"'{before.label}' until {before.end_ns / NS:g} s, '{after.label}' from {after.begin_ns / NS:g} s"
            raise ConfigError(f"{path}: two intervals overlap: {both}")
    return intervals


def begin_ns(reader: Reader) -> int:
    """The capture time that 0 s of a CSV means: the first picture's, as people count in a player; else the first frame's."""
    pictures = [name for name, info in reader.streams.items() if info.encoding in PICTURES and reader.counts[name]]
    for _, message, _ in reader.messages(pictures or None):
        if isinstance(message, Frame) and message.encoding != "none":
            return message.capture_ns
    return reader.span_ns[0]


def add_labels(recording: Path, intervals: Path, out: Path, *, stream: str = STREAM) -> int:
    """Copy the recording to `out`, with the labels as one more stream. Returns how many. ConfigError for intervals that lie
    wholly outside the recording, a stream that is there already, or an `out` that is."""
    found = read_csv(intervals)
    with Reader(recording) as reader:
        if stream in reader.streams:
            raise ConfigError(f"{recording}: it has a stream '{stream}' already. Call these otherwise: --stream NAME")
        zero_ns, (_, last_ns) = begin_ns(reader), reader.span_ns
        for interval in found:
            if zero_ns + interval.begin_ns > last_ns:
                ends = f"{(last_ns - zero_ns) / NS:.1f} s"
                raise ConfigError(
                    f"{intervals}: '{interval.label}' begins at {interval.begin_ns / NS:g} s; the recording ends at {ends}"
                )
        frames = label_frames(found, stream, zero_ns, last_ns)
        with Writer(out, about=reader.about | {"labelled_with": intervals.name}) as writer:
            copy(reader, writer, frames)
    return len(frames)


def label_frames(intervals: list[Interval], stream: str, zero_ns: int, last_ns: int) -> list[Frame]:
    """zero_ns: what 0 s means. An interval without an end gets the next one's begin, or the recording's end."""
    frames = []
    for i, (begin, end, label) in enumerate(intervals):
        following = intervals[i + 1].begin_ns if i + 1 < len(intervals) else max(last_ns - zero_ns, begin + 1)
        at_ns, until_ns = zero_ns + begin, zero_ns + (following if end is None else end)
        data = np.frombuffer(label.encode(), np.uint8)
        frames.append(Frame(stream, i, at_ns, "label", data, duration_ns=until_ns - at_ns, publish_ns=at_ns))
    return frames


def copy(reader: Reader, writer: Writer, more: list[Frame]) -> None:
    """Everything of a recording, with a few frames more, in the order of their times."""
    for info in reader.streams.values():
        writer.stream(info)
    for name in dict.fromkeys(frame.stream for frame in more):
        writer.stream(StreamInfo(name, "label", None, 1, "", "labels, from a CSV of intervals"))
    for name, notes in reader.notes.items():
        for note in notes:
            writer.note(name, note)
    for name, data in reader.attachments().items():
        writer.attach(name, data)
    for camera, told in reader.calibrations.items():
        matrix, distortion = np.array(list(told.K)).reshape(3, 3), np.array(list(told.D))
        writer.calibration(
            camera,
            width_px=told.width,
            height_px=told.height,
            matrix=matrix,
            distortion=distortion,
            model=told.distortion_model,
            log_ns=reader.span_ns[0],
        )
    waiting = sorted(more, key=lambda frame: frame.capture_ns, reverse=True)
    for stream, message, log_ns in reader.messages():
        while waiting and waiting[-1].capture_ns <= log_ns:
            writer.write(waiting[-1].stream, waiting[-1], log_ns=waiting.pop().capture_ns)
        writer.write(stream, message, log_ns=log_ns)
    while waiting:
        writer.write(waiting[-1].stream, waiting[-1], log_ns=waiting.pop().capture_ns)


def _seconds_ns(text: str, where: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < FOREVER_NS / NS:
        raise ConfigError(f"{where}: found '{text[:40]}', expected seconds since the recording's first picture")
    return round(seconds * NS)
