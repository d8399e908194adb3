"""The counters of a node: received, produced, dropped with reasons, and latencies. Bounded memory, no I/O.

Example:
    metrics.drop("camera", "overload", 3)
    metrics.latency("total").add(elapsed_ns)
    metrics.latency("total").percentiles_ms()      # {"p50": 12.1, "p95": 20.4, "p99": 31.0}
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

USED, UNUSED = "used", "not wanted"  # what becomes of a frame in an aligner, if it is not dropped


class Latency:
    """Histogram of durations in steps of 1 %, from 1 µs up: percentiles of a whole run in a few kilobytes of memory."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, duration_ns: int) -> None:
        self._buckets[int(math.log(max(duration_ns, 1000)) / self._STEP)] += 1
        self.count += 1

    def percentile_ms(self, percent: float) -> float:
        """The smallest recorded duration (±1 %) that `percent` of all do not exceed; 0.0 when nothing was recorded."""
        left = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return math.exp((bucket + 0.5) * self._STEP) / 1e6
        return 0.0

    def percentiles_ms(self) -> dict[str, float]:
        return {f"p{p}": round(self.percentile_ms(p), 3) for p in (50, 95, 99)}


class Metrics:
    """The counters of one node. Written by the node's own thread, read by the one that reports health."""

    def __init__(self) -> None:
        self.produced = 0
        self.received: Counter[str] = Counter()  # by source
        # By source in another process: how many messages it sent to this node, by their seq, received or not.
        self.promised: Counter[str] = Counter()
        self._dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
        # Of an aligner, by source: frames that are in a set, and those that no set wanted.
        self.used: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self._latencies: dict[str, Latency] = {}
        self.facts: dict[str, str] = {}  # for people: which engine, which device

    def drop(self, source: str, reason: str, count: int = 1) -> None:
        self._dropped[source][reason] += count

    def add_outcomes(self, counts: Counter[tuple[str, str]]) -> None:
        """What became of frames, as Aligner.take_counts returns it."""
        for (source, outcome), count in counts.items():
            if outcome == USED:
                self.used[source] += count
            elif outcome == UNUSED:
                self.unused[source] += count
            else:
                self.drop(source, outcome, count)

    def latency(self, name: str) -> Latency:
        return self._latencies.setdefault(name, Latency())

    def dropped(self) -> dict[str, dict[str, int]]:
        return {source: dict(reasons) for source, reasons in list(self._dropped.items())}

    def latencies_ms(self) -> dict[str, dict[str, float]]:
        return {name: latency.percentiles_ms() for name, latency in list(self._latencies.items())}
