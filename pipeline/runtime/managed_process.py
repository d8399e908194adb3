"""One process of the graph over all its restarts: its state, why it ended, when it restarts, what its nodes counted.

The launcher says what should run; a ManagedProcess knows what does run. It has no loop and no socket of its own.

Example:
    process = ManagedProcess(plan, send=send, warm=True)
    process.start(start_ns=0)                     # LOADING
    process.handle_report(report.nodes)           # READY, once all its nodes are
    process.begin(start_ns, muted=())             # RUNNING
    process.end_if_silent()                       # killed, when it does not answer
    if process.has_exited:
        process.handle_exit(restart=True)         # BACKOFF, ABANDONED, ENDED or FAILED
"""

from __future__ import annotations

import enum
import logging
import math
import os
import time
from collections.abc import Callable, Iterable

import msgspec

from pipeline.errors import ConfigError, DeviceError, SensoriumError
from pipeline.frame import NodeHealth, NodeState
from pipeline.runtime.accounting import add
from pipeline.runtime.graph import ProcessPlan
from pipeline.runtime.spawn import ProcessHandle, describe_exit, spawn
from pipeline.runtime.watchdog import OPENING
from pipeline.transport.wire_format import Fault, Request

log = logging.getLogger("launch")

PER_S = 60.0  # `restarts` of a node counts within so long
FREE_RESTARTS = 3  # so many within PER_S happen at once; then back-offs begin
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 10.0
START_AGAIN_S = 0.5  # where the system has no room for a process
REPORTED_AFTER_S = 2.0  # reports come four times a second: after so long without one, a node is "not answering"


class ProcessState(enum.Enum):
    """Of a process, as the launcher knows it. Only the states from LOADING to STOPPING have a running process."""

    NOT_STARTED = enum.auto()
    LOADING = enum.auto()  # its nodes open devices, load models and connect to each other
    READY = enum.auto()  # every node waits for the start signal
    RUNNING = enum.auto()  # it got the start signal
    STOPPING = enum.auto()  # it got SIGTERM and has not ended yet
    BACKOFF = enum.auto()  # it died, and starts again when its back-off has passed
    ABANDONED = enum.auto()  # it died more often than it may be restarted
    ENDED = enum.auto()  # it ended in order, or the run ends without it
    FAILED = enum.auto()  # it died of what a restart cannot mend; see `error`


LIVE = (ProcessState.LOADING, ProcessState.READY, ProcessState.RUNNING, ProcessState.STOPPING)


