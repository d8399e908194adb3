"""Every process of a run is killed, suspended and hung: the run is whole again within two seconds, what was lost is
counted, and the page says what is wrong."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from fault_runs import GRAPH, REPEATS, Row, fault_run, resume, suspend, write_row
from running import wait_for

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.parametrize("repeat", range(REPEATS))]

NODES = ["camera", "sound", "align", "task", "record", "out", "dashboard"]
SUSPENDED_S = 2.5  # the page says so from 2 s on


def test_every_process_killed(folder: Path, free_port: int, repeat: int) -> None:
    faults = []
    with fault_run(folder, free_port) as run:
        for node in NODES:
            victim = run.pid_of(node)
            fault = run.fault(f"`kill -9`: {node}", lambda victim=victim: os.kill(victim, signal.SIGKILL))
            run.detected(fault, node)
            run.recovered(fault, node)
            faults.append(fault)
        summary = run.finish(*faults, says=lambda summary: "each counted in `restarts`, exit code 0")
    assert summary["restarts"] == dict.fromkeys(NODES, 1)


def test_process_with_the_models_killed_three_times(
    folder: Path, free_port: int, demo_models: None, repeat: int
) -> None:
    """Models are loaded again each time."""
    graph = """
        camera: {use: camera, device: "asset:demo-clip", loop: true}
        sound: {use: microphone, device: "asset:demo-clip", loop: true, sample_rate_hz: 16000, chunk_ms: 20}
        align: {use: align, inputs: [camera, sound], anchor: camera, max_wait_ms: 60,
                sync: {sound: {policy: window, before_ms: 1000}}}
        task: {use: infer, task: emotion, inputs: [{from: align, queue: 2}], process: align}
        dashboard: {use: dashboard, inputs: [task, health], port: PORT, token: TOKEN}
    """.replace("max_wait_ms: 60,\n                sync", "max_wait_ms: 60, sync")
    faults = []
    with fault_run(folder, free_port, graph=graph, verb="run") as run:
        for count in (1, 2, 3):
            victim = run.pid_of("task")
            fault = run.fault(
                f"`kill -9`: alignment and emotion's models, time {count}",
                lambda victim=victim: os.kill(victim, signal.SIGKILL),
            )
            run.detected(fault, "task")
            run.recovered(fault)
            wait_for(lambda count=count: run.nodes()["task"].restarts == count, "its report")
            faults.append(fault)
        summary = run.finish(*faults)
    assert summary["restarts"] == {"align": 3, "task": 3}


def test_every_process_suspended_and_resumed(folder: Path, free_port: int, repeat: int) -> None:
    faults = []
    with fault_run(folder, free_port) as run:
        for node in NODES:
            victim = run.pid_of(node)
            fault = run.fault(
                f"suspended for {SUSPENDED_S} s: {node}",
                lambda victim=victim: suspend(victim),
                lambda victim=victim: resume(victim),
                for_s=SUSPENDED_S,
            )
            run.detected(fault, node)
            assert fault.page[0].startswith("not answering: no report for")
            run.recovered(fault, node)
            faults.append(fault)
        summary = run.finish(*faults)
    assert summary["restarts"] == {}


def test_process_that_stays_suspended_is_replaced(folder: Path, free_port: int, repeat: int) -> None:
    graph = GRAPH.replace("inputs: [align]}", "inputs: [align], watchdog_s: 3}")
    with fault_run(folder, free_port, graph=graph) as run:
        victim = run.pid_of("task")
        fault = run.fault("hung for ever, `watchdog_s: 3`: task", lambda: suspend(victim))
        run.detected(fault, "task")
        run.ended_when(fault, "task", lambda node: node.restarts == 1 or node.state == "restarting")
        run.recovered(fault, "task")
        summary = run.finish(fault)
    assert summary["restarts"] == {"task": 1}


def test_launcher_suspended_and_resumed(folder: Path, free_port: int, repeat: int) -> None:
    """Nodes need no launcher to go on."""
    with fault_run(folder, free_port) as run:
        victim = run.pid_of("launcher")
        fault = run.fault("suspended for 5 s: launcher", lambda: suspend(victim), lambda: resume(victim), for_s=5.0)
        during = [p for _, p in run.predictions.since(fault.began_ns)]
        assert len(during) > 5 * 20 * 0.9
        run.recovered(fault, "launcher")
        wait_for(lambda: run.health.since(fault.ended_ns), "health again", give_up_s=2)
        fault.page.append("nothing: predictions go on")
        summary = run.finish(fault)
    assert summary["restarts"] == {}


def test_launcher_killed_leaves_no_process(folder: Path, free_port: int, repeat: int) -> None:
    with fault_run(folder, free_port) as run:
        children = {process.pid for process in run.run.children()}
        began_s = time.monotonic()
        os.kill(run.pid_of("launcher"), signal.SIGKILL)
        wait_for(lambda: not any(is_running(pid) for pid in children), "the end of all processes", give_up_s=5)
        ended_s = time.monotonic() - began_s
        assert ended_s < 2.0 + 0.5  # nodes get 1.5 s to close their files
        lines = (folder / "out.jsonl").read_bytes()
        assert lines.endswith(b"}\n")
    write_row(Row("`kill -9`: launcher", ended_s, None, "none", "connection closed", "none: no process is left"))


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
