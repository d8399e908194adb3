"""Processes are started, watched, restarted and stopped; nothing is left behind, every message is accounted for."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq
from running import Running, a_file, finished, last_line, running, wait_for

from pipeline.frame import NodeHealth
from pipeline.runtime.subscribe import subscribe

pytestmark = pytest.mark.system

MOOD = """
    camera: {use: synthetic, encoding: series_f32, rate_hz: 50}
    align: {use: align, inputs: [camera], anchor: camera}
    mood: {use: infer, task: "third_party:Mood", inputs: [align], process: align}
"""


def health_until(run: Running, true: Callable[[dict[str, NodeHealth]], Any]) -> dict[str, NodeHealth]:
    """The health of the run, as any program can read it, once it is as asked."""
    with pytest.MonkeyPatch.context() as here:
        here.setenv("XDG_RUNTIME_DIR", str(run.folder))  # where the keys of a portable run are
        reports = subscribe("health", address=run.graph()["streams"]["health"])
    for health in reports:
        nodes = {node.node: node for node in health.nodes}
        if true(nodes):
            return nodes
    raise AssertionError(f"the run ended: {run.err}")


def flowing(nodes: dict[str, NodeHealth]) -> bool:
    return all(node.state == "running" and (node.produced or node.received) for node in nodes.values())


def reconciled(summary: dict[str, Any]) -> bool:
    return summary["unaccounted"] == {} and all(
        n > 0 for s in summary["dropped"].values() for w in s.values() for n in w.values()
    )


# --- the end ----------------------------------------------------------------------------------------------------------


def test_run_ends_by_itself_when_its_sources_have_ended(folder: Path) -> None:
    graph = a_file(folder, MOOD.replace("rate_hz: 50", "rate_hz: 50, count: 20"))
    done = finished(folder, "run", graph, "--out", "p.jsonl")
    summary = last_line(folder / "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert (summary["frames_in"], summary["sets"], summary["predictions"]) == ({"camera": 20}, 20, 20)
    assert reconciled(summary)


@pytest.mark.paced
def test_for_ends_the_run_after_that_long(folder: Path) -> None:
    finished(folder, "run", a_file(folder, MOOD), "--for", "500ms", "--out", "p.jsonl")
    summary = last_line(folder / "p.jsonl")
    assert 20 <= summary["frames_in"]["camera"] <= 30
    assert reconciled(summary)


def test_a_node_may_ask_for_the_end(folder: Path) -> None:
    graph = a_file(folder, MOOD + 'stop: {use: "third_party:Stopper", after: 5, inputs: [mood]}')
    done = finished(folder, "run", graph)
    assert done.returncode == 0, done.stderr
    assert "unaccounted: none" in done.stdout


@pytest.mark.paced
@pytest.mark.parametrize("portable", [False, True], ids=["ipc", "portable"])
def test_ctrl_c_ends_within_two_seconds_and_leaves_nothing(folder: Path, portable: bool) -> None:
    with running(folder, "run", a_file(folder, MOOD, portable=portable)) as run:
        health_until(run, flowing)
        asked_s = time.monotonic()
        run.interrupt()
        assert run.wait() == 0
        assert time.monotonic() - asked_s < 2
        assert (run.children(), run.left_behind()) == ([], [])
        assert "unaccounted: none" in run.out
        assert "Traceback" not in run.err


@pytest.mark.paced
def test_ctrl_c_ends_a_run_that_is_behind_with_its_work_and_counts_it(folder: Path) -> None:
    nodes = """
        camera: {use: synthetic, encoding: series_f32, rate_hz: 100}
        slow: {use: "third_party:Smoother", takes_ms: 200, inputs: [camera]}
        align: {use: align, inputs: [slow], anchor: slow}
        mood: {use: infer, task: "third_party:Mood", inputs: [align], process: align}
    """
    with running(folder, "run", a_file(folder, nodes), "--out", "p.jsonl") as run:
        health_until(run, lambda nodes: nodes["camera"].produced > 40)
        asked_s = time.monotonic()
        run.interrupt()
        assert run.wait() == 0
        assert time.monotonic() - asked_s < 2.2  # the interpreter's own end included
    summary = last_line(folder / "p.jsonl")
    assert reconciled(summary)
    assert summary["dropped"]["slow"]["camera"]["not read before the end"] > 0


@pytest.mark.paced
def test_ctrl_c_while_nodes_load_ends_without_output(folder: Path) -> None:
    nodes = MOOD + 'slow: {use: "third_party:Failing", when: "open, hangs", inputs: [camera]}'
    with running(folder, "run", a_file(folder, nodes)) as run:
        health_until(run, lambda nodes: nodes["camera"].state == "ready")
        asked_s = time.monotonic()
        run.interrupt()
        assert run.wait() == 130
        assert time.monotonic() - asked_s < 2.2
        assert (run.children(), run.left_behind()) == ([], [])
        assert "Traceback" not in run.err


def test_ctrl_c_before_the_processes_are_there_prints_no_traceback(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD)) as run:
        run.graph()
        wait_for(run.children, "the first process")
        run.interrupt()
        assert run.wait() == 130
        assert (run.children(), run.left_behind(), run.err) == ([], [], "")


@pytest.mark.paced
def test_second_ctrl_c_does_not_wait(folder: Path) -> None:
    nodes = MOOD + 'slow: {use: "third_party:Smoother", takes_ms: 30000, inputs: [camera]}'
    with running(folder, "run", a_file(folder, nodes)) as run:
        health_until(run, lambda nodes: nodes["slow"].received)
        asked_s = time.monotonic()
        run.interrupt()
        time.sleep(0.2)  # a second signal that arrives before the first is handled is the same one
        run.interrupt()
        run.wait()
        assert time.monotonic() - asked_s < 1.2
        assert (run.children(), run.left_behind()) == ([], [])


def test_killed_launcher_leaves_no_process(folder: Path) -> None:
    nodes = MOOD + 'hangs: {use: "third_party:Smoother", takes_ms: 30000, inputs: [camera]}'
    with running(folder, "run", a_file(folder, nodes)) as run:
        health_until(run, lambda nodes: nodes["hangs"].received)
        assert len(run.children()) == 3 + 1  # and the guard
        run.process.kill()
        wait_for(lambda: not run.children(), "the end of all processes", give_up_s=5)


def test_launcher_killed_while_its_processes_start_leaves_none(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD)) as run:
        wait_for(lambda: len(run.children()) == 2 + 1, "both processes and the guard")
        run.process.kill()
        wait_for(lambda: not run.children(), "the end of all processes", give_up_s=10)


def test_next_run_clears_what_a_killed_one_left(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD)) as run:
        run.graph()
        run.process.kill()
        run.wait()
        assert run.left_behind()
    finished(folder, "run", a_file(folder, MOOD), "--for", "100ms")
    assert list((folder / "sensorium").iterdir()) == []


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["camera", "align"])
def test_killed_node_is_restarted_and_every_message_is_accounted_for(folder: Path, victim: str) -> None:
    with running(folder, "run", a_file(folder, MOOD.replace(", process: align", "")), "--out", "p.jsonl") as run:
        nodes = health_until(run, flowing)
        os.kill(nodes[victim].pid, signal.SIGKILL)
        before = health_until(run, lambda nodes: nodes[victim].restarts == 1 and nodes[victim].state == "running")
        health_until(run, lambda nodes: nodes["mood"].produced > before["mood"].produced + 5)
        run.interrupt()
        assert run.wait() == 0
        assert (
            f"node '{victim}' failed: its process ended with SIGKILL (if nobody sent it, the system ran out of memory"
            in run.err
        )
        assert "Restarting it now." in run.err
    summary = last_line(folder / "p.jsonl")
    assert summary["restarts"] == {victim: 1}
    assert reconciled(summary), summary


def test_node_that_raises_is_restarted_and_its_error_is_logged_once(folder: Path) -> None:
    nodes = MOOD.replace("inputs: [camera]", "inputs: [fails]").replace("anchor: camera", "anchor: fails")
    nodes += f'fails: {{use: "third_party:Failing", when: process, mark: {folder}/mark, inputs: [camera]}}'
    with running(folder, "run", a_file(folder, nodes), "--out", "p.jsonl") as run:
        health_until(run, lambda nodes: nodes["fails"].restarts == 1 and nodes["fails"].produced > 20)
        run.interrupt()
        assert run.wait() == 0
        assert run.err.count("Traceback") == 1
        assert "node 'fails' failed: ValueError: the tenth is too much. Restarting it" in run.err
    summary = last_line(folder / "p.jsonl")
    assert reconciled(summary), summary


def test_node_that_must_not_restart_ends_the_run_when_nothing_can_predict_without_it(folder: Path) -> None:
    nodes = MOOD.replace("inputs: [camera]", "inputs: [fails]").replace("anchor: camera", "anchor: fails")
    failing = f'use: "third_party:Failing", when: process, mark: {folder}/mark, inputs: [camera], restarts: 0'
    done = finished(folder, "run", a_file(folder, f"{nodes}fails: {{{failing}}}"))
    assert done.returncode == 5
    reason = "error: node 'fails' was given up: ValueError: the tenth is too much. It failed 1 times within a minute"
    assert done.stderr.splitlines()[-1].startswith(reason)


@pytest.mark.parametrize(
    ("when", "exit_code", "error"),
    [
        ("open", 2, "error: node 'fails': there is no such model. Choose another\n"),
        ("open, device", 3, "error: node 'fails': nothing is plugged in. Plug it in\n"),
    ],
)
def test_node_that_cannot_start_ends_the_run_with_its_exit_code(
    folder: Path, when: str, exit_code: int, error: str
) -> None:
    nodes = MOOD + f'fails: {{use: "third_party:Failing", when: "{when}", inputs: [camera]}}'
    done = finished(folder, "run", a_file(folder, nodes))
    assert (done.returncode, done.stderr) == (exit_code, error)
    assert list((folder / "sensorium").iterdir()) == []


def test_node_with_a_bug_at_its_start_ends_the_run_and_shows_where(folder: Path) -> None:
    nodes = MOOD + 'fails: {use: "third_party:Failing", when: "open, bug", inputs: [camera]}'
    done = finished(folder, "run", a_file(folder, nodes))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == "error: node 'fails': ZeroDivisionError: division by zero"


def test_reader_that_died_after_its_source_had_ended_comes_to_its_end(folder: Path) -> None:
    nodes = """
        short: {use: synthetic, encoding: series_f32, rate_hz: 50, count: 3}
        camera: {use: synthetic, encoding: series_f32, rate_hz: 50}
        align: {use: align, inputs: [camera, short], anchor: camera}
    """
    with running(folder, "run", a_file(folder, nodes)) as run:
        ended = health_until(run, lambda nodes: nodes["short"].state == "finished" and nodes["align"].produced)
        os.kill(ended["align"].pid, signal.SIGKILL)
        health_until(run, lambda nodes: nodes["align"].restarts and nodes["align"].state == "running")


# --- devices ----------------------------------------------------------------------------------------------------------

THERMOMETER = """
    camera: {use: synthetic, encoding: series_f32, rate_hz: 50}
    heat: {use: "third_party:Thermometer", device: heat.device, optional: true}
    align: {use: align, inputs: [camera, heat], anchor: camera, sync: {heat: {policy: latest}}}
    mood: {use: infer, task: "third_party:Mood", inputs: [align], process: align}