class ManagedProcess:
    """A process of the plan.

    Args:
        plan: What it runs.
        send: Sends a request to the process of that name.
        warm: Its first start may fork this process (spawn.py).
        start_process: spawn, or a test's double.
        monotonic_s: The clock of back-offs.
    """

    def __init__(
        self,
        plan: ProcessPlan,
        *,
        send: Callable[[str, Request], None],
        warm: bool = False,
        start_process: Callable[..., ProcessHandle] = spawn,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.state = ProcessState.NOT_STARTED
        self.error: SensoriumError | None = None  # why it FAILED
        self._send, self._warm, self._start_process, self._monotonic_s = send, warm, start_process, monotonic_s
        self._handle: ProcessHandle | None = None
        self._fault: Fault | None = None
        self._why = ""  # it failed the last time, for the page while it starts again
        self._restart_at_s = 0.0
        self._reported_s = 0.0  # the last sign of life
        self._failures_s: list[float] = []  # when it died, within PER_S
        self._health: dict[str, NodeHealth] = {}
        self._before_restart: dict[str, NodeHealth] = {}  # what all earlier starts counted
        self._ended_inputs: set[str] = set()  # sources it was informed of in this start

    @property
    def node_names(self) -> list[str]:
        return [node.name for node in self.plan.nodes]

    @property
    def computes(self) -> bool:
        """Whether any of its nodes is neither a source nor a sink: such a process has models to load."""
        return not all(node.is_source or node.is_sink for node in self.plan.nodes)

    @property
    def is_optional(self) -> bool:
        """Whether the run is complete without it."""
        return all(node.optional for node in self.plan.nodes)

    @property
    def has_finished(self) -> bool:
        """Whether every node has reported that it ended in order."""
        states = [self._health[name].state for name in self.node_names if name in self._health]
        return len(states) == len(self.plan.nodes) and all(state in ("finished", "stopped") for state in states)

    @property
    def has_exited(self) -> bool:
        """Whether the process has ended since it was last looked at."""
        return self._handle is not None and self._handle.exit_code is not None

    @property
    def ended_without_a_word(self) -> bool:
        """It has ended as in order, but its last report, which says so, is not here yet."""
        return self._handle is not None and self._handle.exit_code == 0 and not self.has_finished

    @property
    def pid(self) -> int:
        """Of the running process; 0: none."""
        return self._handle.pid if self._handle is not None else 0

    @property
    def restart_is_due(self) -> bool:
        return self.state is ProcessState.BACKOFF and self._monotonic_s() >= self._restart_at_s

    def health(self) -> list[NodeHealth]:
        """The state of its nodes, with what they counted over all restarts."""
        starting = [NodeHealth(name, "starting", self._why, restarts=self.plan.restarts) for name in self.node_names]
        now = [self._health.get(node.node, node) for node in starting]
        silent_s = self._silent_s()
        if self.state in (ProcessState.READY, ProcessState.RUNNING) and silent_s > REPORTED_AFTER_S:
            note = f"no report for {silent_s:.0f} s"
            now = [msgspec.structs.replace(node, state="not answering", note=note) for node in now]
        return [add(self._before_restart.get(node.node), node) for node in now]

    def finished_nodes(self) -> set[str]:
        """The nodes from which nothing more comes."""
        return {name for name, health in self._health.items() if health.state in ("finished", "given up")}

    # --- start and end ------------------------------------------------------------------------------------------------

    def start(self, start_ns: int) -> None:
        """start_ns: when the run began, 0 before it.

        Raises SensoriumError when the system has no room for the process at its first start; later ones are repeated.
        """
        is_restart = self.state is ProcessState.BACKOFF
        self.plan.restarts += is_restart
        self.plan.start_ns, self.plan.launcher = start_ns, os.getpid()
        try:
            self._handle = self._start_process(self.plan, warm=self._warm)
        except OSError as error:  # no descriptor, process or memory is left
            self.plan.restarts -= is_restart
            self._repeat_start(f"its process cannot be started: {error.strerror}", is_restart=is_restart)
            return
        self._health, self._ended_inputs, self._fault = {}, set(), None
        self._reported_s = self._monotonic_s()
        self.state = ProcessState.LOADING

    def _repeat_start(self, reason: str, *, is_restart: bool) -> None:
        """That the system has no room says nothing about the node: it is not counted against its restarts."""
        names = ", ".join(self.node_names)
        if not is_restart:
            raise SensoriumError(f"node '{names}': {reason}. Raise the limits of this user (ulimit -a), or free memory")
        if any(self._health[name].note != reason for name in self.node_names):
            log.error("node '%s': %s. Trying again every %.1f s.", names, reason, START_AGAIN_S)
        for name in self.node_names:
            self._health[name] = NodeHealth(name, "restarting", reason, restarts=self.plan.restarts)
        self._restart_at_s = self._monotonic_s() + START_AGAIN_S

    def begin(self, start_ns: int, *, muted: Iterable[str]) -> None:
        """Send the start signal. muted: nodes that are silenced from the first frame on."""
        self.state, self.plan.start_ns = ProcessState.RUNNING, start_ns
        self.request("begin", str(start_ns))
        for name in muted:
            if name in self.node_names:
                self.request("mute", name)

    def cancel_restart(self) -> None:
        """The run ends: do not start it again."""
        self.state = ProcessState.ENDED

    def postpone_watchdog(self, by_s: float) -> None:
        """The launcher did not run for so long, so it could not see a report."""
        self._reported_s += by_s

    def end_if_silent(self) -> None:
        """Kill the process when no report has come for so long that it cannot be expected to answer again.

        A process reports beside its nodes, so it is silent only while something holds the interpreter, or stops it.
        """
        limit_s = max(math.inf if node.watchdog_s is None else node.watchdog_s for node in self.plan.nodes)
        limit_s *= OPENING if self.state is ProcessState.LOADING else 1
        silent_s = self._silent_s()
        if self._handle is not None and silent_s > limit_s:
            reason = f"no report for {silent_s:.0f} s: its process is stopped, or something in it holds the "
            self._fault = Fault(self.node_names[0], f"not answering, {reason}interpreter lock", 1, silent_s)
            self._handle.kill()

    def _silent_s(self) -> float:
        return self._monotonic_s() - self._reported_s

    def terminate(self) -> None:
        if self._handle is not None:
            self._handle.terminate()
            self.state = ProcessState.STOPPING

    def kill(self) -> None:
        """End it now, with all that it started, and wait until it has ended."""
        if self._handle is not None:
            if not self.has_exited and self.plan.start_ns:
                log.warning("process '%s' did not stop in time: killed", self.plan.name)
            self._handle.kill()
            self._handle, self.state = None, ProcessState.ENDED

    # --- messages -----------------------------------------------------------------------------------------------------

    def request(self, verb: str, argument: str = "") -> None:
        """Send a request to the process, if it runs."""
        if self._handle is not None and not self.has_exited:
            self._send(self.plan.name, Request(verb, argument))

    def handle_report(self, nodes: Iterable[NodeHealth]) -> None:
        if self.state in (ProcessState.BACKOFF, ProcessState.ABANDONED):
            return  # sent before it died, and counted already
        self._reported_s = self._monotonic_s()
        self._health.update({node.node: node for node in nodes})
        if self.state in (ProcessState.LOADING, ProcessState.READY):
            waiting = any(node.state in ("starting", "failed") for node in self._health.values())
            complete = len(self._health) == len(self.plan.nodes)
            self.state = ProcessState.READY if complete and not waiting else ProcessState.LOADING

    def handle_fault(self, fault: Fault) -> None:
        self._fault = fault

    def report_ended_inputs(self, sources: Iterable[str]) -> None:
        """Sources that were finished before this start: they neither welcome a reader any more nor send it an end."""
        if self._health:  # it has connected to the launcher, so that a request reaches it
            for source in set(sources) - self._ended_inputs:
                self._ended_inputs.add(source)
                self.request("ended", source)

    def handle_exit(self, *, restart: bool) -> None:
        """Decide what follows the end of the process. restart: the run goes on, and needs it."""
        assert self._handle is not None
        exit_code = self._handle.exit_code or 0
        began, self._handle = self.state is ProcessState.RUNNING, None
        if (exit_code == 0 and self.has_finished) or not restart:
            self.state = ProcessState.ENDED
            return
        fault, self._fault = self._fault, None
        reason = fault.message if fault else f"its process ended with {describe_exit(exit_code)}"
        # What worked once may work again; what fails at its first start, or reports a wrong config or device, will not.
        # A device or a disk that hangs at the start may be there the next time.
        silent_s = fault.silent_s if fault else 0.0
        fails_at_start = not began and not silent_s
        is_hopeless = not self.plan.restarts and (fails_at_start or (fault is not None and fault.exit_code in (2, 3)))
        if is_hopeless and not self.is_optional:
            self._fail(reason, fault)
        else:
            self._back_off_or_give_up(reason, silent_s)

    def _fail(self, reason: str, fault: Fault | None) -> None:
        kind = {2: ConfigError, 3: DeviceError}.get(fault.exit_code if fault else 1, SensoriumError)
        names_itself = fault is not None and fault.exit_code != 1
        self.error = kind(reason if names_itself else f"node '{', '.join(self.node_names)}': {reason}")
        self.state = ProcessState.FAILED

    def _back_off_or_give_up(self, reason: str, silent_s: float) -> None:
        now_s, allowed = self._monotonic_s(), min(node.restarts for node in self.plan.nodes)
        # The minute is one in which it answered: else what always hangs would be started again for ever.
        earlier = [failed_s + silent_s for failed_s in self._failures_s]
        before = [failed_s for failed_s in earlier if now_s - failed_s < PER_S]
        self._failures_s = [*before, now_s]
        names, reason = ", ".join(self.node_names), reason.removesuffix(".")
        self._why = reason
        if len(before) >= allowed:
            self.state = ProcessState.ABANDONED
            reason = f"{reason}. It failed {len(before) + 1} times within a minute, {allowed} restarts are allowed"
            log.error("node '%s' is given up: %s.", names, reason)
        else:
            more = len(before) - FREE_RESTARTS
            backoff_s = 0.0 if more < 0 else min(FIRST_BACKOFF_S * 2**more, MAX_BACKOFF_S)
            self.state, self._restart_at_s = ProcessState.BACKOFF, now_s + backoff_s
            when = f"in {backoff_s:.0f} s" if backoff_s else "now"
            log.warning("node '%s' failed: %s. Restarting it %s.", names, reason, when)
        state: NodeState = "given up" if self.state is ProcessState.ABANDONED else "restarting"
        for name in self.node_names:
            if name in self._health:
                self._before_restart[name] = add(self._before_restart.get(name), self._health[name])
            self._health[name] = NodeHealth(name, state, reason, restarts=self.plan.restarts)
