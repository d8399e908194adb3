"""The launcher forks where that is safe, and only there; what holds for its processes holds for forks too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running import ROOT, Running, a_file, running
from test_launcher import MOOD, flowing, health_until

linux = pytest.mark.skipif(sys.platform != "linux", reason="the launcher forks on Linux only")
IS_GUARD = ["-I", "-S"]
IS_INTERPRETER = [sys.executable, "-P", "-m", "pipeline.runtime.worker"]


def commands(run: Running) -> list[list[str]]:
    return [command for p in run.children() if (command := p.cmdline())[1:3] != IS_GUARD]


@linux
@pytest.mark.system
def test_nodes_are_forks_of_the_launcher_and_are_restarted_as_new_interpreters(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD)) as run:
        nodes = health_until(run, flowing)
        assert commands(run) == [psutil.Process(run.process.pid).cmdline()] * 2
        assert all(os.getpgid(p.pid) == p.pid for p in run.children())  # groups of their own: Ctrl-C is the launcher's
        os.kill(nodes["camera"].pid, signal.SIGKILL)
        health_until(run, lambda nodes: nodes["camera"].restarts == 1 and nodes["camera"].state == "running")
        assert IS_INTERPRETER in commands(run)


@pytest.mark.system
def test_portable_path_forks_nothing(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD, portable=True)) as run:
        health_until(run, flowing)
        assert commands(run) == [IS_INTERPRETER] * 2


@linux
@pytest.mark.system
def test_hang_up_ends_a_fork_as_it_ends_a_new_interpreter(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD)) as run:
        nodes = health_until(run, flowing)
        os.kill(nodes["camera"].pid, signal.SIGHUP)  # the launcher's own handler would have ended the run
        health_until(run, lambda nodes: nodes["camera"].restarts == 1)
        run.interrupt()
        assert run.wait() == 0
        assert "its process ended with SIGHUP" in run.err


def reason_not_to_fork_after(statement: str) -> str:
    """In a process of its own, after `statement`: the tests' process holds libraries of other tests."""
    program = (
        f"import os, sys, threading; from pipeline.runtime import spawn; {statement}; "
        "print(spawn.reason_not_to_fork(), flush=True); os._exit(0)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@linux
def test_launcher_with_a_thread_does_not_fork() -> None:
    assert "threads run" in reason_not_to_fork_after("threading.Thread(target=threading.Event().wait).start()")


@linux
@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "configs").glob("*.yaml")))
def test_launcher_of_every_packaged_config_can_fork(config: str, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from pipeline.runtime import spawn\n"
        "from pipeline.runtime.config import load; from pipeline.runtime.graph import plan_graph\n"
        f"config = load({str(ROOT / 'configs' / config)!r})\n"
        f"plan_graph(config, Path({str(tmp_path)!r}), next(iter(config.hosts), ''))\n"
        "print(spawn.reason_not_to_fork())"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == "\n"
