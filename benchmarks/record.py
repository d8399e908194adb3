"""Records 1080p at 30 Hz and sound for a given time: memory must stay flat, and every message must be in the file.

    python -m benchmarks.record [--minutes 30] [--jpeg] [--json out.json]

The sources are not paced, so half an hour takes as long as the machine needs for 54,000 pictures; they wait for the
recorder, so nothing may be lost. Pictures are stored as captured, or as JPEG. The file is split at 1 GB and each part
removed once it is closed and its messages are counted: half an hour needs 2 GB of disk. Memory is the unshared memory
of the recorder's process, printed every minute of the recording; *growth* compares its last quarter with its second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from pipeline.recording.part import part_path
from pipeline.recording.reader import Reader

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ, CHUNKS_HZ = 30, 50
GRAPH = """nodes:
  camera: {{use: synthetic, width_px: 1920, height_px: 1080, rate_hz: 30, count: {pictures}, realtime: false}}
  microphone: {{use: synthetic, encoding: pcm_f32, rate_hz: 50, count: {chunks}, realtime: false}}
  record: {{use: record, path: "{path}", split_mb: 1000, jpeg: {jpeg}, inputs: [camera, microphone, health]}}
"""


def recorder_of(run: psutil.Process) -> psutil.Process | None:
    """The process that has the recording open."""
    for child in run.children(recursive=True):
        try:
            if any(file.path.endswith(".mcap") for file in child.open_files()):
                return child
        except psutil.Error:
            continue
    return None


def counted(path: Path) -> Counter[str]:
    """The messages in one part, which is then removed."""
    alone = path.with_name("counted.mcap")  # so that the parts after it are not read with it
    path.rename(alone)
    with Reader(alone) as reader:
        counts = Counter({stream: count for stream, count in reader.counts.items() if stream != "health"})
    alone.unlink()
    return counts


class Measured(NamedTuple):
    took_s: float
    size_bytes: int
    counts: Counter[str]  # messages by stream
    memory_mb: list[float]  # of the recorder, once a second


def measure(folder: Path, expected: dict[str, int], *, jpeg: bool) -> Measured:
    """Run the graph until its sources end; each part of the recording is counted and removed once the next exists."""
    path, graph = folder / "rec.mcap", folder / "graph.yaml"
    streams = {"pictures": expected["camera"], "chunks": expected["microphone"]}
    graph.write_text(GRAPH.format(**streams, path=path, jpeg="[camera]" if jpeg else "[]"))
    counts: Counter[str] = Counter()
    memory_mb: list[float] = []
    start_s, part, size_bytes, minute = time.monotonic(), 0, 0, 0
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "run_pipeline.py"), "run", str(graph)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    recorder: psutil.Process | None = None
    while run.poll() is None:
        time.sleep(1.0)
        while part_path(path, part + 1).exists():  # the part before it is closed
            size_bytes += part_path(path, part).stat().st_size
            counts += counted(part_path(path, part))
            part += 1
        try:
            recorder = recorder or recorder_of(psutil.Process(run.pid))
            if recorder is not None:
                used = recorder.memory_info()
                memory_mb.append((used.rss - used.shared) / 1e6)
        except psutil.NoSuchProcess:
            continue
        if memory_mb and time.monotonic() - start_s >= 60 * (minute + 1):
            minute += 1
            print(f"{minute:4d} min: recorder {memory_mb[-1]:6.1f} MB, {part} files of 1 GB closed", flush=True)
    if run.returncode != 0:
        raise SystemExit(f"the run ended with exit code {run.returncode}")
    took_s = time.monotonic() - start_s
    size_bytes += part_path(path, part).stat().st_size
    return Measured(took_s, size_bytes, counts + counted(part_path(path, part)), memory_mb)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--jpeg", action="store_true", help="store pictures as JPEG")
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    expected = {"camera": round(args.minutes * 60 * RATE_HZ), "microphone": round(args.minutes * 60 * CHUNKS_HZ)}
    with tempfile.TemporaryDirectory() as folder:
        took_s, size_bytes, counts, memory_mb = measure(Path(folder), expected, jpeg=args.jpeg)
    lost = {stream: expected[stream] - counts[stream] for stream in expected if expected[stream] != counts[stream]}
    quarter = max(1, len(memory_mb) // 4)
    second, last = np.mean(memory_mb[quarter : 2 * quarter]), np.mean(memory_mb[-quarter:])
    print(
        f"{args.minutes:g} min of 1080p and sound recorded in {took_s / 60:.1f} min: {size_bytes / 1e9:.2f} GB, "
        f"{counts.total()} messages, lost {lost or 'none'}"
    )
    print(
        f"recorder's memory: second quarter {second:.1f} MB, last quarter {last:.1f} MB, growth {last - second:+.1f} MB"
    )
    if args.json:
        figures = {
            "minutes": args.minutes,
            "took_s": took_s,
            "bytes": size_bytes,
            "counts": counts,
            "lost": lost,
            "memory_mb": memory_mb,
        }
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
