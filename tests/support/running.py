"""Runs the command line as a user does: in a folder of its own, with its own run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "run_pipeline.py")]


def wait_for(true: Callable[[], Any], what: str, *, give_up_s: float = 30.0) -> Any:
    """The first true value that `true` returns; polls, for conditions without an event."""
    end_s = time.monotonic() + give_up_s
    while not (value := true()):
        assert time.monotonic() < end_s, f"timed out waiting for {what}"
        time.sleep(0.01)
    return value


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nodes of the tests' own (`use: "voices:Speech"`) lie in tests/support/ and beside the system tests."""
    own_nodes = os.pathsep.join(str(ROOT / "tests" / part) for part in ("support", "system"))
    return os.environ | {"XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": own_nodes, "PYTHONUNBUFFERED": "1"} | more


def finished(folder: Path, *arguments: str, timeout_s: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=timeout_s
    )


class Running:
    """One run in the background. inside: a command that starts it, in a namespace or with limits."""

    def __init__(self, folder: Path, *arguments: str, inside: Sequence[str] = (), **more: str) -> None:
        self.folder = folder
        self._out, self._err = (folder / "stdout").open("w+"), (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [*inside, *COMMAND, *arguments],
            cwd=folder,
            env=environment(folder, **more),
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._known: set[psutil.Process] = set()

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()

    def graph(self) -> dict[str, Any]:
        """graph.json, once it is there."""
        paths = (self.folder / "sensorium").glob
        wait_for(lambda: [*paths("*/graph.json")] or self.process.poll() is not None, "graph.json")
        assert self.process.poll() is None, f"the run has ended: {self.err}"
        return json.loads(next(paths("*/graph.json")).read_text())

    def children(self) -> list[psutil.Process]:
        if self.process.poll() is None:
            self._known |= set(psutil.Process(self.process.pid).children(recursive=True))
        return [p for p in self._known if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group."""
        self.children()
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout_s: float = 60) -> int:
        return self.process.wait(timeout_s)

    def left_behind(self) -> list[Path]:
        """Files of the runs folder: sockets, graph.json, the folders themselves."""
        return list((self.folder / "sensorium").rglob("*"))

    def end(self) -> None:
        for process in [*self.children(), self.process]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        self._out.close()
        self._err.close()


@contextmanager
def running(folder: Path, *arguments: str, **more: str) -> Iterator[Running]:
    run = Running(folder, *arguments, **more)
    try:
        yield run
    finally:
        run.end()


def last_line(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text().splitlines()[-1])


def a_file(folder: Path, nodes: str, *, portable: bool = False) -> str:
    """A config of these nodes, one a line."""
    path = folder / "graph.yaml"
    head = "portable: true\n" if portable else ""
    path.write_text(head + "nodes:\n" + "".join(f"  {line.strip()}\n" for line in nodes.strip().splitlines()))
    return str(path)
