"""Source, Transform, Sink, and the one loop that runs them.

A node is one class in one file. Its constructor's keyword arguments are its YAML options; hardware and models wait for
`open()`. It never sees a socket: it is handed messages and yields messages, so the same class runs live, in a replay and
in a test (pipeline/testing.py).

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

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS, Clock, LiveClock
from pipeline.errors import ConfigError, DeviceError, nearest
from pipeline.frame import ENCODINGS, AlignedSet, Frame, Health, Message, NodeState, Prediction, StreamInfo, silence
from pipeline.metrics import Metrics
from pipeline.rig.time_correction import TimeCorrection, check_offset, time_correction
from pipeline.transport.input_queue import Arrival, Ended, InputQueue

__all__ = ["Arrival", "Context", "Finding", "Node", "Sink", "Source", "Transform", "run"]

RETRY_FIRST_NS, RETRY_MOST_NS = NS // 2, 8 * NS


@dataclass
class Context:
    """What a node is given before `open()`."""

    name: str
    clock: Clock = field(default_factory=LiveClock)
    inputs: tuple[str, ...] = ()  # the nodes it reads from
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("node"))
    metrics: Metrics = field(default_factory=Metrics)
    stopping: threading.Event = field(default_factory=threading.Event)  # set: return from whatever you wait for
    muted: threading.Event = field(default_factory=threading.Event)
    request: Callable[[str, str], None] = lambda verb, argument: (
        None
    )  # ask the launcher: ("stop", ""), ("mute", "camera")
    tell: Callable[[NodeState, str], None] = lambda state, note: None  # the node's state, for the page and the log
    borrow: Callable[[tuple[int, ...], npt.DTypeLike], np.ndarray] = np.empty  # an array that its readers can see
    info: Callable[[str], StreamInfo | None] = lambda source: None  # what a source said its stream is
    # Text for whoever reads `NAME.events`; None when nobody does. Only of a node that `journals`.
    journal: Callable[[bytes], None] | None = None
    heard: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)  # what the page said to this node


class Finding(NamedTuple):
    """One line of `doctor`. works None: could not be told."""

    works: bool | None
    what: str
    fix: str = ""


class Node:
    """Common to all nodes. `consumes` and `produces` are what graph.py checks the edges by."""

    consumes: ClassVar[tuple[type, ...]] = ()
    produces: ClassVar[type | None] = None
    journals: ClassVar[bool] = False  # it tells what it was told and decided: `NAME.events`, a stream of text
    context: Context = Context("unnamed")  # replaced before open()

    @property
    def name(self) -> str:
        return self.context.name

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        """What of this kind works on this machine, and what to do about the rest."""
        return ()

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        """(option, the class whose options it holds), for each such option. None: a class that is not known here."""
        return ()

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        """(option, the input that it names), for each option that names one."""
        return ()

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
    """A sensor or a file.

    offset_ms: added to every capture time, for a delay that no clock sees, or rig: a rig file that has it under the node's name.
    A sensor that takes these options gives them to super().__init__, and its open() begins with super().open().
    """

    produces: ClassVar[type | None] = Frame
    numbers: ClassVar[bool] = True  # False: its frames keep their own seq and publish_ns, as they were recorded
    offset_ms: float | None = None
    rig: str | None = None
    correction = TimeCorrection()  # of every capture time, watermarks included: what these two come to
    _lost = 0

    def __init__(self, *, offset_ms: float | None = None, rig: str | None = None) -> None:
        check_offset(offset_ms, rig)
        self.offset_ms, self.rig = offset_ms, rig

    def open(self) -> None:
        self.correction = time_correction(self.name, offset_ms=self.offset_ms, rig=self.rig)

    @property
    def is_live(self) -> bool:
        """Whether it looks at the world, or listens, as it is now: to record that needs the consent of those in view."""
        return False

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

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """An uninitialised array for the next frame's data. Filled in place and sent whole, it is never copied.

        Where the readers share memory with this process it is a slot of the stream's ring, given back when nobody uses
        it any more; so fill it, yield it and let it go. May be called in any thread.
        """
        return self.context.borrow(shape, dtype)

    def take_lost(self) -> int:
        lost, self._lost = self._lost, 0
        return lost


class Transform(Node):
    """Messages in, messages out."""

    def process(self, arrival: Arrival) -> Iterable[Message]:
        raise TypeError(f"{type(self).__name__} does not define process()")

    def wants(self, source: str) -> bool:
        """False: leave what `source` sent in the queue for now (its sender waits if the edge keeps all)."""
        return True

    def wake_ns(self) -> int | None:
        """When `advance` should next be called though nothing arrives; None: not needed."""
        return None

    def advance(self, now_ns: int) -> Iterable[Message]:
        """Called when all that arrived until now_ns has been processed."""
        return ()

    def ended(self, source: str, arrival_ns: int) -> Iterable[Message]:
        """One input is finished."""
        return ()

    def finish(self) -> Iterable[Message]:
        """Every input has ended: whatever is still held comes out."""
        return ()


class Sink(Node):
    """Messages in, nothing out."""

    consumes: ClassVar[tuple[type, ...]] = (Frame, AlignedSet, Prediction, Health)

    def consume(self, arrival: Arrival) -> None:
        raise TypeError(f"{type(self).__name__} does not define consume()")

    def finish(self) -> None:
        """Every input has ended."""


def run(
    node: Node,
    inbox: InputQueue,
    send: Callable[[Message], None],
    *,
    sources: Iterable[str] = (),
    lost: DeviceError | None = None,
) -> None:
    """Run an opened node until it is finished or context.stopping is set.

    sources: the nodes it reads from. lost: why an optional source could not be opened; it is then tried again.
    Raises what the node raises, but for a source's DeviceError(retry=True), which is waited out.
    """
    if isinstance(node, Source):
        _run_source(node, send, lost)
    elif isinstance(node, Transform):
        _run_transform(node, inbox, send, set(sources))
    elif isinstance(node, Sink):
        _run_sink(node, inbox, set(sources))
    else:
        raise TypeError(f"{type(node).__name__} is neither a Source, a Transform nor a Sink")


def _run_source(node: Source, send: Callable[[Message], None], lost: DeviceError | None) -> None:
    context, clock = node.context, node.context.clock
    seq = 0
    retry_ns = RETRY_FIRST_NS

    def publish(frame: Frame) -> None:
        nonlocal seq
        seq += node.take_lost()
        if not node.numbers:
            return send(frame)
        _check(frame, node)
        send(msgspec.structs.replace(node.correction.apply(frame), seq=seq, publish_ns=clock.now_ns()))
        seq += 1

    while not context.stopping.is_set():
        if lost is not None:
            again = f" Trying again in {retry_ns / NS:.1f} s." if lost.retry else ""
            context.tell("silent" if seq else "absent", f"{lost}{again}")
            # Nothing can come before the next try: a promise that lets the aligner go on without waiting.
            until_ns = clock.now_ns() + retry_ns
            publish(silence(node.name, until_ns, str(lost)))
            retry_ns = min(2 * retry_ns, RETRY_MOST_NS)
            if clock.sleep_until(until_ns, context.stopping) and lost.retry:
                lost = _try_open(node)
            continue
        try:
            for frame in node.frames(clock):
                if context.muted.is_set():
                    frame = silence(node.name, frame.end_ns, "muted")
                context.tell("muted" if context.muted.is_set() else "running", "")
                publish(frame)
                retry_ns = RETRY_FIRST_NS
                if context.stopping.is_set():
                    return
            return
        except DeviceError as error:
            if not error.retry:
                raise
            context.log.warning("%s", error)
            node.close()
            lost = error


def _check(frame: object, node: Source) -> None:
    """What no reader could take is said here, where it was made: behind the socket it would be lost and only counted."""
    where = f"{type(node).__name__}.frames()"
    if not isinstance(frame, Frame):
        raise TypeError(f"{where} yielded {type(frame).__name__}, expected a pipeline.frame.Frame")
    if frame.encoding not in ENCODINGS:
        known = ", ".join(sorted(ENCODINGS))
        raise ValueError(
            f"{where}: no encoding '{frame.encoding}'. Known: {known}.{nearest(str(frame.encoding), ENCODINGS)}"
        )
    for name in ("capture_ns", "duration_ns", "clock_error_ns"):
        if type(value := getattr(frame, name)) is not int:
            raise TypeError(
                f"{where}: {name} is {value!r} ({type(value).__name__}), expected whole nanoseconds: int(…)"
            )


def _try_open(node: Source) -> DeviceError | None:
    try:
        node.open()
    except DeviceError as error:
        node.close()
        return error
    node.context.log.warning("it is back")
    return None


def _run_transform(node: Transform, inbox: InputQueue, send: Callable[[Message], None], open_sources: set[str]) -> None:
    context = node.context

    def publish(messages: Iterable[Message]) -> None:
        for message in messages:
            send(_timed(message, context))

    context.tell("running", "")
    while not context.stopping.is_set() and open_sources:
        wake_ns = node.wake_ns()
        wait_s = 0.05 if wake_ns is None else min(0.05, max(0.0, (wake_ns - context.clock.now_ns()) / NS))
        item, now_ns = inbox.take(wait_s, node.wants)
        if isinstance(item, Arrival):
            context.metrics.received[item.source] += 1
            publish(node.process(item))
        elif isinstance(item, Ended):
            open_sources.discard(item.source)
            publish(node.ended(item.source, item.arrival_ns))
        else:
            publish(node.advance(now_ns))
    if not open_sources:
        publish(node.finish())


def _run_sink(node: Sink, inbox: InputQueue, open_sources: set[str]) -> None:
    context = node.context
    context.tell("running", "")
    while not context.stopping.is_set() and open_sources:
        item, _ = inbox.take(0.1)
        if isinstance(item, Arrival):
            context.metrics.received[item.source] += 1
            node.consume(item)
        elif isinstance(item, Ended):
            open_sources.discard(item.source)
    node.finish()


def _timed(message: Message, context: Context) -> Message:
    """A prediction as it leaves, with its total latency; `rest` is what is neither waiting for data nor the task itself."""
    if not isinstance(message, Prediction):
        return message
    total_ns = context.clock.now_ns() - message.capture_ns
    timing_ns = {**message.timing_ns, "total": total_ns}
    for name, duration_ns in timing_ns.items():
        context.metrics.latency(name).add(duration_ns)
    context.metrics.latency("rest").add(total_ns - timing_ns.get("wait", 0) - timing_ns.get("infer", 0))
    return msgspec.structs.replace(message, timing_ns=timing_ns)
