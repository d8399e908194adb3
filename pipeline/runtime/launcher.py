"""Plan → processes on this host: start them, begin together, restart those that die, end in order, sum up.

One loop receives messages, moves the run from phase to phase, and brings every process to what the phase asks of it
(`_reconcile` is the table). What a process is, and why it ended, is ManagedProcess's business.

Example:
    summary = launch(load("configs/emotion-live.yaml"), for_s=10)
    summary["frames_in"], summary["dropped"], summary["unaccounted"]
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.clock import NS
from pipeline.errors import SensoriumError
from pipeline.frame import Health, StreamInfo
from pipeline.runtime.accounting import summarise
from pipeline.runtime.config import HEALTH, Config
from pipeline.runtime.graph import EVENTS, Plan, plan_graph
from pipeline.runtime.guard import Guard
from pipeline.runtime.managed_process import LIVE, ManagedProcess, ProcessState
from pipeline.runtime.run_folder import announce, create_run_folder, keys_between_hosts
from pipeline.runtime.systemd import notify, watchdog_every_s
from pipeline.transport.clock_exchange import ClockServer
from pipeline.transport.control import ControlServer
from pipeline.transport.keys import Keys, RunKeys
from pipeline.transport.network import new_keys
from pipeline.transport.publisher import Publisher
from pipeline.transport.service_thread import failure
from pipeline.transport.wire_format import Fault, Report, Request

log = logging.getLogger("launch")

ACTIVE = (*LIVE, ProcessState.BACKOFF)  # while any process is in one of these states, the run goes on
POLL_MS = 20
LAST_MESSAGES_MS = 20  # what a process sent before it ended may still be on its way to the launcher
LAST_REPORT_S = 1.0  # so long for the report of a process that seems to have ended in order
OWN_GAP_S = 1.0  # after so long between two rounds of the loop, this process itself was stopped
HEALTH_EVERY_S = 0.25
WAITING_EVERY_S = 10.0
# A run ends within 2 s of Ctrl-C: so long its streams may run dry, then processes get SIGTERM, then they are killed.
DRAINING_S, TERMINATING_S = 1.0, 0.7
BEGIN_AHEAD_NS = (
    50_000_000  # the start lies a little ahead, so that all sources start at the same time on the same clock
)


class Phase(enum.Enum):
    """Of a run."""

    LOADING = enum.auto()  # processes open devices and load models; nothing flows
    RUNNING = enum.auto()  # frames flow
    DRAINING = enum.auto()  # the sources have stopped; what is on its way is still processed
    TERMINATING = enum.auto()  # time is up: what still runs gets SIGTERM
    KILLING = enum.auto()  # what still runs is killed


class Launcher:
    """One run of a plan.

    Args:
        plan: What runs on this host.
        run_folder: Where the run announces its streams (run_folder.py).
        warm: This process may be forked: it holds no thread, device or library that a fork must not have (spawn.py).
        on_begin: Called when frames start to flow.
    """

    def __init__(
        self, plan: Plan, run_folder: Path, *, warm: bool = False, on_begin: Callable[[], None] = lambda: None
    ) -> None:
        self._plan, self._folder, self._on_begin = plan, run_folder, on_begin
        self._keyring = _keyring(plan)
        self.name = plan.name
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        for process in plan.processes:
            process.mark = self._mark
        self._control: ControlServer | None = None
        self._health_stream: Publisher | None = None
        self._processes = {p.name: ManagedProcess(p, send=self._send, warm=warm) for p in plan.processes}
        self._process_of = {name: process for process in self._processes.values() for name in process.node_names}
        self._phase = Phase.LOADING
        self._start_ns = 0
        self._stop_requested_s = 0.0
        self._for_s: float | None = None
        self._interrupts = 0  # Ctrl-C: counted by the signal handler, handled by the loop
        self._is_cut = False  # the end did not wait for all that was on its way
        self._muted: set[str] = set()
        self._abandoned: set[str] = set()  # nodes
        self._guard: Guard | None = None
        self._error: SensoriumError | None = None

    def run(self, *, for_s: float | None = None) -> dict[str, Any]:
        """Run to the end of all sources, for for_s seconds, or until stop() or Ctrl-C. Returns the run's summary.

        Raises:
            SensoriumError: A node failed in a way that a restart cannot mend: ConfigError, DeviceError or our own bug.
            KeyboardInterrupt: Interrupted before anything flowed, so that there is nothing to sum up.
        """
        self._for_s = for_s
        with _signals(self._interrupt), ExitStack() as sockets:
            try:
                self._reconcile()  # before the first socket, which starts threads: a process with threads cannot fork
                self._start_guard(sockets)
                self._open(sockets)
                self._loop()
            finally:
                notify("STOPPING=1")
                self._kill()
        if self._error is not None:
            raise self._error
        if not self._start_ns:
            raise KeyboardInterrupt
        return summarise(self._plan, self.health().nodes, time.monotonic_ns() - self._start_ns, cut=self._is_cut)

    def stop(self) -> None:
        """Stop the sources; what is on its way is still processed."""
        if self._phase not in (Phase.LOADING, Phase.RUNNING):
            return
        self._phase, self._stop_requested_s = Phase.DRAINING, time.monotonic()
        for process in self._processes.values():
            for node in process.plan.nodes:
                if node.is_source or not self._start_ns:  # nothing flows yet: all of them stop at once
                    process.request("stop", node.name)
            if process.plan.clocks:  # it reads from other hosts, whose sources go on
                process.request("leave")

    def health(self) -> Health:
        nodes = [node for process in self._processes.values() for node in process.health()]
        return Health(time.monotonic_ns(), tuple(nodes), self.name)

    # --- the loop -------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        assert self._health_stream is not None
        next_health_s = 0.0
        next_waiting_s = time.monotonic() + WAITING_EVERY_S
        last_s, next_sign_s, sign_every_s = time.monotonic(), 0.0, watchdog_every_s()
        while self._phase is not Phase.KILLING and any(p.state in ACTIVE for p in self._processes.values()):
            self._receive(POLL_MS)
            if (error := failure()) is not None:
                raise error
            self._handle_interrupts()
            last_s = self._watch(last_s)
            self._handle_exits()
            self._advance()
            self._reconcile()
            now_s = time.monotonic()
            if self._phase is Phase.LOADING and now_s >= next_waiting_s:
                next_waiting_s = now_s + WAITING_EVERY_S
                loading = [p for p in self._processes.values() if p.state is ProcessState.LOADING]
                log.info("waiting for: %s", ", ".join(name for process in loading for name in process.node_names))
            if now_s >= next_health_s:
                next_health_s = now_s + HEALTH_EVERY_S
                self._health_stream.send(self.health())
            self._health_stream.service()
            if sign_every_s is not None and now_s >= next_sign_s:
                next_sign_s = now_s + sign_every_s
                notify("WATCHDOG=1")

    def _watch(self, last_s: float) -> float:
        """End processes that do not answer. last_s: when this was called last; returns when it is."""
        now_s = time.monotonic()
        for process in self._processes.values():
            if now_s - last_s > OWN_GAP_S:  # this process was stopped, and with it all that it could receive
                process.postpone_watchdog(now_s - last_s)
            elif self._phase in (Phase.LOADING, Phase.RUNNING):
                process.end_if_silent()
        return now_s

    def _advance(self) -> None:
        """Enter the next phase when it is time."""
        waited_s = time.monotonic() - self._stop_requested_s
        match self._phase:
            case Phase.LOADING:
                if all(process.state is not ProcessState.LOADING for process in self._processes.values()):
                    self._begin()
            case Phase.RUNNING:
                if self._for_s is not None and time.monotonic_ns() >= self._start_ns + self._for_s * NS:
                    self.stop()
            case Phase.DRAINING:
                if waited_s > DRAINING_S or not self._start_ns:
                    self._phase, self._is_cut = Phase.TERMINATING, True
            case Phase.TERMINATING:
                # Before the start nothing is on its way, and processes that load models do not read control messages.
                if waited_s > (DRAINING_S + TERMINATING_S if self._start_ns else TERMINATING_S):
                    self._phase = Phase.KILLING

    def _reconcile(self) -> None:
        """Bring every process to what the phase asks of it. Those that compute come first: they have models to load."""
        for process in sorted(self._processes.values(), key=lambda process: not process.computes):
            match self._phase, process.state:
                case Phase.LOADING, ProcessState.NOT_STARTED:
                    process.start(0)
                case ((Phase.LOADING | Phase.RUNNING), ProcessState.BACKOFF):
                    if process.restart_is_due:
                        process.start(self._start_ns)
                        self._guard_process(process)
                case Phase.RUNNING, ProcessState.LOADING:
                    process.report_ended_inputs(self._finished_inputs(process))
                case Phase.RUNNING, ProcessState.READY:
                    process.begin(self._start_ns, muted=self._muted)
                case ((Phase.DRAINING | Phase.TERMINATING), ProcessState.BACKOFF):
                    process.cancel_restart()
                case Phase.TERMINATING, (ProcessState.LOADING | ProcessState.READY | ProcessState.RUNNING):
                    process.terminate()

    def _begin(self) -> None:
        self._phase, self._start_ns = Phase.RUNNING, time.monotonic_ns() + BEGIN_AHEAD_NS
        self._reconcile()  # the start signal goes out first: on_begin may take its time
        notify("READY=1", f"STATUS={len(self._plan.nodes)} nodes run")
        self._on_begin()

    def _handle_exits(self) -> None:
        for process in self._processes.values():
            if process.has_exited:
                self._receive(LAST_MESSAGES_MS)
                give_up_s = time.monotonic() + LAST_REPORT_S
                while process.ended_without_a_word and time.monotonic() < give_up_s:
                    self._receive(LAST_MESSAGES_MS)
                process.handle_exit(restart=self._phase in (Phase.LOADING, Phase.RUNNING))
                if process.error is not None:
                    self._error = self._error or process.error
                    self.stop()
                elif process.state is ProcessState.ABANDONED:
                    self._go_on_without(process)

    def _go_on_without(self, process: ManagedProcess) -> None:
        """Readers need not wait for what was given up; the run ends when nothing is left that it is for."""
        names = process.node_names
        self._abandoned.update(names)
        notify(f"STATUS=given up: {', '.join(sorted(self._abandoned))}")
        for reader in self._processes.values():
            for name in names:
                if any(edge.source == name for node in reader.plan.nodes for edge in node.inputs):
                    reader.request("lost", name)
        if not self._plan.is_useful_without(self._abandoned):
            log.error("the run ends: nothing is left that predicts, or stores what it reads")
            self.stop()

    def _handle_interrupts(self) -> None:
        while self._interrupts:
            self._interrupts -= 1
            if self._phase in (Phase.DRAINING, Phase.TERMINATING):  # Ctrl-C a second time: do not wait
                self._phase, self._is_cut = Phase.KILLING, True
            self.stop()

    def _finished_inputs(self, process: ManagedProcess) -> set[str]:
        """Of the streams that it reads, those of nodes on this host that have finished."""
        finished = {name for other in self._processes.values() for name in other.finished_nodes()}
        sources = {edge.source for node in process.plan.nodes for edge in node.inputs}
        return {source for source in sources if source.removesuffix(EVENTS) in finished}

    # --- messages -------------------------------------------------------------------------------------------------

    def _start_guard(self, stack: ExitStack) -> None:
        """After the forks, which would hold its input open and with it hide this process's end from it."""
        if os.name == "posix":
            self._guard = Guard(self._mark)
            stack.callback(self._guard.close)
            for process in self._processes.values():
                self._guard_process(process)

    def _guard_process(self, process: ManagedProcess) -> None:
        if self._guard is not None and process.pid:
            self._guard.watch(process.pid)

    def _open(self, sockets: ExitStack) -> None:
        self._control = ControlServer(self._plan.control, self._plan.run_keys)
        sockets.callback(self._control.close)
        self._health_stream = Publisher(self._plan.health, StreamInfo(HEALTH, ""), run_keys=self._plan.run_keys)
        sockets.callback(self._health_stream.close, ended=True)
        self.name = announce(self._folder, name=self._plan.name, config=self._plan.config, streams=self._plan.streams())
        if self._plan.clock:
            clock = ClockServer(self._plan.clock, self._keyring)
            clock.start()
            sockets.callback(clock.stop)

    def _send(self, process: str, request: Request) -> None:
        if self._control is not None:
            self._control.send(process, request)

    def _receive(self, timeout_ms: int) -> bool:
        """Handle what the processes have sent. False: nothing came for that long."""
        messages = self._control.receive(timeout_ms) if self._control is not None else []
        for message in messages:
            if isinstance(message, Report):
                if message.process in self._processes:
                    process = self._processes[message.process]
                    process.handle_report(node for node in message.nodes if node.node in process.node_names)
            elif isinstance(message, Fault):
                if message.node in self._process_of:
                    self._process_of[message.node].handle_fault(message)
            elif isinstance(message, Request):
                self._handle_request(message)
        return bool(messages)

    def _handle_request(self, request: Request) -> None:
        if request.verb == "stop":
            log.info("a node asked to stop the run")
            self.stop()
        elif request.verb in ("pause", "resume", "label"):
            for process in self._processes.values():
                process.request(request.verb, request.argument)
        elif request.verb in ("mute", "unmute") and request.argument in self._process_of:
            (self._muted.add if request.verb == "mute" else self._muted.discard)(request.argument)
            self._process_of[request.argument].request(request.verb, request.argument)

    def _interrupt(self) -> None:
        self._interrupts += 1

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        while self._receive(LAST_MESSAGES_MS):
            pass


