"""Source, Transform and Sink: the three kinds of node, and the Context that a node gets before it is opened.

A node is one class in one file. Its constructor's keyword arguments are its YAML options; hardware and models wait for
`open()`. It never sees a socket: it receives messages and yields messages, so the same class runs live, in a replay and
in a test (pipeline/testing.py). The loops that run it are in pipeline/runtime/node_loop.py.

Example:
    class Thermometer(Source):
        def __init__(self, *, rate_hz: float = 1.0): ...
        def info(self): return StreamInfo(self.name, "series_f32", self.rate_hz)
        def frames(self, clock):
            while clock.sleep_until(next_ns, self.context.stopping):
                yield Frame(self.name, -1, next_ns, "series_f32", np.array([celsius], np.float32))
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import Clock, LiveClock
from pipeline.errors import ConfigError, nearest
from pipeline.frame import AlignedSet, Arrival, Frame, Health, Message, NodeState, Prediction, StreamInfo
from pipeline.metrics import Metrics
from pipeline.rig.time_correction import TimeCorrection, check_offset, time_correction

__all__ = ["Arrival", "Context", "Finding", "Node", "Sink", "Source", "Transform"]


def _ignore(*values: object) -> None:
    return None


def _alive(within_s: float = 0.0) -> None:
    return None


@dataclass
class Context:
    """What a node may use while it runs: its name, its clock, its counters and the way to the launcher.

    Args:
        name: The node's name in the config.
        clock: The only source of time for a node, so that tests and replays control it.
        inputs: The names of the nodes it reads from.
        log: The node's logger.
        metrics: The node's counters.
        stopping: Set when the node must return from whatever it waits for.
        muted: Set while the user has muted the node: a source's frames are then replaced by watermarks.
        request: Asks the launcher for something: ("stop", ""), ("mute", "camera").
        report_state: Publishes the node's state with a note, for the page and the log.
        borrow: Allocates an array that readers share: see Source.borrow.
        info: The StreamInfo of an input; None before its source is connected.
        publish_event: Publishes one line of text as the stream `NAME.events`; None when nothing reads it. Only for a
            class with `publishes_events`.
        alive: A sign of life for the watchdog, which is given at every message anyway: for a node that computes for
            longer than its `watchdog_s`. `alive(30)`: the next one may take 30 s.
        publish_page: Stores the address of the node's page, with its token, in the run's folder.
        restarts: How often the node's process was started again in this run: what it writes goes on then.
        commands: Messages from the page to this node.
    """

    name: str
    clock: Clock = field(default_factory=LiveClock)
    inputs: tuple[str, ...] = ()
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("node"))
    metrics: Metrics = field(default_factory=Metrics)
    stopping: threading.Event = field(default_factory=threading.Event)
    muted: threading.Event = field(default_factory=threading.Event)
    request: Callable[[str, str], None] = _ignore
    report_state: Callable[[NodeState, str], None] = _ignore
    borrow: Callable[[tuple[int, ...], npt.DTypeLike], np.ndarray] = np.empty
    info: Callable[[str], StreamInfo | None] = _ignore
    publish_event: Callable[[bytes], None] | None = None
    alive: Callable[..., None] = _alive
    restarts: int = 0
    publish_page: Callable[[str], None] = _ignore
    commands: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)


class Finding(NamedTuple):
    """One line of `doctor`."""

    works: bool | None  # None: cannot be determined on this machine
    what: str
    fix: str = ""


class Stored(NamedTuple):
    """What a node leaves behind in a file."""

    path: str
    what: str  # for people: "predictions"
    of: tuple[type, ...] = ()  # the messages that it stores with their data; (): times alone
    takes_consent: bool = False  # it has an option `consent`
    consent: str = ""  # who agreed to what


class Node:
    """Common to all nodes. The class attributes say what a node is, so that no other code needs to know it by name."""

    consumes: ClassVar[tuple[type, ...]] = ()  # the message types it accepts; edges of the graph are checked by it
    produces: ClassVar[type | None] = None  # the message type it sends; None: nothing
    publishes_events: ClassVar[bool] = False  # it publishes its decisions as text, as the stream `NAME.events`
    serves_page: ClassVar[bool] = False  # it has an option `token`; where none is set, one is made for each run
    is_display: ClassVar[bool] = False  # it shows the run to a person: left out where nobody watches
    _context: Context | None = None

    @property
    def context(self) -> Context:
        """Set once by whatever runs the node, before `open()`. RuntimeError when it is used earlier."""
        if self._context is None:
            raise RuntimeError(
                f"{type(self).__name__}: its context (name, clock, inputs, log, metrics) is set after construction. "
                "Use it from open() on; in a test, run the node with pipeline.testing.NodeHarness or play()"
            )
        return self._context

    @context.setter
    def context(self, context: Context) -> None:
        self._context = context

    @property
    def name(self) -> str:
        """The node's name in the config."""
        return self.context.name

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        """What works on this machine for this kind of node, and how to fix what does not."""
        return ()

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        """(option, the class whose options it holds), for each such option. None: a class that is not known here."""
        return ()

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        """(option, the input that it names), for each option that names one."""
        return ()

    def stored(self) -> Stored | None:
        """What it leaves behind in a file, by its options; None: nothing."""
        return None

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """Raises ConfigError for an option that names an input which is none of these; opens nothing."""
        for option, stream in self.named_inputs():
            if stream not in inputs:
                raise ConfigError(
                    f"{option}: '{stream}' is not one of its inputs: {', '.join(inputs)}.{nearest(stream, inputs)}"
                )

    def open(self) -> None:
        """Acquire devices and models. Raises DeviceError or ConfigError with the fix."""

    def close(self) -> None:
        """Release everything; called once, also after an error."""


