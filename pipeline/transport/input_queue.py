"""Messages that have arrived at a node and wait for it: one queue per edge, each with its own answer to a slow reader.

Stamps arrivals and returns them in the order of arrival. `take` reads the clock under the same lock that stamps, so
when it returns "nothing until now_ns", nothing with an earlier stamp can follow: the aligner's deadlines rest on this.

Example:
    queue = InputQueue(clock, metrics)
    queue.open("camera", depth="latest")
    queue.put("camera", frame)                 # any thread
    item, now_ns = queue.take(timeout_s=0.1)   # Arrival | Ended | None
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.clock import Clock
from pipeline.errors import WireError
from pipeline.frame import Arrival, Frame, Message
from pipeline.metrics import Metrics
from pipeline.transport.compression import decompress, is_compressed
from pipeline.transport.drop_reasons import LOST, MALFORMED, REPLACED, TOO_SLOW, UNREAD

# The YAML key `queue` of an input. "all": the sender waits; "latest": the newest message; n: the newest n.
QueueDepth = Literal["all", "latest"] | int

DEFAULT_QUEUE_DEPTH = 32
MAX_BYTES = 192 << 20  # per edge that may drop messages: 5 s of 720p, 1 s of 1080p, a minute of anything small
BACKPRESSURE_DEPTH = 32  # per edge of depth "all": so many messages wait before the sender is made to wait


@dataclass(frozen=True, slots=True)
class Ended:
    """`source` is finished: no more messages follow."""

    source: str
    arrival_ns: int


class _Edge:
    def __init__(self, depth: QueueDepth) -> None:
        self.depth = depth
        self.waiting: deque[tuple[int, Arrival | Ended]] = deque()
        self.bytes = 0  # of the payloads that wait
        self.taken = 0  # since take_credits() was last called


class InputQueue:
    """Bounded queues, one per edge; what is displaced is counted in the metrics."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock, self._metrics = clock, metrics
        self._edges: dict[str, _Edge] = {}
        self._changed = threading.Condition()
        self._order = 0

    def open(self, source: str, depth: QueueDepth = DEFAULT_QUEUE_DEPTH) -> None:
        self._edges[source] = _Edge(depth)

    def put(self, source: str, message: Message) -> None:
        """From the receiver thread. Nodes of the same process call put_when_room, which waits at depth "all"."""
        with self._changed:
            self._put(source, message)

    def put_when_room(self, source: str, message: Message, stopping: threading.Event) -> None:
        """At depth "all" wait until BACKPRESSURE_DEPTH allows it, or `stopping` is set."""
        edge = self._edges[source]
        with self._changed:
            while edge.depth == "all" and len(edge.waiting) >= BACKPRESSURE_DEPTH and not stopping.is_set():
                self._changed.wait(0.05)
            self._put(source, message)

    def end(self, source: str) -> None:
        """After all that was put, `take` returns Ended."""
        with self._changed:
            self._append(self._edges[source], Ended(source, self._clock.now_ns()))

    def count_lost(self, source: str, count: int, reason: str = LOST) -> None:
        """Messages that never reached this queue."""
        with self._changed:
            self._metrics.drop(source, reason, count)

    def take(
        self, timeout_s: float, accepts: Callable[[str], bool] = lambda source: True
    ) -> tuple[Arrival | Ended | None, int]:
        """The earliest arrival of a source that `accepts` allows, and the time; None when none came for timeout_s."""
        with self._changed:
            item = self._pop(accepts)
            if item is None and timeout_s > 0:
                self._changed.wait(timeout_s)
                item = self._pop(accepts)
            now_ns = self._clock.now_ns()
        # Here and not on arrival: it takes milliseconds, in which the receiver thread could not read its sockets.
        if isinstance(item, Arrival) and is_compressed(item.message):
            try:
                item = Arrival(item.source, decompress(item.message), item.arrival_ns)
            except WireError:
                self.count_lost(item.source, 1, MALFORMED)
                return self.take(0, accepts)
        return item, now_ns

    def take_credits(self, source: str) -> int:
        """How many messages of `source` were taken since the last call."""
        with self._changed:
            edge = self._edges[source]
            count, edge.taken = edge.taken, 0
            return count

    def close(self, *, uncounted: str) -> None:
        """The reader has ended: messages that still wait are counted as unread, except those of `uncounted`."""
        with self._changed:
            for source, edge in self._edges.items():
                count = sum(isinstance(item, Arrival) for _, item in edge.waiting)
                if count and source != uncounted:
                    self._metrics.drop(source, UNREAD, count)
                edge.waiting.clear()
                edge.bytes = 0

    def _put(self, source: str, message: Message) -> None:
        edge = self._edges[source]
        depth = 1 if edge.depth == "latest" else edge.depth
        if isinstance(depth, int):
            while edge.waiting and (len(edge.waiting) >= depth or edge.bytes + _bytes(message) > MAX_BYTES):
                edge.bytes -= _bytes(edge.waiting.popleft()[1])
                self._metrics.drop(source, REPLACED if depth == 1 else TOO_SLOW)
        edge.bytes += _bytes(message)
        self._append(edge, Arrival(source, message, self._clock.now_ns()))

    def _append(self, edge: _Edge, item: Arrival | Ended) -> None:
        self._order += 1
        edge.waiting.append((self._order, item))
        self._changed.notify_all()

    def _pop(self, accepts: Callable[[str], bool]) -> Arrival | Ended | None:
        first = min(
            (edge for source, edge in self._edges.items() if edge.waiting and accepts(source)),
            key=lambda edge: edge.waiting[0][0],
            default=None,
        )
        if first is None:
            return None
        first.taken += 1
        self._changed.notify_all()
        item = first.waiting.popleft()[1]
        first.bytes -= _bytes(item)
        return item


def _bytes(item: Arrival | Ended | Message) -> int:
    """Of a frame's payload; everything else is small."""
    message = item.message if isinstance(item, Arrival) else item
    return message.data.nbytes if isinstance(message, Frame) else 0
