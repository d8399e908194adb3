"""Damaged or foreign files: every reader of files reports what is wrong, or reads what is left; none crashes or hangs.

Bytes are altered at random places drawn from a fixed seed, so that a failure can be repeated.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import importing
import numpy as np
import pytest

from pipeline.cli.import_source import import_source
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.recording import dataset, labels
from pipeline.recording.importers.formats import open_source
from pipeline.recording.part import repair
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

ROUNDS = 15
SOURCES: dict[str, Callable[[Path], Path]] = {
    "bag": lambda folder: importing.ros1_bag(folder / "x.bag"),
    "db3": lambda folder: importing.ros2_bag(folder / "x") / "x.db3",
    "ros-mcap": lambda folder: importing.ros2_mcap(folder / "x.mcap"),
    "foxglove": lambda folder: importing.foxglove_mcap(folder / "x.mcap"),
    "pcap": lambda folder: importing.pcap(
        folder / "x.pcap", [importing.udp_packet(bytes(60), id=i) for i in range(20)]
    ),
    "mp4": lambda folder: importing.video(folder / "x.mp4", 8),
    "mkv": lambda folder: importing.video(folder / "x.mkv", 8, codec="mjpeg"),
}


def altered(whole: bytes, seed: int) -> Iterator[bytes]:
    """Cut to its first bytes, which nothing reads; then damaged at random places.

    Cut anywhere, with bytes flipped, with a run of zeros or of noise, with a part doubled or taken out.
    """
    yield whole[:10]
    rng = random.Random(seed)
    for round in range(ROUNDS):
        raw = bytearray(whole)
        at = rng.randrange(len(raw))
        match round % 5:
            case 0:
                del raw[at:]
            case 1:
                for _ in range(rng.choice((1, 4, 32))):
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            case 2:
                raw[at : at + 64] = bytes(len(raw[at : at + 64]))
            case 3:
                raw[at : at + 16] = rng.randbytes(len(raw[at : at + 16]))
            case _:
                raw[at:at] = raw[at : at + 200] if round % 2 else b""
                del raw[at + 7 : at + 70]
        yield bytes(raw)


@pytest.fixture(scope="module", params=SOURCES)
def whole(request, tmp_path_factory):
    path = SOURCES[request.param](tmp_path_factory.mktemp("fuzz"))
    return path, path.read_bytes()


@pytest.mark.timeout(180)
def test_an_altered_recording_of_another_format_is_read_or_refused(whole, tmp_path):
    path, raw = whole
    refused = 0
    for changed in altered(raw, seed=len(raw)):
        (tmp_path / path.name).write_bytes(changed)
        try:
            for frame in open_source(tmp_path / path.name).frames:
                assert isinstance(frame, Frame) and frame.data.ndim <= 3
        except ConfigError as error:
            refused += 1
            assert str(tmp_path) in str(error) or path.name in str(error), error
    assert refused > 0


def test_an_import_that_fails_half_way_leaves_nothing(tmp_path):
    path = SOURCES["pcap"](tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="it is cut off in packet 19"):
        import_source(path, tmp_path / "out.mcap", say=lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pcap"]


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("mp4", "mkv")])
def test_a_file_with_another_formats_content_is_refused(tmp_path, name):
    suffix = {"bag": ".bag", "db3": ".db3", "pcap": ".pcap"}.get(name, ".mcap")
    for content in (b"", b"hello, I am a letter\n" * 50, bytes(4096), np.random.default_rng(1).bytes(3000)):
        (tmp_path / f"x{suffix}").write_bytes(content)
        with pytest.raises(ConfigError, match=f"x{suffix}"):
            list(open_source(tmp_path / f"x{suffix}").frames)


TABLES = {
    "euroc": ("mav0/imu0/data.csv", importing.euroc),
    "tum": ("rgb.txt", importing.tum),
    "kitti": ("image_02/timestamps.txt", importing.kitti_raw),
    "pictures": ("timestamps.txt", importing.pictures),
}


@pytest.mark.parametrize("name", TABLES)
def test_altered_tables_of_folders_are_read_or_refused(tmp_path, name):
    table, make = TABLES[name]
    folder = make(tmp_path / "x")
    raw = (folder / table).read_bytes()
    for changed in altered(raw, seed=3):
        (folder / table).write_bytes(changed)
        try:
            list(open_source(folder).frames)
        except ConfigError as error:
            assert str(tmp_path) in str(error)


# --- our own files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "x.mcap"
    with Writer(path, about={"run": "1"}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 10.0))
        writer.stream(StreamInfo("imu", "imu_f64", 100.0))
        for i in range(40):
            writer.write(
                "camera", Frame("camera", i, i * 10**8, "bgr8", importing.shade(i % 20, width=160, height=160))
            )
            writer.write("imu", Frame("imu", i, i * 10**8, "imu_f64", np.full(6, i, np.float64)))
        writer.note("finished", {"dropped": {}})
    return path


@pytest.mark.parametrize("unclosed", [False, True])
def test_an_altered_recording_returns_what_was_recorded_or_is_refused(recorded, tmp_path, unclosed):
    """Chunks and the index have checksums: a wrong payload is never returned."""
    with Reader(recorded) as reader:
        true = {(m.stream, m.message.seq): m.message.data.tobytes() for m in reader.messages()}
    refused = 0
    for changed in altered(recorded.read_bytes(), seed=5):
        (tmp_path / "y.mcap").write_bytes(changed)
        try:
            with Reader(tmp_path / "y.mcap", unclosed=unclosed) as reader:
                for stream, message, _ in reader.messages():
                    assert message.data.tobytes() == true[stream, message.seq]
                assert reader.about is not None and reader.notes is not None
        except ConfigError as error:
            refused += 1
            assert "y.mcap" in str(error)
    assert refused > 0


def test_an_altered_recording_is_repaired_or_refused(recorded, tmp_path):
    for changed in altered(recorded.read_bytes(), seed=6):
        (tmp_path / "y.mcap").write_bytes(changed)
        try:
            (tmp_path / "y-copy.mcap").unlink(missing_ok=True)
            repair(tmp_path / "y.mcap", tmp_path / "y-copy.mcap")
            with Reader(tmp_path / "y-copy.mcap") as reader:
                list(reader.messages())
        except ConfigError as error:
            assert "y.mcap" in str(error) or "y-copy.mcap" in str(error)


def test_altered_labels_and_data_sets_are_read_or_refused(tmp_path):
    table = tmp_path / "x.csv"
    for changed in altered(b"start_s,end_s,label\n0.0,2.5,sad\n3.0,4.0,happy\n9.5,,calm\n", seed=7):
        table.write_bytes(changed)
        try:
            labels.read_csv(table)
        except ConfigError as error:
            assert "x.csv" in str(error)
    rows = dataset.Rows(("a",), np.zeros(3, np.int64), np.full(3, "g"), np.arange(3))
    dataset.save(tmp_path / "set", rows)
    for file in ("dataset.json", "rows.npz"):
        raw = (tmp_path / "set" / file).read_bytes()
        for changed in altered(raw, seed=8):
            (tmp_path / "set" / file).write_bytes(changed)
            try:
                dataset.load(tmp_path / "set")
            except ConfigError as error:
                assert "set" in str(error)
        (tmp_path / "set" / file).write_bytes(raw)
    shutil.rmtree(tmp_path / "set")
