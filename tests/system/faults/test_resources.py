"""A full disk, no shared memory, no descriptors left, a reader that stands still: the rest of the run goes on."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_runs import REPEATS, fault_run
from running import wait_for

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.parametrize("repeat", range(REPEATS))]


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system needs root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_disk_full_for_a_while(folder: Path, free_port: int, small_disk: Path, repeat: int) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    with fault_run(folder, free_port, into=small_disk) as run:
        fault = run.fault("disk full for 3 s", fill, filler.unlink, for_s=3.0)
        run.detected(fault, "out")
        before = len(run.out.read_bytes())
        fault.recovered_ns = wait_for(
            lambda: time.monotonic_ns() if len(run.out.read_bytes()) > before + 100 else None, "lines again"
        )
        run.recovered(fault, "record")
        summary = run.finish(fault)
    assert summary["dropped"]["out"]["task"]["disk full"] > 10
    assert summary["dropped"]["record"]["camera"]


@pytest.mark.parametrize(("what", "mount"), [("16 kB", "size=16k"), ("read-only", "ro")])
def test_shared_memory_folder_without_room(folder: Path, free_port: int, what: str, mount: str, repeat: int) -> None:
    inside = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {mount} tmpfs /dev/shm && exec "$@"', "sh"]
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"a /dev/shm of its own needs a mount namespace: {probe.stderr.strip()}")
    with fault_run(folder, free_port, inside=inside) as run:
        fault = run.fault(f"`/dev/shm`: {what}", lambda: None)
        run.recovered(fault)
        summary = run.finish(fault)
    assert summary["dropped"] == {}


class NoDescriptorsLeft:
    """Of a process: it may open nothing more until end()."""

    def __init__(self, pid: int) -> None:
        self._pid, self._limits = pid, resource.prlimit(pid, resource.RLIMIT_NOFILE)
        self._pid = pid

    def begin(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (psutil.Process(self._pid).num_fds(), self._limits[1]))

    def end(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._limits)


@pytest.mark.parametrize("node", ["launcher", "align"])
def test_no_descriptors_left_while_a_node_restarts(folder: Path, free_port: int, node: str, repeat: int) -> None:
    with fault_run(folder, free_port) as run:
        full, camera = NoDescriptorsLeft(run.pid_of(node)), run.pid_of("camera")

        def begin() -> None:
            full.begin()
            os.kill(camera, signal.SIGKILL)

        fault = run.fault(f"no descriptors left while the camera restarts: {node}", begin, full.end, for_s=2.0)
        run.detected(fault, "camera")
        run.recovered(fault)
        run.finish(fault)


def test_program_that_reads_out_stands_still(folder: Path, free_port: int, repeat: int) -> None:
    """--out into a pipe whose reader takes nothing for a while: as a disk that stands still."""
    os.mkfifo(folder / "out.jsonl")
    reader = PipeReader(folder / "out.jsonl")
    try:
        with fault_run(folder, free_port) as run:
            fault = run.fault("nobody reads the pipe `--out` for 5 s", reader.pause, reader.go_on, for_s=5.0)
            run.detected(fault, "out")
            run.recovered(fault, "out")
            during = [p for _, p in run.predictions.since(fault.began_ns)]
            assert len(during) >= 0.9 * 5 * 20  # no other reader waits
            run.finish(fault, summary=reader.summary)
    finally:
        reader.close()


class PipeReader:
    """Reads lines from a pipe, except when it is paused."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)  # a pipe with a writer of our own never ends
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, 4096)
        self._goes_on, self._over, self._text = threading.Event(), threading.Event(), bytearray()
        self.pause, self.go_on = self._goes_on.clear, self._goes_on.set
        self.go_on()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.is_set():
            self._goes_on.wait()
            if select.select([self._descriptor], [], [], 0.05)[0]:
                self._text += os.read(self._descriptor, 4096)

    def summary(self) -> dict[str, Any]:
        return wait_for(lambda: self._last() if self._last().get("summary") else None, "the summary")

    def _last(self) -> dict[str, Any]:
        whole = bytes(self._text).rpartition(b"\n")[0]
        return json.loads(whole.rpartition(b"\n")[2])

    def close(self) -> None:
        self._over.set()
        self.go_on()
        self._thread.join()
        os.close(self._descriptor)
