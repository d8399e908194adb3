"""Four 1080p cameras at 30 Hz through a whole graph for minutes: memory must not grow, nothing may be lost or torn.

Example:
    python -m benchmarks.soak [--minutes 10] [--json out.json]

The graph is run by the command line: one process per camera, all four aligned, and a task that reads the number drawn
in every picture. Memory is the unshared memory of all processes, and the shared memory of the run; *drift* is the slope
of a line through the second half, in MB per hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nodes.synthetic import picture_number
from pipeline.frame import AlignedSet, Prediction
from pipeline.task import Task

CAMERAS = 4
SAMPLE_EVERY_S = 2.0
ROOT = Path(__file__).resolve().parent.parent


class Whole(Task):
    """Whether every picture of a set shows its own number; counts those that do not."""

    name = "whole"
    labels = ("whole", "torn")
    model = "none@0"

    def predict(self, aligned: AlignedSet) -> Prediction:
        frames = [frame for many in aligned.frames.values() for frame in many]
        torn = sum(picture_number(frame.data) != frame.seq for frame in frames)
        self.metrics.facts["torn"] = str(int(self.metrics.facts.get("torn", "0")) + torn)
        return self.prediction(aligned, np.float32([not torn, bool(torn)]), used=tuple(aligned.frames))


def config() -> str:
    names = [f"camera{i}" for i in range(CAMERAS)]
    cameras = "".join(f"  {n}: {{use: synthetic, width_px: 1920, height_px: 1080, rate_hz: 30}}\n" for n in names)
    return (
        f"nodes:\n{cameras}"
        f"  align: {{use: align, inputs: [{', '.join(names)}], anchor: camera0, max_wait_ms: 60}}\n"
        f'  whole: {{use: infer, task: "benchmarks.soak:Whole", inputs: [align], process: align}}\n'
    )


def megabytes(run: psutil.Process) -> tuple[float, float]:
    """(unshared memory of the run's processes, shared memory of the run)."""
    own, shared = 0, dict[int, int]()  # shared: by inode, since every reader has the memory open too
    for process in [run, *run.children(recursive=True)]:
        try:
            memory = process.memory_info()
            own += memory.rss - memory.shared
            for path in Path(f"/proc/{process.pid}/fd").iterdir():
                if os.readlink(path).startswith("/memfd:sensorium-"):
                    status = path.stat()
                    shared[status.st_ino] = status.st_blocks * 512
        except (psutil.NoSuchProcess, OSError):
            continue
    return own / 1e6, sum(shared.values()) / 1e6


def drift_mb_an_hour(times_s: list[float], values_mb: list[float]) -> float:
    half = len(times_s) // 2
    return float(np.polyfit(times_s[half:], values_mb[half:], 1)[0]) * 3600


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        graph, out = Path(folder) / "soak.yaml", Path(folder) / "out.jsonl"
        graph.write_text(config())
        command = [sys.executable, str(ROOT / "run_pipeline.py"), "run", str(graph), "--out", str(out)]
        run = subprocess.Popen([*command, "--for", f"{args.minutes * 60:.0f}s"], cwd=ROOT, stdout=subprocess.DEVNULL)
        began_s, times_s, own_mb, shared_mb = time.monotonic(), [], [], []
        while run.poll() is None:
            time.sleep(SAMPLE_EVERY_S)
            try:
                own, shared = megabytes(psutil.Process(run.pid))
            except psutil.NoSuchProcess:
                break
            if shared:
                times_s.append(time.monotonic() - began_s)
                own_mb.append(own)
                shared_mb.append(shared)
        if run.wait() != 0:
            raise SystemExit(f"the run ended with exit code {run.returncode}")
        lines = out.read_text().splitlines()
    summary: dict[str, Any] = json.loads(lines[-1])
    torn = sum(json.loads(line)["label"] != "whole" for line in lines[:-1])
    times_s, own_mb, shared_mb = times_s[:-2], own_mb[:-2], shared_mb[:-2]  # the last samples are of processes that end
    figures = {
        "minutes": args.minutes,
        "summary": summary,
        "torn": torn,
        "own_mb": own_mb,
        "shared_mb": shared_mb,
        "seconds": times_s,
        "own_drift_mb_an_hour": drift_mb_an_hour(times_s, own_mb),
        "shared_drift_mb_an_hour": drift_mb_an_hour(times_s, shared_mb),
    }
    print(f"{'MB':<12}{'at 10 s':>10}{'middle':>10}{'end':>10}{'drift an hour':>16}")
    for name, values, drift in (("processes", own_mb, "own"), ("shared", shared_mb, "shared")):
        early = values[min(5, len(values) - 1)]
        print(
            f"{name:<12}{early:10.1f}{values[len(values) // 2]:10.1f}{values[-1]:10.1f}"
            f"{figures[drift + '_drift_mb_an_hour']:16.1f}"
        )
    print(
        f"frames in {sum(summary['frames_in'].values())}, sets {summary['sets']}, torn {torn}, "
        f"dropped {summary['dropped'] or 'none'}, unaccounted {summary['unaccounted'] or 'none'}"
    )
    cpu_ms = summary["cpu_s"] * 1e3 / max(1, sum(summary["frames_in"].values()))
    print(f"capture → answer: {summary['latency_ms']} ms; CPU {cpu_ms:.1f} ms a picture, drawing it included")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
