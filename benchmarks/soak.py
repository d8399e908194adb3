"""A whole graph for hours: memory, descriptors, threads and latency must stay flat, nothing may be lost or torn.

Example:
    python -m benchmarks.soak --hours 2 [--graph cameras] [--json out.json]

The graph is run by the command line. `emotion` (the default): the packaged clip in a loop through camera, microphone,
alignment and the emotion task. `cameras`: four 1080p cameras at 30 Hz, all aligned, and a task that reads the number
drawn in every picture.

Each process is measured every 2 s: its unshared memory, open descriptors and threads; the shared memory of the run; and
the cores that other programs took, for a latency measured on a busy machine says little about this program. The first
fifth of the time (at most ten minutes) is warm-up. After it, *an hour* is the slope of a least-squares line with its
standard error, and *grown* the difference between the medians of the last and the first tenth.

Exit code 1 when the processes have together grown by more than --max-growth-mb, when one of them holds more descriptors
or threads at the end than after the warm-up, when something was restarted, torn or is unaccounted for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nodes.synthetic import picture_number
from pipeline.frame import AlignedSet, Prediction
from pipeline.runtime.run_folder import announced_runs
from pipeline.runtime.subscribe import subscribe
from pipeline.task import Task

CAMERAS = 4
SAMPLE_EVERY_S = 2.0
WARM_UP_SHARE, MAX_WARM_UP_S = 0.2, 600.0
ROOT = Path(__file__).resolve().parent.parent

EMOTION = """nodes:
  camera: {use: camera, device: "asset:demo-clip", loop: true}
  microphone: {use: microphone, device: "asset:demo-clip", loop: true, sample_rate_hz: 16000, chunk_ms: 20}
  align: {use: align, inputs: [camera, microphone], anchor: camera, max_wait_ms: 60,
          sync: {microphone: {policy: window, before_ms: 1000}}}
  emotion: {use: infer, task: emotion, inputs: [{from: align, queue: 2}], process: align}
