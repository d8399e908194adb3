"""Writes a recording: streams of messages to an MCAP file that Foxglove and the MCAP tools open.

A file holds streams of messages (mcap/encode.py says as which bytes), `about` (one JSON object: how the recording came
to be), notes, calibrations and attachments. All times that this module takes are the rig's monotonic clock, as in
frame.py; in the file they are UTC, by about["utc_offset_ns"]. A message's log time is `log_ns`, by default when it
left its node.

Example:
    with Writer(Path("out.mcap"), about={"utc_offset_ns": offset_ns, "consent": "Ada agreed"}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 30.0))       # before its first message
        writer.write("camera", frame)                           # Frame, AlignedSet, Prediction, Health
        writer.note("finished", {"dropped": {}})                # anything JSON, at any time

A large message (a picture) has a chunk of its own, so that a reader of the sound need not read pictures; small
messages are written out at least every second. So a file whose writer was killed lacks at most its last second:
`Reader(path, unclosed=True)` reads it and `repair(path, out)` (part.py) writes a closed copy.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Message, StreamInfo, left_ns
from pipeline.recording.mcap.chunk import Compression
from pipeline.recording.mcap.encode import WELL_KNOWN, encode, encode_calibration, kind_of
from pipeline.recording.mcap.file_writer import McapWriter
from pipeline.recording.mcap.schemas import CALIBRATION, FRAME, schema
from pipeline.recording.part import METADATA, VERSION, Part, part_path, refuse_existing

# Small messages of a stream that may wait for the disk; input_queue.MAX_BYTES bounds large ones.
QUEUE_MESSAGES = 4000


class Writer:
    """A recording being written.

    Args:
        path: The recording's first file. One that exists is refused.
        about: How the recording came to be: any JSON. `utc_offset_ns` (monotonic + offset = UTC, see
            clock.utc_offset_ns) is needed for UTC times in the file; 0 without it.
        compression: Of chunks: "none", "lz4" or "zstd". Default "lz4": fast enough for live video on one core.
        split_bytes: Begin another file after this many bytes (> 0). None: never.
        split_ns: Begin another file after this much log time (ns, > 0). None: never.
        goes_on: The writer was started again: begin another file after those that it had written.

    Raises:
        ConfigError: The file exists already, or cannot be created. `write` and `close` raise OSError when the disk is
            full: what is in the file stays readable, and the next write may succeed.
    """

    def __init__(
        self,
        path: Path,
        *,
        about: dict[str, Any],
        compression: Compression = "lz4",
        split_bytes: int | None = None,
        split_ns: int | None = None,
        goes_on: bool = False,
    ) -> None:
        self._start(Path(path), about, compression, split_bytes, split_ns)
        while goes_on and part_path(self.path, self.parts).exists():
            self.parts += 1
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
        self._calibrations: list[tuple[str, dict[str, Any]]] = []  # repeated in every file of a split recording
        self._bytes_before = 0
        self._first_ns: int | None = None
        self.parts = 0
        self.counts: Counter[str] = Counter()

    @classmethod
    def resumed(cls, path: Path, compression: Compression = "lz4") -> Writer:
        """Append to a closed recording, to its first file. Raises ConfigError for a file that is not a recording."""
        with Part(Path(path), unclosed=False) as part:
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
        """Describe a stream before its first message.

        A stream that was not described has no encoding, rate or sensor.
        """
        self._infos[info.stream] = info

    def write(self, stream: str, message: Message, *, log_ns: int | None = None) -> None:
        log_ns = (left_ns(message) or _captured_ns(message)) if log_ns is None else log_ns
        if self._is_full(log_ns):
            self._next()
        self._first_ns = log_ns if self._first_ns is None else self._first_ns
        kind = kind_of(message)
        if (channel := self._channels.get((stream, kind))) is None:
            channel = self._channels[stream, kind] = self._register(stream, kind)
        info = self._infos[stream]
        data = encode(message, self._utc_offset_ns, info.sensor or stream)
        seq = message.seq if isinstance(message, Frame) else self.counts[stream]
        log_time, publish_time = self._utc(log_ns), self._utc(left_ns(message) or log_ns)
        self._file.add(channel, max(0, seq) & 0xFFFFFFFF, log_time, publish_time, data)
        self.counts[stream] += 1

    def note(self, name: str, value: Any) -> None:
        """Any JSON under a name. The last one of a name counts; Reader.notes has all of them."""
        self._file.add_metadata(f"{METADATA}.{name}", {"json": msgspec.json.encode(value).decode()})

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
        """Write a camera's intrinsics, on /CAMERA/calibration.

        Args:
            camera: The camera's name in the rig.
            width_px: Of the pictures that the intrinsics are for (px).
            height_px: As width_px.
            matrix: (3, 3), px.
            distortion: (n,), in OpenCV's order.
            model: "plumb_bob", "rational_polynomial" or "kannala_brandt" (OpenCV's fisheye).
            log_ns: When it was written (ns).
        """
        fields: dict[str, Any] = {
            "width_px": width_px,
            "height_px": height_px,
            "matrix": matrix,
            "distortion": distortion,
            "model": model,
            "log_ns": log_ns,
        }
        self._calibrations.append((camera, fields))
        self._write_calibration(camera, **fields)

    def attach(self, name: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """A whole file, such as the rig's."""
        self._file.add_attachment(name, media_type, data, self._utc(self._first_ns or 0))

    def flush(self) -> None:
        """Write out all messages so far."""
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
        refuse_existing(path)
        try:
            file = McapWriter(path, self._compression)
            fields = {"version": VERSION, "part": str(self.parts), "about": json.dumps(self.about)}
            file.add_metadata(METADATA, fields)
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
        for camera, fields in self._calibrations:
            self._write_calibration(camera, **fields)

    def _register(self, stream: str, kind: str) -> int:
        info = self._infos.setdefault(stream, StreamInfo(stream, ""))
        is_first = not any(known == stream for known, _ in self._channels)
        # A stream's silences, or pictures of another encoding, have another schema and so a topic of their own.
        is_besides = kind == FRAME and info.encoding in WELL_KNOWN
        topic = f"/{stream}" if is_first and not is_besides else f"/{stream}/{kind.rpartition('.')[2]}"
        metadata = {"stream": stream, "info": msgspec.json.encode(info).decode()}
        return self._file.register(schema(kind), topic, metadata)

    def _write_calibration(self, camera: str, *, log_ns: int, **fields: Any) -> None:
        key = (camera, CALIBRATION)
        if (channel := self._channels.get(key)) is None:
            channel = self._file.register(schema(CALIBRATION), f"/{camera}/calibration", {"camera": camera})
            self._channels[key] = channel
        utc_ns = self._utc(log_ns)
        self._file.add(channel, 0, utc_ns, utc_ns, encode_calibration(camera, utc_ns=utc_ns, **fields))

    def _utc(self, monotonic_ns: int) -> int:
        return max(0, monotonic_ns + self._utc_offset_ns)


def _captured_ns(message: Message) -> int:
    return message.capture_ns if isinstance(message, Frame) else left_ns(message)
