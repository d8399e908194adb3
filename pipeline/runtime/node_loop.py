"""Runs one opened node until its inputs end or it is stopped: the loop of a source, of a transform and of a sink.

Example:
    queue = InputQueue(clock, metrics); queue.open("camera")
    run(node, queue, publisher.send, sources=["camera"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from pipeline.clock import NS
from pipeline.credentials import without_credentials
from pipeline.errors import DeviceError, nearest
from pipeline.frame import ENCODINGS, Arrival, Frame, Message, Prediction, misfit, silence
from pipeline.node import Context, Node, Sink, Source, Transform
from pipeline.transport.input_queue import Ended, InputQueue

# Between attempts to open a lost device: half a second at first, then a second, so that one that is plugged in again is
# there within two.
FIRST_RETRY_NS, MAX_RETRY_NS = NS // 2, NS
OPENING_S = 60.0  # so long a device that came back may take to open
MAX_WAIT_S = 0.05  # how long a transform waits for a message before `advance` is called


def run(
    node: Node,
    queue: InputQueue,
    send: Callable[[Message], None],
    *,
    sources: Iterable[str] = (),
    lost: DeviceError | None = None,
) -> None:
    """Run an opened node until it is finished or context.stopping is set.

    A source that raises DeviceError(retry=True) is opened again with back-off; any other error is passed on.

    Args:
        node: Bound to its context and opened.
        queue: The messages that arrive at it.
        send: Publishes one message.
        sources: The nodes it reads from; it ends when all of them have ended.
        lost: Why an optional source could not be opened; opening is then retried.
    """
    if isinstance(node, Source):
        _run_source(node, send, lost)
    elif isinstance(node, Transform):
        _run_transform(node, queue, send, set(sources))
    elif isinstance(node, Sink):
        _run_sink(node, queue, set(sources))
    else:
        raise TypeError(f"{type(node).__name__} is neither a Source, a Transform nor a Sink")


def _run_source(node: Source, send: Callable[[Message], None], lost: DeviceError | None) -> None:
    context, clock = node.context, node.context.clock
    seq = 0
    retry_ns = FIRST_RETRY_NS

    def publish(frame: Frame) -> None:
        nonlocal seq
        seq += node.take_lost()
        if not node.assigns_seq:
            return send(frame)
        _check(frame, node)
        send(msgspec.structs.replace(node.correction.apply(frame), seq=seq, publish_ns=clock.now_ns()))
        seq += 1

    while not context.stopping.is_set():
        if lost is not None:
            again = f" Trying again in {retry_ns / NS:.1f} s." if lost.retry else ""
            context.report_state("silent" if seq else "absent", f"{lost}{again}")
            # A watermark: no frame can come before the next attempt, so the aligner need not wait for one.
            until_ns = clock.now_ns() + retry_ns
            publish(silence(node.name, until_ns, without_credentials(str(lost))))
            retry_ns = min(2 * retry_ns, MAX_RETRY_NS)
            if clock.sleep_until(until_ns, context.stopping) and lost.retry:
                context.alive(OPENING_S)
                lost = _try_open(node)
                context.alive()
            continue
        try:
            for frame in node.frames(clock):
                context.alive()
                if context.muted.is_set():
                    frame = silence(node.name, frame.end_ns, "muted")
                context.report_state("muted" if context.muted.is_set() else "running", "")
                publish(frame)
                retry_ns = FIRST_RETRY_NS
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
    """Validate at the source: past the socket an invalid frame would only show as a drop count."""
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
    if wrong := misfit(frame):
        raise ValueError(f"{where}: {wrong}")


def _try_open(node: Source) -> DeviceError | None:
    try:
        node.open()
    except DeviceError as error:
        node.close()
        return error
    node.context.log.warning("the device is back")
    return None


def _run_transform(node: Transform, queue: InputQueue, send: Callable[[Message], None], open_sources: set[str]) -> None:
    context = node.context

    def publish(messages: Iterable[Message]) -> None:
        for message in messages:
            send(_timed(message, context))

    context.report_state("running", "")
    while not context.stopping.is_set() and open_sources:
        wake_ns = node.wake_ns()
        wait_s = MAX_WAIT_S if wake_ns is None else min(MAX_WAIT_S, max(0.0, (wake_ns - context.clock.now_ns()) / NS))
        item, now_ns = queue.take(wait_s, node.ready_for)
        context.alive()
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


def _run_sink(node: Sink, queue: InputQueue, open_sources: set[str]) -> None:
    context = node.context
    context.report_state("running", "")
    while not context.stopping.is_set() and open_sources:
        item, _ = queue.take(0.1)
        context.alive()
        if isinstance(item, Arrival):
            context.metrics.received[item.source] += 1
            node.consume(item)
        elif isinstance(item, Ended):
            open_sources.discard(item.source)
    node.finish()


def _timed(message: Message, context: Context) -> Message:
    """A prediction with its total latency; `rest` is what is neither waiting for data nor the task itself."""
    if not isinstance(message, Prediction):
        return message
    total_ns = context.clock.now_ns() - message.capture_ns
    timing_ns = {**message.timing_ns, "total": total_ns}
    for name, duration_ns in timing_ns.items():
        context.metrics.latency(name).add(duration_ns)
    context.metrics.latency("rest").add(total_ns - timing_ns.get("wait", 0) - timing_ns.get("infer", 0))
    return msgspec.structs.replace(message, timing_ns=timing_ns)
