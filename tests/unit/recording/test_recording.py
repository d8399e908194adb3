"""A recording: every kind of message comes back to the bit, other people's programs read it, and what is broken is said."""

from __future__ import annotations

import dataclasses
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from foxglove_schemas_protobuf import (
    CameraCalibration_pb2,
    CompressedImage_pb2,
    PointCloud_pb2,
    RawAudio_pb2,
    RawImage_pb2,
)
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import (
    FOREVER_NS,
    AlignedSet,
    Frame,
    Health,
    NodeHealth,
    Opinion,
    Prediction,
    Receipt,
    StreamInfo,
    Subject,
    silence,
)
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.encode import without_payload
from pipeline.recording.mcap.file_reader import McapReader
from pipeline.recording.part import part_path, repair
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

RNG = np.random.default_rng(6)
UTC_NS = 1_700_000_000 * NS
RECEIPT = Receipt("camera", "nearest", (7,), 0, -3, 5, 9, "a reason")
NAN = np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)  # one with a payload


def every_kind() -> list[tuple[str, object]]:
    pictures = RNG.integers(0, 256, (2, 60, 80, 3), np.uint8)
    audio16 = (RNG.integers(-32768, 32768, 320) / np.float32(32768)).astype(np.float32)
    frames = [
        Frame("camera", 4, 10 * NS, "bgr8", pictures[0], publish_ns=10 * NS + 7, clock_error_ns=11),
        Frame("grey", 4, 10 * NS, "bgr8", pictures[0][:, :, 0]),
        Frame("camera", 5, 11 * NS, "jpeg", RNG.integers(0, 256, 4000, np.uint8), publish_ns=11 * NS + 1),
        Frame("camera", 6, 12 * NS, "jpeg", np.empty(0, np.uint8), reason="torn"),
        silence("camera", 13 * NS, "muted"),
        silence("microphone", FOREVER_NS, "it has ended"),
        Frame("microphone", 0, 10 * NS, "pcm_f32", audio16, 20_000_003, 10 * NS + 3),
        Frame("microphone", 1, 10 * NS + 5, "pcm_f32", RNG.standard_normal(320).astype(np.float32), 20_000_000),
        Frame("microphone", 2, 10 * NS + 6, "pcm_f32", np.concatenate([NAN, audio16[1:]]), 20_000_000),
        Frame("depth", 1, 10 * NS, "depth_u16_mm", RNG.integers(0, 65536, (20, 30), np.uint16)),
        Frame("depth", 2, 10 * NS + 1, "depth_png", RNG.integers(0, 256, 100, np.uint8)),
        Frame(
            "lidar/top", 1, 10 * NS, "points_xyzi_f32", RNG.standard_normal((100, 4)).astype(np.float32), 100_000_000
        ),
        Frame("lidar/top", 2, 10 * NS + 1, "points_xyzi_f32", np.empty((0, 4), np.float32)),
        Frame("lidar/top", 3, 10 * NS + 2, "points_zlib", RNG.integers(0, 256, 100, np.uint8)),
        Frame("imu", 1, 10 * NS, "imu_f64", np.array([1, 2, np.nan, np.inf, -0.0, 1e-300])),
        Frame(
            "pose", 1, 10 * NS, "series_f32", np.concatenate([NAN, NAN * 0, RNG.standard_normal(4).astype(np.float32)])
        ),
        Frame("words", 1, 10 * NS, "text_utf8", np.frombuffer("grüße".encode(), np.uint8)),
        Frame("words", 2, 10 * NS, "text_utf8", np.frombuffer(b"\xff\xfe not UTF-8", np.uint8)),
        Frame("mark", 1, 10 * NS, "label", np.frombuffer(b"happy", np.uint8), NS),
        Frame("packets", 1, 10 * NS, "lidar_packets", RNG.integers(0, 256, (3, 1206), np.uint8)),  # type: ignore[arg-type]
    ]
    aligned = AlignedSet("camera", 10 * NS, {"camera": (foxglove_bare(frames[0]),)}, (RECEIPT,), ("microphone",), 5, 6)
    prediction = Prediction(
        "emotion",
        10 * NS,
        ("sad", "happy"),
        np.array([0.1, 0.9], np.float32),
        "happy",
        "m@1",
        (Subject(1, (1.1, 2.2, 3.3, 4.4), (1 / 3, 2 / 3), 0.7, "own"),),
        ("camera",),
        ("microphone",),
        (RECEIPT,),
        None,
        {"wait": 3},
        (Opinion("face", "camera", 1 / 3, (0.5, 0.5), "blurred"),),
        True,
    )
    health = Health(
        10 * NS, (NodeHealth("camera", "running", "", 1, 0, 0.5, 3, {}, {"a": {"b": 1}}, {"t": {"p50": 0.1}}),)
    )
    told = [(f.stream, f) for f in frames]
    return [*told, ("align", aligned), ("emotion", prediction), ("health", health)]


