"""Reads a recording: streams of messages, what was written about the run, calibrations and attachments.

All times are the rig's monotonic clock, as in frame.py; in the file they are UTC, by about["utc_offset_ns"]. Only the
index is read until messages are asked for. A split recording (out.mcap, out.001.mcap, …) is read as one, from its
first file.

Example:
    with Reader(Path("out.mcap")) as reader:
        reader.about, reader.streams, reader.counts, reader.span_ns, reader.notes
        for stream, message, log_ns in reader.messages(["camera"], from_ns=t): ...      # in the order of log_ns
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.frame import Health, Message, StreamInfo
from pipeline.old_names import current_about, current_health, current_note
from pipeline.recording.mcap.decode import decode_calibration
from pipeline.recording.part import METADATA, Part, part_path

NEVER = 1 << 64  # later than any log time


class Recorded(NamedTuple):
    stream: str
    message: Message
    log_ns: int


class Reader:
    """A recording, opened for reading.

    Args:
        path: The recording's first file.
        unclosed: Read a file that was not closed up to its last whole chunk, instead of refusing it.

    Raises:
        ConfigError: The file is not a recording, is broken, or was not closed. `messages` raises it for a broken chunk.
    """

    def __init__(self, path: Path, *, unclosed: bool = False) -> None:
        self.path = Path(path)
        self._parts = [Part(self.path, unclosed=unclosed)]
        first = self._parts[0]
        try:
            while (more := part_path(self.path, len(self._parts))).exists():
                part = Part(more, unclosed=unclosed)
                if part.about.get("run") != first.about.get("run"):
                    part.close()
                    break  # a file of another recording with a matching name
                self._parts.append(part)
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = current_about(first.about)
        self.utc_offset_ns = first.utc_offset_ns
        self.closed = all(part.closed for part in self._parts)
        self.torn_bytes = sum(part.torn_bytes for part in self._parts)
        self.size_bytes = sum(part.size for part in self._parts)
        self.streams: dict[str, StreamInfo] = {info.stream: info for part in self._parts for info in part.infos}
        self.counts: Counter[str] = Counter()
        for part in self._parts:
            for channel, stream in part.stream_of.items():
                self.counts[stream] += part.index.counts[channel]
        # Other writers' chunks may hold schemas alone, with times from 0 to 0.
        chunks = [c for part in self._parts for c in part.index.chunks if c.message_index_offsets or c.message_end_time]
        times = [t for c in chunks for t in (c.message_start_time, c.message_end_time)]
        # (first, last) log time.
        self.span_ns = (min(times) - self.utc_offset_ns, max(times) - self.utc_offset_ns) if times else (0, 0)

    @property
    def notes(self) -> dict[str, list[Any]]:
        """By name, oldest first."""
        notes: dict[str, list[Any]] = {}
        for part in self._parts:
            for entry in part.metadata:
                if entry.name.startswith(f"{METADATA}."):
                    name = entry.name.removeprefix(f"{METADATA}.")
                    try:
                        notes.setdefault(name, []).append(current_note(json.loads(entry.metadata["json"])))
                    except (ValueError, LookupError) as error:
                        raise part.broken(f"the note '{entry.name}'", error) from error
        return notes

    @property
    def calibrations(self) -> dict[str, Any]:
        """Camera → its newest foxglove.CameraCalibration (width, height, K, D, distortion_model)."""
        calibrations = {}
        for part in self._parts:
            cameras = {c.id: c.metadata["camera"] for c in part.index.channels.values() if "camera" in c.metadata}
            for _, channel, data in part.messages(cameras.keys(), 0, NEVER):
                try:
                    calibrations[cameras[channel]] = decode_calibration(data)
                except ValueError as error:
                    raise part.broken(f"the calibration of '{cameras[channel]}'", error) from error
        return calibrations

    def attachments(self) -> dict[str, bytes]:
        """Name → content."""
        return {name: data for part in self._parts for name, data in part.attachments().items()}

    def kinds(self, stream: str) -> set[str]:
        """The schemas of a stream's channels: "foxglove.RawImage", …"""
        return {
            part.kind_of[channel] for part in self._parts for channel, name in part.stream_of.items() if name == stream
        }

    def messages(
        self, streams: Collection[str] | None = None, *, from_ns: int | None = None, to_ns: int | None = None
    ) -> Iterator[Recorded]:
        """Messages in the order of log_ns.

        Args:
            streams: Of these streams only. None: of all.
            from_ns: The first log_ns to read. None: from the beginning.
            to_ns: The log_ns before which reading ends. None: to the end.

        Raises:
            ConfigError: The recording has no such stream, or a part of it is broken.
        """
        for stream in streams or ():
            if stream not in self.streams:
                raise ConfigError(f"{self.path}: no stream '{stream}'. Streams here: {', '.join(self.streams)}")
        from_utc = 0 if from_ns is None else max(0, from_ns + self.utc_offset_ns)
        to_utc = NEVER if to_ns is None else to_ns + self.utc_offset_ns
        for part in self._parts:
            channels = {channel for channel, name in part.stream_of.items() if streams is None or name in streams}
            for log_time, channel, data in part.messages(channels, from_utc, to_utc):
                message = part.decoded(channel, data)
                if isinstance(message, Health):
                    message = current_health(message)
                yield Recorded(part.stream_of[channel], message, log_time - self.utc_offset_ns)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
