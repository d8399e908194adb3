"""A run announces itself in a folder of its own, and other programs find its streams there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.run_folder import announce, announced_addresses, create_run_folder, find_stream, runs_folder

DEAD_PID = 2**22 + 1  # above the largest that Linux gives


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    runs_folder().mkdir(mode=0o700)
    return runs_folder()


def a_run(runs: Path, name: str, streams: dict[str, str], pid: int | None = None) -> None:
    (runs / name).mkdir(parents=True)
    (runs / name / "graph.json").write_text(json.dumps({"pid": pid or os.getpid(), "config": "", "streams": streams}))


def test_without_a_run_the_error_names_the_command_that_starts_one(runs: Path) -> None:
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs.*python run_pipeline.py"):
        find_stream("emotion")


def test_unknown_stream_names_the_nearest(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///a", "camera": "ipc:///b"})
    with pytest.raises(
        ConfigError, match="no running node is called 'emotoin'. Running: camera, emotion. Did you mean 'emotion'"
    ):
        find_stream("emotoin")


def test_newest_run_comes_first(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///old"})
    a_run(runs, "2-b", {"emotion": "ipc:///new"})
    os.utime(runs / "1-a" / "graph.json", (1, 1))
    assert find_stream("emotion") == "ipc:///new"


def test_run_that_was_killed_is_ignored(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///a"}, pid=DEAD_PID)
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs"):
        find_stream("emotion")


def test_announced_streams_can_be_read_until_the_run_ends(runs: Path) -> None:
    with create_run_folder() as folder:
        announce(folder, config="mine.yaml", streams={"emotion": "ipc:///a"})
        assert (find_stream("emotion"), announced_addresses()) == ("ipc:///a", {"ipc:///a"})
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists() and announced_addresses() == set()


def test_folders_of_dead_runs_are_removed_by_the_next_run(runs: Path) -> None:
    a_run(runs, f"{DEAD_PID}-a", {"emotion": "ipc:///a"}, pid=DEAD_PID)
    a_run(runs, f"{os.getpid()}-b", {"emotion": "ipc:///b"})
    with create_run_folder() as folder:
        assert {path.name for path in runs.iterdir()} == {f"{os.getpid()}-b", folder.name}


def test_folder_that_others_can_read_is_refused(runs: Path) -> None:
    runs.chmod(0o755)
    with pytest.raises(ConfigError, match=f"chmod 700 {runs}"), create_run_folder():
        pass