def foxglove_bare(frame: Frame) -> Frame:
    return without_payload(AlignedSet("", 0, {"x": (frame,)}, ())).frames["x"][0]


def same(a: object, b: object) -> bool:
    """To the bit: NaNs and their payloads too."""

    def parts(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape, value.tobytes()
        if hasattr(value, "__struct_fields__"):
            return type(value), [parts(getattr(value, name)) for name in value.__struct_fields__]
        if isinstance(value, tuple):
            return [parts(v) for v in value]
        if isinstance(value, dict):
            return {k: parts(v) for k, v in value.items()}
        return value

    return parts(a) == parts(b)


def recorded(path: Path, messages: list[tuple[str, object]], **options) -> Path:
    with Writer(path, about={"utc_offset_ns": UTC_NS, "consent": "Ada agreed"}, **options) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 30.0, 3, "front", "a camera"))
        for i, (stream, message) in enumerate(messages):
            writer.write(stream, message, log_ns=NS + i)
    return path


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_every_kind_of_message_comes_back_to_the_bit(tmp_path, compression):
    messages = every_kind()
    path = recorded(tmp_path / "a.mcap", messages, compression=compression)
    with Reader(path) as reader:
        back = list(reader.messages())
        assert reader.about["consent"] == "Ada agreed"
        assert reader.streams["camera"] == StreamInfo("camera", "bgr8", 30.0, 3, "front", "a camera")
        assert reader.counts.total() == len(messages)
        assert reader.span_ns == (NS, NS + len(messages) - 1)
    assert [(b.stream, b.log_ns) for b in back] == [(stream, NS + i) for i, (stream, _) in enumerate(messages)]
    for (_, message), b in zip(messages, back, strict=True):
        assert same(message, b.message), message


def test_foxgloves_own_schemas_and_the_mcap_library_read_every_message(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={"utc_offset_ns": UTC_NS}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 30.0, 3, "front", "a camera"))
        writer.calibration("camera", width_px=80, height_px=60, matrix=np.eye(3), distortion=np.zeros(5))
        for stream, message in every_kind():
            writer.write(stream, message)
    known = {
        m.DESCRIPTOR.full_name: m
        for m in (
            CompressedImage_pb2.CompressedImage,
            RawImage_pb2.RawImage,
            RawAudio_pb2.RawAudio,
            PointCloud_pb2.PointCloud,
            CameraCalibration_pb2.CameraCalibration,
        )
    }
    seen = set()
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for schema, channel, message, decoded in _decoded(reader):
            seen.add(schema.name)
            if schema.name in known:
                foxglove_message = known[schema.name].FromString(message.data)
                assert foxglove_message.timestamp.seconds >= 1_700_000_000 or schema.name.endswith("Calibration")
                check_foxglove(foxglove_message, channel.topic)
            if channel.message_encoding == "protobuf" and "camera" not in channel.metadata:
                own = decoded if schema.name == schemas.FRAME else decoded.sensorium
                assert own.stream == channel.metadata["stream"]
    assert seen >= known.keys() | {
        "sensorium.Frame",
        "sensorium.Prediction",
        "sensorium.AlignedSet",
        "sensorium.Health",
    }


def _decoded(reader):
    decoders = {}
    for schema, channel, message in reader.iter_messages():
        decoder = decoders.setdefault(channel.id, DecoderFactory().decoder_for(channel.message_encoding, schema))
        yield schema, channel, message, decoder(message.data) if decoder else None


