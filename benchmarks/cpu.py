"""What the demo's graph needs of the processor for each picture once it flows, by process: no start-up in it.

Example:
    python -m benchmarks.cpu [--runs 3] [--against OTHER_CHECKOUT] [--no-dashboard] [--unpaced] [--json OUT.json]

From the health of the run, between its 60th and its 300th picture; the launcher's own from /proc (Linux). Another
checkout is run in turns with this one. The clip has 24 pictures a second: `at 30` is what 30 a second take of one core.
On a machine that is too busy for that, sets are shed, which costs less: `predicted` is the share that was not.
--unpaced takes the clip as fast as it is read, and sheds nothing.
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

from benchmarks.start import session_cpu_s
from pipeline.frame import Health
from pipeline.runtime.subscribe import subscribe

ROOT = Path(__file__).resolve().parent.parent
PORT = 8174
FIRST, LAST = 60, 300  # pictures
UNPACED = ("nodes.camera.realtime=false", "nodes.microphone.realtime=false", "nodes.align.max_wait_ms=null")


def one_run(checkout: Path, *, page: bool, paced: bool) -> dict[str, float]:
    """Process → milliseconds of CPU a picture, of `emotion` a prediction. "predicted": the share of pictures."""
    command = [sys.executable, str(checkout / "run_pipeline.py"), "demo"]
    command += ["--set", f"nodes.dashboard.port={PORT}"] if page else ["--no-dashboard"]
    command += [] if paced else [word for setting in UNPACED for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        running = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | {"XDG_RUNTIME_DIR": folder},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            graph = _graph(Path(folder), running)
            marks: list[tuple[Health, float]] = []
            for health in subscribe("health", address=graph["streams"]["health"]):
                pictures = next(n.produced for n in health.nodes if n.node == "camera")
                if pictures >= (LAST if marks else FIRST):
                    marks.append((health, session_cpu_s(running.pid)))
                    if len(marks) == 2:
                        break
        finally:
            running.send_signal(signal.SIGINT)
            running.wait()
    if len(marks) < 2:
        raise SystemExit(f"{checkout}: the demo ended early: run it by hand to see why")
    return _difference(*marks)


def _graph(folder: Path, running: subprocess.Popen[bytes]) -> dict[str, Any]:
    while running.poll() is None:
        for path in (folder / "sensorium").glob("*/graph.json"):
            graph: dict[str, Any] = json.loads(path.read_text())
            return graph
        time.sleep(0.02)
    raise SystemExit(f"the demo ended with exit code {running.returncode}: run it by hand to see why")


def _difference(before: tuple[Health, float], after: tuple[Health, float]) -> dict[str, float]:
    then, now = ({node.node: node for node in health.nodes} for health, _ in (before, after))
    pictures = now["camera"].produced - then["camera"].produced
    groups: dict[int, list[str]] = {}
    for node in now.values():
        groups.setdefault(node.pid, []).append(node.node)
    predicted = now["emotion"].produced - then["emotion"].produced
    cpu_ms = {}
    for names in groups.values():  # what predicts may be behind, or shed
        counted = predicted if "emotion" in names else pictures
        cpu_ms["+".join(names)] = (now[names[0]].cpu_s - then[names[0]].cpu_s) / max(1, counted) * 1e3
    spent_s = sum(now[names[0]].cpu_s - then[names[0]].cpu_s for names in groups.values())
    cpu_ms["launcher"] = max(0.0, after[1] - before[1] - spent_s) / pictures * 1e3
    cpu_ms["all"] = sum(cpu_ms.values())
    cpu_ms["predicted"] = predicted / pictures
    return cpu_ms


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--against", type=Path, help="the folder of another checkout, run in turns with this one")
    options.add_argument("--no-dashboard", action="store_true", help="without the page")
    options.add_argument("--unpaced", action="store_true", help="as fast as it goes, and every picture predicted")
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    checkouts = {"this checkout": ROOT, **({"the other": args.against.resolve()} if args.against else {})}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(args.runs):
        for name, checkout in checkouts.items():
            runs[name].append(one_run(checkout, page=not args.no_dashboard, paced=not args.unpaced))
    medians = {name: {key: float(np.median([run[key] for run in own])) for key in own[0]} for name, own in runs.items()}
    print(f"{args.runs} runs, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; ms of CPU a picture, median")
    print(f"{'':20}" + "".join(f"{name:>16}" for name in medians))
    for key in next(iter(medians.values())):
        unit = (lambda value: f"{value:16.0%}") if key == "predicted" else (lambda value: f"{value:16.2f}")
        print(f"{key:20}" + "".join(unit(each.get(key, float("nan"))) for each in medians.values()))
    print(f"{'at 30, of a core':20}" + "".join(f"{each['all'] * 30 / 1e3:16.0%}" for each in medians.values()))
    if args.json:
        args.json.write_text(json.dumps({"load": os.getloadavg()[0], "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
