"""What a run writes belongs to its user, to one run at a time, and has no half lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.private_file import TAIL_BYTES, LineFile


@pytest.mark.parametrize("mode", [None, 0o644])
def test_only_this_user_can_read_it_also_where_it_was_open_to_others(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "p.jsonl"
    if mode is not None:
        path.write_text("old\n")
        path.chmod(mode)
    LineFile(path).close()
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_bytes() == b""


@pytest.mark.parametrize(
    ("before", "whole"),
    [
        (b"", b""),
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"one\ntw", b"one\n"),
        (b"no line", b""),
        (b"one\n" + b"x" * 3 * TAIL_BYTES, b"one\n"),
        (b"x" * TAIL_BYTES + b"\n", b"x" * TAIL_BYTES + b"\n"),
    ],
)
def test_after_a_crash_it_goes_on_behind_the_last_whole_line(tmp_path: Path, before: bytes, whole: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(before)
    file = LineFile(path, goes_on=True)
    file.write(b"next\n")
    file.close()
    assert path.read_bytes() == whole + b"next\n"


def test_a_file_that_another_run_writes_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first = LineFile(path)
    first.write(b"one\n")
    with pytest.raises(ConfigError, match="p.jsonl: another run writes it"):
        LineFile(path)
    first.close()
    assert path.read_bytes() == b"one\n"
    LineFile(path).close()  # once that run has ended


def test_a_pipe_and_a_device_are_written_as_they_are(tmp_path: Path) -> None:
    LineFile(Path("/dev/null")).write(b"one\n")
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    LineFile(tmp_path / "pipe", goes_on=True).write(b"one\n")
    assert os.read(reading, 100) == b"one\n"
    os.close(reading)
