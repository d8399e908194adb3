"""The whole demo in real time, beside the plain loop that a person would write, in one run on one machine.

Example:
    python -m benchmarks.live [--json out.json] [--page]

The plain loop reads the clip, finds faces in every picture (CenterFace), classifies each and draws, on one thread, as
fast as it can; both use the same models. CPU counts every process of the graph; its start-up is measured by a run of
one second and taken off. --page opens the page in a headless Chromium (/usr/bin/chromium), as a person would have it
open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PORT = 8171


def graph(*, page: bool, for_s: float | None = None) -> dict[str, Any]:
    """The summary of one run of the demo, and the seconds from its start to its first prediction."""
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "demo", "--set", f"nodes.dashboard.port={PORT}"]
    command += [] if page else ["--no-dashboard"]
    command += ["--for", f"{for_s}s"] if for_s else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "predictions.jsonl"
        started_s = time.monotonic()
        running = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out.exists() and out.stat().st_size) and running.poll() is None:
            time.sleep(0.01)
        first_s = time.monotonic() - started_s
        browser = _browser() if page else None
        if running.wait() != 0:
            raise SystemExit(f"the demo ended with exit code {running.returncode}: run it by hand to see why")
        if browser:
            browser.terminate()
        summary: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
    return summary | {"first_prediction_s": round(first_s, 2)}


def _browser() -> subprocess.Popen[bytes]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--window-size=1280,900"]
    profile = tempfile.mkdtemp()
    address = f"http://127.0.0.1:{PORT}/"
    return subprocess.Popen(
        ["/usr/bin/chromium", *flags, f"--user-data-dir={profile}", address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def plain_loop() -> dict[str, float]:
    """Read, detect, classify, draw: milliseconds a frame (wall p50, p95, CPU) and frames a second."""
    import av
    import cv2

    from pipeline import assets
    from pipeline.inference.choose_backend import load
    from pipeline.installation import MODELS
    from pipeline.perception.expression.faces import FaceDetector
    from pipeline.preprocessing import face_crop, face_tensor

    detector = FaceDetector(load(assets.path("centerface")))
    classifier = load(MODELS / "face-expression.onnx")
    wall_ms = []
    cpu_s, began_s = time.process_time(), time.perf_counter()
    with av.open(str(assets.path("demo-clip"))) as clip:
        for picture in clip.decode(video=0):
            start_s = time.perf_counter()
            image = picture.to_ndarray(format="bgr24")
            for face in detector.whole(image):
                x, y, w, h = (int(v) for v in face.box_px)
                crop = face_tensor(face_crop(image, face.box_px, face.landmarks_px))
                label = int(np.argmax(classifier.run({"face": crop[None]})["logits"]))
                cv2.rectangle(image, (x, y), (x + w, y + h), (0, 255, 0), 2)
                cv2.putText(image, str(label), (x, y), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 255, 0))
            wall_ms.append((time.perf_counter() - start_s) * 1e3)
    frames = len(wall_ms)
    return {
        "p50_ms": float(np.percentile(wall_ms, 50)),
        "p95_ms": float(np.percentile(wall_ms, 95)),
        "cpu_ms_a_frame": (time.process_time() - cpu_s) * 1e3 / frames,
        "frames_a_second": frames / (time.perf_counter() - began_s),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--page", action="store_true", help="with the page open in a browser")
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    start_up = graph(page=args.page, for_s=1)
    whole = graph(page=args.page)
    plain = plain_loop()
    frames, extra = whole["frames_in"]["camera"], start_up["frames_in"]["camera"]
    cpu_ms = (whole["cpu_s"] - start_up["cpu_s"]) * 1e3 / (frames - extra)
    timing = whole["timing_ms"]
    lost = frames - whole["predictions"]
    print(f"{'ms a frame':<44}{'p50':>8}{'p95':>8}{'CPU':>8}")
    total = timing["total"]
    for name, row in (
        ("plain loop, one thread (detect every frame)", (plain["p50_ms"], plain["p95_ms"], plain["cpu_ms_a_frame"])),
        ("Sensorium, capture → prediction", (total["p50"], total["p95"], cpu_ms)),
    ):
        print(f"{name:<44}" + "".join(f"{value:8.1f}" for value in row))
    for name, label in (("wait", "waiting for the microphone"), ("infer", "models"), ("rest", "everything else")):
        print(f"{'  ' + label:<44}{timing[name]['p50']:8.1f}{timing[name]['p95']:8.1f}")
    print(
        f"frames {frames}, not predicted {lost} ({lost / frames:.1%}), unaccounted {whole['unaccounted'] or 'none'}; "
        f"first prediction {whole['first_prediction_s']} s after the command"
    )
    print(f"plain loop alone: {plain['frames_a_second']:.1f} frames a second")
    if args.json:
        figures = {"graph": whole, "graph_cpu_ms_a_frame": cpu_ms, "plain_loop": plain, "page": args.page}
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
