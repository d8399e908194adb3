"""Nodes that send what they should not: the run goes on, and says so where somebody can do something about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_runs import GRAPH, fault_run
from running import wait_for

pytestmark = pytest.mark.system

CAMERA = "{use: synthetic, encoding: bgr8, rate_hz: 20, width_px: 320, height_px: 200}"


def a_camera(fails: str) -> str:
    wrong = f'{{use: "faulty_nodes:Steady", rate_hz: 20, fails: {fails}, at: 20, restarts: 2, optional: true}}'
    return GRAPH.replace(CAMERA, wrong).replace("anchor: camera", "anchor: sound")


def test_optional_camera_whose_pictures_are_none_is_given_up_and_says_why(folder: Path, free_port: int) -> None:
    with fault_run(folder, free_port, graph=a_camera("rubbish")) as run:
        wait_for(lambda: run.nodes()["camera"].state == "given up", "the camera is given up")
        before = len(run.predictions.all)
        wait_for(lambda: len(run.predictions.all) > before + 50, "predictions without it")
        summary = run.finish(traces=True)
    assert list(summary["given_up"]) == ["camera"] and "no bgr8" in summary["given_up"]["camera"]
    assert summary["restarts"] == {"camera": 2}


def test_camera_whose_times_go_backwards_ends_nothing(folder: Path, free_port: int) -> None:
    with fault_run(folder, free_port, graph=a_camera("backwards")) as run:
        wait_for(lambda: run.nodes()["camera"].produced > 60, "wrong frames")
        summary = run.finish()
    assert summary["restarts"] == {} and summary["predictions"] > 100


def test_task_that_predicts_no_numbers(folder: Path, free_port: int) -> None:
    with fault_run(folder, free_port, graph=GRAPH.replace(":Count", ":NotNumbers")) as run:
        summary = run.finish()
    assert summary["restarts"] == {}
    assert "NaN" not in (folder / "out.jsonl").read_text()


def test_sink_that_takes_a_second_for_each_message(folder: Path, free_port: int) -> None:
    graph = GRAPH + '    slow: {use: "faulty_nodes:SlowSink", inputs: [camera, task]}\n'
    with fault_run(folder, free_port, graph=graph) as run:
        wait_for(lambda: run.nodes()["task"].produced > 60, "predictions")
        summary = run.finish()
    assert summary["predictions"] > 60
    assert set(summary["dropped"]["slow"]) == {"camera", "task"}