def check_foxglove(message, topic: str) -> None:
    """What Foxglove's documentation asks of each."""
    kind = type(message).__name__
    if kind == "RawImage":
        bytes_per_pixel = {"bgr8": 3, "mono8": 1, "mono16": 2}[message.encoding]
        assert message.step == message.width * bytes_per_pixel and len(message.data) == message.step * message.height
    elif kind == "CompressedImage":
        assert message.format in ("jpeg", "png", "webp", "avif") and message.data
    elif kind == "RawAudio":
        assert (message.format, message.number_of_channels, message.sample_rate) == ("pcm-s16", 1, 16000)
        assert len(message.data) == 640
    elif kind == "PointCloud":
        assert message.point_stride == 16 and len(message.data) % 16 == 0
        assert [f.name for f in message.fields][:3] == ["x", "y", "z"]
    else:
        assert (len(message.K), len(message.R), len(message.P)) == (9, 9, 12)


def pictures(count: int, side: int = 200) -> list[tuple[str, Frame]]:
    """A picture every 40 ms with a chunk of sound after each; a picture takes 120 kB, so it has a chunk of its own."""
    image = RNG.integers(0, 256, (side, side, 3), np.uint8)
    out: list[tuple[str, Frame]] = []
    for i in range(count):
        at_ns = i * 40_000_000
        out.append(("camera", Frame("camera", i, at_ns, "bgr8", image, publish_ns=at_ns)))
        out.append(
            ("microphone", Frame("microphone", i, at_ns, "pcm_f32", np.zeros(640, np.float32), 40_000_000, at_ns + 1))
        )
    return out


def written(path: Path, messages, *, close: bool = True, **options) -> Writer:
    writer = Writer(path, about={"utc_offset_ns": UTC_NS}, **options)
    for stream, message in messages:
        writer.write(stream, message)
    if close:
        writer.close()
    return writer


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    written(tmp_path / "a.mcap", pictures(1))
    with pytest.raises(ConfigError, match="exists already"):
        written(tmp_path / "a.mcap", pictures(1))


def test_a_killed_writers_file_is_refused_with_the_fix_and_read_up_to_its_last_chunk_when_asked(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(50), close=False)  # the last second of sound was not written out
    with pytest.raises(ConfigError, match="not closed.*record --repair"):
        Reader(path)
    with Reader(path, unclosed=True) as reader:
        counts = dict(reader.counts)
        assert counts["camera"] == 50 and 24 <= counts["microphone"] < 50
        assert [m.message.seq for m in reader.messages(["microphone"])] == list(range(counts["microphone"]))


