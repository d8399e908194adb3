"""Streams ↔ MCAP files, through mcap/file.py. Foxglove and the MCAP tools open what is written here.

A file holds streams of messages (pipeline/recording/mcap/schemas.py says as which bytes), `about` (one JSON object: how it came to be),
notes, calibrations and attachments. All times that this module takes and gives are the rig's monotonic clock, as in
frame.py; in the file they are UTC, by about["utc_offset_ns"]. A message's log time is `log_ns`, by default when it left
its node.

    with Writer(Path("out.mcap"), about={"utc_offset_ns": offset_ns, "consent": "Ada agreed"}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 30.0))       # before its first message
        writer.write("camera", frame)                           # Frame, AlignedSet, Prediction, Health
        writer.note("finished", {"dropped": {}})                # anything JSON, at any time
    with Reader(Path("out.mcap")) as reader:                    # reads the index only
        reader.about, reader.streams, reader.counts, reader.span_ns, reader.notes
        for stream, message, log_ns in reader.messages(["camera"], from_ns=t): ...      # in the order of log_ns

What is large (a picture) has a chunk of its own, so who wants the sound need not read pictures; small messages are
written out at least every second. So a file whose writer was killed lacks at most its last second:
`Reader(path, unclosed=True)` reads it and `repair(path)` closes it. A split recording (out.mcap, out.001.mcap, …) is read
as one, from its first file. Every trouble with a file is a ConfigError that says where.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Message, StreamInfo, left_ns
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.chunk import Compression
from pipeline.recording.mcap.file import McapReader, McapWriter

VERSION = "1"


class Recorded(NamedTuple):
    stream: str
    message: Message
    log_ns: int


# --- writing ----------------------------------------------------------------------------------------------------------


class Writer:
    """about: any JSON; `utc_offset_ns` (monotonic + offset = UTC, see clock.utc_offset_ns) is needed for UTC times, and 0
    without. split_bytes, split_ns: begin another file after so many bytes, or so long.

    Raises ConfigError when the file exists already or cannot be made. `write` and `close` raise OSError when the disk is
    full: what is there stays readable, and the next write may succeed.
    """

    def __init__(
        self,
        path: Path,
        *,
        about: dict[str, Any],
        compression: Compression = "lz4",
        split_bytes: int | None = None,
        split_ns: int | None = None,
    ) -> None:
        self._start(Path(path), about, compression, split_bytes, split_ns)
        self._file = self._begin()

    def _start(
        self, path: Path, about: dict[str, Any], compression: Compression, split_bytes: int | None, split_ns: int | None
    ) -> None:
        self.path, self.about = path, about
        self._compression: Compression = compression
        self._split_bytes, self._split_ns = split_bytes, split_ns
        self._utc_offset_ns = int(about.get("utc_offset_ns", 0))
        self._infos: dict[str, StreamInfo] = {}
        self._channels: dict[tuple[str, str], int] = {}
        self._repeated: list[tuple[str, dict[str, Any]]] = []  # calibrations, for every file of a split recording
        self._bytes_before = 0
        self._first_ns: int | None = None
        self.parts = 0
        self.counts: Counter[str] = Counter()

    @classmethod
    def resumed(cls, path: Path, compression: Compression = "lz4") -> Writer:
        """Add to a recording that was closed, to its first file. Raises ConfigError when it is none."""
        with _Part(Path(path), unclosed=False) as part:
            about = part.about
        writer = cls.__new__(cls)
        writer._start(Path(path), about, compression, None, None)
        writer._file, writer.parts = McapWriter.resumed(writer.path, compression), 1
        return writer

    @property
    def size_bytes(self) -> int:
        """Of all files so far."""
        return self._bytes_before + self._file.index.end

    def stream(self, info: StreamInfo) -> None:
        """Say what a stream is, before its first message (a stream that was not announced is one nothing is known of)."""
        self._infos[info.stream] = info

    def write(self, stream: str, message: Message, *, log_ns: int | None = None) -> None:
        log_ns = (left_ns(message) or _captured_ns(message)) if log_ns is None else log_ns
        if self._is_full(log_ns):
            self._next()
        self._first_ns = log_ns if self._first_ns is None else self._first_ns
        kind = schemas.kind_of(message)
        if (channel := self._channels.get((stream, kind))) is None:
            channel = self._channels[stream, kind] = self._register(stream, kind)
        info = self._infos[stream]
        data = schemas.encode(message, self._utc_offset_ns, info.sensor or stream)
        seq = message.seq if isinstance(message, Frame) else self.counts[stream]
        log_time, publish_time = self._utc(log_ns), self._utc(left_ns(message) or log_ns)
        self._file.add(channel, max(0, seq) & 0xFFFFFFFF, log_time, publish_time, data)
        self.counts[stream] += 1

    def note(self, name: str, value: Any) -> None:
        """Any JSON under a name; the last one of a name counts, all are kept (Reader.notes)."""
        self._file.add_metadata(f"sensorium.{name}", {"json": msgspec.json.encode(value).decode()})

    def calibration(
        self,
        camera: str,
        *,
        width_px: int,
        height_px: int,
        matrix: np.ndarray,
        distortion: np.ndarray,
        model: str = "plumb_bob",
        log_ns: int = 0,
    ) -> None:
        """The intrinsics of a camera, on /CAMERA/calibration. matrix: (3, 3), px; distortion: (n,), in OpenCV's order."""
        told = {
            "width_px": width_px,
            "height_px": height_px,
            "matrix": matrix,
            "distortion": distortion,
            "model": model,
        }
        self._repeated.append((camera, told | {"log_ns": log_ns}))
        self._calibrate(camera, told | {"log_ns": log_ns})

    def attach(self, name: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """A whole file, such as the rig's."""
        self._file.add_attachment(name, media_type, data, self._utc(self._first_ns or 0))

    def flush(self) -> None:
        """All that was written so far is in the file."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> McapWriter:
        path = part_path(self.path, self.parts)
        try:
            file = McapWriter(path, self._compression)
            file.add_metadata(
                "sensorium", {"version": VERSION, "part": str(self.parts), "about": json.dumps(self.about)}
            )
        except FileExistsError:
            raise ConfigError(f"{path}: it is there already. Choose another name, or remove it") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        self.parts += 1
        return file

    def _is_full(self, log_ns: int) -> bool:
        if self._first_ns is None:
            return False
        too_large = self._split_bytes is not None and self._file.index.end >= self._split_bytes
        return too_large or (self._split_ns is not None and log_ns - self._first_ns >= self._split_ns)

    def _next(self) -> None:
        self._file.close()
        self._bytes_before += self._file.index.end
        self._channels, self._first_ns = {}, None
        self._file = self._begin()
        for camera, told in self._repeated:
            self._calibrate(camera, told)

    def _register(self, stream: str, kind: str) -> int:
        info = self._infos.setdefault(stream, StreamInfo(stream, ""))
        alone = not any(known == stream for known, _ in self._channels)
        # A stream's silences, or pictures of another encoding, have another schema and so a topic of their own.
        beside = kind == schemas.FRAME and info.encoding in schemas.WELL_KNOWN
        topic = f"/{stream}" if alone and not beside else f"/{stream}/{kind.rpartition('.')[2]}"
        return self._file.register(
            schemas.schema(kind), topic, {"stream": stream, "info": msgspec.json.encode(info).decode()}
        )

    def _calibrate(self, camera: str, told: dict[str, Any]) -> None:
        key = (camera, schemas.CALIBRATION)
        if (channel := self._channels.get(key)) is None:
            channel = self._file.register(
                schemas.schema(schemas.CALIBRATION), f"/{camera}/calibration", {"camera": camera}
            )
            self._channels[key] = channel
        told = dict(told)
        utc_ns = self._utc(told.pop("log_ns"))
        self._file.add(channel, 0, utc_ns, utc_ns, schemas.calibration(camera, utc_ns=utc_ns, **told))

    def _utc(self, monotonic_ns: int) -> int:
        return max(0, monotonic_ns + self._utc_offset_ns)


def _captured_ns(message: Message) -> int:
    return message.capture_ns if isinstance(message, Frame) else left_ns(message)


def part_path(path: Path, part: int) -> Path:
    """out.mcap, out.001.mcap, out.002.mcap, …"""
    return path if part == 0 else path.with_name(f"{path.stem}.{part:03d}{path.suffix}")


class _Part(McapReader):
    """One file of a recording."""

    def __init__(self, path: Path, *, unclosed: bool) -> None:
        super().__init__(path, unclosed=unclosed)
        try:
            self._understand()
        except BaseException:
            self.close()
            raise

    def _understand(self) -> None:
        said = next((m.metadata for m in self.metadata if m.name == "sensorium"), None)
        if said is None:
            fix = (
                "Import it with: python run_pipeline.py import"
                if self.closed
                else "Its beginning is lost, or it is not ours"
            )
            raise ConfigError(f"{self.path}: an MCAP file, but no recording of Sensorium. {fix}")
        if said.get("version") != VERSION:
            raise ConfigError(
                f"{self.path}: a recording of version {said.get('version')}; this program reads version {VERSION}"
            )
        try:
            self.about = msgspec.json.decode(said["about"], type=dict[str, Any])
            self.utc_offset_ns = int(self.about.get("utc_offset_ns", 0))
            self.stream_of = {
                c.id: c.metadata["stream"] for c in self.index.channels.values() if "stream" in c.metadata
            }
            self.infos = [
                msgspec.json.decode(c.metadata["info"], type=StreamInfo)
                for c in self.index.channels.values()
                if "stream" in c.metadata
            ]
            self.kind_of = {c.id: self.index.schemas[c.schema_id].name for c in self.index.channels.values()}
        except (msgspec.MsgspecError, LookupError, ValueError, TypeError) as error:
            raise self.broken("what it says of itself", error) from error

    def decoded(self, channel: int, data: bytes) -> Message:
        try:
            return schemas.decode(self.kind_of[channel], data)
        except ValueError as error:
            raise self.broken(f"a message of '{self.stream_of[channel]}'", error) from error


class Reader:
    """unclosed: read a file that was not closed up to its last whole chunk, instead of refusing it.

    Raises ConfigError for what is no recording, is broken, or was not closed; `messages` does for what is broken inside.
    """

    def __init__(self, path: Path, *, unclosed: bool = False) -> None:
        self.path = Path(path)
        self._parts = [_Part(self.path, unclosed=unclosed)]
        first = self._parts[0]
        try:
            while (more := part_path(self.path, len(self._parts))).exists():
                part = _Part(more, unclosed=unclosed)
                if part.about.get("run") != first.about.get("run"):
                    part.close()
                    break  # a file of another recording that happens to be called so
                self._parts.append(part)
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = first.about
        self.utc_offset_ns = first.utc_offset_ns
        self.closed = all(part.closed for part in self._parts)
        self.torn_bytes = sum(part.torn_bytes for part in self._parts)
        self.size_bytes = sum(part.size for part in self._parts)
        self.streams: dict[str, StreamInfo] = {info.stream: info for part in self._parts for info in part.infos}
        self.counts: Counter[str] = Counter()
        for part in self._parts:
            for channel, stream in part.stream_of.items():
                self.counts[stream] += part.index.counts[channel]
        chunks = [c for part in self._parts for c in part.index.chunks]
        chunks = [
            c for c in chunks if c.message_index_offsets or c.message_end_time
        ]  # others' may hold schemas alone: from 0 to 0
        times = [t for c in chunks for t in (c.message_start_time, c.message_end_time)]
        # (first, last) log time.
        self.span_ns = (min(times) - self.utc_offset_ns, max(times) - self.utc_offset_ns) if times else (0, 0)

    @property
    def notes(self) -> dict[str, list[Any]]:
        """By name, oldest first."""
        found: dict[str, list[Any]] = {}
        for part in self._parts:
            for entry in part.metadata:
                if entry.name.startswith("sensorium."):
                    try:
                        found.setdefault(entry.name.removeprefix("sensorium."), []).append(
                            json.loads(entry.metadata["json"])
                        )
                    except (ValueError, LookupError) as error:
                        raise part.broken(f"the note '{entry.name}'", error) from error
        return found

    @property
    def calibrations(self) -> dict[str, Any]:
        """Camera → its newest foxglove.CameraCalibration (width, height, K, D, distortion_model)."""
        found = {}
        for part in self._parts:
            cameras = {c.id: c.metadata["camera"] for c in part.index.channels.values() if "camera" in c.metadata}
            for _, channel, data in part.messages(cameras.keys(), 0, 1 << 64):
                try:
                    found[cameras[channel]] = schemas.decoded_calibration(data)
                except ValueError as error:
                    raise part.broken(f"the calibration of '{cameras[channel]}'", error) from error
        return found

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
        """In the order of log_ns, of those in [from_ns, to_ns); of the given streams, or of all. Raises ConfigError for an
        unknown stream."""
        for stream in streams or ():
            if stream not in self.streams:
                raise ConfigError(f"{self.path}: no stream '{stream}'. Streams here: {', '.join(self.streams)}")
        from_utc = 0 if from_ns is None else max(0, from_ns + self.utc_offset_ns)
        to_utc = 1 << 64 if to_ns is None else to_ns + self.utc_offset_ns
        for part in self._parts:
            channels = {channel for channel, name in part.stream_of.items() if streams is None or name in streams}
            for log_time, channel, data in part.messages(channels, from_utc, to_utc):
                yield Recorded(part.stream_of[channel], part.decoded(channel, data), log_time - self.utc_offset_ns)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def repair(path: Path) -> tuple[int, int]:
    """Close a file whose writer was killed. Returns (messages kept, bytes cut off); (n, 0) when it was closed already."""
    part = _Part(Path(path), unclosed=True)
    part.close()
    if not part.closed:
        part.repair()
    return sum(part.index.counts[channel] for channel in part.stream_of), part.torn_bytes
