"""The whole scene graph on the rendered drive, in real time: does it keep up with 10 Hz lidar and 10 Hz camera?

    python run_pipeline.py bench scene [--seconds 30] [--beams 32] [--depth] [--json out.json]

configs/scene-demo.yaml without the page and, unless --depth, without the depth camera. "After the sweep" is from the
moment at which the sweep's last ray returned to the prediction; the sweep itself lasts 100 ms. CPU counts every process
but takes off what rendering costs, measured by the same sources with nothing behind them, and what the start costs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "configs" / "scene-demo.yaml"


def graph(*, beams: int, depth: bool, scene: bool) -> dict[str, Any]:
    """The demo's graph for a measurement. scene False: the sources alone, read by a console."""
    nodes: dict[str, Any] = yaml.safe_load(DEMO.read_text())["nodes"]
    nodes.pop("dashboard", None)
    nodes["lidar"]["beams"] = beams
    if not depth:
        nodes.pop("depth")
        nodes["align"]["inputs"] = [name for name in nodes["align"]["inputs"] if name != "depth"]
    if not scene:
        sources = {name: node for name, node in nodes.items() if node["use"] == "rendered"}
        nodes = {**sources, "align": nodes["align"], "console": {"use": "console", "inputs": ["health"]}}
    return {"nodes": nodes}


def run(config: dict[str, Any], for_s: float) -> tuple[list[dict[str, Any]], float]:
    """Lines of --out, the summary last (none where nothing predicts), and the CPU seconds of all processes."""
    used_s = cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scene.yaml", Path(folder) / "predictions.jsonl"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, str(ROOT / "run_pipeline.py"), "run", str(path), "--for", f"{for_s}s"]
        command += ["--out", str(out)] if "scene" in config["nodes"] else []
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"the scene graph ended with exit code {ran.returncode}:\n{ran.stderr}")
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return lines, cpu_s() - used_s


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def after_the_sweep_ms(prediction: dict[str, Any]) -> float | None:
    """From the end of the newest sweep to the prediction; None where there was no sweep."""
    receipt = next((r for r in prediction["receipts"] if r["stream"] == "lidar" and r["span_ns"]), None)
    return (
        None if receipt is None else prediction["timing_ms"]["total"] - (receipt["skew_ns"] + receipt["span_ns"]) / 1e6
    )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--seconds", type=float, default=30)
    options.add_argument("--beams", type=int, default=32, choices=(16, 32, 64))
    options.add_argument("--depth", action="store_true", help="with the depth camera")
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    config = graph(beams=args.beams, depth=args.depth, scene=True)
    (*predictions, whole), whole_s = run(config, args.seconds)
    (*_, short), short_s = run(config, 1)
    sources = graph(beams=args.beams, depth=args.depth, scene=False)
    bare_s = run(sources, args.seconds)[1] - run(sources, 1)[1]
    after_ms = [ms for p in predictions if (ms := after_the_sweep_ms(p)) is not None]
    sweeps = whole["frames_in"]["lidar"]
    cpu_ms = (whole_s - short_s - bare_s) * 1e3 / max(1, sweeps - short["frames_in"]["lidar"])
    p50, p95, p99 = np.percentile(after_ms, (50, 95, 99))
    print(f"{'ms':<44}{'p50':>8}{'p95':>8}{'p99':>8}")
    print(f"{'from the end of the sweep to the prediction':<44}{p50:8.1f}{p95:8.1f}{p99:8.1f}")
    for name, label in (("wait", "waiting for the others"), ("infer", "the scene task")):
        timing = whole["timing_ms"][name]
        print(f"{'  ' + label:<44}{timing['p50']:8.1f}{timing['p95']:8.1f}{timing['p99']:8.1f}")
    states = Counter(p["surroundings"]["ahead"]["state"] for p in predictions)
    frames = ", ".join(f"{count} of {name}" for name, count in whole["frames_in"].items())
    print(
        f"frames {frames}; {whole['sets']} sets, {whole['predictions']} predictions; "
        f"dropped {whole['dropped'] or 'none'}, "
        f"unaccounted {whole['unaccounted'] or 'none'}"
    )
    print(f"the way ahead: {', '.join(f'{state} {count}' for state, count in states.items())}")
    print(f"CPU of the graph, rendering and start taken off: {cpu_ms:.0f} ms a sweep")
    if args.json:
        args.json.write_text(
            json.dumps({"after_the_sweep_ms": [p50, p95, p99], "summary": whole, "cpu_ms_a_sweep": cpu_ms}, indent=2)
        )


if __name__ == "__main__":
    main()
