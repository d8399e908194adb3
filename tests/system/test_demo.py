"""The main job, whole: real processes, real sockets, real models, and senses that fail in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from live_runs import FailingCamera, receipt_state, run_to_end, wait_for_prediction
from running import running

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("demo_models")]


def test_demo_accounts_for_every_frame_and_sees_the_face_turn_happy(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    predictions, summary = run_to_end("demo", "--set", f"nodes.align.event_log={events}", out=tmp_path / "out.jsonl")
    assert summary["frames_in"]["camera"] == 472
    assert summary["unaccounted"] == {}
    # A busy machine drops along the way; wherever that is, it is counted.
    edges = (("align", "camera"), ("emotion", "align"), ("out", "emotion"))
    dropped = sum(sum(summary["dropped"].get(reader, {}).get(sender, {}).values()) for reader, sender in edges)
    assert len(predictions) + dropped == 472, summary["dropped"]

    begin_ns = predictions[0]["capture_ns"]
    faces = [(p["label"], (p["capture_ns"] - begin_ns) / 1e9) for p in predictions if p["subjects"]]
    late = [label == "happy" for label, at_s in faces if 12 <= at_s < 19]
    early = [label == "happy" for label, at_s in faces if at_s < 8]
    assert np.mean(late) >= 0.95
    assert np.mean(early) <= 0.05
    assert predictions[100]["used"] == ["camera"]
    assert predictions[100]["speaking"] is False

    verified = subprocess.run(
        [sys.executable, "run_pipeline.py", "verify", str(events)], cwd=ROOT, capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stdout
    assert f"all {summary['sets']} sets follow" in verified.stdout


CONFIG = """
nodes:
  camera:     {{use: camera, device: "{url}"}}
  microphone: {{use: synthetic, encoding: pcm_f32, rate_hz: 50}}
  align:
    use: align
    inputs: [camera, microphone]
    anchor: camera
    max_wait_ms: 60
    sync: {{microphone: {{policy: window, before_ms: 500}}}}
  emotion:    {{use: infer, inputs: [{{from: align, queue: 2}}], process: align}}
"""


@pytest.mark.paced
def test_covered_lens_and_pulled_cable_are_reported_and_both_recover(folder: Path, lens: FailingCamera) -> None:
    """Each step waits for the predictions to say so, so that the test needs no guess about time."""
    config, out = folder / "failing.yaml", folder / "out.jsonl"
    config.write_text(CONFIG.format(url=lens.url))
    with running(folder, "run", str(config), "--no-dashboard", "--out", str(out)) as live:
        wait_for_prediction(out, lambda p: p["subjects"])
        lens.picture = lens.dark
        wait_for_prediction(out, lambda p: receipt_state(p, "camera") == "bad")
        time.sleep(0.5)
        lens.picture = lens.face
        wait_for_prediction(out, lambda p: p["subjects"])
        lens.picture = None
        wait_for_prediction(out, lambda p: receipt_state(p, "camera") == "silent")
        time.sleep(1.0)
        lens.picture = lens.face
        wait_for_prediction(out, lambda p: p["subjects"])
        live.interrupt()
        assert live.wait() == 0, live.err
    *predictions, summary = map(json.loads, out.read_text().splitlines())

    dark = [p for p in predictions if receipt_state(p, "camera") == "bad"]
    assert dark and all(p["missing"] == ["camera"] and p["label"] is None for p in dark[5:])
    assert "covered lens" in dark[0]["receipts"][0]["reason"]

    silent = [p for p in predictions if receipt_state(p, "camera") == "silent"]
    assert len(silent) > 10, "sets go on at the camera's last rate"
    assert all("camera" in p["missing"] and p["label"] is None for p in silent)
    # The microphone carries on while the camera is away.
    assert sum(receipt_state(p, "microphone") in ("exact", "partial") for p in silent) > 0.9 * len(silent)

    assert predictions[-1]["subjects"] and "camera" in predictions[-1]["used"]
    stamps = [p["capture_ns"] for p in predictions]
    assert stamps == sorted(set(stamps))
    assert summary["unaccounted"] == {}