class Source(Node):
    """A sensor or a file. Messages out, nothing in.

    A sensor that has these two options passes them to super().__init__, and its open() begins with super().open().

    Args:
        offset_ms: Added to every capture time, for a constant delay that no clock can observe (ms; negative: the stamps
            are late). Default null: none, unless `rig` has one.
        rig: A rig file which holds that offset under the node's name, as `calibrate time` writes it. Not beside
            `offset_ms`.
    """

    produces: ClassVar[type | None] = Frame
    assigns_seq: ClassVar[bool] = True  # False: frames keep their own seq and publish_ns, as they were recorded
    offset_ms: float | None = None
    rig: str | None = None
    correction = TimeCorrection()  # of every capture time, watermarks included: what these two options come to
    _lost = 0

    def __init__(self, *, offset_ms: float | None = None, rig: str | None = None) -> None:
        check_offset(offset_ms, rig)
        self.offset_ms, self.rig = offset_ms, rig

    def open(self) -> None:
        self.correction = time_correction(self.name, offset_ms=self.offset_ms, rig=self.rig)

    @property
    def is_live(self) -> bool:
        """Whether it captures the world as it is now: recording that needs the consent of the people in view."""
        return False

    def info(self) -> StreamInfo:
        """What the stream is; called after open()."""
        raise TypeError(f"{type(self).__name__} does not define info()")

    def frames(self, clock: Clock) -> Iterator[Frame]:
        """Frames in rising capture_ns. The loop sets `seq` and `publish_ns`, so both may be left unset.

        Return to end the stream (the end of a file). Raise DeviceError(retry=True) when the device is lost: the loop
        then sends watermarks and opens the device again with back-off. A wait must end when context.stopping is set.
        """
        raise TypeError(f"{type(self).__name__} does not define frames()")

    def dropped(self, count: int, reason: str) -> None:
        """The device lost `count` frames: they get seq numbers too, so that every reader sees the gap."""
        self.context.metrics.drop(self.name, reason, count)
        self._lost += count

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """An uninitialised array for the next frame's data. Filled in place and sent whole, it is never copied.

        Where readers share memory with this process it is a slot of the stream's ring buffer, which is reused once no
        reader holds it: fill it, yield it and drop the reference. May be called in any thread.
        """
        return self.context.borrow(shape, dtype)

    def take_lost(self) -> int:
        """How many frames `dropped` counted since the last call."""
        lost, self._lost = self._lost, 0
        return lost


class Transform(Node):
    """Messages in, messages out."""

    def process(self, arrival: Arrival) -> Iterable[Message]:
        """One message has arrived; whatever follows from it is yielded."""
        raise TypeError(f"{type(self).__name__} does not define process()")

    def ready_for(self, source: str) -> bool:
        """False: leave the messages of `source` in the queue for now (with `queue: all` its sender then waits)."""
        return True

    def wake_ns(self) -> int | None:
        """When `advance` should next be called though nothing arrives; None: not needed."""
        return None

    def advance(self, now_ns: int) -> Iterable[Message]:
        """Called when all that arrived until now_ns has been processed."""
        return ()

    def ended(self, source: str, arrival_ns: int) -> Iterable[Message]:
        """One input has ended."""
        return ()

    def finish(self) -> Iterable[Message]:
        """Every input has ended: yield what is still held."""
        return ()


class Sink(Node):
    """Messages in, nothing out."""

    consumes: ClassVar[tuple[type, ...]] = (Frame, AlignedSet, Prediction, Health)

    def consume(self, arrival: Arrival) -> None:
        """One message has arrived."""
        raise TypeError(f"{type(self).__name__} does not define consume()")

    def finish(self) -> None:
        """Every input has ended."""
