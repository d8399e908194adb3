"""The files of a recording: damaged, not closed, split, on a full disk; read by stream and time."""

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
from mcap.reader import make_reader

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import (
    Frame,
    StreamInfo,
)
from pipeline.recording.mcap.file_reader import McapReader
from pipeline.recording.part import part_path, repair
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

RNG = np.random.default_rng(6)


UTC_NS = 1_700_000_000 * NS


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


def test_an_existing_file_is_not_overwritten(tmp_path):
    written(tmp_path / "a.mcap", pictures(1))
    with pytest.raises(ConfigError, match="exists already"):
        written(tmp_path / "a.mcap", pictures(1))


def test_a_killed_writers_file_is_refused_with_the_fix_and_read_up_to_its_last_chunk_on_request(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(50), close=False)  # the last second of sound was not written out
    with pytest.raises(ConfigError, match="not closed.*record --repair"):
        Reader(path)
    with Reader(path, unclosed=True) as reader:
        counts = dict(reader.counts)
        assert counts["camera"] == 50 and 24 <= counts["microphone"] < 50
        assert [m.message.seq for m in reader.messages(["microphone"])] == list(range(counts["microphone"]))


@pytest.mark.parametrize("cut", [1, 9, 5000, 200_000, 1_000_000])
def test_repair_closes_a_file_cut_off_anywhere_with_every_whole_chunk(tmp_path, cut):
    path = tmp_path / "a.mcap"
    written(path, pictures(20), compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(ConfigError, match="not closed"):
        Reader(path)
    broken = path.read_bytes()
    copy = tmp_path / "copy.mcap"
    messages, _ = repair(path, copy)
    assert path.read_bytes() == broken and copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        repair(path, copy)
    with Reader(copy) as reader:
        assert reader.counts.total() == messages
        assert [m.message.seq for m in reader.messages(["camera"])] == list(range(reader.counts["camera"]))
        assert reader.counts["camera"] >= 20 - 1 - cut // 120_000
    with copy.open("rb") as file:  # other programs can read the index again
        assert make_reader(file).get_summary().statistics.message_count == messages


def test_a_writer_that_was_started_again_goes_on_in_another_part(tmp_path):
    path = tmp_path / "a.mcap"
    about = {"run": "1"}
    for goes_on in (False, True, True):
        with Writer(path, about=about, goes_on=goes_on) as writer:
            writer.stream(StreamInfo("camera", "bgr8", 30.0))
            writer.write("camera", pictures(1)[0][1])
    with Reader(path) as reader:
        assert reader.counts["camera"] == 3
    assert {part.stat().st_mode & 0o777 for part in tmp_path.iterdir()} == {0o600} and len([*tmp_path.iterdir()]) == 3


def test_a_damaged_chunk_is_reported_and_never_read_as_data(tmp_path):
    path = tmp_path / "a.mcap"
    written(path, pictures(3), compression="none")
    raw = bytearray(path.read_bytes())
    raw[200_000] ^= 1
    path.write_bytes(raw)
    with (
        Reader(path) as reader,
        pytest.raises(ConfigError, match=r"a\.mcap: broken: the chunk at byte \d+ cannot be read: its checksum"),
    ):
        list(reader.messages())


def test_a_file_that_is_not_a_recording_is_refused_with_the_fix(tmp_path):
    text, foreign, missing = tmp_path / "a.txt", tmp_path / "b.mcap", tmp_path / "c.mcap"
    text.write_text("hello, this is no recording at all")
    from mcap.writer import Writer as LibraryWriter

    with foreign.open("wb") as file:
        writer = LibraryWriter(file)
        writer.start()
        writer.finish()
    for path, message in (
        (text, "not an MCAP file"),
        (foreign, "no recording of Sensorium"),
        (missing, "no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Reader(path)


def test_a_recording_may_begin_at_time_zero(tmp_path):
    """As imported pictures whose times are their numbers."""
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
        messages = list(reader.messages(["camera"], from_ns=80_000_000, to_ns=200_000_000))
        assert [m.message.seq for m in messages] == [2, 3, 4]
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
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # like a full disk: an error, not the end of the process
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
    """The pictures are holes in the file; its header, index and notes, which opening reads, are like a real file's."""
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
    begin_s = time.process_time()  # CPU time, which does not depend on other work on the machine
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
    at_ns, image = i * 40_000_000, np.zeros((200, 200, 3), np.uint8)
    writer.write("camera", Frame("camera", i, at_ns, "bgr8", image, publish_ns=at_ns))
    if i == 20: print("writing", flush=True)
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
