"""Plan → processes on this host: start them, begin together, watch, restart what dies, stop, and account for everything.

Example:
    summary = Launch(plan, run_folder).run(for_s=10)
    summary["frames_in"], summary["dropped"], summary["unaccounted"]
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.clock import NS
from pipeline.errors import ConfigError, DeviceError, SensoriumError
from pipeline.frame import Health, NodeHealth, StreamInfo
from pipeline.runtime import managed_process as child
from pipeline.runtime.accounting import add, summarise
from pipeline.runtime.config import Config
from pipeline.runtime.graph import EVENTS, Plan, ProcessPlan, plan_graph
from pipeline.runtime.run_folder import announce, create_run_folder
from pipeline.transport.clock_exchange import ClockServer
from pipeline.transport.control import ControlServer
from pipeline.transport.keys import Keyring
from pipeline.transport.publisher import Publisher
from pipeline.transport.wire_format import Fault, Report, Request

log = logging.getLogger("launch")

HEALTH_EVERY_S = 0.25
# Ctrl-C promises an end within 2 s: this long the streams may run dry, then processes are told, then killed.
DRAIN_S, TERM_S = 1.0, 0.7
LAST_WORDS_MS = 20  # what a process said before it ended may still be on its way here
RESTART_FIRST_S, RESTART_MOST_S = 0.5, 10.0
HEALTHY_AFTER_S = 30.0  # a process that ran so long starts its back-off anew


@dataclass
class _Process:
    plan: ProcessPlan
    child: child.Child | None = None
    started_s: float = 0.0
    begun: bool = False
    start_again_s: float | None = None
    backoff_s: float = RESTART_FIRST_S
    fault: Fault | None = None
    nodes: dict[str, NodeHealth] = field(default_factory=dict)
    before: dict[str, NodeHealth] = field(default_factory=dict)  # what earlier incarnations counted

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.exit_code is None

    @property
    def computes(self) -> bool:
        return not all(node.is_source or node.is_sink for node in self.plan.nodes)

    @property
    def ready(self) -> bool:
        waiting = ("starting", "failed")
        return len(self.nodes) == len(self.plan.nodes) and not any(n.state in waiting for n in self.nodes.values())


class Launch:
    """One run of a plan. run() returns its summary; it raises what ended it when that was a node's fault.

    warm: the caller's process holds nothing that its copies must not have, and may be forked (pipeline/runtime/managed_process.py).
    """

    def __init__(
        self, plan: Plan, run_folder: Path, *, warm: bool = False, on_begin: Callable[[], None] = lambda: None
    ) -> None:
        self._plan, self._folder, self._warm, self._on_begin = plan, run_folder, warm, on_begin
        self._control: ControlServer | None = None
        self._keyring = _keyring(plan)
        self._processes = {p.name: _Process(p) for p in plan.processes}
        self._process_of = {n.name: self._processes[p.name] for p in plan.processes for n in p.nodes}
        self._start_ns = 0
        self._stopping_s: float | None = None
        self._fatal: SensoriumError | None = None
        self._muted: set[str] = set()
        self._cut = False  # the end did not wait for all that was on its way
        self._interrupts = 0  # Ctrl-C, counted by the signal handler and answered by the loop

    def run(self, *, for_s: float | None = None) -> dict[str, Any]:
        with _signals(self._interrupt), ExitStack() as lines:
            try:
                # Before the first socket, which brings threads. What computes goes first: it has models to load.
                for process in sorted(self._processes.values(), key=lambda p: not p.computes):
                    self._start(process)
                self._open(lines)
                self._watch(for_s)
            finally:
                self._kill_all()
        if self._fatal is not None:
            raise self._fatal
        if not self._start_ns:
            raise KeyboardInterrupt  # stopped before anything flowed: there is nothing to sum up
        return summarise(self._plan, self.health().nodes, time.monotonic_ns() - self._start_ns, cut=self._cut)

    def _open(self, lines: ExitStack) -> None:
        self._control = ControlServer(self._plan.control)
        lines.callback(self._control.close)
        self._health = Publisher(self._plan.health, StreamInfo("health", ""))
        lines.callback(self._health.close, ended=True)
        announce(self._folder, config=self._plan.config, streams=self._plan.streams())
        if self._plan.clock:
            clock = ClockServer(self._plan.clock, self._keyring)
            clock.start()
            lines.callback(clock.stop)

    def _interrupt(self) -> None:
        self._interrupts += 1

    def stop(self) -> None:
        """Stop the sources; what is on its way still comes through."""
        if self._stopping_s is not None:
            return
        self._stopping_s = time.monotonic()
        for node in self._plan.nodes:
            if node.is_source:
                self._command(self._process_of[node.name], "stop", node.name)
        for process in self._processes.values():
            if process.plan.clocks:
                self._command(process, "leave")
        if not self._start_ns:  # nothing flows yet
            self._command_all("stop")

    def health(self) -> Health:
        nodes = []
        for process in self._processes.values():
            for plan in process.plan.nodes:
                now = process.nodes.get(plan.name, NodeHealth(plan.name, "starting"))
                nodes.append(add(process.before.get(plan.name), now))
        return Health(time.monotonic_ns(), tuple(nodes))

    # --- the loop -------------------------------------------------------------------------------------------------

    def _watch(self, for_s: float | None) -> None:
        next_health_s = 0.0
        told_waiting_s = time.monotonic() + 10
        while any(p.alive or p.start_again_s is not None for p in self._processes.values()):
            self._hear_all(20)
            while self._interrupts:
                self._interrupts -= 1
                if self._stopping_s is not None:  # Ctrl-C again: do not wait
                    self._cut, self._stopping_s = True, self._stopping_s - DRAIN_S - TERM_S
                self.stop()
            now_s = time.monotonic()
            for process in self._processes.values():
                self._look_after(process, now_s)
            if not self._start_ns and self._stopping_s is None:
                if all(p.ready for p in self._processes.values()):
                    self._begin_all()
                elif now_s > told_waiting_s:
                    waiting = [
                        n for p in self._processes.values() if not p.ready for n in (n.name for n in p.plan.nodes)
                    ]
                    log.info("waiting for: %s", ", ".join(waiting))
                    told_waiting_s = now_s + 10
            if self._start_ns and for_s is not None and time.monotonic_ns() >= self._start_ns + for_s * NS:
                for_s = None
                self.stop()
            if now_s >= next_health_s:
                next_health_s = now_s + HEALTH_EVERY_S
                self._health.send(self.health())
            self._health.service()
            if self._stopping_s is not None and not self._wind_down(now_s):
                return

    def _hear_all(self, timeout_ms: int) -> bool:
        """What the processes say. False: nothing, in all that time."""
        said = self._control.receive(timeout_ms) if self._control is not None else []
        for value in said:
            self._hear(value)
        return bool(said)

    def _hear(self, value: object) -> None:
        if isinstance(value, Report):
            self._hear_report(value)
        elif isinstance(value, Fault):
            self._process_of[value.node].fault = value
        elif isinstance(value, Request):
            if value.verb == "stop":
                log.info("asked to stop")
                self.stop()
            elif value.verb in ("pause", "resume", "label"):
                self._command_all(value.verb, value.argument)
            elif value.verb in ("mute", "unmute") and value.argument in self._process_of:
                (self._muted.add if value.verb == "mute" else self._muted.discard)(value.argument)
                self._command(self._process_of[value.argument], value.verb, value.argument)

    def _hear_report(self, report: Report) -> None:
        process = self._processes.get(report.process)
        if process is None or process.start_again_s is not None:
            return  # a stranger, or the last words of a process that died
        process.nodes.update({n.node: n for n in report.nodes})
        if self._start_ns and not process.begun:  # it was started again
            for source in {e.source for n in process.plan.nodes for e in n.inputs}:
                node = source.removesuffix(EVENTS)
                at = self._process_of.get(node)
                if at and (said := at.nodes.get(node)) and said.state == "finished":
                    self._command(process, "ended", source)
            if process.ready:
                self._begin(process)

    def _begin_all(self) -> None:
        # A moment ahead, so that every source starts its file at the same time on the same clock.
        self._start_ns = time.monotonic_ns() + 50_000_000
        for process in self._processes.values():
            self._begin(process)
        self._on_begin()

    def _begin(self, process: _Process) -> None:
        process.begun = True
        self._command(process, "begin", str(self._start_ns))
        for name in self._muted & {n.name for n in process.plan.nodes}:
            self._command(process, "mute", name)

    def _look_after(self, process: _Process, now_s: float) -> None:
        """Start again what died; end the run for what cannot be helped."""
        if process.start_again_s is not None:
            if now_s >= process.start_again_s and self._stopping_s is None:
                self._start(process)
            return
        if process.child is None or (exit_code := process.child.exit_code) is None:
            return
        self._hear_all(LAST_WORDS_MS)
        process.child = None
        if exit_code == 0 or self._stopping_s is not None:
            return
        names = ", ".join(n.name for n in process.plan.nodes)
        fault, process.fault = process.fault, None
        why = fault.message if fault else f"its process ended with {_signal_name(exit_code)}"
        # What worked once may work again; what fails at the start, or says that it cannot go on, will not.
        hopeless = not process.plan.restarts and (
            not process.begun or (fault is not None and fault.exit_code in (2, 3))
        )
        if hopeless or not all(n.restart for n in process.plan.nodes):
            kind = {2: ConfigError, 3: DeviceError}.get(fault.exit_code if fault else 1, SensoriumError)
            self._fatal = self._fatal or kind(why if fault and fault.exit_code != 1 else f"node '{names}': {why}")
            self.stop()
            return
        if now_s - process.started_s > HEALTHY_AFTER_S:
            process.backoff_s = RESTART_FIRST_S
        log.warning("node '%s' died: %s. Starting it again in %.1f s.", names, why.removesuffix("."), process.backoff_s)
        for name, health in process.nodes.items():
            process.before[name] = add(process.before.get(name), health)
            process.nodes[name] = NodeHealth(name, "restarting", why, restarts=process.plan.restarts)
        process.start_again_s = now_s + process.backoff_s
        process.backoff_s = min(2 * process.backoff_s, RESTART_MOST_S)

    def _wind_down(self, now_s: float) -> bool:
        """The end, in three steps. False when nothing is left to wait for."""
        assert self._stopping_s is not None
        for process in self._processes.values():
            process.start_again_s = None
        waited_s = now_s - self._stopping_s
        if not any(p.alive for p in self._processes.values()):
            return False
        if not self._cut and (waited_s > DRAIN_S or not self._start_ns):
            self._cut = True
            for process in self._processes.values():
                if process.child is not None:
                    process.child.terminate()
        # Before the beginning nothing is on its way, and a process that loads its models hears nobody.
        return waited_s <= (DRAIN_S + TERM_S if self._start_ns else TERM_S)

    # --- processes ------------------------------------------------------------------------------------------------

    def _start(self, process: _Process) -> None:
        if process.start_again_s is not None:
            process.plan.restarts += 1
        process.start_again_s, process.begun, process.started_s = None, False, time.monotonic()
        process.plan.start_ns, process.plan.launcher = self._start_ns, os.getpid()
        process.nodes = {}
        process.child = child.start(process.plan, warm=self._warm)

    def _command(self, process: _Process, verb: str, argument: str = "") -> None:
        if process.alive and self._control is not None:
            self._control.send(process.plan.name, Request(verb, argument))

    def _command_all(self, verb: str, argument: str = "") -> None:
        for process in self._processes.values():
            self._command(process, verb, argument)

    def _kill_all(self) -> None:
        for process in self._processes.values():
            if process.child is not None:
                if process.alive and self._start_ns:
                    log.warning("killing '%s', which did not stop", process.plan.name)
                process.child.kill()
        while self._hear_all(LAST_WORDS_MS):
            pass


def launch(
    config: Config,
    *,
    host: str = "",
    for_s: float | None = None,
    warm: bool = False,
    on_begin: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Run a config to its end, for_s seconds, or Ctrl-C; returns the summary. on_begin: called when frames start to flow.

    host: of a config with hosts, which one this is: its nodes run here. The other hosts' runs are not looked after: their
    streams come and go. warm: see Launch.
    """
    with create_run_folder() as folder:
        plan = plan_graph(config, folder, host)
        warm = warm and not config.portable
        return Launch(plan, folder, warm=warm, on_begin=lambda: on_begin(plan)).run(for_s=for_s)


def _keyring(plan: Plan) -> Keyring | None:
    """This host's keys if anything leaves or enters it; ConfigError before anything starts when one is missing."""
    others = {name: address for process in plan.processes for name, address in process.clocks.items()}
    keyring = Keyring.for_addresses(plan.host, [plan.clock, *others.values()])
    if keyring is not None:
        for name in others:
            keyring.public_of(name)
    return keyring


def _signal_name(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    hint = " (where nobody sent it, memory ran out: see dmesg)" if -exit_code == signal.SIGKILL else ""
    return signal.Signals(-exit_code).name + hint


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
