"""How accurately clocks are known: a sound card's, and another host's, each compared with the exact truth.

Example:
    python -m benchmarks.clocks [--json out.json] [--seconds 20]

The other host is another process on this machine, so its true offset is zero, and any estimate other than zero is the
error. It is pinged over the loopback, and through a relay that delays every piece by 20 to 25 ms in each direction, at
random.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clock import NS, SampleClock
from pipeline.runtime.run_folder import keys_between_hosts
from pipeline.transport.clock_exchange import ClockClient, ClockServer
from pipeline.transport.keys import Keys

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ, CHUNK = 16000, 320
RELAY_MS = (20.0, 25.0)


def sound_card(ppm: float, seed: int, seconds: float = 60) -> tuple[float, float]:
    """After 30 s, with callbacks 1–3 ms late and bursts.

    Returns (standard deviation of the stamps in µs, error of the rate in ppm).
    """
    draw = np.random.default_rng(seed)
    n = int(seconds * RATE_HZ / CHUNK)
    edges_ns = 5 * NS + np.arange(n + 1) * CHUNK / RATE_HZ / (1 + ppm * 1e-6) * NS
    bursts_ns = np.where(draw.random(n) < 0.02, draw.exponential(30e6, n), 0)
    arrivals_ns = np.maximum.accumulate(edges_ns[1:] + draw.uniform(1e6, 3e6, n) + bursts_ns)
    clock, errors_ns, rate_ppm = SampleClock(RATE_HZ), [], 0.0
    for k in range(n):
        errors_ns.append(clock.stamp_chunk(k * CHUNK, CHUNK, int(arrivals_ns[k])) - edges_ns[k])
        if k == 30 * RATE_HZ // CHUNK:
            rate_ppm = clock.rate_error * 1e6
    return float(np.std(errors_ns[30 * RATE_HZ // CHUNK :])) / 1e3, abs(rate_ppm - ppm)


def other_host(seconds: float, *, relayed: bool) -> dict[str, float]:
    """Errors and stated bounds of the other process's clock, sampled every 5 ms."""
    port, relay_port = free_port(), free_port()
    serving = [serve("--serve", str(port))]
    if relayed:
        serving.append(serve("--relay", str(relay_port), str(port)))
    began_s = time.monotonic()
    client = ClockClient("other", f"tcp://127.0.0.1:{relay_port if relayed else port}", _keys())
    client.start()
    known_s = 0.0
    rows: list[tuple[float, int, int]] = []
    try:
        while time.monotonic() - began_s < seconds:
            if client.clock.ready:
                known_s = known_s or time.monotonic() - began_s
                now_ns = time.monotonic_ns()
                local_ns, bound_ns = client.clock.to_local(now_ns)
                rows.append((time.monotonic() - began_s, abs(local_ns - now_ns), bound_ns))
            time.sleep(0.005)
    finally:
        client.stop()
        for process in serving:
            process.kill()
            process.wait()
    at_s, error_ns, bound_ns = np.array(rows).T
    final_ns = np.median(bound_ns[at_s > seconds / 2])
    settled_s = float(at_s[np.flatnonzero(bound_ns <= 1.2 * final_ns)[0]])
    late = at_s > 5
    return {
        "known_after_s": round(known_s, 2),
        "bound_within_20_percent_after_s": round(settled_s, 2),
        "error_p50_us": round(float(np.percentile(error_ns[late], 50)) / 1e3, 1),
        "error_p99_us": round(float(np.percentile(error_ns[late], 99)) / 1e3, 1),
        "bound_p50_us": round(float(np.percentile(bound_ns[late], 50)) / 1e3, 1),
        "inside_percent": round(100 * float(np.mean(error_ns <= bound_ns)), 2),
        "checks": len(rows),
    }


def serve(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.clocks", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is bound
    return process


def relay(port: int, to_port: int) -> None:
    """Forwards TCP in both directions, each piece later by a random time, in order."""

    def forward(source: socket.socket, target: socket.socket) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        arrived = threading.Condition()

        def send() -> None:
            while True:
                with arrived:
                    while not waiting:
                        arrived.wait()
                    due_s, piece = waiting.popleft()
                time.sleep(max(0.0, due_s - time.monotonic()))
                target.sendall(piece)

        threading.Thread(target=send, daemon=True).start()
        while piece := source.recv(65536):
            with arrived:
                waiting.append((time.monotonic() + random.uniform(*RELAY_MS) / 1000, piece))
                arrived.notify()

    listener = socket.create_server(("127.0.0.1", port))
    print("here", flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", to_port))
        for a, b in ((client, server), (server, client)):
            a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=forward, args=(a, b), daemon=True).start()


def _keys() -> Keys | None:
    """What hosts on one machine share."""
    return keys_between_hosts("", ["tcp://127.0.0.1:0"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--relay", type=int, nargs=2, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.serve:
        server = ClockServer(f"tcp://127.0.0.1:{args.serve}", _keys())
        print("here", flush=True)
        server.run()
    elif args.relay:
        relay(*args.relay)
    cards = np.array([sound_card(ppm, seed) for seed, ppm in enumerate((-120.0, -70.0, -30.0, 0.0, 25.0, 50.0))])
    figures: dict[str, Any] = {
        "sound_card": {
            "std_us": round(float(cards[:, 0].max()), 1),
            "rate_ppm": round(float(np.median(cards[:, 1])), 2),
        },
        "loopback": other_host(args.seconds, relayed=False),
        "relay": other_host(args.seconds, relayed=True),
    }
    card, near, far = figures.values()
    print("sound card, 1–3 ms jitter and bursts, −120…+50 ppm, after 30 s")
    print(f"  stamps, standard deviation (worst card)   {card['std_us']:10.1f} µs")
    print(f"  rate, error (median card)                 {card['rate_ppm']:10.2f} ppm")
    print(f"{'another host':<42}{'loopback':>12}{'20–25 ms relay':>18}")
    for name, label, unit in (
        ("error_p99_us", "error, p99", "µs"),
        ("bound_p50_us", "stated bound, median", "µs"),
        ("inside_percent", "true offset inside the bound", "%"),
        ("known_after_s", "known after", "s"),
        ("bound_within_20_percent_after_s", "bound within 20 % of its usual after", "s"),
    ):
        print(f"  {label:<40}{near[name]:>9} {unit:<2}{far[name]:>15} {unit}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