"""


def test_optional_source_that_is_absent_is_reported_and_joins_when_it_comes(folder: Path) -> None:
    with running(folder, "run", a_file(folder, THERMOMETER)) as run:
        predictions = subscribe("mood", address=run.graph()["streams"]["mood"])
        first = next(predictions)
        assert first.missing == ("heat",)
        assert "there is no heat.device. Plug it in Going on without it." in run.err
        (folder / "heat.device").touch()
        assert any(p.missing == () for p in predictions)


def test_source_that_is_not_optional_must_be_there(folder: Path) -> None:
    done = finished(folder, "run", a_file(folder, THERMOMETER.replace(", optional: true", "")))
    assert (done.returncode, done.stderr) == (3, "error: thermometer 'heat': there is no heat.device. Plug it in\n")


def test_mute_reaches_the_source_and_its_silence_is_reported(folder: Path) -> None:
    nodes = THERMOMETER + 'mute: {use: "third_party:Stopper", after: 10, verb: mute, argument: heat, inputs: [mood]}'
    nodes += '\nunmute: {use: "third_party:Stopper", after: 60, verb: unmute, argument: heat, inputs: [mood]}'
    (folder / "heat.device").touch()
    with running(folder, "run", a_file(folder, nodes)) as run:
        predictions = subscribe("mood", address=run.graph()["streams"]["mood"])
        silent = next(p for p in predictions if any(r.state == "silent" for r in p.receipts))
        assert (silent.missing, [r.reason for r in silent.receipts if r.stream == "heat"]) == (("heat",), ["muted"])
        assert any(p.missing == () for p in predictions)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_portable_path_uses_neither_socket_files_nor_shared_memory(folder: Path) -> None:
    with running(folder, "run", a_file(folder, MOOD, portable=True)) as run:
        health_until(run, flowing)
        assert all(address.startswith("tcp://127.0.0.1:") for address in run.graph()["streams"].values())
        assert [p.name for p in run.left_behind() if p.is_socket()] == []
        mapped = {m.path for child in run.children() for m in child.memory_maps()}
        assert not any(path.startswith("/dev/shm") for path in mapped)


def test_portable_run_serves_programs_of_its_user_and_nobody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every port of the run, those of its streams and the one for orders, from a raw socket without its keys."""
    with running(folder, "run", a_file(folder, MOOD, portable=True)) as run:
        health_until(run, flowing)
        ports = [
            connection.laddr.port
            for process in [psutil.Process(run.process.pid), *run.children()]
            for connection in getattr(process, "net_connections", process.connections)("tcp")  # psutil 6's name for it
            if connection.status == psutil.CONN_LISTEN
        ]
        addresses = run.graph()["streams"].values()
        assert {int(address.rpartition(":")[2]) for address in addresses} < set(ports), "and the port for orders"
        outsiders = [zmq.Context.instance().socket(zmq.DEALER) for _ in ports]
        for outsider, port in zip(outsiders, ports, strict=True):
            outsider.connect(f"tcp://127.0.0.1:{port}")
            outsider.send(msgspec.msgpack.encode([1, 0, 0, ["Hello", "another user", None]]))
            outsider.send(msgspec.msgpack.encode([1, 0, 0, ["Request", "stop", ""]]))
        time.sleep(1.0)
        assert not any(outsider.poll(0) for outsider in outsiders)
        assert run.process.poll() is None
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        assert next(subscribe("mood")).label
        (keys,) = (folder / "sensorium").glob("*/keys.json")
        assert keys.stat().st_mode & 0o777 == 0o600
        secret = json.loads(keys.read_text())["secret"]
        commands = [" ".join(process.cmdline()) for process in run.children()]
        assert secret not in run.err + run.out + str(commands)
        for outsider in outsiders:
            outsider.close(linger=0)


def test_source_that_can_wait_loses_nothing_to_a_slow_reader(folder: Path) -> None:
    nodes = """
        camera: {use: synthetic, encoding: series_f32, rate_hz: 30, count: 300, realtime: false}
        slow: {use: "third_party:Smoother", takes_ms: 2, inputs: [camera]}
        align: {use: align, inputs: [slow], anchor: slow, max_wait_ms: null}
        mood: {use: infer, task: "third_party:Mood", inputs: [align]}
    """
    finished(folder, "run", a_file(folder, nodes), "--out", "p.jsonl")
    summary = last_line(folder / "p.jsonl")
    assert (summary["frames_in"], summary["predictions"], summary["dropped"]) == ({"camera": 300}, 300, {})


def test_runs_beside_a_folder_of_the_users_that_is_called_nodes(folder: Path) -> None:
    for name in ("nodes", "pipeline"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    done = finished(folder, "run", a_file(folder, MOOD), "--for", "100ms")
    assert done.returncode == 0, done.stderr
