"""Messages in a recording: every kind is read back to the bit, and other programs read them."""

from __future__ import annotations

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
from pipeline.recording.export import export_recording
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.decode import decode
from pipeline.recording.mcap.encode import without_payload
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
    aligned = AlignedSet("camera", 10 * NS, {"camera": (bare(frames[0]),)}, (RECEIPT,), ("microphone",), 5, 6)
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
    return [*((f.stream, f) for f in frames), ("align", aligned), ("emotion", prediction), ("health", health)]


def bare(frame: Frame) -> Frame:
    return without_payload(AlignedSet("", 0, {"x": (frame,)}, ())).frames["x"][0]


def same(a: object, b: object) -> bool:
    """Equal to the bit, also NaNs and their payloads."""

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
def test_every_kind_of_message_is_read_back_to_the_bit(tmp_path, compression):
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


def test_foxgloves_schemas_and_the_mcap_library_read_every_message(tmp_path):
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
    schema_names = set()
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for schema, channel, message, decoded in _decoded(reader):
            schema_names.add(schema.name)
            if schema.name in known:
                foxglove_message = known[schema.name].FromString(message.data)
                assert foxglove_message.timestamp.seconds >= 1_700_000_000 or schema.name.endswith("Calibration")
                check_foxglove(foxglove_message, channel.topic)
            if channel.message_encoding == "protobuf" and "camera" not in channel.metadata:
                own = decoded if schema.name == schemas.FRAME else decoded.sensorium
                assert own.stream == channel.metadata["stream"]
    assert schema_names >= known.keys() | {
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
    """What Foxglove's documentation requires of each message."""
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "x/../../evil"}, "is not the name of an encoding"),
        ({"capture_ns": (1 << 62) + 1}, "capture_ns is 4611686018427387905, a time that is never reached"),
        ({"shape": [-1]}, "missing or invalid"),
        ({"shape": [3, 1 << 40]}, "cannot reshape"),
        ({"dtype": "|O"}, "O"),
    ],
)
def test_a_message_of_others_is_refused_not_followed(fields: dict[str, object], message: str) -> None:
    head = {"stream": "a", "encoding": "series_f32", "dtype": "<f4", "shape": [1], "exact": bytes(4)}
    data = schemas.MESSAGE_CLASSES[schemas.FRAME](**{**head, **fields}).SerializeToString()
    with pytest.raises(ValueError, match=message):
        decode(schemas.FRAME, data)


def test_an_export_of_frames_that_are_not_what_they_say_lists_them(tmp_path: Path) -> None:
    """A recording of others: the shape, the rate and the times in it are bounded; nothing is written elsewhere."""
    picture = np.zeros((16, 16, 3), np.uint8)
    frames = [
        Frame("camera", 0, NS, "bgr8", picture),
        Frame("camera", 1, 2 * NS, "bgr8", np.zeros(7, np.uint8)),
        Frame("camera", 2, 10**6 * NS, "bgr8", picture),
        Frame("sound", 0, NS, "pcm_f32", np.zeros(160, np.float32), 10**7),
        Frame("sound", 1, 10**8 * NS, "pcm_f32", np.zeros(160, np.float32), 10**7),
        Frame("fast", 0, NS, "pcm_f32", np.zeros(160, np.float32), 1000),
    ]
    with Writer(tmp_path / "a.mcap", about={"run": "1"}) as writer:
        for frame in frames:
            writer.write(frame.stream, frame)
    lines: list[str] = []
    export_recording(tmp_path / "a.mcap", tmp_path / "out", say=lines.append)
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 100_000
    listed = "".join(line for line in lines if "not exported" in line)
    assert listed.count("not exported") == 4 and listed.count("more than 12 h after the one before") == 2
    assert "data of uint8 (7,), which is no bgr8" in listed and "sound at 160000000 Hz" in listed


@pytest.mark.parametrize("name", ["", "cam\x1b[2Jera", "a\nb", "x" * 5000])
def test_a_stream_whose_name_cannot_be_printed_is_refused(tmp_path: Path, name: str) -> None:
    with Writer(tmp_path / "a.mcap", about={"run": "1"}) as writer:
        writer.write(name, Frame(name or "a", 0, NS, "series_f32", np.zeros(1, np.float32)))
    with pytest.raises(ConfigError, match=r"a\.mcap: broken: its description.*the name of a stream"):
        Reader(tmp_path / "a.mcap")
