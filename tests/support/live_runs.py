"""Predictions of a whole run in real time, and a camera whose lens and cable a test controls."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from pipeline import assets

ROOT = Path(__file__).resolve().parents[2]


def run_to_end(*arguments: str | Path, out: Path, timeout_s: float = 60) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Predictions and summary of one run of the command line."""
    command = [sys.executable, "run_pipeline.py", *map(str, arguments), "--no-dashboard", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    *predictions, summary = map(json.loads, out.read_text().splitlines())
    return predictions, summary


def receipt_state(prediction: dict[str, Any], stream: str) -> str:
    return next(r["state"] for r in prediction["receipts"] if r["stream"] == stream)


def wait_for_prediction(out: Path, matches: Callable[[dict[str, Any]], Any], *, timeout_s: float = 20) -> None:
    """Until a prediction that is written from now on matches."""
    already = len(out.read_text().splitlines()) if out.exists() else 0
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        lines = out.read_text().splitlines()[already:] if out.exists() else []
        if any(matches(p) for p in map(json.loads, lines) if "task" in p):
            return
        time.sleep(0.05)
    raise TimeoutError("no prediction matched")


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
