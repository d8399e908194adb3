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


@pytest.mark.parametrize("target", ["mine", "nowhere"])
def test_link_in_place_of_the_folder_of_runs_is_refused_and_nothing_behind_it_is_touched(
    runs: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / f"{DEAD_PID}-a").mkdir()
    runs.rmdir()
    runs.symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=f"{runs}: is a link.*Remove it"), create_run_folder():
        pass
    with pytest.raises(ConfigError, match="is a link"):
        find_stream("emotion")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [f"{DEAD_PID}-a"]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="giving a folder to another user needs root")
def test_folder_of_another_user_is_refused_and_what_it_announces_is_not_believed(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///forged"})
    os.chown(runs, 1, 1)
    with pytest.raises(ConfigError, match="belongs to another user"), create_run_folder():
        pass
    with pytest.raises(ConfigError, match="belongs to another user"):
        find_stream("emotion")


def test_folder_that_others_could_replace_is_refused(runs: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others can replace the folders in it"), create_run_folder():
        pass
    tmp_path.chmod(0o1777)
    with create_run_folder() as folder:
        assert folder.is_dir()


def test_only_folders_that_a_run_made_are_removed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (runs / f"{DEAD_PID}-link").symlink_to(tmp_path / "precious")
    (runs / f"{DEAD_PID}-a").mkdir()
    (runs / f"{DEAD_PID}-a" / "link").symlink_to(tmp_path / "precious")
    for name in (f"{DEAD_PID}", f"{DEAD_PID}-a.b", "notes", f"{DEAD_PID}-file"):
        (runs / name).mkdir() if "file" not in name else (runs / name).touch()
    with create_run_folder() as folder:
        left = {path.name for path in runs.iterdir()} - {folder.name}
    assert left == {f"{DEAD_PID}-link", f"{DEAD_PID}", f"{DEAD_PID}-a.b", "notes", f"{DEAD_PID}-file"}
    assert (tmp_path / "precious" / "file").exists()


def test_link_in_place_of_a_run_is_not_followed_at_its_end(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with create_run_folder() as folder:
        folder.rmdir()
        folder.symlink_to(tmp_path / "precious")
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="when a process started is known on Linux")
def test_another_process_with_the_id_of_a_killed_run_does_not_keep_its_folder(runs: Path) -> None:
    a_run(runs, f"{os.getpid()}-1-abcd", {"emotion": "ipc:///a"})  # a process of this id that started with the kernel
    assert announced_addresses() == set()
    with create_run_folder() as folder:
        assert [path.name for path in runs.iterdir()] == [folder.name]


def test_folder_that_others_can_read_is_refused(runs: Path) -> None:
    runs.chmod(0o755)
    with pytest.raises(ConfigError, match=f"chmod 700 {runs}"), create_run_folder():
        pass