def launch(
    config: Config,
    *,
    host: str = "",
    name: str = "",
    for_s: float | None = None,
    warm: bool = False,
    on_begin: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Run a config to its end, for for_s seconds, or until Ctrl-C; returns the summary.

    Args:
        config: From config.load.
        host: For a config with hosts: which one this is; its nodes run here. Runs on the other hosts are started there,
            and their streams may come and go.
        name: Of the run, by which programs find it where several run here. "": its config's.
        for_s: How long to run (s). None: to the end of its sources.
        warm: This process may be forked, see Launcher.
        on_begin: Called with the plan when frames start to flow.

    Raises:
        SensoriumError: As Launcher.run.
        KeyboardInterrupt: Interrupted before anything flowed.
    """
    with create_run_folder() as folder:
        plan = plan_graph(config, folder, host, name)
        if config.portable:
            plan.use(RunKeys.create(folder, *new_keys()))
        warm = warm and not config.portable
        return Launcher(plan, folder, warm=warm, on_begin=lambda: on_begin(plan)).run(for_s=for_s)


def _keyring(plan: Plan) -> Keys | None:
    """This host's keys, if a stream leaves or enters it. ConfigError, before anything starts, for a missing key."""
    others = {name: address for process in plan.processes for name, address in process.clocks.items()}
    keyring = keys_between_hosts(plan.host, [plan.clock, *others.values()])
    if keyring is not None:
        for name in others:
            keyring.public_of(name)
    return keyring


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    numbers = {signal.SIGINT, signal.SIGTERM}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored: under nohup
        numbers.add(signal.SIGHUP)
    previous = {s: signal.signal(s, lambda *_: stop()) for s in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
