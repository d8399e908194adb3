"""The main job, whole: real processes, real sockets, real models, and senses that fail in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from running import running

from pipeline import assets
from pipeline.errors import AssetError

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    try:
        assets.pull(["demo-clip", "centerface", "silero-vad"])
    except AssetError as error:
        pytest.skip(f"the clip and the models cannot be fetched: {error}")


def run(*arguments: str | Path, out: Path, timeout_s: float = 60) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Predictions and summary of one run of the command line."""
    command = [sys.executable, "run_pipeline.py", *map(str, arguments), "--no-dashboard", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    *predictions, summary = map(json.loads, out.read_text().splitlines())
    return predictions, summary


def test_demo_accounts_for_every_frame_and_sees_the_face_turn_happy(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    predictions, summary = run("demo", "--set", f"nodes.align.event_log={events}", out=tmp_path / "out.jsonl")
    assert summary["frames_in"]["camera"] == 472
    assert summary["unaccounted"] == {}
    dropped = sum(summary["dropped"].get("emotion", {}).get("align", {}).values())
    assert len(predictions) + dropped == 472

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
    assert "all 472 sets follow" in verified.stdout


class FailingCamera:
    """MJPEG over HTTP whose lens can be covered and whose cable can be pulled while it is watched."""

    def __init__(self) -> None:
        with av.open(str(assets.path("demo-clip"))) as clip:
            image = next(clip.decode(video=0)).to_ndarray(format="bgr24")
        self.face = cv2.imencode(".jpg", image)[1].tobytes()
        self.dark = cv2.imencode(".jpg", np.full_like(image, 3))[1].tobytes()
        self.picture: bytes | None = self.face  # None: the cable is out
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if outer.picture is None:
                    return self.send_error(503)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while (body := outer.picture) is not None:
                    head = f"--frame\r\nContent-Length: {len(body)}\r\nX-Timestamp: {time.monotonic_ns()}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + body + b"\r\n")
                    except OSError:
                        break
                    time.sleep(0.05)
                return None

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def lens() -> Iterator[FailingCamera]:
    camera = FailingCamera()
    yield camera
    camera.picture = None
    camera.server.shutdown()
    camera.server.server_close()


CONFIG = """
nodes:
  camera:     {{use: camera, device: "{url}"}}
  microphone: {{use: synthetic, encoding: pcm_f32, rate_hz: 50}}
  align:
    use: align
    inputs: [camera, microphone]
    anchor: camera
    max_wait_ms: 60
    pick: {{microphone: {{policy: window, before_ms: 500}}}}
  emotion:    {{use: infer, inputs: [{{from: align, queue: 2}}], process: align}}
"""


@pytest.mark.paced
def test_covered_lens_and_pulled_cable_are_said_and_both_recover(folder: Path, lens: FailingCamera) -> None:
    """Each step waits for the predictions to say so, so that the test needs no guess about time."""
    config, out = folder / "failing.yaml", folder / "out.jsonl"
    config.write_text(CONFIG.format(url=lens.url))
    with running(folder, "run", str(config), "--no-dashboard", "--out", str(out)) as live:
        wait_for(out, lambda p: p["subjects"])
        lens.picture = lens.dark
        wait_for(out, lambda p: state(p, "camera") == "bad")
        time.sleep(0.5)
        lens.picture = lens.face
        wait_for(out, lambda p: p["subjects"])
        lens.picture = None
        wait_for(out, lambda p: state(p, "camera") == "silent")
        time.sleep(1.0)
        lens.picture = lens.face
        wait_for(out, lambda p: p["subjects"])
        live.interrupt()
        assert live.wait() == 0, live.err
    *predictions, summary = map(json.loads, out.read_text().splitlines())

    dark = [p for p in predictions if state(p, "camera") == "bad"]
    assert dark and all(p["missing"] == ["camera"] and p["label"] is None for p in dark[5:])
    assert "covered lens" in dark[0]["receipts"][0]["reason"]

    silent = [p for p in predictions if state(p, "camera") == "silent"]
    assert len(silent) > 10, "sets go on at the camera's last rate"
    assert all("camera" in p["missing"] and p["label"] is None for p in silent)
    # The microphone carries on while the camera is away.
    assert sum(state(p, "microphone") in ("exact", "partial") for p in silent) > 0.9 * len(silent)

    assert predictions[-1]["subjects"] and "camera" in predictions[-1]["used"]
    stamps = [p["capture_ns"] for p in predictions]
    assert stamps == sorted(set(stamps))
    assert summary["unaccounted"] == {}


def state(prediction: dict[str, Any], stream: str) -> str:
    return next(r["state"] for r in prediction["receipts"] if r["stream"] == stream)


def wait_for(out: Path, wanted: Any, *, timeout_s: float = 20) -> None:
    """Until a prediction written from now on is as wanted."""
    already = len(out.read_text().splitlines()) if out.exists() else 0
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        lines = out.read_text().splitlines()[already:] if out.exists() else []
        if any(wanted(p) for p in map(json.loads, lines) if "task" in p):
            return
        time.sleep(0.05)
    raise TimeoutError("no prediction was as wanted")
