"""After kill -9 of a node, or of a whole run, no picture can be read: neither in a file nor in any memory."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from running import Running, a_file, finished, running, wait_for

from pipeline.runtime.subscribe import subscribe

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux", reason="shared memory and /proc are Linux's"),
]
NODES = """
    camera: {use: synthetic, width_px: 640, height_px: 480, rate_hz: 30}
    align: {use: align, inputs: [camera], anchor: camera}
    mood: {use: infer, task: "benchmarks.soak:Whole", inputs: [align], process: align}
"""


def in_dev_shm(run: Running) -> list[Path]:
    """What this run, and no other one of this machine, has there."""
    return [path for path in Path("/dev/shm").rglob("*") if f"{run.process.pid}-" in str(path)]


def shared_by(process: psutil.Process) -> set[int]:
    """The inodes of the pictures' memory that a process has open."""
    paths = Path(f"/proc/{process.pid}/fd").iterdir()
    return {path.stat().st_ino for path in paths if os.readlink(path).startswith("/memfd:sensorium-")}


def held_anywhere(inodes: set[int]) -> list[str]:
    """Processes that have one of them open or mapped."""
    holders = []
    for process in psutil.process_iter():
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            mapped = {int(row.split()[4]) for row in maps if "/memfd:sensorium-" in row}
            if (mapped | shared_by(process)) & inodes:
                holders.append(" ".join(process.cmdline()))
        except (OSError, psutil.Error):
            continue
    return holders


def camera_of(run: Running) -> psutil.Process:
    """The process of the camera, once it sends pictures through shared memory."""
    for health in subscribe("health", address=run.graph()["streams"]["health"]):
        (camera,) = (node for node in health.nodes if node.node == "camera")
        if camera.state == "running" and (process := psutil.Process(camera.pid)) and shared_by(process):
            return process
    raise AssertionError(f"the run has ended: {run.err}")


def test_pictures_are_gone_with_the_whole_run(folder: Path) -> None:
    with running(folder, "run", a_file(folder, NODES), "--no-dashboard") as run:
        inodes = shared_by(camera_of(run))
        assert held_anywhere(inodes)
        assert in_dev_shm(run) == []
        for process in [psutil.Process(run.process.pid), *run.children()]:
            process.send_signal(signal.SIGKILL)
        run.process.wait()
        wait_for(lambda: not held_anywhere(inodes), "the end of the memory", give_up_s=5)
        assert in_dev_shm(run) == []
        assert all(path.is_socket() or path.stat().st_size < 4096 for path in run.left_behind() if not path.is_dir())
        (killed,) = (folder / "sensorium").iterdir()
    with running(folder, "run", a_file(folder, NODES), "--no-dashboard") as run:
        wait_for(lambda: not killed.exists(), "the next run to remove the folder of the one that was killed")
        assert held_anywhere(shared_by(camera_of(run)))


def test_pictures_of_a_killed_camera_are_let_go_when_it_is_back(folder: Path) -> None:
    with running(folder, "run", a_file(folder, NODES), "--no-dashboard") as run:
        camera = camera_of(run)
        inodes = shared_by(camera)
        camera.send_signal(signal.SIGKILL)
        camera.wait(5)
        assert camera_of(run).pid != camera.pid
        wait_for(lambda: not held_anywhere(inodes), "the end of the memory")
        assert in_dev_shm(run) == []
        mood = subscribe("mood", address=run.graph()["streams"]["mood"])
        assert next(mood).label


def test_link_in_place_of_a_folder_of_shared_memory_is_not_followed(folder: Path) -> None:
    """Another user may put one where earlier versions had their pictures."""
    link, target = Path(f"/dev/shm/sensorium-{os.getuid()}"), folder / "target"
    if os.path.lexists(link) or not os.access("/dev/shm", os.W_OK):
        pytest.skip(f"{link} is there already, or /dev/shm cannot be written to")
    target.mkdir()
    link.symlink_to(target)
    try:
        assert finished(folder, "run", a_file(folder, NODES), "--for", "500ms", "--no-dashboard").returncode == 0
        assert list(target.iterdir()) == []
    finally:
        link.unlink()
