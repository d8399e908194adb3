"""Alignment beside ROS 2's ApproximateTime, latest-hold and a nearest join: errors, waiting time and cost.

    python -m benchmarks.align [--seconds 300] [--seeds 3] [--timestamps FOLDER] [--json out.json]

The other algorithms are our own re-implementations in Python, of the rules that each one's documentation states.
Generated streams with known truth: camera 30 Hz ±3 ms (the anchor), audio 50 Hz, lidar 10 Hz arriving 20 ms late, IMU
200 Hz; 1 % of all frames are dropped; transport delays jitter, so streams overtake each other (each stays in its own
order, as over any socket). A stereo pair has two cameras of 30 Hz ±3 ms. --timestamps adds the real, unsynchronised
colour and depth stamps of TUM's RGB-D camera.

    missed   anchors for which the offline optimum over the delivered frames has every stream, but no full set was sent
    wrong    full sets in which some stream's frame is not the nearest delivered one
    wait     from the arrival of the set's last member to its emission
    spread   of a stereo pair: |left − right|
    × join   time per message, as a multiple of what the nearest join takes
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.sync_policies import MS, Nearest
from pipeline.frame import Frame

SECOND = 1000 * MS


class Emitted(NamedTuple):
    """One set: stream → the frame's time, and the event time at which it came out."""

    anchor_ns: int
    times_ns: dict[str, int]
    at_ns: int


@dataclass
class Case:
    """Arrivals in order, the anchor's name and each other stream's tolerance."""

    name: str
    anchor: str
    within_ms: dict[str, float]
    arrivals: list[tuple[Frame, int]]

    def delivered(self) -> dict[str, list[Frame]]:
        streams: dict[str, list[Frame]] = {}
        for frame, _ in self.arrivals:
            streams.setdefault(frame.stream, []).append(frame)
        return streams


def stream(
    name: str,
    rate_hz: float,
    seconds: float,
    rng: np.random.Generator,
    *,
    jitter_ms: float = 0.2,
    delay_ms: float = 2,
    phase_ms: float = 0.0,
    drop: float = 0.01,
) -> list[tuple[Frame, int]]:
    """Frames of one sensor: even times with uniform jitter; a delay with an exponential tail of 0.5 ms; drops."""
    count = int(seconds * rate_hz)
    capture = (
        np.arange(count) / rate_hz * 1e9 + phase_ms * MS + rng.uniform(-jitter_ms, jitter_ms, count) * MS
    ).astype(np.int64)
    capture = np.maximum.accumulate(capture)
    arrival = np.maximum.accumulate(capture + ((delay_ms + rng.exponential(0.5, count)) * MS).astype(np.int64))
    delivered = rng.random(count) >= drop
    return [
        (Frame(name, i, int(capture[i]), "series_f32"), int(arrival[i])) for i in np.flatnonzero(delivered).tolist()
    ]


