"""Runs one node in a test: send it messages, read what it emits. No sockets, no threads, no waiting.

Example:
    harness = NodeHarness(Align(anchor="camera"), inputs=["camera", "microphone"])
    harness.send("camera", frame, at_ns=1_000)
    harness.emitted                               # [AlignedSet(…)]

    frames = play(Camera(device="clip.mp4"), count=10)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

import msgspec

from pipeline.clock import ManualClock
from pipeline.frame import Arrival, Frame, Message
from pipeline.metrics import Metrics
from pipeline.node import Context, Sink, Source, Transform

__all__ = ["NodeHarness", "play"]


class NodeHarness:
    """A Transform or a Sink between its open() and its close(), on a clock that only `send` and `wait_until` move.

    Args:
        node: Constructed, not opened.
        inputs: The names of the nodes it reads from. Empty: any source may send to it, and no option is checked.
        name: The node's name.
        start_ns: Where the clock begins.
    """

    def __init__(
        self, node: Transform | Sink, *, inputs: Sequence[str] = (), name: str = "node", start_ns: int = 0
    ) -> None:
        self.node = node
        self.clock = ManualClock(start_ns)
        self.emitted: list[Message] = []
        self.requests: list[tuple[str, str]] = []
        node.context = Context(
            name, self.clock, tuple(inputs), request=lambda verb, argument: self.requests.append((verb, argument))
        )
        if inputs:
            node.check_inputs(inputs)
        node.open()

    @property
    def metrics(self) -> Metrics:
        """The node's counters."""
        return self.node.context.metrics

    def send(self, source: str, message: Message, *, at_ns: int | None = None) -> list[Message]:
        """`message` arrives from `source` at `at_ns` (default: now). Returns what the node emitted for it."""
        if at_ns is not None:
            self.clock.advance(at_ns - self.clock.now_ns())
        self.node.context.metrics.received[source] += 1
        arrival = Arrival(source, message, self.clock.now_ns())
        if isinstance(self.node, Sink):
            self.node.consume(arrival)
            return []
        return self._emit(self.node.process(arrival))

    def wait_until(self, when_ns: int) -> list[Message]:
        """Nothing more arrives before `when_ns`."""
        self.clock.advance(when_ns - self.clock.now_ns())
        return self._emit(self.node.advance(when_ns)) if isinstance(self.node, Transform) else []

    def end(self, *sources: str) -> list[Message]:
        """These inputs have ended; without names, all have."""
        if isinstance(self.node, Sink):
            self.node.finish()
            return []
        emitted = []
        for source in sources or self.node.context.inputs:
            emitted += self._emit(self.node.ended(source, self.clock.now_ns()))
        if not sources:
            emitted += self._emit(self.node.finish())
        return emitted

    def close(self) -> None:
        self.node.close()

    def __enter__(self) -> NodeHarness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _emit(self, messages: Iterable[Message]) -> list[Message]:
        emitted = list(messages)
        self.emitted += emitted
        return emitted


def play(source: Source, *, count: int | None = None, name: str = "source", start_ns: int = 0) -> list[Frame]:
    """The first `count` frames (None: all) of a source, numbered as in a run, on a clock that never waits."""
    clock = ManualClock(start_ns)
    source.context = Context(name, clock)
    frames: list[Frame] = []
    seq = 0
    source.open()
    try:
        for frame in source.frames(clock):
            seq += source.take_lost()
            frames.append(msgspec.structs.replace(source.correction.apply(frame), seq=seq, publish_ns=clock.now_ns()))
            seq += 1
            if count is not None and len(frames) >= count:
                break
    finally:
        source.close()
    return frames
