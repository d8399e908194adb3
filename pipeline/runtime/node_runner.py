"""One node inside a node process: its thread, what it reads and sends, its state, and how it fails.

A node is opened, waits until every stream it reads on this host has welcomed it, is `ready`, and runs once `began` is set.
A stream of another host is not waited for: it is absent until it comes. Its times are moved to this host's clock on arrival.

    nodes = {plan.name: NodeThread(plan, began, tell_launcher, clock, keyring) for plan in process.nodes}
    nodes["align"].connect(nodes, drain, lines)
    nodes["align"].thread.start(); nodes["align"].context.stopping.set()
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable

import numpy as np

from pipeline.clock import Clock
from pipeline.errors import DeviceError, SensoriumError, missing_package
from pipeline.frame import (
    AlignedSet,
    Frame,
    Health,
    Message,
    NodeHealth,
    NodeState,
    Prediction,
    StreamInfo,
    left_ns,
    moved,
)
from pipeline.metrics import Metrics
from pipeline.node import Context, Node, Source
from pipeline.runtime.config import HEALTH, instantiate
from pipeline.runtime.graph import EVENTS, NodePlan
from pipeline.runtime.node_loop import run
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.credits import INITIAL_CREDITS
from pipeline.transport.drop_reasons import CLOCK_JUMPED, MALFORMED, OVERWRITTEN
from pipeline.transport.input_queue import InputQueue
from pipeline.transport.keys import Keyring
from pipeline.transport.publisher import Publisher
from pipeline.transport.receiver import Receiver
from pipeline.transport.shared_memory import DEFAULT_SPAN_S
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import End, Fault, Payloads, Request, Value

RECORDED_S = 1.0  # a recorder on a busy machine may not run for longer than an aligner may
JOURNAL_QUEUE = 1000  # its messages are small, and one that is missing leaves all that follows unexplained


class NodeThread:
    """Construct, connect(), `thread.start()`. The thread ends with the node; `state` and `note` then say how."""

    def __init__(
        self,
        plan: NodePlan,
        began: threading.Event,
        tell_launcher: Callable[[Value], None],
        clock: Clock,
        keyring: Keyring | None,
    ) -> None:
        self.plan, self._keyring = plan, keyring
        self.metrics = Metrics()
        self.inbox = InputQueue(clock, self.metrics)
        self.connections: dict[str, Subscriber] = {}
        self._local: dict[str, NodeThread] = {}
        self._ended_before: set[str] = set()
        self.local_readers: list[NodeThread] = []
        self.state: NodeState = "starting"
        self.note = ""
        self.abandoned = threading.Event()  # set: the process ends because of a failure and will be started again
        self._began = began
        self._tell_launcher = tell_launcher
        self.context = Context(
            plan.name,
            clock,
            tuple(edge.source for edge in plan.inputs),
            logging.getLogger(plan.name),
            self.metrics,
            request=lambda verb, argument: tell_launcher(Request(verb, argument)),
            report_state=self._tell,
            info=self._info_of,
        )
        for edge in plan.inputs:
            self.inbox.open(edge.source, edge.queue)
        self._publisher: Publisher | None = None
        self._journal: Publisher | None = None
        self._journaled = 0
        self.thread = threading.Thread(target=self._main, name=plan.name)

    def connect(self, local: dict[str, NodeThread], drain: Receiver, lines: dict[str, ClockClient]) -> None:
        """Wire the inputs: to a node of this process directly, to others through the drain thread. lines: by host."""
        self._local = local
        for edge in self.plan.inputs:
            if edge.source in local:
                local[edge.source].local_readers.append(self)
                continue
            credits = INITIAL_CREDITS if edge.queue == "all" else None
            reader, line = f"{self.plan.name}<-{edge.source}", lines.get(edge.host)
            payloads: Payloads | None = "packed" if line else None
            connection = Subscriber(
                edge.address, reader, credits=credits, payloads=payloads, clock_client=line, keyring=self._keyring
            )
            self.connections[edge.source] = connection
            self._attach(drain, edge.source, connection)

    def _attach(self, drain: Receiver, source: str, connection: Subscriber) -> None:
        other_clock = connection.clock_client.clock if connection.clock_client else None

        def lose(count: int, *reason: str) -> None:
            self.metrics.promised[source] += count
            self.inbox.count_lost(source, count, *reason)

        def deliver(value: Value | OverwrittenPayload | None, lost: int) -> None:
            if lost:
                lose(lost)
            if isinstance(value, Frame | AlignedSet | Prediction | Health):
                if other_clock is not None:
                    if not other_clock.admits(left_ns(value), self.context.clock.now_ns()):
                        lose(1, CLOCK_JUMPED)
                        return
                    value = moved(value, other_clock.to_local)
                self.metrics.promised[source] += 1
                self.inbox.put(source, value)
            elif isinstance(value, OverwrittenPayload):
                lose(1, OVERWRITTEN)
            elif isinstance(value, End):
                self.inbox.end(source)

        drain.add(connection, deliver, lambda: lose(1, MALFORMED), lambda: self.inbox.take_credits(source))

    def source_ended(self, source: str) -> None:
        """`source` was finished before we (started again, perhaps) could connect, so it can neither welcome us nor end."""
        if source in self.connections and not self.connections[source].info and source not in self._ended_before:
            self._ended_before.add(source)
            self.inbox.end(source)

    def leave(self) -> None:
        """The run ends on this host: what other hosts still send is not waited for."""
        for source, connection in self.connections.items():
            if connection.clock_client is not None:
                connection.leave()
                self.inbox.end(source)

    def health(self, cpu_s: float, restarts: int) -> NodeHealth:
        metrics = self.metrics
        facts = dict(metrics.facts)
        for source, connection in self.connections.items():
            if connection.clock_client is not None:
                here = f"clock {connection.clock_client.describe()}" if connection.info else "not here yet"
                facts[f"{source} on {connection.clock_client.host}"] = here
        return NodeHealth(
            self.plan.name,
            self.state,
            self.note,
            os.getpid(),
            restarts,
            round(cpu_s, 3),
            metrics.produced,
            dict(metrics.received),
            metrics.dropped(),
            metrics.latencies_ms(),
            facts,
            dict(metrics.promised),
        )

    def _tell(self, state: NodeState, note: str) -> None:
        self.state, self.note = state, note

    def _main(self) -> None:
        node: Node | None = None
        try:
            node = instantiate(self.plan.use, self.plan.options, where=self.plan.where, inputs=self.context.inputs)
            node.context = self.context
            info = StreamInfo(self.plan.name, "")
            self._publisher = Publisher(
                self.plan.address,
                info,
                network=self.plan.network,
                keyring=self._keyring,
                span_s=RECORDED_S if self.plan.recorded else DEFAULT_SPAN_S,
            )
            self.context.borrow = self._publisher.borrow
            if self.plan.events:
                self._journal = Publisher(
                    self.plan.events, StreamInfo(self.plan.name + EVENTS, "text_utf8"), queue=JOURNAL_QUEUE
                )
                self.context.publish_event = self._send_journal
            lost: DeviceError | None = None
            try:
                node.open()
                if isinstance(node, Source):
                    self._publisher.info = node.info()
            except DeviceError as error:
                if not self.plan.optional:
                    raise
                lost = error
                self.context.log.warning("%s Going on without it.", error)
            if self._wait_for_begin():
                # Health goes on for as long as anybody runs, so its end is not waited for.
                sources = [name for name in self.context.inputs if name != HEALTH]
                run(node, self.inbox, self._send, sources=sources, lost=lost)
            self.state, self.note = ("stopped" if self.context.stopping.is_set() else "finished"), ""
        except SensoriumError as error:
            self._fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            self._fail(str(missing_package(error.name or "?", f"node '{self.plan.name}'")), 2)
        except (
            Exception
        ) as error:  # a node's bug ends the node, with its traceback in the log; the launcher restarts it
            self.context.log.error("%s", traceback.format_exc())
            self._fail(f"{type(error).__name__}: {error}", 1)
        finally:
            self._close(node)

    def _close(self, node: Node | None) -> None:
        try:
            if node is not None:
                node.close()
        except Exception:
            self.context.log.error("while closing: %s", traceback.format_exc())
        in_order = self.state in ("finished", "stopped") and not self.abandoned.is_set()
        for reader in self.local_readers if in_order else ():
            reader.inbox.end(self.plan.name)
        for publisher in filter(None, (self._journal, self._publisher)):
            publisher.close(ended=in_order)

    def _is_settled(self, source: str) -> bool:
        connection = self.connections[source]
        return bool(connection.info or connection.clock_client) or source in self._ended_before

    def _wait_for_begin(self) -> bool:
        assert self._publisher is not None
        while not self.context.stopping.is_set():
            if self.state == "starting" and all(self._is_settled(source) for source in self.connections):
                self.state = "ready"
            if self._began.is_set() and self.state == "ready":
                return True
            if self._journal is not None:
                self._journal.service()
            self._publisher.service(timeout_ms=5)
        return False

    def _send(self, message: Message) -> None:
        assert self._publisher is not None
        self.metrics.produced += 1
        for reader in self.local_readers:
            reader.inbox.put_when_room(self.plan.name, message, self.context.stopping)
        self._publisher.send(message, stopping=self.context.stopping)

    def _send_journal(self, text: bytes) -> None:
        assert self._journal is not None
        now_ns = self.context.clock.now_ns()
        data = np.frombuffer(text, np.uint8)
        frame = Frame(self.plan.name + EVENTS, self._journaled, now_ns, "text_utf8", data, publish_ns=now_ns)
        self._journaled += 1
        self._journal.send(frame, stopping=self.context.stopping)

    def _info_of(self, source: str) -> StreamInfo | None:
        if source in self.connections:
            return self.connections[source].info
        publisher = self._local[source]._publisher if source in self._local else None
        return publisher.info if publisher else None

    def _fail(self, message: str, exit_code: int) -> None:
        self.state, self.note = "failed", message
        self._tell_launcher(Fault(self.plan.name, message, exit_code))
