"""What runs inside a node process: a runner for each of its nodes, the receiver thread, the connection to the launcher.

Started by spawn.py: a fork of the launcher, or `python -m pipeline.runtime.worker` with its plan as JSON on standard
input. It reports the state of its nodes, handles the launcher's requests, and ends with its nodes: all of them when one
fails.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping

import msgspec

from pipeline import credentials
from pipeline.clock import Clock, LiveClock, ReplayClock
from pipeline.errors import SensoriumError
from pipeline.runtime.config import HEALTH
from pipeline.runtime.graph import ProcessPlan
from pipeline.runtime.node_runner import NodeRunner
from pipeline.runtime.run_folder import keys_between_hosts
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.control import ControlClient
from pipeline.transport.network import context
from pipeline.transport.receiver import Receiver
from pipeline.transport.service_thread import failure
from pipeline.transport.wire_format import Fault, Report, Request

REPORT_EVERY_S = 0.25
POLL_MS, LOADING_POLL_MS = (
    50,
    20,
)  # also how soon a SIGTERM is noticed; while nodes load, reports are sent at every poll
OWN_GAP_S = 1.0  # a round of the loop that took longer was not the nodes' doing
ORPHAN_S = 1.0  # so long nodes have to end by themselves when the launcher is gone
LINGER_S = 0.6  # longer than any socket lingers
# A node that computes in Python must not block the receiver thread for the interpreter's default 5 ms: to take one
# message, the receiver needs the interpreter five times. p99 of an arrival beside one computing thread: 2.0 ms at
# 500 µs, 0.85 at 100, 0.83 at 50; beside two 11, 2.1 and 1.5. Two threads that always compute lose 8 % to it, all
# others nothing.
SWITCH_INTERVAL_S = 0.00005


def main() -> int:
    credentials.log_without_them()
    return run_process(msgspec.json.decode(sys.stdin.buffer.read(), type=ProcessPlan))


def run_process(plan: ProcessPlan) -> int:
    """Run the nodes of `plan` to their end. Returns the exit code of this process."""
    try:
        return _run(plan)
    except Exception:
        logging.getLogger(plan.name).error("%s", traceback.format_exc())
        os._exit(1)  # the threads of its nodes would go on in a process that no longer answers the launcher


def _run(plan: ProcessPlan) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides what Ctrl-C means
    _end_with_launcher()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = ReplayClock(plan.replay.start_ns, plan.replay.speed) if plan.replay else LiveClock(plan.start_ns)
    started = threading.Event()
    outgoing: queue.SimpleQueue[Fault | Request] = queue.SimpleQueue()
    control = ControlClient(plan.control, plan.name, plan.run_keys)
    receiver = Receiver()
    try:
        keyring = keys_between_hosts(plan.host, [*(node.network for node in plan.nodes), *plan.clocks.values()])
        runners = {
            node.name: NodeRunner(
                node, started, outgoing.put, clock, keyring, plan.run_keys, plan.restarts, plan.folder
            )
            for node in plan.nodes
        }
        clock_clients = {host: ClockClient(host, address, keyring) for host, address in plan.clocks.items()}
        for runner in runners.values():
            runner.connect(runners, receiver, clock_clients)
    except SensoriumError as error:
        control.send(Fault(plan.nodes[0].name, str(error), error.exit_code))
        control.close()
        _flush_sockets()
        return 1
    # A list and no Event: a second signal while the first one is inside Event.set() would wait for its lock for ever.
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    if any(runner.subscribers for runner in runners.values()):
        receiver.start()
    for clock_client in clock_clients.values():
        clock_client.start()
    for runner in runners.values():
        runner.thread.start()

    def report() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = used.ru_utime + used.ru_stime
        control.send(Report(plan.name, tuple(runner.health(cpu_s, plan.restarts) for runner in runners.values())))

    failed = False
    orphaned_since_s: float | None = None
    next_report_s = 0.0
    last_s = time.monotonic()
    while any(runner.thread.is_alive() for runner in runners.values()):
        request = control.receive(POLL_MS if started.is_set() else LOADING_POLL_MS)
        if isinstance(request, Request):
            _handle_request(request, runners, clock, started)
        if orphaned_since_s is None and os.getppid() != plan.launcher:
            orphaned_since_s = time.monotonic()
        if terminated or orphaned_since_s is not None:
            _stop(runners.values())
        if orphaned_since_s is not None and time.monotonic() - orphaned_since_s > ORPHAN_S:
            os._exit(1)  # a node hangs, and no launcher is left to kill this process
        if not failed and (dead_thread := failure()) is not None:
            outgoing.put(Fault(plan.nodes[0].name, str(dead_thread), dead_thread.exit_code))
        failed = _forward(outgoing, control, runners.values()) or failed
        now_s = time.monotonic()
        if hung := _hung(runners.values(), now_s - last_s):
            control.send(hung)
            report()
            control.close()
            _flush_sockets()
            os._exit(1)  # its thread cannot be ended
        last_s = now_s
        if now_s >= next_report_s:
            report()
            next_report_s = now_s + (REPORT_EVERY_S if started.is_set() else 0)
    failed = _forward(outgoing, control, runners.values()) or failed
    receiver.stop()
    for clock_client in clock_clients.values():
        clock_client.stop()
    for runner in runners.values():
        runner.queue.close(uncounted=HEALTH)  # health is published for as long as anything runs
    report()
    control.close()
    _flush_sockets()
    return 1 if failed else 0


def _flush_sockets() -> None:
    """Wait until closed sockets have sent what they hold, each for as long as it may linger.

    A fork of the launcher ends without the interpreter's shutdown, which would see to it.
    """
    # A daemon thread, because term() waits for ever for a socket that a node left open.
    flushing = threading.Thread(target=context().term, daemon=True)
    flushing.start()
    flushing.join(LINGER_S)


def _forward(
    outgoing: queue.SimpleQueue[Fault | Request], control: ControlClient, runners: Iterable[NodeRunner]
) -> bool:
    """Send the launcher what the nodes have for it. True when one of them failed: then all nodes of the process end."""
    failed = False
    while not outgoing.empty():
        value = outgoing.get()
        control.send(value)
        if isinstance(value, Fault):
            failed = True
            for runner in runners:
                runner.process_failed.set()
                runner.context.stopping.set()
    return failed


def _hung(runners: Iterable[NodeRunner], round_s: float) -> Fault | None:
    """The first node that does not answer any more. round_s: how long the last round of the loop took."""
    if round_s > OWN_GAP_S:  # this process was stopped, or the interpreter was held: no node could answer
        for runner in runners:
            runner.watchdog.postpone(round_s)
    return next((hung for runner in runners if (hung := runner.hung()) is not None), None)


def _stop(runners: Iterable[NodeRunner]) -> None:
    for runner in runners:
        runner.context.stopping.set()


def _handle_request(
    request: Request, runners: Mapping[str, NodeRunner], clock: Clock, started: threading.Event
) -> None:
    """Do what the launcher asks of this process, or of the node that the argument names."""
    match request.verb:
        case "begin":
            if isinstance(clock, ReplayClock):
                clock.begin(int(request.argument))
            else:
                clock.start_ns = int(request.argument)
            started.set()
        case "pause" | "resume":
            if isinstance(clock, ReplayClock):
                (clock.pause if request.verb == "pause" else clock.resume)()
        case "label":
            for runner in runners.values():
                if runner.plan.is_sink:
                    runner.context.commands.put(request.argument)
        case "leave":
            for runner in runners.values():
                runner.leave_other_hosts()
        case "stop":
            _stop([runners[request.argument]] if request.argument in runners else runners.values())
        case "lost":
            for runner in runners.values():
                runner.handle_lost_source(request.argument)
        case "ended":
            for runner in runners.values():
                runner.handle_ended_source(request.argument)
        case "mute" | "unmute":
            if request.argument in runners:
                muted = runners[request.argument].context.muted
                (muted.set if request.verb == "mute" else muted.clear)()


def _end_with_launcher() -> None:
    """Linux: get SIGTERM when the launcher is killed, so that nothing outlives it. Elsewhere the loop notices."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
