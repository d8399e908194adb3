"""A run announces itself in a folder of its own, and other programs find its streams there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runtime.run_folder import (
    announce,
    announce_page,
    announced_addresses,
    create_run_folder,
    find_stream,
    page_address,
    runs_folder,
)

DEAD_PID = 2**22 + 1  # above the largest that Linux gives


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    runs_folder().mkdir(mode=0o700)
    return runs_folder()


def a_run(runs: Path, folder: str, streams: dict[str, str], pid: int | None = None, name: str = "mine") -> None:
    (runs / folder).mkdir(parents=True)
    graph = {"name": name, "pid": pid or os.getpid(), "config": "", "streams": streams}
    (runs / folder / "graph.json").write_text(json.dumps(graph))


def test_without_a_run_the_error_names_the_command_that_starts_one(runs: Path) -> None:
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs.*python run_pipeline.py"):
        find_stream("emotion")


def test_unknown_stream_names_the_nearest(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///a", "camera": "ipc:///b"})
    with pytest.raises(
        ConfigError, match="no running node is called 'emotoin'. Running: camera, emotion. Did you mean 'emotion'"
    ):
        find_stream("emotoin")


def test_two_runs_with_the_same_node_are_not_guessed_but_named(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///one"}, name="door")
    a_run(runs, "2-b", {"emotion": "ipc:///two", "camera": "ipc:///camera"}, name="hall")
    with pytest.raises(ConfigError, match="'emotion' is a node of several runs: (door, hall|hall, door).*run='"):
        find_stream("emotion")
    assert find_stream("emotion", "door") == "ipc:///one"
    assert find_stream("camera") == "ipc:///camera"
    with pytest.raises(ConfigError, match="no run is called 'dor'.*Did you mean 'door'"):
        find_stream("emotion", "dor")


def test_page_of_a_run_has_its_token_and_several_are_not_guessed(runs: Path) -> None:
    a_run(runs, "1-a", {}, name="door")
    with pytest.raises(ConfigError, match="no run here has a page"):
        page_address()
    announce_page(runs / "1-a", "dashboard", "http://127.0.0.1:8080/?token=secret")
    assert page_address("metrics") == "http://127.0.0.1:8080/metrics?token=secret"
    assert page_address("ws") == "ws://127.0.0.1:8080/ws?token=secret"
    assert (runs / "1-a" / "dashboard.page").stat().st_mode & 0o777 == 0o600
    a_run(runs, "2-b", {}, name="hall")
    announce_page(runs / "2-b", "dashboard", "http://127.0.0.1:8081/")
    with pytest.raises(ConfigError, match="several runs have a page"):
        page_address()
    assert page_address(run="hall") == "http://127.0.0.1:8081/"


def test_run_that_was_killed_is_ignored(runs: Path) -> None:
    a_run(runs, "1-a", {"emotion": "ipc:///a"}, pid=DEAD_PID)
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs"):
        find_stream("emotion")


def test_announced_streams_can_be_read_until_the_run_ends(runs: Path) -> None:
    with create_run_folder() as folder:
        assert announce(folder, name="mine", config="mine.yaml", streams={"emotion": "ipc:///a"}) == "mine"
        assert (find_stream("emotion"), announced_addresses()) == ("ipc:///a", {"ipc:///a"})
        with create_run_folder() as second:
            assert announce(second, name="mine", config="mine.yaml", streams={}) == "mine-2"
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


def test_only_folders_of_runs_are_removed(runs: Path, tmp_path: Path) -> None:
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
