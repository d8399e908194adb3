"""What has arrived at a node and waits for it: one queue an edge, each with its own answer to a slow reader.

Stamps arrivals and hands them out in the order of arrival. `take` reads the clock under the same lock that stamps, so
when it says "nothing until now_ns", nothing with an earlier stamp can follow: the aligner's deadlines rest on this.

    inbox.open("camera", queue="latest")
    inbox.put("camera", frame)                 # any thread
    item, now_ns = inbox.take(timeout_s=0.1)   # Arrival | Ended | None
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

QueueDepth = Literal["all", "latest"] | int

DEFAULT_QUEUE_DEPTH = 32
MAX_BYTES = 192 << 20  # of an edge that does not keep all: 5 s of 720p, 1 s of 1080p, a minute of anything small
# Of an edge that keeps all: as many wait here before the sender is made to wait.
BACKPRESSURE_DEPTH = 32

# Why a message that was sent to a reader never came out of its queue. What a node itself drops, it has read before.
LOST, MALFORMED, REPLACED, TOO_SLOW = "lost in transport", "malformed", "a newer one came", "reader too slow"
OVERWRITTEN, UNREAD, CLOCK_JUMPED = "overwritten in the ring", "not read before the end", "the clock of its host jumped"
EDGE_REASONS = (LOST, OVERWRITTEN, MALFORMED, REPLACED, TOO_SLOW, UNREAD, CLOCK_JUMPED)


@dataclass(frozen=True, slots=True)
class Ended:
    """`source` is finished: it will send nothing more."""

    source: str
    arrival_ns: int


class _Edge:
    def __init__(self, queue: QueueDepth) -> None:
        self.queue = queue
        self.waiting: deque[tuple[int, Arrival | Ended]] = deque()
        self.bytes = 0  # of the payloads that wait
        self.taken = 0  # since the sender was last given credits


class InputQueue:
    """queue: "all" makes the sender wait, "latest" holds one, n holds the newest n; what is displaced is counted."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock, self._metrics = clock, metrics
        self._edges: dict[str, _Edge] = {}
        self._changed = threading.Condition()
        self._order = 0

    def open(self, source: str, queue: QueueDepth = DEFAULT_QUEUE_DEPTH) -> None:
        self._edges[source] = _Edge(queue)

    def put(self, source: str, message: Message) -> None:
        """From the drain thread or from a node of the same process; the latter uses put_when_room for `queue: all`."""
        with self._changed:
            self._put(source, message)

    def put_when_room(self, source: str, message: Message, stopping: threading.Event) -> None:
        edge = self._edges[source]
        with self._changed:
            while edge.queue == "all" and len(edge.waiting) >= BACKPRESSURE_DEPTH and not stopping.is_set():
                self._changed.wait(0.05)
            self._put(source, message)

    def end(self, source: str) -> None:
        with self._changed:
            self._append(self._edges[source], Ended(source, self._clock.now_ns()))

    def lost(self, source: str, count: int, reason: str = LOST) -> None:
        with self._changed:
            self._metrics.drop(source, reason, count)

    def take(
        self, timeout_s: float, wants: Callable[[str], bool] = lambda source: True
    ) -> tuple[Arrival | Ended | None, int]:
        """The earliest arrival of an edge that `wants` accepts, and the time; None when there was none for timeout_s."""
        with self._changed:
            item = self._pop(wants)
            if item is None and timeout_s > 0:
                self._changed.wait(timeout_s)
                item = self._pop(wants)
            now_ns = self._clock.now_ns()
        # Here and not on arrival: it takes milliseconds, in which the drain thread must not be away.
        if isinstance(item, Arrival) and is_compressed(item.message):
            try:
                item = Arrival(item.source, decompress(item.message), item.arrival_ns)
            except WireError:
                self.lost(item.source, 1, MALFORMED)
                return self.take(0, wants)
        return item, now_ns

    def take_credits(self, source: str) -> int:
        """How many messages of `source` were taken since this was last asked."""
        with self._changed:
            edge = self._edges[source]
            count, edge.taken = edge.taken, 0
            return count

    def close(self, *, uncounted: str) -> None:
        """The reader has ended: what still waits is counted, but for what came from `uncounted`."""
        with self._changed:
            for source, edge in self._edges.items():
                count = sum(isinstance(item, Arrival) for _, item in edge.waiting)
                if count and source != uncounted:
                    self._metrics.drop(source, UNREAD, count)
                edge.waiting.clear()
                edge.bytes = 0

    def _put(self, source: str, message: Message) -> None:
        edge = self._edges[source]
        room = 1 if edge.queue == "latest" else edge.queue
        if isinstance(room, int):
            while edge.waiting and (len(edge.waiting) >= room or edge.bytes + _bytes(message) > MAX_BYTES):
                edge.bytes -= _bytes(edge.waiting.popleft()[1])
                self._metrics.drop(source, REPLACED if room == 1 else TOO_SLOW)
        edge.bytes += _bytes(message)
        self._append(edge, Arrival(source, message, self._clock.now_ns()))

    def _append(self, edge: _Edge, item: Arrival | Ended) -> None:
        self._order += 1
        edge.waiting.append((self._order, item))
        self._changed.notify_all()

    def _pop(self, wants: Callable[[str], bool]) -> Arrival | Ended | None:
        first = min(
            (e for name, e in self._edges.items() if e.waiting and wants(name)),
            key=lambda e: e.waiting[0][0],
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
    """Of a frame's payload; what else there is, is small."""
    message = item.message if isinstance(item, Arrival) else item
    return message.data.nbytes if isinstance(message, Frame) else 0
