"""Recordings and event logs of version 0.1 verify and replay: names that changed are translated on reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import ROOT, finished

from pipeline.recording.diff import compare, read_predictions
from pipeline.recording.reader import Reader
from pipeline.recording.replay_session import ReplaySession
from pipeline.runtime.config import load

RECORDING = ROOT / "tests/data/recordings/version-0.1.mcap"
EVENT_LOG = ROOT / "tests/data/recordings/version-0.1-events.jsonl"
# The recorded graph, in the words of today. Its sources were others; a replay does not use them.
GRAPH = """
nodes:
  camera: {use: synthetic, encoding: depth_u16_mm}
  microphone: {use: synthetic, encoding: pcm_f32}
  imu: {use: synthetic, encoding: imu_f64}
  align: {use: align, inputs: [camera, microphone, imu], anchor: camera, max_wait_ms: 20,
        sync: {microphone: {policy: window, before_ms: 99}, imu: {policy: nearest, within_ms: 12}}}
  answers: {use: infer, task: "laboratory:Checksum", inputs: [{from: align, queue: 2}], process: align,
          options: {takes_ms: 230}}
"""


@pytest.fixture
def graph(folder: Path) -> Path:
    path = folder / "graph.yaml"
    path.write_text(GRAPH)
    return path


def test_counters_and_options_of_an_old_recording_have_the_names_of_today() -> None:
    with Reader(RECORDING) as reader:
        assert reader.about["nodes"]["align"]["options"].keys() == {"anchor", "max_wait_ms", "sync"}
        dropped = reader.notes["summary"][-1]["dropped"]
        *_, last = (message for _, message, _ in reader.messages(["health"]))
    assert dropped["align"]["camera"] == {"late: its set was already sent": 16}
    assert dropped["align"]["imu"] == {"late": 4, "timestamp before the last one": 2}
    assert dropped["answers"] == {"align": {"reader too slow": 8}}
    in_health = {node.node: node.dropped for node in last.nodes}
    assert in_health["align"]["imu"] == {"late": 4, "timestamp before the last one": 2}


def test_the_graph_of_an_old_recording_does_not_count_as_changed(graph: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests/support"))
    reasons = ReplaySession(RECORDING).differs_because(load(graph))
    assert [reason for reason in reasons if "node '" in reason] == []


@pytest.mark.system
def test_an_old_recording_and_an_old_event_log_verify(folder: Path) -> None:
    done = finished(folder, "verify", str(RECORDING))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "align: 51 aligned sets, each derived again" in done.stdout
    assert "every message is accounted for" in done.stdout
    done = finished(folder, "verify", str(EVENT_LOG))
    assert "all 51 sets follow from the 361 other events" in done.stdout, done.stdout + done.stderr


@pytest.mark.system
def test_an_old_recording_replays_to_the_predictions_of_its_run(graph: Path, folder: Path) -> None:
    done = finished(folder, "replay", "graph.yaml", str(RECORDING), "--speed", "0", "--out", "again.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node '" not in done.stdout, "no node counts as changed"
    predictions = read_predictions(folder / "again.jsonl")
    assert list(compare(ReplaySession(RECORDING).recorded_predictions(), predictions)) == []
    assert len(predictions) == 43
    summary = json.loads((folder / "again.jsonl").read_text().splitlines()[-1])
    assert summary["dropped"]["answers"] == {"align": {"shed in the recorded run too": 8}}
    assert summary["sets"] == 51 and summary["unaccounted"] == {}
