"""Source, Transform, Sink, and the one loop that runs them.

A node is one class in one file. Its constructor's keyword arguments are its YAML options; hardware and models wait for
`open()`. It never sees a socket: it is handed messages and yields messages, so the same class runs live, in a replay and
in a test (pipeline/testing.py).

    class Thermometer(Source):
        def __init__(self, *, rate_hz: float = 1.0): ...
        def info(self): return StreamInfo(self.name, "series_f32", self.rate_hz)
        def frames(self, clock):
            while clock.sleep_until(next_ns, self.context.stopping): yield Frame(self.name, -1, next_ns, "series_f32", value)
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import msgspec

from pipeline.clock import NS, Clock, LiveClock
from pipeline.errors import DeviceError
from pipeline.frame import Frame, Message, NodeState, StreamInfo, silence
from pipeline.metrics import Metrics

# A watermark at the end of time: the source is finished and nothing will ever come.
FOREVER_NS = 1 << 62
RETRY_FIRST_NS, RETRY_MOST_NS = NS // 2, 8 * NS

Keep = Literal["all", "latest"] | int


@dataclass
class Context:
    """What a node is given before `open()`."""

    name: str
    clock: Clock = field(default_factory=LiveClock)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("node"))
    metrics: Metrics = field(default_factory=Metrics)
    stopping: threading.Event = field(default_factory=threading.Event)  # set: return from whatever you wait for
    muted: threading.Event = field(default_factory=threading.Event)
    request: Callable[[str, str], None] = lambda verb, argument: None  # ask the launcher: ("stop", ""), ("mute", "camera")
    tell: Callable[[NodeState, str], None] = lambda state, note: None  # the node's state, for the page and the log


@dataclass(frozen=True)
class Arrival:
    """A message as a reader got it."""

    source: str  # the node it came from
    message: Message
    arrival_ns: int


class Node:
    """Common to all nodes. `consumes` and `produces` are what graph.py checks the edges by."""

    consumes: ClassVar[tuple[type, ...]] = ()
    produces: ClassVar[type | None] = None
    context: Context = Context("unnamed")  # replaced before open()

    @property
    def name(self) -> str:
        return self.context.name

    def open(self) -> None:
        """Acquire devices and models. Raises DeviceError or ConfigError with the fix."""

    def close(self) -> None:
        """Release everything; called once, also after an error."""


class Source(Node):
    """A sensor or a file."""

    produces: ClassVar[type | None] = Frame

    def info(self) -> StreamInfo:
        """What the stream is; called after open()."""
        raise TypeError(f"{type(self).__name__} does not define info()")

    def frames(self, clock: Clock) -> Iterator[Frame]:
        """Frames in rising capture_ns. The loop gives `seq` and `publish_ns`, so both may be left unset.

        Return to end the stream (a file's end). Raise DeviceError(retry=True) when the device is lost: the loop tells
        the silence downstream and opens again with back-off. A wait must end when context.stopping is set.
        """
        raise TypeError(f"{type(self).__name__} does not define frames()")

    def dropped(self, count: int, reason: str) -> None:
        """The device lost `count` frames: they get seq numbers too, so that every reader sees the gap."""
        self.context.metrics.drop(self.name, reason, count)
        self._lost += count

    _lost = 0


class Transform(Node):
    """Messages in, messages out."""

    def process(self, arrival: Arrival) -> Iterable[Message]:
        raise TypeError(f"{type(self).__name__} does not define process()")

    def wake_ns(self) -> int | None:
        """When `advance` should next be called though nothing arrives; None: not needed."""
        return None

    def advance(self, now_ns: int) -> Iterable[Message]:
        """Called when all that arrived until now_ns has been processed."""
        return ()

    def finish(self) -> Iterable[Message]:
        """Every input has ended: whatever is still held comes out."""
        return ()


class Sink(Node):
    """Messages in, nothing out."""

    def consume(self, arrival: Arrival) -> None:
        raise TypeError(f"{type(self).__name__} does not define consume()")

    def finish(self) -> None:
        """Every input has ended."""
