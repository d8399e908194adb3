"""Exports a recording to files that other programs open: MP4, WAV, CSV, network captures, KITTI's .bin, JSON lines.

Every stream of frames has a CSV with a line a frame: its number and times, so that none of them is lost. Videos and
sounds begin together, at the earliest capture of any of them. Predictions and aligned sets become JSON lines.

Example:
    export_recording(Path("talk.mcap"), Path("talk"))       # talk/camera.mp4, talk/camera.csv, talk/microphone.wav, …
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Message, Prediction, misfit
from pipeline.recording.export_formats import StreamFile, columns, stream_file
from pipeline.recording.reader import Reader

TIMES = ("seq", "capture_ns", "duration_ns", "publish_ns", "clock_error_ns")
PLAYABLE = ("bgr8", "jpeg", "pcm_f32")


def export_recording(recording: Path, folder: Path, *, say: Callable[[str], None] = print) -> None:
    """Export every stream of a recording.

    Args:
        recording: The recording's first file.
        folder: Where the files go; created when it does not exist.
        say: Called with each line of the report.

    Raises:
        ConfigError: The folder is not empty, or the recording cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: it exists already and is not empty. Name another folder")
    with Reader(recording) as reader:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what the recording holds
            with _Export(reader, folder) as export:
                for stream, message, _ in reader.messages():
                    export.write(stream, message)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from error
        for path in sorted(folder.iterdir()):
            say(f"  {path}{'/' if path.is_dir() else ''}")
        for what, count in export.left_out.items():
            say(f"  not exported: {what} ({count})")


class _Export:
    """The open files of an export: a file and a CSV for each stream and encoding, a JSON lines file for the others."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, str], StreamFile] = {}
        self._tables: dict[tuple[str, str], tuple[IO[str], Any]] = {}  # the CSV file and its writer
        self._json_lines: dict[str, IO[bytes]] = {}
        self._zero_ns, self.left_out = _begin_ns(reader), Counter[str]()
        self._names = _file_names(reader.streams)

    def write(self, stream: str, message: Message) -> None:
        if not isinstance(message, Frame):
            if (lines := self._json_lines.get(stream)) is None:
                lines = self._json_lines[stream] = (self._folder / f"{self._names[stream]}.jsonl").open("wb")
            lines.write(msgspec.json.encode(_record(message)) + b"\n")
            return
        if message.encoding == "none":
            self.left_out[f"{stream}: a moment at which nothing happened"] += 1
            return
        key = (stream, message.encoding)
        if problem := misfit(message):
            self.left_out[f"{stream}: {problem}"] += 1
            return
        if key not in self._files:
            self._open(key, message)
        try:
            cells = self._files[key].write(message)
        except ValueError as error:
            self.left_out[f"{stream}: {error}"] += 1
            return
        self._tables[key][1].writerow([*(getattr(message, name) for name in TIMES), *cells])

    def _open(self, key: tuple[str, str], first: Frame) -> None:
        stream, encoding = key
        is_first = not any(other == stream for other, _ in self._files)
        name = self._names[stream] if is_first else f"{self._names[stream]}.{encoding}"
        self._files[key] = stream_file(self._folder / name, first, self._zero_ns)
        file = (self._folder / f"{name}.csv").open("w", newline="", encoding="utf-8")
        self._tables[key] = (file, csv.writer(file))
        self._tables[key][1].writerow([*TIMES, *columns(first)])

    def __enter__(self) -> _Export:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._files.values():
            stream.close()
        for table, _writer in self._tables.values():
            table.close()
        for lines in self._json_lines.values():
            lines.close()


def _record(message: Message) -> dict[str, Any]:
    if isinstance(message, Prediction):
        return message.record()
    if isinstance(message, AlignedSet):
        receipts = [msgspec.structs.asdict(receipt) for receipt in message.receipts]
        return {
            "anchor": message.anchor,
            "anchor_ns": message.anchor_ns,
            "missing": message.missing,
            "receipts": receipts,
        }
    fields = msgspec.to_builtins(message, enc_hook=lambda array: array.tolist())
    return {"type": type(message).__name__, "fields": fields}


def _begin_ns(reader: Reader) -> int:
    """The earliest first capture of the streams that become videos and sounds."""
    playable = [name for name, info in reader.streams.items() if info.encoding in PLAYABLE]
    firsts = [_first_capture_ns(reader, name) for name in playable]
    return min((first_ns for first_ns in firsts if first_ns is not None), default=reader.span_ns[0])


def _first_capture_ns(reader: Reader, stream: str) -> int | None:
    for _, message, _ in reader.messages([stream]):
        if isinstance(message, Frame) and message.encoding != "none":
            return message.capture_ns
    return None


def _file_names(streams: Iterable[str]) -> dict[str, str]:
    """Stream → a file name of its own, without characters that file systems refuse."""
    names: dict[str, str] = {}
    for stream in streams:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in stream).lstrip(".") or "stream"
        while name in names.values():
            name += "_"
        names[stream] = name
    return names