def rig(seconds: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    arrivals = [
        *stream("camera", 30, seconds, rng, jitter_ms=3, delay_ms=5),
        *stream("audio", 50, seconds, rng, phase_ms=3, delay_ms=2),
        *stream("lidar", 10, seconds, rng, phase_ms=7, delay_ms=20),
        *stream("imu", 200, seconds, rng, phase_ms=1, delay_ms=1),
    ]
    return Case(
        "rig, per camera frame", "camera", {"audio": 15, "lidar": 60, "imu": 5}, sorted(arrivals, key=lambda a: a[1])
    )


def stereo(seconds: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    arrivals = [
        *stream("left", 30, seconds, rng, jitter_ms=3, delay_ms=5),
        *stream("right", 30, seconds, rng, jitter_ms=3, delay_ms=6),
    ]
    return Case("stereo pair", "left", {"right": 0}, sorted(arrivals, key=lambda a: a[1]))


def tum(path: Path) -> Case:
    """Real capture times. Arrival times were not recorded: 5 ms later for colour, 8 ms for depth."""
    arrivals = []
    for seq, line in enumerate(line for line in path.read_text().splitlines() if line and not line.startswith("#")):
        colour_s, _, depth_s, _ = line.split()
        for name, seconds, delay_ms in (("colour", colour_s, 5), ("depth", depth_s, 8)):
            time_ns = round(float(seconds) * 1e6) * 1000
            arrivals.append((Frame(name, seq, time_ns, "series_f32"), time_ns + delay_ms * MS))
    return Case(f"real, {path.stem}", "colour", {"depth": 20}, sorted(arrivals, key=lambda a: a[1]))


# --- the contenders ---------------------------------------------------------------------------------------------------


def sensorium(case: Case, *, max_wait_ms: float | None = 120, emit: str = "ready") -> tuple[list[Emitted], float]:
    policies = {name: Nearest(within_ms=within or None) for name, within in case.within_ms.items()}
    wait_ns = None if max_wait_ms is None else round(max_wait_ms * MS)
    align = Aligner(case.anchor, policies, max_wait_ns=wait_ns, emit=emit, start_ns=case.arrivals[0][1])
    sets = []
    gc.collect()
    begin = time.thread_time()
    for frame, arrival_ns in case.arrivals:
        sets += align.add(frame, arrival_ns)
    sets += align.finish(case.arrivals[-1][1] + SECOND)
    took_s = time.thread_time() - begin
    return [
        Emitted(s.anchor_ns, {name: frames[0].capture_ns for name, frames in s.frames.items()}, s.sent_ns) for s in sets
    ], took_s


def approximate_time(case: Case, *, slop_ms: float = 50, age_penalty: float = 0.1) -> tuple[list[Emitted], float]:
    """ROS 2's message_filters ApproximateTime, by its documented rules: sets are disjoint and contiguous, each is the
    smallest around a pivot, and it is sent as soon as no later message can make it smaller."""
    names = [case.anchor, *case.within_ms]
    queues: dict[str, deque[int]] = {n: deque() for n in names}
    past: dict[str, list[int]] = {n: [] for n in names}
    candidate: dict[str, int] | None = None
    pivot, pivot_ns, start_ns, end_ns = "", 0, 0, 0
    emitted: list[Emitted] = []
    slop_ns = slop_ms * MS

    def publish(now_ns: int) -> None:
        nonlocal candidate
        assert candidate is not None
        emitted.append(Emitted(candidate[case.anchor], candidate, now_ns))
        for n in names:  # messages that were examined but not used return to the queues
            queues[n].extendleft(reversed(past[n]))
            past[n].clear()
            while queues[n] and queues[n][0] <= candidate[n]:
                queues[n].popleft()
        candidate = None

    gc.collect()
    begin = time.thread_time()
    for frame, now_ns in case.arrivals:
        queues[frame.stream].append(frame.capture_ns)
        while all(queues.values()):
            heads = {n: q[0] for n, q in queues.items()}
            first, last = min(heads, key=heads.__getitem__), max(heads, key=heads.__getitem__)
            if candidate is None:
                if heads[last] - heads[first] > slop_ns:
                    queues[first].popleft()
                    continue
                candidate, pivot, pivot_ns = heads, last, heads[last]
                start_ns, end_ns = heads[first], heads[last]
            elif (heads[last] - end_ns) * (1 + age_penalty) < heads[first] - start_ns:
                candidate, start_ns, end_ns = heads, heads[first], heads[last]
            past[first].append(queues[first].popleft())
            if first == pivot or (heads[last] - end_ns) * (1 + age_penalty) >= pivot_ns - start_ns:
                publish(now_ns)
                continue
            # Some queue is empty. Its next message is at or after the pivot, which may already rule out a better set.
            while candidate is not None and not all(queues.values()):
                virtual = {
                    n: q[0] if q else max(past[n][-1] if past[n] else pivot_ns, pivot_ns) for n, q in queues.items()
                }
                first, last = min(virtual, key=virtual.__getitem__), max(virtual, key=virtual.__getitem__)
                if (virtual[last] - end_ns) * (1 + age_penalty) >= pivot_ns - start_ns:
                    publish(now_ns)
                elif (virtual[last] - end_ns) * (1 + age_penalty) < virtual[first] - start_ns or not queues[first]:
                    break
                else:
                    past[first].append(queues[first].popleft())
    return emitted, time.thread_time() - begin


def approximate_time_synchronizer(
    case: Case, *, slop_ms: float = 20, queue_size: int = 10
) -> tuple[list[Emitted], float]:
    """ROS 2's ApproximateTimeSynchronizer (Python): a message that completes a set within the slop sends it at once,
    nearest first; each message is used once, so the slowest stream sets the pace."""
    names = [case.anchor, *case.within_ms]
    queues: dict[str, dict[int, None]] = {n: {} for n in names}
    slop_ns = slop_ms * MS
    emitted = []
    gc.collect()
    begin = time.thread_time()
    for frame, now_ns in case.arrivals:
        mine = queues[frame.stream]
        mine[frame.capture_ns] = None
        while len(mine) > queue_size:
            del mine[min(mine)]
        near = []
        for n in names:
            if n != frame.stream:
                within = [t for t in queues[n] if abs(t - frame.capture_ns) <= slop_ns]
                near.append(sorted(within, key=lambda t: abs(t - frame.capture_ns)))
        for others in product(*near):
            times = (*others, frame.capture_ns)
            if max(times) - min(times) < slop_ns:
                chosen = dict(zip([n for n in names if n != frame.stream], others, strict=True)) | {
                    frame.stream: frame.capture_ns
                }
                emitted.append(Emitted(chosen[case.anchor], chosen, now_ns))
                for n, t in chosen.items():
                    del queues[n][t]
                break
    return emitted, time.thread_time() - begin


def latest_hold(case: Case) -> tuple[list[Emitted], float]:
    """Each anchor is sent at once, with the newest frame of every other stream."""
    newest: dict[str, int] = {}
    emitted = []
    gc.collect()
    begin = time.thread_time()
    for frame, now_ns in case.arrivals:
        if frame.stream != case.anchor:
            newest[frame.stream] = frame.capture_ns
        elif len(newest) == len(case.within_ms):
            emitted.append(Emitted(frame.capture_ns, {case.anchor: frame.capture_ns, **newest}, now_ns))
    return emitted, time.thread_time() - begin


def nearest_join(case: Case) -> tuple[list[Emitted], float]:
    """The rule of \\psi: each anchor with the nearest frames, once every stream has passed the anchor."""
    buffered: dict[str, deque[int]] = {n: deque() for n in case.within_ms}
    waiting: deque[int] = deque()
    emitted = []
    gc.collect()
    begin = time.thread_time()
    for frame, now_ns in case.arrivals:
        if frame.stream == case.anchor:
            waiting.append(frame.capture_ns)
        else:
            buffered[frame.stream].append(frame.capture_ns)
        while waiting and all(q and q[-1] >= waiting[0] for q in buffered.values()):
            anchor_ns = waiting.popleft()
            times = {case.anchor: anchor_ns}
            for n, q in buffered.items():
                while len(q) > 1 and abs(q[1] - anchor_ns) <= abs(q[0] - anchor_ns):
                    q.popleft()
                times[n] = q[0]
            emitted.append(Emitted(anchor_ns, times, now_ns))
    return emitted, time.thread_time() - begin


# --- figures ----------------------------------------------------------------------------------------------------------


def nearest_ns(times: Sequence[int], when_ns: int) -> int:
    i = bisect_left(times, when_ns)
    return min(times[max(0, i - 1) : i + 1], key=lambda t: abs(t - when_ns))


def figures(case: Case, emitted: list[Emitted], took_s: float) -> dict[str, float]:
    streams = {name: [f.capture_ns for f in frames] for name, frames in case.delivered().items()}
    arrival = {(f.stream, f.capture_ns): at_ns for f, at_ns in case.arrivals}
    limits = {n: (w or 500 / 30) * MS for n, w in case.within_ms.items()}
    best = {a: {n: nearest_ns(streams[n], a) for n in limits} for a in streams[case.anchor]}
    served = {a for a, near in best.items() if all(abs(t - a) <= limits[n] for n, t in near.items())}
    full = [e for e in emitted if len(e.times_ns) == 1 + len(limits) and e.anchor_ns in best]
    good = [e for e in full if all(abs(e.times_ns[n] - e.anchor_ns) <= limits[n] for n in limits)]
    missed = len(served - {e.anchor_ns for e in good}) / len(served)
    # Of two equally near frames either is right.
    off = [
        e
        for e in good
        if any(abs(e.times_ns[n] - e.anchor_ns) > abs(best[e.anchor_ns][n] - e.anchor_ns) for n in limits)
    ]
    wait_ms = [(e.at_ns - max(arrival[n, t] for n, t in e.times_ns.items())) / MS for e in good]
    spread_ms = [max(abs(e.times_ns[n] - e.anchor_ns) for n in limits) / MS for e in good]
    return {
        "us_per_message": took_s / len(case.arrivals) * 1e6,
        "missed_percent": 100 * missed,
        "wrong_percent": 100 * len(off) / max(1, len(good)),
        "wait_p50_ms": float(np.percentile(wait_ms, 50)),
        "wait_p99_ms": float(np.percentile(wait_ms, 99)),
        "spread_p99_ms": float(np.percentile(spread_ms, 99)),
    }


JOIN = "nearest join (\\psi)"
CONTENDERS: dict[str, Callable[[Case], tuple[list[Emitted], float]]] = {
    "Sensorium": sensorium,
    "Sensorium, emit: now": lambda case: sensorium(case, emit="now"),
    "Sensorium, proof": lambda case: sensorium(case, max_wait_ms=None),
    "ROS 2 ApproximateTime (C++ rules)": approximate_time,
    "ROS 2 …Synchronizer (Python), 20 ms": approximate_time_synchronizer,
    JOIN: nearest_join,
    "latest-hold": latest_hold,
}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--timestamps", type=Path, help="a folder with tum_*.txt")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    makers: list[Callable[[int], Case]] = [
        lambda seed: rig(args.seconds, seed),
        lambda seed: stereo(args.seconds, seed),
    ]
    makers += [lambda seed, p=p: tum(p) for p in sorted(args.timestamps.glob("tum_*.txt"))] if args.timestamps else []
    rows: dict[str, dict[str, Any]] = {}
    for make in makers:
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for seed in range(1, args.seeds + 1):  # alternating, so that a slower machine slows all of them
            case = make(seed)
            for name, contender in CONTENDERS.items():
                measured[name].append(figures(case, *contender(case)))
        join = [run["us_per_message"] for run in measured[JOIN]]
        print(
            f"\n{case.name:<38}{'µs/message':>11}{'× join':>8}{'missed':>9}{'wrong':>9}{'wait p50':>10}{'p99 ms':>8}"
            f"{'spread p99':>12}"
        )
        for name, runs in measured.items():
            row = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            row["times_join"] = float(
                np.median([run["us_per_message"] / us for run, us in zip(runs, join, strict=True)])
            )
            rows.setdefault(case.name, {})[name] = row
            print(
                f"{name:<38}{row['us_per_message']:11.2f}{row['times_join']:8.2f}"
                f"{row['missed_percent']:8.2f}%{row['wrong_percent']:8.2f}%"
                f"{row['wait_p50_ms']:10.2f}{row['wait_p99_ms']:8.1f}{row['spread_p99_ms']:12.1f}"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