"""


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


def config(graph: str) -> str:
    if graph == "emotion":
        return EMOTION
    names = [f"camera{i}" for i in range(CAMERAS)]
    cameras = "".join(f"  {n}: {{use: synthetic, width_px: 1920, height_px: 1080, rate_hz: 30}}\n" for n in names)
    return (
        f"nodes:\n{cameras}"
        f"  align: {{use: align, inputs: [{', '.join(names)}], anchor: camera0, max_wait_ms: 60}}\n"
        f'  whole: {{use: infer, task: "benchmarks.soak:Whole", inputs: [align], process: align}}\n'
    )


@dataclass
class Series:
    """One process over the run, a value for every sample."""

    seconds: list[float] = field(default_factory=list)
    unshared_mb: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)


class Watch:
    """Samples the processes of a run until it ends."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self._run, self._process = run, psutil.Process(run.pid)
        self._names = {run.pid: "launcher"}
        self.began_s = time.monotonic()
        self.began_ns = time.monotonic_ns()
        self.processes: defaultdict[str, Series] = defaultdict(Series)
        self.shared_mb: list[float] = []
        self.others_cores: list[tuple[float, float]] = []  # second of the run, cores that other programs took
        threading.Thread(target=self._read_names, daemon=True).start()

    def _read_names(self) -> None:
        """Which process runs which nodes, from the run's own health."""
        while self._run.poll() is None:
            mine = [run for run in announced_runs() if run["pid"] == self._run.pid]
            if not mine:
                time.sleep(0.1)
                continue
            for health in subscribe("health", address=mine[0]["streams"]["health"]):
                nodes = defaultdict(list)
                for node in health.nodes:
                    nodes[node.pid].append(node.node)
                self._names |= {pid: " + ".join(names) for pid, names in nodes.items() if pid}

    def to_the_end(self) -> int:
        """The exit code of the run."""
        busy_s, own_s, at_s = _busy_s(), self._own_s(), time.monotonic()
        while self._run.poll() is None:
            time.sleep(SAMPLE_EVERY_S)
            self._sample()
            new_busy_s, new_own_s, now_s = _busy_s(), self._own_s(), time.monotonic()
            others = max(0.0, (new_busy_s - busy_s - max(0.0, new_own_s - own_s)) / (now_s - at_s))
            self.others_cores.append((now_s - self.began_s, others))
            busy_s, own_s, at_s = new_busy_s, new_own_s, now_s
        return self._run.wait()

    def _alive(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _own_s(self) -> float:
        total_s = 0.0
        for process in self._alive():
            try:
                times = process.cpu_times()
                total_s += times.user + times.system
            except psutil.Error:
                continue
        return total_s

    def _sample(self) -> None:
        now_s = time.monotonic() - self.began_s
        shared: dict[int, int] = {}  # by inode, since every reader has the memory open too
        for process in self._alive():
            try:
                with process.oneshot():
                    memory = process.memory_info()
                    descriptors, threads = process.num_fds(), process.num_threads()
                for path in Path(f"/proc/{process.pid}/fd").iterdir():
                    if os.readlink(path).startswith("/memfd:sensorium-"):
                        status = path.stat()
                        shared[status.st_ino] = status.st_blocks * 512
            except (psutil.Error, OSError):
                continue
            series = self.processes[self._names.get(process.pid, "guard of the launcher")]
            series.seconds.append(now_s)
            series.unshared_mb.append((memory.rss - memory.shared) / 1e6)
            series.descriptors.append(descriptors)
            series.threads.append(threads)
        self.shared_mb.append(sum(shared.values()) / 1e6)


def _busy_s() -> float:
    """CPU time of all programs of this machine so far, all cores together."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice + times.softirq + times.irq


@dataclass(frozen=True)
class Trend:
    """A quantity after the warm-up."""

    first: float  # median of the first tenth
    last: float  # median of the last tenth
    an_hour: float  # slope of a least-squares line
    error_an_hour: float  # its standard error, as if all samples were independent

    @property
    def grown(self) -> float:
        return self.last - self.first


def trend(seconds: list[float], values: list[float], warm_up_s: float) -> Trend | None:
    """None: too short to say."""
    after = [(s, v) for s, v in zip(seconds, values, strict=True) if s >= warm_up_s][:-2]  # the last are of its end
    if len(after) < 20:
        return None
    s, v = np.array(after).T
    (slope, _), covariance = np.polyfit(s, v, 1, cov=True)
    tenth = max(1, len(v) // 10)
    return Trend(
        float(np.median(v[:tenth])),
        float(np.median(v[-tenth:])),
        float(slope) * 3600,
        float(np.sqrt(max(0.0, covariance[0, 0]))) * 3600,
    )


def latencies_ms(out: Path, began_ns: int) -> list[tuple[float, float]]:
    """(second of the run, capture → answer) of every prediction."""
    pairs = []
    with out.open() as lines:
        for line in lines:
            row = json.loads(line)
            if "timing_ms" in row and "capture_ns" in row:
                pairs.append(((row["capture_ns"] - began_ns) / 1e9, float(row["timing_ms"]["total"])))
    return pairs


def report(watch: Watch, latency: list[tuple[float, float]], *, warm_up_s: float, max_growth_mb: float) -> list[str]:
    """Print the tables; returns what does not hold."""
    failures = []
    grown_mb = an_hour_mb = 0.0
    print(f"\nafter a warm-up of {warm_up_s:.0f} s; MB of unshared memory")
    print(f"{'process':<28}{'first':>8}{'last':>8}{'grown':>8}{'an hour':>16}{'descriptors':>14}{'threads':>10}")
    for name, series in watch.processes.items():
        memory = trend(series.seconds, series.unshared_mb, warm_up_s)
        if memory is None:
            print(f"{name:<28}  (too short-lived to say)")
            continue
        line = f"{name:<28}{memory.first:8.1f}{memory.last:8.1f}{memory.grown:+8.2f}"
        line += f"{memory.an_hour:+9.2f} ± {memory.error_an_hour:4.2f}"
        for what, values in (("descriptors", series.descriptors), ("threads", series.threads)):
            count = trend(series.seconds, values, warm_up_s)
            assert count is not None
            line += f"{count.first:7.0f} → {count.last:<4.0f}"
            if count.last > count.first:
                failures.append(f"{name}: {count.first:.0f} → {count.last:.0f} {what}")
        grown_mb, an_hour_mb = grown_mb + memory.grown, an_hour_mb + memory.an_hour
        print(line)
    print(f"{'all processes':<28}{'':16}{grown_mb:+8.2f}{an_hour_mb:+9.2f}")
    if not an_hour_mb:
        failures.append("the run was too short to say anything about memory")
    if grown_mb > max_growth_mb:
        failures.append(f"memory has grown by {grown_mb:.1f} MB after the warm-up (at most {max_growth_mb:g})")
    if watch.shared_mb:
        print(f"{'shared memory':<28}{watch.shared_mb[len(watch.shared_mb) // 5]:8.1f}{watch.shared_mb[-2]:8.1f}")
    _report_latency(watch, [pair for pair in latency if pair[0] >= warm_up_s])
    return failures


def _report_latency(watch: Watch, latency: list[tuple[float, float]]) -> None:
    if len(latency) < 100:
        return
    print(f"\n{'capture → answer, ms':<28}{'p50':>8}{'p99':>8}{'cores of other programs':>28}")
    seconds = np.array([s for s, _ in latency])
    for part in np.array_split(np.arange(len(latency)), 10):
        values = np.array([latency[i][1] for i in part])
        begin_s, end_s = seconds[part[0]], seconds[part[-1]]
        others = [cores for s, cores in watch.others_cores if begin_s <= s <= end_s]
        print(
            f"{begin_s:8.0f} to {end_s:8.0f} s {'':6}{np.percentile(values, 50):8.1f}{np.percentile(values, 99):8.1f}"
            f"{np.mean(others) if others else 0.0:28.2f}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--hours", type=float, default=1.0, help="how long to run (default: 1)")
    options.add_argument("--graph", choices=("emotion", "cameras"), default="emotion")
    options.add_argument(
        "--max-growth-mb", type=float, default=4.0, help="of all processes after the warm-up (default: 4)"
    )
    options.add_argument("--json", type=Path, help="write all samples here")
    args = options.parse_args()
    run_s = args.hours * 3600
    warm_up_s = min(WARM_UP_SHARE * run_s, MAX_WARM_UP_S)
    with tempfile.TemporaryDirectory() as folder:
        graph, out = Path(folder) / "soak.yaml", Path(folder) / "out.jsonl"
        graph.write_text(config(args.graph))
        command = [sys.executable, str(ROOT / "run_pipeline.py"), "run", str(graph), "--out", str(out)]
        run = subprocess.Popen([*command, "--for", f"{run_s:.0f}s"], cwd=ROOT, stdout=subprocess.DEVNULL)
        watch = Watch(run)
        exit_code = watch.to_the_end()
        if exit_code != 0:
            raise SystemExit(f"the run ended with exit code {exit_code}")
        latency = latencies_ms(out, watch.began_ns)
        torn = 0
        with out.open() as lines:
            for line in lines:
                torn += '"label":"torn"' in line.replace(": ", ":")
        summary: dict[str, Any] = json.loads(line)
    failures = report(watch, latency, warm_up_s=warm_up_s, max_growth_mb=args.max_growth_mb)
    print(
        f"\nframes in {sum(summary['frames_in'].values())}, sets {summary['sets']}, predictions "
        f"{summary['predictions']}, torn {torn}, dropped {summary['dropped'] or 'none'}, "
        f"unaccounted {summary['unaccounted'] or 'none'}"
    )
    cpu_ms = summary["cpu_s"] * 1e3 / max(1, sum(summary["frames_in"].values()))
    print(f"capture → answer of the whole run: {summary['latency_ms']} ms; CPU {cpu_ms:.1f} ms a frame")
    for name in ("unaccounted", "restarts"):
        failures += [f"{name}: {summary[name]}"] if summary[name] else []
    failures += [f"{torn} sets with torn pictures"] if torn else []
    if args.json:
        series = {name: vars(process) for name, process in watch.processes.items()}
        figures = {"hours": args.hours, "summary": summary, "processes": series, "shared_mb": watch.shared_mb}
        args.json.write_text(json.dumps({**figures, "latency_ms": latency, "failures": failures}))
    if failures:
        raise SystemExit("does not hold: " + "; ".join(failures))
    print(f"holds: memory within {args.max_growth_mb:g} MB, descriptors and threads flat, every message accounted for")


if __name__ == "__main__":
    main()
