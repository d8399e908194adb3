"""Frames from one process to another: Sensorium's transport beside plain pyzmq, imagezmq and iceoryx2.

Example:
    scripts/setup bench
    python -m benchmarks.transport [--runs 5] [--json out.json] [--only sensorium,pyzmq]

The unit is one copy of the same payload within a process, between buffers too many for the cache, measured before each
run, so that the figures of slow and busy machines can be compared. Systems take turns; the medians of all runs are
printed. *p50* is from just before the send, when the picture is complete, until the reader has it as an array and has
read from it ("borrowed": it was drawn in place). *CPU* is that of both processes, per frame. Each payload carries its
number at both ends and in between: a frame that shows two numbers is torn. pyzmq sends arrays as its manual does (a
JSON header, then the data, not copied). The code of each system is in transport_systems.py.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.transport_systems import RECEIVERS, SENDERS, SHAPES, Receiver

SYSTEMS = ("sensorium", "sensorium borrowed", "pyzmq", "imagezmq", "iceoryx2", "iceoryx2 borrowed")
MARKS = 8  # places in a payload that hold its number
WARM_UP = 10
GIVE_UP_S = 5.0  # without a message: the rest is lost. A busy machine may start the senders seconds after the reader


class Case(NamedTuple):
    system: str
    payload: str
    streams: int
    rate_hz: float  # 0: flat out
    count: int  # frames per stream


def marks(array: np.ndarray) -> np.ndarray:
    """(MARKS,) int64 view into the payload: the places that hold the frame's number."""
    words = array.reshape(-1).view(np.int64)
    return words[:: (len(words) - 2) // (MARKS - 1)][:MARKS]


def send_all(case: Case, address: str) -> dict[str, float]:
    sender = SENDERS[case.system.split()[0]](address, case.payload, "borrowed" in case.system)
    shape, dtype = SHAPES[case.payload]
    drawn = [np.ones(shape, dtype) for _ in range(8)]  # more than a cache holds, as a camera's pictures are
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        sender.serve()
    started_s = time.monotonic()
    for number in range(case.count + WARM_UP):
        if number == WARM_UP:
            cpu_s = time.process_time()
        if case.rate_hz:
            due_s = started_s + number / case.rate_hz
            time.sleep(max(0.0, due_s - time.monotonic()))
        array = sender.borrow()
        array = drawn[number % len(drawn)] if array is None else array
        marks(array)[:] = number
        sent_at = array.reshape(-1).view(np.int64)[1:2]  # beside the first mark
        sent_at[0] = time.monotonic_ns()
        sender.send(array)
        del array
    used = {"cpu_s": time.process_time() - cpu_s}
    sender.close()
    return used


def receive_all(case: Case, addresses: list[str]) -> dict[str, Any]:
    receiver: Receiver = RECEIVERS[case.system.split()[0]](addresses, not case.rate_hz)
    while not receiver.ready:
        pass
    print("ready", flush=True)
    latency_ns, torn, expected = [], 0, (case.count + WARM_UP) * len(addresses)
    received, last_s = 0, time.monotonic()
    began_s = cpu_s = 0.0
    while received < expected and time.monotonic() < last_s + GIVE_UP_S:
        for array in receiver.receive():
            sent_ns = int(array.reshape(-1).view(np.int64)[1])
            now_ns = time.monotonic_ns()
            shown = marks(array).copy()
            last_s = now_ns / 1e9
            if received == WARM_UP * len(addresses):
                began_s, cpu_s = last_s, time.process_time()
            received += 1
            torn += not (shown == shown[0]).all()
            if shown[0] >= WARM_UP:
                latency_ns.append(now_ns - sent_ns)
            del array
    cpu_s = time.process_time() - cpu_s  # before numpy's percentiles, whose first call costs as much as fifty frames
    return {
        "p50_ms": float(np.percentile(latency_ns, 50)) / 1e6,
        "p99_ms": float(np.percentile(latency_ns, 99)) / 1e6,
        "per_s": (received - WARM_UP * len(addresses) - 1) / (last_s - began_s),
        "cpu_s": cpu_s,
        "lost": expected - received,
        "torn": torn,
    }


def copy_ms(payload: str) -> float:
    """The unit: one copy between buffers in turn, so that neither lies in the cache."""
    shape, dtype = SHAPES[payload]
    buffers = [np.ones(shape, dtype) for _ in range(16)]  # ones: memory that was never written to is not allocated
    durations_ms = []
    for i in range(160):
        begin = time.perf_counter()
        np.copyto(buffers[i % 8], buffers[8 + i % 8])
        durations_ms.append((time.perf_counter() - begin) * 1e3)
    return median(durations_ms[16:])


def run(case: Case) -> dict[str, Any]:
    unit_ms = copy_ms(case.payload)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        addresses = [f"ipc://{folder}/camera{i}.sock" for i in range(case.streams)]
        writers = [_child("send", case, [address]) for address in addresses]
        reader = _child("receive", case, addresses)
        for child in [*writers, reader]:
            assert child.stdout is not None and child.stdout.readline() == "ready\n", f"{case.system} did not start"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        figures: dict[str, Any] = json.loads(reader.communicate()[0])
        cpu_s = figures.pop("cpu_s") + sum(json.loads(writer.communicate()[0])["cpu_s"] for writer in writers)
    figures["cpu_ms"] = cpu_s * 1e3 / (case.count * case.streams)
    return figures | {"copy_ms": unit_ms}


def _child(role: str, case: Case, addresses: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.transport", "--child", json.dumps([role, *case, addresses])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- the table --------------------------------------------------------------------------------------------------------


def cases(only: list[str]) -> Iterator[Case]:
    for system in only:
        yield Case(system, "1080p", 1, 30.0, 60)
        yield Case(system, "1080p", 1, 0.0, 300)
        if "sensorium" in system:
            yield Case(system, "1080p", 4, 30.0, 60)
        if "borrowed" not in system:
            yield Case(system, "lidar", 1, 10.0, 20)
            yield Case(system, "audio", 1, 50.0, 100)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default=",".join(SYSTEMS), help="systems, with commas between them")
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        role, *fields, addresses = json.loads(args.child)
        case = Case(*fields)
        print(json.dumps(send_all(case, *addresses) if role == "send" else receive_all(case, addresses)))
        return
    figures: dict[Case, list[dict[str, Any]]] = {}
    for turn in range(args.runs):
        for case in cases(args.only.split(",")):
            print(
                f"\r\033[Krun {turn + 1} of {args.runs}: {case.system} {case.payload}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            figures.setdefault(case, []).append(run(case))
    print(file=sys.stderr)
    rows = [case._asdict() | _summary(runs) for case, runs in figures.items()]
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; in copies the median of each run's own ratio."""
    row: dict[str, Any] = {
        name: median(r[name] for r in runs) for name in ("p50_ms", "p99_ms", "per_s", "cpu_ms", "copy_ms")
    }
    row["p50_copies"] = median(r["p50_ms"] / r["copy_ms"] for r in runs)
    row["cpu_copies"] = median(r["cpu_ms"] / r["copy_ms"] for r in runs)
    row["of_memcpy"] = median(r["per_s"] * r["copy_ms"] / 1e3 for r in runs)
    return row | {name: sum(r[name] for r in runs) for name in ("lost", "torn")}


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'':<34}{'p50 ms':>8}{'p99 ms':>8}{'copies':>8}{'CPU, copies':>13}"
        f"{'a second':>10}{'of memcpy':>11}{'lost':>6}{'torn':>6}"
    )
    for row in sorted(rows, key=lambda row: (row["payload"], row["streams"], not row["rate_hz"])):
        pace = f"{row['rate_hz']:.0f} Hz" if row["rate_hz"] else "flat out"
        name = f"{row['payload']} ×{row['streams']}, {pace}: {row['system']}"
        speed = f"{row['per_s']:10.0f}{row['of_memcpy']:11.2f}" if not row["rate_hz"] else " " * 21
        small = row["payload"] == "audio"
        in_copies = " " * 21 if small else f"{row['p50_copies']:8.2f}{row['cpu_copies']:13.2f}"
        print(f"{name:<42}{row['p50_ms']:8.3f}{row['p99_ms']:8.3f}{in_copies}{speed}{row['lost']:6}{row['torn']:6}")
    print(f"one copy of a 1080p frame: {median(r['copy_ms'] for r in rows if r['payload'] == '1080p'):.2f} ms")


if __name__ == "__main__":
    main()
