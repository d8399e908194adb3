"""Our own files: recordings, whole and torn, their messages, event logs."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import importing
import msgpack
import numpy as np
import wires

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.event_log import AlignerConfig, EventLog, verify
from pipeline.alignment.sync_policies import parse_policy
from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Health, NodeHealth, StreamInfo
from pipeline.recording.export import export_recording
from pipeline.recording.mcap.decode import decode
from pipeline.recording.mcap.encode import encode, kind_of
from pipeline.recording.part import repair
from pipeline.recording.reader import Reader as Recording
from pipeline.recording.writer import Writer
from tests.fuzz.harness import Reader, target


def _write(path: Path, *, compression: str = "lz4") -> Path:
    with Writer(path, about={"run": "1", "utc_offset_ns": 5}, compression=compression) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 10.0))
        writer.stream(StreamInfo("imu", "imu_f64", 100.0))
        for i in range(6):
            picture = importing.shade(i, width=32, height=16)
            writer.write("camera", Frame("camera", i, 10**9 + i * 10**8, "bgr8", picture))
            writer.write("imu", Frame("imu", i, 10**9 + i * 10**8, "imu_f64", np.full(6, i, np.float64)))
        writer.calibration(
            "camera",
            width_px=32,
            height_px=16,
            matrix=np.eye(3),
            distortion=np.zeros(5),
            model="plumb_bob",
            log_ns=10**9,
        )
        writer.attach("rig.yaml", b"version: 1\n")
        writer.note("finished", {"dropped": {}})
    return path


def _contents(path: Path, **options: Any) -> dict[tuple[str, int], bytes]:
    """(stream, seq) → payload, and everything else that a reader offers, read."""
    with Recording(path, **options) as reader:
        payloads = {}
        for stream, message, _ in reader.messages():
            assert isinstance(message, Frame)
            payloads[stream, message.seq] = message.data.tobytes()
        assert reader.notes is not None and reader.calibrations is not None and reader.attachments() is not None
        return payloads


def mended_mcap(data: bytes) -> bytes:
    """With the checksums of its chunks and of its index right again, so that what they say is looked at."""
    raw, at = bytearray(data), 8
    if len(raw) < 60:
        return data
    while at + 9 <= len(raw):  # a record: opcode, length
        size = int.from_bytes(raw[at + 1 : at + 9], "little")
        if raw[at] == 6 and raw[at + 37 : at + 41] == bytes(4):  # a chunk that is not compressed
            content = raw[at + 49 : at + 9 + size]
            raw[at + 33 : at + 37] = zlib.crc32(content).to_bytes(4, "little")
        at += 9 + size
    start = int.from_bytes(raw[-28:-20], "little")
    if start < len(raw):
        raw[-12:-8] = zlib.crc32(raw[start:-12]).to_bytes(4, "little")
    return bytes(raw)


def _compared(path: Path, true: dict[tuple[str, int], bytes], **options: Any) -> object:
    contents = _contents(path, **options)
    for place, payload in contents.items():
        assert true.get(place) == payload, f"another payload for {place} than was recorded"
    return contents


@target("recording", weight=12)
def recording(folder: Path) -> Reader:
    """Recordings (MCAP)."""
    whole = [_write(folder / f"{c}.mcap", compression=c) for c in ("lz4", "zstd", "none")]
    true, path = _contents(whole[0]), folder / "x.mcap"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return _compared(path, true)

    def read_mended(data: bytes) -> object:
        path.write_bytes(data)
        return _contents(path)

    samples = [p.read_bytes() for p in whole]
    return Reader(samples, read, mend=mended_mcap, read_mended=read_mended, names="x.mcap")


@target("torn-recording", weight=12)
def torn_recording(folder: Path) -> Reader:
    """Recordings that were not closed, and their repair."""
    whole = [_write(folder / f"{c}.mcap", compression=c) for c in ("lz4", "none")]
    true, path, copy = _contents(whole[0]), folder / "x.mcap", folder / "copy-of-x.mcap"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        _compared(path, true, unclosed=True)
        copy.unlink(missing_ok=True)
        repair(path, copy)
        return _compared(copy if copy.exists() else path, true)

    raw = [p.read_bytes() for p in whole]
    return Reader([part[: len(part) * k // 10] for part in raw for k in (5, 7, 9)] + raw, read, names="x.mcap")


@target("messages", weight=150)
def messages(folder: Path) -> Reader:
    """Messages inside a recording (protobuf and JSON)."""
    aligned = AlignedSet("camera", 10**9, {}, (wires.RECEIPT,), ("lidar",), 5, 6)
    values = [
        Frame("camera", 3, 10**9, "bgr8", importing.shade(3)),
        Frame("imu", 3, 10**9, "imu_f64", np.arange(6.0)),
        Frame("microphone", 3, 10**9, "pcm_f32", np.linspace(-1, 1, 160, dtype=np.float32), 10**7),
        Frame("lidar", 4, 10**9, "points_xyzi_f32", np.arange(40, dtype=np.float32).reshape(-1, 4)),
        Frame("said", 4, 10**9, "text_utf8", np.frombuffer(b"hello", np.uint8)),
        *(aligned, wires.PREDICTION, Health(3, (NodeHealth("align", "running"),))),
    ]
    kinds = [kind_of(value) for value in values]

    def read(data: bytes) -> object:
        try:
            message = decode(kinds[data[0] % len(kinds)] if data else "?", data[1:])
            encode(message, 0, "x")
            return message
        except ValueError as error:  # which the reader reports with the file and the stream
            raise ConfigError(str(error) or "") from error

    samples = [bytes([i]) + encode(value, 5, "cam") for i, value in enumerate(values)]
    trees = [[i, msgpack.unpackb(base64.b64decode(json.loads(s[1:])["exact"]))] for i, s in enumerate(samples) if i > 4]

    def as_json(tree: Any) -> bytes:
        return (
            bytes([tree[0] % 256]) + json.dumps({"exact": base64.b64encode(msgpack.packb(tree[1])).decode()}).encode()
        )

    return Reader(samples, read, trees, as_json)


@target("export", weight=4)
def export(folder: Path) -> Reader:
    """Recordings with any messages in them, exported."""
    sources = [
        *(Frame("camera", i, 10**9 + i * 10**8, "bgr8", importing.shade(i)) for i in range(3)),
        *(Frame("said", i, 10**9 + i * 10**8, "text_utf8", np.frombuffer(b"hi", np.uint8)) for i in range(2)),
        *(Frame("depth", i, 10**9, "depth_u16_mm", np.ones((4, 4), np.uint16)) for i in range(2)),
        Frame("lidar", 1, 10**9, "packet", np.arange(40, dtype=np.uint8)),
        Frame("imu", 1, 10**9, "imu_f64", np.arange(6.0)),
        *(Frame("mic", i, 10**9 + i * 10**7, "pcm_f32", np.ones(160, np.float32), 10**7) for i in range(2)),
        *(wires.PREDICTION, AlignedSet("camera", 10**9, {}, (wires.RECEIPT,), ("lidar",), 5, 6)),
    ]
    streams = [source.stream if isinstance(source, Frame) else "emotion" for source in sources]
    path, out = folder / "x.mcap", folder / "out"

    def read(data: bytes) -> object:
        """data: messages, a length of three bytes before each; with checksums that are right."""
        path.unlink(missing_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        with Writer(path, about={"run": "1"}) as writer:
            for stream, source in zip(streams, sources, strict=True):
                writer.write(stream, source)
            file, at, number = writer._file, 0, 0
            channels = list(writer._channels.values())
            while at < len(data) and number < 40:
                size = int.from_bytes(data[at + 1 : at + 4], "little") % (1 << 18)
                file.add(channels[data[at] % len(channels)], number, number, number, data[at + 4 : at + 4 + size])
                at, number = at + 4 + size, number + 1
        try:
            export_recording(path, out, say=lambda line: None)
        finally:
            inside = {p.name for p in folder.iterdir()}
            assert inside <= {"x.mcap", "out"}, f"export wrote outside of its folder: {inside}"
        return sorted(p.name for p in out.iterdir())

    parts = [encode(source, 0, "x") for source in sources]
    kinds = list(dict.fromkeys(zip(streams, map(kind_of, sources), strict=True)))  # as the writer numbers its channels
    places = [kinds.index((stream, kind_of(source))) for stream, source in zip(streams, sources, strict=True)]
    joined = [bytes([i]) + len(p).to_bytes(3, "little") + p for i, p in zip(places, parts, strict=True)]
    return Reader([b"".join(joined), *joined], read, names="x.mcap")


@target("event-log", weight=40)
def event_log(folder: Path) -> Reader:
    """Event logs of the aligner."""
    path = folder / "events.jsonl"
    config = AlignerConfig(
        "camera", {"imu": {"policy": "window", "before_ms": 100}, "lidar": {"policy": "nearest"}}, 10**7, "ready", 0
    )
    samples = []
    for emit, anchor in (("ready", "camera"), ("ready", 10.0)):
        config = AlignerConfig(
            anchor, {**config.sync, **({} if anchor == "camera" else {"camera": {"policy": "nearest"}})}, 10**7, emit, 0
        )
        log = EventLog(path, config)
        aligner = config.aligner()
        for i in range(12):
            for stream in ("imu", "camera", "lidar"):
                at_ns = 10**9 + i * 10**7
                frame = Frame(stream, i, at_ns, "series_f32", np.float32([i]), publish_ns=at_ns)
                log.add_arrival(frame, at_ns + 10**6)
                for aligned in aligner.add(frame, at_ns + 10**6):
                    log.add_set(aligned)
        log.add_finish(2 * 10**9)
        for aligned in aligner.finish(2 * 10**9):
            log.add_set(aligned)
        log.close()
        samples.append(path.read_bytes())

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return verify(path)

    trees = [[json.loads(line) for line in sample.splitlines()] for sample in samples]
    encode_lines = lambda tree: b"\n".join(json.dumps(line).encode("utf-8", "surrogatepass") for line in tree) + b"\n"  # noqa: E731
    return Reader(samples, read, trees, encode_lines, names="events.jsonl")


assert Aligner and parse_policy and io
