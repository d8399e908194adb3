"""A node that fails is started again, at once at first, then given up; the run says so, also by its exit code."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from running import Running, a_file, finished, last_line, running, wait_for
from test_launcher import health_until

pytestmark = pytest.mark.system


def graph(folder: Path, fails: str, *, task: str = "Count", more: str = "") -> str:
    return a_file(
        folder,
        f"""
        a: {{use: "faulty_nodes:Steady"}}
        b: {{use: "faulty_nodes:Steady", fails: "{fails}"{more}}}
        align: {{use: align, inputs: [a, b], anchor: a, max_wait_ms: 60}}
        task: {{use: infer, task: "faulty_nodes:{task}", inputs: [align], process: align}}
        """,
    )


@pytest.mark.parametrize("fails", ["raises", "exits", "leaves", "interrupts", "crashes"])
def test_node_that_always_fails_is_given_up_and_the_rest_goes_on(folder: Path, fails: str) -> None:
    done = finished(folder, "run", graph(folder, fails, more=", at: 1, restarts: 3"), "--for", "6s", "--out", "p.jsonl")
    summary = last_line(folder / "p.jsonl")
    assert done.returncode == 5, done.stderr
    assert "node 'b' was given up" in done.stderr and "4 times within a minute, 3 restarts" in done.stderr
    assert summary["restarts"] == {"b": 3} and list(summary["given_up"]) == ["b"]
    assert summary["predictions"] > 100 and summary["unaccounted"] == {}


def test_optional_source_that_always_fails_is_no_failure_of_the_run(folder: Path) -> None:
    more = ", at: 0, restarts: 2, optional: true"
    done = finished(folder, "run", graph(folder, "raises", more=more), "--for", "3s", "--out", "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert list(last_line(folder / "p.jsonl")["given_up"]) == ["b"]
    assert "b: given up: " in done.stdout


def test_run_without_a_prediction_says_so_and_ends_when_the_task_is_given_up(folder: Path) -> None:
    done = finished(folder, "run", graph(folder, "", task="Raises").replace("process: align", "restarts: 1"))
    assert done.returncode == 5
    assert "nothing is left that predicts" in done.stderr and "the task always breaks" in done.stderr
    assert "nothing was predicted: task sent nothing" in done.stderr


def test_node_that_hangs_is_started_again_and_the_log_says_where_it_was(folder: Path) -> None:
    with running(folder, "run", graph(folder, "hangs", more=", at: 20, watchdog_s: 2")) as run:
        health_until(run, lambda nodes: nodes["b"].state == "not answering")
        health_until(run, lambda nodes: nodes["b"].restarts == 1 and nodes["b"].state == "running")
        assert "no sign of life" in run.err and "time.sleep(1000)" in run.err
        run.interrupt()
        assert run.wait() == 0


def test_interpreter_that_is_held_for_a_moment_is_waited_for_and_for_ever_is_not(folder: Path) -> None:
    with running(folder, "run", graph(folder, "holds", more=", at: 20, for_s: 4, watchdog_s: 6")) as run:
        health_until(run, lambda nodes: nodes["b"].state == "not answering")
        nodes = health_until(run, lambda nodes: nodes["b"].state == "running" and nodes["b"].produced > 30)
        assert nodes["b"].restarts == 0
        run.interrupt()
        assert run.wait() == 0
    with running(folder, "run", graph(folder, "holds", more=", at: 20, watchdog_s: 2")) as run:
        health_until(run, lambda nodes: nodes["b"].restarts == 1 and nodes["b"].state == "running")
        assert "holds the interpreter lock" in run.err


def test_open_that_hangs_is_tried_again_then_given_up_and_the_rest_runs(folder: Path) -> None:
    fails = graph(folder, "opens", more=", watchdog_s: 1, restarts: 1")
    done = finished(folder, "run", fails, "--for", "2s", "--out", "p.jsonl")
    summary = last_line(folder / "p.jsonl")
    assert done.returncode == 5, done.stderr
    assert "node 'b' failed: not answering: open() has given no sign of life for" in done.stderr
    assert summary["restarts"] == {"b": 1} and list(summary["given_up"]) == ["b"]
    assert summary["predictions"] > 10 and summary["unaccounted"] == {}


def test_first_three_crashes_are_followed_by_a_restart_at_once(folder: Path) -> None:
    with running(folder, "run", graph(folder, "")) as run:
        for count in range(1, 4):
            nodes = health_until(run, lambda nodes: nodes["b"].state == "running" and nodes["b"].produced)
            os.kill(nodes["b"].pid, signal.SIGKILL)
            health_until(run, lambda nodes, count=count: nodes["b"].restarts == count)
        assert run.err.count("Restarting it now") == 3


def living(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


def started_by(run: Running) -> set[int]:
    return {process.pid for process in run.children()}


@pytest.mark.parametrize("fails", ["holds", "leaves a child"])
def test_launcher_that_is_killed_leaves_no_process(folder: Path, fails: str) -> None:
    with running(folder, "run", graph(folder, fails, more=", at: 20")) as run:
        health_until(run, lambda nodes: nodes["b"].produced >= 20)
        pids = started_by(run)
        assert len(pids) >= (5 if fails == "leaves a child" else 4)  # three node processes and the guard
        os.kill(run.process.pid, signal.SIGKILL)
        wait_for(lambda: not living(pids), "the end of all processes", give_up_s=5)


def test_what_a_node_started_ends_with_the_run(folder: Path) -> None:
    with running(folder, "run", graph(folder, "leaves a child")) as run:
        health_until(run, lambda nodes: nodes["b"].produced >= 20)
        pids = started_by(run)
        run.interrupt()
        assert run.wait() == 0
        assert not living(pids)


def test_closed_terminal_ends_the_run_in_order(folder: Path) -> None:
    with running(folder, "run", graph(folder, ""), "--out", "p.jsonl") as run:
        health_until(run, lambda nodes: nodes["task"].produced > 10)
        os.kill(run.process.pid, signal.SIGHUP)
        assert run.wait() == 0
    assert last_line(folder / "p.jsonl")["summary"]


def test_a_stopped_launcher_goes_on_as_if_nothing_had_been(folder: Path) -> None:
    with running(folder, "run", graph(folder, "", more=", watchdog_s: 2"), "--out", "p.jsonl") as run:
        health_until(run, lambda nodes: nodes["task"].produced > 10)
        os.kill(run.process.pid, signal.SIGSTOP)
        time.sleep(5)  # longer than its watchdog
        os.kill(run.process.pid, signal.SIGCONT)
        health_until(run, lambda nodes: nodes["task"].produced > 170)
        run.interrupt()
        assert run.wait() == 0
    summary = last_line(folder / "p.jsonl")
    assert summary["restarts"] == {} and summary["unaccounted"] == {}


def test_systemd_is_notified_that_the_run_is_ready_lives_and_stops(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"}
        with running(folder, "run", graph(folder, ""), **environment) as run:
            lines = [systemd.recv(4096).decode() for _ in range(4)]
            assert any(line.startswith("READY=1\nSTATUS=4 nodes run") for line in lines)
            assert lines.count("WATCHDOG=1") >= 2
            run.interrupt()
            while lines[-1] != "STOPPING=1":
                lines.append(systemd.recv(4096).decode())
            assert run.wait() == 0