@pytest.mark.parametrize("cut", [1, 9, 5000, 200_000, 1_000_000])
def test_repair_closes_a_file_cut_off_anywhere_and_keeps_every_whole_chunk(tmp_path, cut):
    path = tmp_path / "a.mcap"
    written(path, pictures(20), compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(ConfigError, match="not closed"):
        Reader(path)
    kept, _ = repair(path)
    with Reader(path) as reader:
        assert reader.counts.total() == kept
        assert [m.message.seq for m in reader.messages(["camera"])] == list(range(reader.counts["camera"]))
        assert reader.counts["camera"] >= 20 - 1 - cut // 120_000
    with path.open("rb") as file:  # and other people's programs find an index again
        assert make_reader(file).get_summary().statistics.message_count == kept


def test_a_damaged_chunk_is_named_and_never_taken_for_data(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(3), compression="none")
    raw = bytearray(path.read_bytes())
    raw[200_000] ^= 1
    path.write_bytes(raw)
    with (
        Reader(path) as reader,
        pytest.raises(ConfigError, match=r"a\.mcap: broken: the chunk at byte \d+ cannot be read: crc"),
    ):
        list(reader.messages())


def test_what_is_no_recording_is_said_with_what_to_do(tmp_path):
    text, foreign, missing = tmp_path / "a.txt", tmp_path / "b.mcap", tmp_path / "c.mcap"
    text.write_text("hello, this is no recording at all")
    from mcap.writer import Writer as LibraryWriter

    with foreign.open("wb") as file:
        writer = LibraryWriter(file)
        writer.start()
        writer.finish()
    for path, told in ((text, "not an MCAP file"), (foreign, "no recording of Sensorium"), (missing, "No such file")):
        with pytest.raises(ConfigError, match=told):
            Reader(path)


def test_a_recording_may_begin_at_time_zero(tmp_path):
    """As imported pictures do that are dated by their numbers."""
    picture = np.zeros((200, 200, 3), np.uint8)  # each has a chunk of its own
    with Writer(tmp_path / "a.mcap", about={}) as writer:
        for i in range(3):
            writer.write("camera", Frame("camera", i, i * NS, "bgr8", picture, publish_ns=i * NS))
    with Reader(tmp_path / "a.mcap") as reader:
        assert reader.span_ns == (0, 2 * NS)


def test_sound_is_read_without_the_pictures_around_it(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(100), compression="none")
    with Reader(path) as reader:
        before = read_bytes()
        assert len(list(reader.messages(["microphone"]))) == 100
        assert read_bytes() - before < 2_000_000  # of 12 MB


def read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_messages_are_chosen_by_stream_and_time(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(10))
    with Reader(path) as reader:
        found = list(reader.messages(["camera"], from_ns=80_000_000, to_ns=200_000_000))
        assert [m.message.seq for m in found] == [2, 3, 4]
        with pytest.raises(ConfigError, match=r"no stream 'mike'\. Streams here: camera, microphone"):
            list(reader.messages(["mike"]))


@pytest.mark.parametrize("split", [{"split_bytes": 1_000_000}, {"split_ns": NS // 2}])
def test_a_split_recording_is_several_files_that_are_each_whole_and_read_as_one(tmp_path, split):
    path = tmp_path / "a.mcap"
    writer = written(path, pictures(40), compression="none", **split)
    assert writer.parts >= 3
    with Reader(path) as reader:
        assert [m.message.seq for m in reader.messages(["camera"])] == list(range(40))
        assert reader.size_bytes == writer.size_bytes
    with part_path(path, 1).open("rb") as file:
        assert make_reader(file).get_summary().statistics.message_count > 10


def test_on_a_full_disk_what_was_written_stays_readable_and_the_next_write_may_succeed(tmp_path):
    path = tmp_path / "a.mcap"
    messages = pictures(20)
    writer = written(path, messages[:10], close=False, compression="none")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: an error, not the end of the process
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.size_bytes + 50_000, hard))
        for _ in range(2):
            with pytest.raises(OSError):
                writer.write(*messages[10])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    writer.write(*messages[12])
    writer.close()
    with Reader(path) as reader:
        assert [m.message.seq for m in reader.messages(["camera"])] == [0, 1, 2, 3, 4, 6]


def test_a_gigabyte_opens_in_less_than_a_second(tmp_path):
    """The pictures are holes in the file: what opening it reads, header, index and notes, is as in a real one."""
    path = tmp_path / "a.mcap"
    writer = written(path, [], close=False, compression="none")
    jpeg = np.zeros(70_000, np.uint8)
    for i in range(2):
        writer.write("camera", Frame("camera", i, i, "jpeg", jpeg, publish_ns=i * NS))
    file = writer._file
    chunk = McapReader(path, unclosed=True).index.chunks[0]
    for i in range(2, 15_000):  # 1 GB
        at = chunk.chunk_start_offset + i * chunk.chunk_length
        file.index.add(
            dataclasses.replace(
                chunk, chunk_start_offset=at, message_start_time=UTC_NS + i * NS, message_end_time=UTC_NS + i * NS
            )
        )
        file.index.counts[1] += 1
    file.index.end = at + chunk.chunk_length
    file._stream.seek(file.index.end)
    writer.close()
    assert path.stat().st_size > 1_000_000_000
    begin_s = time.process_time()  # what it costs, however busy the machine is
    with Reader(path) as reader:
        assert reader.counts["camera"] == 15_000
    assert time.process_time() - begin_s < 1.0


WRITES_UNTIL_KILLED = """
import sys, numpy as np
from pathlib import Path
from pipeline.frame import Frame
from pipeline.recording.writer import Writer
writer = Writer(Path(sys.argv[1]), about={})
for i in range(10**9):
    writer.write("camera", Frame("camera", i, i * 40_000_000, "bgr8", np.zeros((200, 200, 3), np.uint8), publish_ns=i * 40_000_000))
    if i == 20: print("going", flush=True)
"""


def test_after_kill_9_the_file_is_whole_up_to_its_last_picture(tmp_path):
    path = tmp_path / "a.mcap"
    with subprocess.Popen([sys.executable, "-c", WRITES_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.1)
        process.kill()
    with Reader(path, unclosed=True) as reader:
        seqs = [m.message.seq for m in reader.messages()]
    assert len(seqs) > 20 and seqs == list(range(len(seqs)))
