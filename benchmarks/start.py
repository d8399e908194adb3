"""How long a person waits for the first prediction: the demo, from the command to the first line of --out.

Example:
    python -m benchmarks.start [--runs 5] [--against OTHER_CHECKOUT] [--no-dashboard] [--json OUT.json]

CPU is what every process of the run has used by then, its ended children too (Linux: /proc). Another checkout is run in
turns with this one, so that whatever else the machine does weighs on both alike; the first turn fills caches and is
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PORT = 8172
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def first_prediction(checkout: Path, *, page: bool) -> dict[str, float]:
    """Seconds from the command to the first prediction: of the wall, and of the CPU of all processes."""
    command = [sys.executable, str(checkout / "run_pipeline.py"), "demo"]
    command += ["--set", f"nodes.dashboard.port={PORT}"] if page else ["--no-dashboard"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "predictions.jsonl"
        began_s = time.monotonic()
        # A session of its own: all that it starts is found by it, whatever its parent is by then.
        running = subprocess.Popen(
            [*command, "--out", str(out)],
            cwd=checkout,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (out.exists() and out.stat().st_size):
            if running.poll() is not None:
                raise SystemExit(
                    f"{checkout}: the demo ended with exit code {running.returncode}: run it by hand to see why"
                )
            time.sleep(0.005)
        wall_s, cpu_s = time.monotonic() - began_s, session_cpu_s(running.pid)
        running.send_signal(signal.SIGINT)
        running.wait()
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def session_cpu_s(session: int) -> float:
    """User and system time of the processes of a session, and of those of their children that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_A_SECOND


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--against", type=Path, help="the folder of another checkout, run in turns with this one")
    options.add_argument("--no-dashboard", action="store_true", help="without the page")
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    checkouts = [ROOT, *([args.against.resolve()] if args.against else [])]
    runs: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for turn in range(args.runs + 1):
        for checkout in checkouts:
            figures = first_prediction(checkout, page=not args.no_dashboard)
            if turn:
                runs[checkout].append(figures)
    report: dict[str, Any] = {"load": round(os.getloadavg()[0], 1), "processors": os.cpu_count(), "runs": args.runs}
    print(f"{args.runs} runs, {report['processors']} processors, load {report['load']}")
    print(f"{'first prediction after the command':<44}{'wall s':>8}{'least':>8}{'most':>8}{'CPU s':>8}")
    for checkout, own in runs.items():
        wall_s, cpu_s = (np.array([run[key] for run in own]) for key in ("wall_s", "cpu_s"))
        report[str(checkout)] = {"wall_s": wall_s.tolist(), "cpu_s": cpu_s.tolist()}
        name = "this checkout" if checkout == ROOT else "the other"
        print(f"{name:<44}{np.median(wall_s):8.2f}{wall_s.min():8.2f}{wall_s.max():8.2f}{np.median(cpu_s):8.2f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
