"""A process that writes is killed: what was written stays, the rest follows, and verify accounts for all of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from running import a_file, finished, last_line, running, wait_for
from test_launcher import health_until

pytestmark = pytest.mark.system

GRAPH = """
    a: {use: synthetic, encoding: bgr8, rate_hz: 10, width_px: 320, height_px: 200}
    b: {use: "faulty_nodes:Steady", rate_hz: 20}
    align: {use: align, inputs: [a, b], anchor: a, max_wait_ms: 60, event_log: events.jsonl}
    task: {use: infer, task: "faulty_nodes:Count", inputs: [align]}
"""


@pytest.mark.parametrize("writer", ["out", "record", "align"])
def test_what_it_had_written_stays_and_the_rest_follows(folder: Path, writer: str) -> None:
    graph = a_file(folder, GRAPH)
    files = {"out": "p.jsonl", "record": "rec.mcap", "align": "events.jsonl"}
    with running(folder, "record", graph, "rec.mcap", "--out", "p.jsonl") as run:
        nodes = health_until(run, lambda nodes: nodes["out"].received.get("task", 0) > 20)
        before = (folder / files[writer]).read_bytes()
        os.kill(nodes[writer].pid, signal.SIGKILL)
        health_until(run, lambda nodes: nodes[writer].restarts and nodes[writer].state == "running")
        health_until(run, lambda nodes: nodes["out"].received.get("task", 0) > 60)
        run.interrupt()
        assert run.wait() == 0, run.err
        assert "recorded: " in run.out
    assert last_line(folder / "p.jsonl")["summary"]
    if writer != "record":
        whole = before[: before.rfind(b"\n") + 1]
        assert (folder / files[writer]).read_bytes().startswith(whole) and whole.count(b"\n") > 20
    assert (folder / "rec.001.mcap").exists() == (writer == "record")
    for name in ("rec.mcap", "events.jsonl"):
        done = finished(folder, "verify", name)
        assert done.returncode == 0, (done.stdout, done.stderr)


def test_two_runs_do_not_write_one_file(folder: Path) -> None:
    graph = a_file(folder, GRAPH.replace(", event_log: events.jsonl", ""))
    with running(folder, "run", graph, "--out", "p.jsonl"):
        wait_for(lambda: (folder / "p.jsonl").exists() and (folder / "p.jsonl").stat().st_size > 1000, "predictions")
        second = finished(folder, "run", graph, "--out", "p.jsonl", "--for", "1s")
        assert second.returncode == 2 and "p.jsonl: another run writes it" in second.stderr
        assert (folder / "p.jsonl").stat().st_size > 1000
