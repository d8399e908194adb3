"""One node inside a node process: its thread, its inputs and outputs, its state, and how it fails.

A node is constructed and opened, waits until every stream that it reads on this host is connected, is `ready`, and runs
after the start signal. A stream of another host is not waited for: it is absent until it comes, and its times are
converted to this host's clock on arrival.

Example:
    runners = {plan.name: NodeRunner(plan, started, send_to_launcher, clock, keyring) for plan in process.nodes}
    runners["align"].connect(runners, receiver, clock_clients)
    runners["align"].thread.start(); runners["align"].context.stopping.set()
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.clock import Clock, LiveClock, ReplayClock
from pipeline.credentials import without_credentials
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
from pipeline.runtime.run_folder import announce_page
from pipeline.runtime.watchdog import Watchdog, stack_of
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.credits import INITIAL_CREDITS
from pipeline.transport.drop_reasons import CLOCK_JUMPED, MALFORMED, OVERWRITTEN
from pipeline.transport.input_queue import InputQueue
from pipeline.transport.keys import Keys
from pipeline.transport.publisher import Publisher
from pipeline.transport.receiver import Receiver
from pipeline.transport.shared_memory import DEFAULT_SPAN_S
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import End, Fault, Payloads, Request, Value

RECORDED_SPAN_S = (
    1.0  # a recorder may be kept from running for longer than an aligner, so its streams get a longer ring
)
EVENT_QUEUE = 1000  # events are small, and one that is missing leaves all that follow unexplained


class NodeRunner:
    """Runs one node in one thread, which ends with the node; `state` and `note` then say how.

    Args:
        plan: The node and its edges.
        started: Set by the process when the launcher gives the start signal.
        send_to_launcher: Sends a Fault or Request; may be called from any thread.
        clock: The clock of the process.
        keyring: The keys of this host, if a stream comes from or goes to another one.
        run_keys: Those of the run, if its own addresses are TCP.
        restarts: How often the process was started again.
        folder: The run's, in which the addresses of pages are.
    """

    def __init__(
        self,
        plan: NodePlan,
        started: threading.Event,
        send_to_launcher: Callable[[Fault | Request], None],
        clock: Clock,
        keyring: Keys | None,
        run_keys: Keys | None = None,
        restarts: int = 0,
        folder: str = "",
    ) -> None:
        self.plan, self._keyring, self._run_keys = plan, keyring, run_keys
        self.metrics = Metrics()
        self.queue = InputQueue(clock, self.metrics)
        self.subscribers: dict[str, Subscriber] = {}  # source → its stream, of sources in other processes
        self.process_failed = threading.Event()  # set: the process ends because of a failure, and will be restarted
        self.watchdog = Watchdog(plan.watchdog_s)
        self.state: NodeState = "starting"
        self.note = ""
        self._local: Mapping[str, NodeRunner] = {}
        self._local_readers: list[NodeRunner] = []
        self._ended_sources: set[str] = set()  # sources that had finished before this node could connect
        self._started = started
        self._send_to_launcher = send_to_launcher
        self.context = Context(
            plan.name,
            clock,
            tuple(edge.source for edge in plan.inputs),
            logging.getLogger(plan.name),
            self.metrics,
            request=lambda verb, argument: send_to_launcher(Request(verb, argument)),
            report_state=self._report_state,
            info=self._info_of,
            alive=self.watchdog.alive,
            restarts=restarts,
            publish_page=lambda address: announce_page(Path(folder), plan.name, address) if folder else None,
        )
        for edge in plan.inputs:
            self.queue.open(edge.source, edge.queue)
        self._publisher: Publisher | None = None
        self._event_publisher: Publisher | None = None
        self._event_count = 0
        self.thread = threading.Thread(target=self._main, name=plan.name)

    # --- inputs -------------------------------------------------------------------------------------------------------

    def connect(
        self, local: Mapping[str, NodeRunner], receiver: Receiver, clock_clients: Mapping[str, ClockClient]
    ) -> None:
        """Connect the inputs: from nodes of this process directly, from all others through the receiver.

        Args:
            local: The runners of this process, by node.
            receiver: The thread that reads the sockets of this process.
            clock_clients: By host, for streams of other hosts.
        """
        self._local = local
        for edge in self.plan.inputs:
            if edge.source in local:
                local[edge.source]._local_readers.append(self)
                continue
            clock_client = clock_clients.get(edge.host)
            payloads: Payloads | None = "packed" if clock_client else None
            subscriber = Subscriber(
                edge.address,
                f"{self.plan.name}<-{edge.source}",
                credits=INITIAL_CREDITS if edge.queue == "all" else None,
                payloads=payloads,
                clock_client=clock_client,
                keys=self._keyring if clock_client else self._run_keys,
            )
            self.subscribers[edge.source] = subscriber
            self._receive_from(edge.source, subscriber, receiver)

    def _receive_from(self, source: str, subscriber: Subscriber, receiver: Receiver) -> None:
        remote_clock = subscriber.clock_client.clock if subscriber.clock_client else None

        def count_lost(count: int, *reason: str) -> None:
            self.metrics.promised[source] += count
            self.queue.count_lost(source, count, *reason)

        def deliver(value: Value | OverwrittenPayload | None, lost: int) -> None:
            if lost:
                count_lost(lost)
            if isinstance(value, Frame | AlignedSet | Prediction | Health):
                if remote_clock is not None:
                    if not remote_clock.admits(left_ns(value), self.context.clock.now_ns()):
                        count_lost(1, CLOCK_JUMPED)
                        return
                    value = moved(value, remote_clock.to_local)
                self.metrics.promised[source] += 1
                self.queue.put(source, value)
            elif isinstance(value, OverwrittenPayload):
                count_lost(1, OVERWRITTEN)
            elif isinstance(value, End):
                self._ended_sources.add(source)
                self.queue.end(source)

        receiver.add(subscriber, deliver, lambda: count_lost(1, MALFORMED), lambda: self.queue.take_credits(source))

    def handle_ended_source(self, source: str) -> None:
        """`source` finished before this node, perhaps restarted, could connect: no End will come from it."""
        if source in self.subscribers and not self.subscribers[source].info and source not in self._ended_sources:
            self._ended_sources.add(source)
            self.queue.end(source)

    def handle_lost_source(self, source: str) -> None:
        """`source` was given up: nothing more comes from it."""
        if source in self.subscribers and source not in self._ended_sources:
            self._ended_sources.add(source)
            self.queue.end(source)

    def leave_other_hosts(self) -> None:
        """The run ends on this host: do not wait for what other hosts still send."""
        for source, subscriber in self.subscribers.items():
            if subscriber.clock_client is not None:
                subscriber.leave()
                self.queue.end(source)

    def _is_settled(self, source: str) -> bool:
        """Whether the node need not wait for this input any longer before it is ready."""
        subscriber = self.subscribers[source]
        return bool(subscriber.info or subscriber.clock_client) or source in self._ended_sources

    def _info_of(self, source: str) -> StreamInfo | None:
        if source in self.subscribers:
            return self.subscribers[source].info
        publisher = self._local[source]._publisher if source in self._local else None
        return publisher.info if publisher else None

    # --- state --------------------------------------------------------------------------------------------------------

    def health(self, cpu_s: float, restarts: int) -> NodeHealth:
        """cpu_s: of the process so far."""
        metrics = self.metrics
        facts = dict(metrics.facts)
        for source, subscriber in self.subscribers.items():
            if subscriber.clock_client is not None:
                clock = f"clock {subscriber.clock_client.describe()}" if subscriber.info else "not here yet"
                facts[f"{source} on {subscriber.clock_client.host}"] = clock
        state, note = self.state, self.note
        if self._silent_s and state not in ("finished", "stopped", "failed"):
            state, note = "not answering", f"no sign of life for {self._silent_s:.0f} s"
        return NodeHealth(
            self.plan.name,
            state,
            note,
            os.getpid(),
            restarts,
            round(cpu_s, 3),
            metrics.produced,
            dict(metrics.received),
            metrics.dropped(),
            metrics.latencies_ms(),
            facts,
            dict(metrics.promised),
            {name: s.first_seq for name, s in self.subscribers.items() if s.first_seq is not None},
            self._event_count,
            dict(metrics.used),
            dict(metrics.unused),
        )

    @property
    def _silent_s(self) -> float:
        """How long the node has not answered; 0 while it does, or waits for the clock."""
        thread_id, clock = self.thread.ident, self.context.clock
        if thread_id is None or not self.thread.is_alive():
            return 0.0
        if isinstance(clock, LiveClock | ReplayClock) and clock.is_sleeping(thread_id):
            self.watchdog.alive()
            return 0.0
        return self.watchdog.silent_s

    def hung(self) -> Fault | None:
        """What to report of a node that will not answer any more: nothing in Python can end its thread."""
        if not self._silent_s or not self.watchdog.is_hung:
            return None
        what = "open()" if self.state == "starting" else "its thread"
        self.context.log.error("hung:\n%s", stack_of(self.thread.ident or 0))
        silent_s = self.watchdog.silent_s
        message = f"not answering: {what} has given no sign of life for {silent_s:.0f} s"
        self.state, self.note = "failed", message
        return Fault(self.plan.name, message, 1, silent_s)

    def _report_state(self, state: NodeState, note: str) -> None:
        self.state, self.note = state, without_credentials(note)

    def _fail(self, message: str, exit_code: int) -> None:
        message = without_credentials(message)
        self.state, self.note = "failed", message
        self._send_to_launcher(Fault(self.plan.name, message, exit_code))

    # --- the node's thread --------------------------------------------------------------------------------------------

    def _main(self) -> None:
        node: Node | None = None
        try:
            self.watchdog.opens()
            node = instantiate(self.plan.use, self.plan.options, where=self.plan.where, inputs=self.context.inputs)
            node.context = self.context
            if (stored := node.stored()) is not None:
                self.metrics.facts["stores"] = without_credentials(f"{stored.what} in {stored.path}")
            self._open_publishers()
            lost = self._open_node(node)
            if self._wait_for_start():
                # Health is published for as long as anything runs, so its end is not waited for.
                sources = [name for name in self.context.inputs if name != HEALTH]
                run(node, self.queue, self._send, sources=sources, lost=lost)
            self.state, self.note = ("stopped" if self.context.stopping.is_set() else "finished"), ""
        except SensoriumError as error:
            self._fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            self._fail(str(missing_package(error.name or "?", f"node '{self.plan.name}'")), 2)
        except BaseException as error:  # also SystemExit; the traceback is in the log, and the launcher restarts it
            self.context.log.error("%s", traceback.format_exc())
            self._fail(f"{type(error).__name__}: {error}", 1)
        finally:
            self._close(node)

    def _open_publishers(self) -> None:
        self._publisher = Publisher(
            self.plan.address,
            StreamInfo(self.plan.name, ""),
            network=self.plan.network,
            keyring=self._keyring,
            run_keys=self._run_keys,
            span_s=RECORDED_SPAN_S if self.plan.recorded else DEFAULT_SPAN_S,
        )
        self.context.borrow = self._publisher.borrow
        if self.plan.events:
            info = StreamInfo(self.plan.name + EVENTS, "text_utf8")
            self._event_publisher = Publisher(self.plan.events, info, queue=EVENT_QUEUE, run_keys=self._run_keys)
            self.context.publish_event = self._send_event

    def _open_node(self, node: Node) -> DeviceError | None:
        """Returns why an optional node could not open its device."""
        assert self._publisher is not None
        try:
            node.open()
            if isinstance(node, Source):
                self._publisher.info = node.info()
                self.watchdog.produces(self._publisher.info.rate_hz)
        except DeviceError as error:
            if not self.plan.optional:
                raise
            self.context.log.warning("%s Going on without it.", error)
            return error
        return None

    def _wait_for_start(self) -> bool:
        """False: stopped before the start signal came."""
        assert self._publisher is not None
        while not self.context.stopping.is_set():
            self.watchdog.alive()
            if self.state == "starting" and all(self._is_settled(source) for source in self.subscribers):
                self.state = "ready"
            if self._started.is_set() and self.state == "ready":
                return True
            if self._event_publisher is not None:
                self._event_publisher.service()
            self._publisher.service(timeout_ms=5)
        return False

    def _close(self, node: Node | None) -> None:
        try:
            if node is not None:
                node.close()
        except Exception:
            self.context.log.error("while closing: %s", traceback.format_exc())
        in_order = self.state in ("finished", "stopped") and not self.process_failed.is_set()
        for reader in self._local_readers if in_order else ():
            reader.queue.end(self.plan.name)
        for publisher in filter(None, (self._event_publisher, self._publisher)):
            publisher.close(ended=in_order)

    def _send(self, message: Message) -> None:
        assert self._publisher is not None
        self.metrics.produced += 1
        with self.watchdog.waiting():  # for readers that let it wait
            for reader in self._local_readers:
                reader.queue.put_when_room(self.plan.name, message, self.context.stopping)
            self._publisher.send(message, stopping=self.context.stopping)

    def _send_event(self, text: bytes) -> None:
        assert self._event_publisher is not None
        now_ns = self.context.clock.now_ns()
        data = np.frombuffer(text, np.uint8)
        frame = Frame(self.plan.name + EVENTS, self._event_count, now_ns, "text_utf8", data, publish_ns=now_ns)
        self._event_count += 1
        self._event_publisher.send(frame, stopping=self.context.stopping)
