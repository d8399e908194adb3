"""What runs inside one node process: its nodes, each in a thread (node_thread.py), the drain thread, the line to the launcher.

Started by child.py: a copy of the launcher, or `python -m pipeline.runtime.worker` with its plan as JSON on standard input. It
reports what its nodes are and do, does what the launcher says, and ends with its nodes: all of them when one fails.
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
from collections.abc import Iterable

import msgspec

from pipeline.clock import Clock, LiveClock, ReplayClock
from pipeline.errors import SensoriumError
from pipeline.runtime.config import HEALTH
from pipeline.runtime.graph import ProcessPlan
from pipeline.runtime.node_runner import NodeThread
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.control import ControlClient
from pipeline.transport.keys import Keyring
from pipeline.transport.network import context
from pipeline.transport.receiver import Receiver
from pipeline.transport.wire_format import Fault, Report, Request, Value

REPORT_EVERY_S = 0.25
LOOK_EVERY_S = 0.05  # for a stop that came as a signal
ORPHAN_S = 1.0
LAST_WORDS_S = 0.6  # more than the longest linger of a socket
# A node that computes in Python must not keep the drain thread from the interpreter for the default 5 ms; taking one
# message, the drain asks for it back five times. p99 of an arrival beside one computing thread: 2.0 ms at 500 µs, 0.85 at
# 100, 0.83 at 50; beside two 11, 2.1 and 1.5. Two threads that compute all the time pay 8 % for it, all others nothing.
SWITCH_INTERVAL_S = 0.00005


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    return run_process(msgspec.json.decode(sys.stdin.buffer.read(), type=ProcessPlan))


def run_process(plan: ProcessPlan) -> int:
    """Runs the nodes to their end. Returns the exit code of this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides what Ctrl-C means
    _die_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = ReplayClock(plan.replay.start_ns, plan.replay.speed) if plan.replay else LiveClock(plan.start_ns)
    began = threading.Event()
    outgoing: queue.SimpleQueue[Value] = queue.SimpleQueue()
    control = ControlClient(plan.control, plan.name)
    drain = Receiver()
    try:
        keyring = Keyring.for_addresses(plan.host, [*(each.network for each in plan.nodes), *plan.clocks.values()])
        nodes = {each.name: NodeThread(each, began, outgoing.put, clock, keyring) for each in plan.nodes}
        lines = {name: ClockClient(name, address, keyring) for name, address in plan.clocks.items()}
        for node in nodes.values():
            node.connect(nodes, drain, lines)
    except SensoriumError as error:
        control.send(Fault(plan.nodes[0].name, str(error), error.exit_code))
        control.close()
        _send_last_words()
        return 1
    terminated: list[
        int
    ] = []  # no Event: a second signal in the middle of its set() would wait for the first, for ever
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    if any(node.connections for node in nodes.values()):
        drain.start()
    for line in lines.values():
        line.start()
    for node in nodes.values():
        node.thread.start()

    def report() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = used.ru_utime + used.ru_stime
        control.send(Report(plan.name, tuple(node.health(cpu_s, plan.restarts) for node in nodes.values())))

    failed = False
    orphan_since_s: float | None = None
    next_report_s = 0.0
    while any(node.thread.is_alive() for node in nodes.values()):
        command = control.receive(round(LOOK_EVERY_S * 1000) if began.is_set() else 20)
        if isinstance(command, Request):
            _obey(command, nodes, clock, began)
        if orphan_since_s is None and os.getppid() != plan.launcher:
            orphan_since_s = time.monotonic()
        if terminated or orphan_since_s is not None:
            for node in nodes.values():
                node.context.stopping.set()
        if orphan_since_s is not None and time.monotonic() - orphan_since_s > ORPHAN_S:
            os._exit(1)  # a node hangs, and nobody is left to kill it
        failed = _pass_on(outgoing, control, nodes.values()) or failed
        if time.monotonic() >= next_report_s:
            report()
            next_report_s = time.monotonic() + (REPORT_EVERY_S if began.is_set() else 0)
    failed = _pass_on(outgoing, control, nodes.values()) or failed
    drain.stop()
    for line in lines.values():
        line.stop()
    for node in nodes.values():
        node.inbox.close(uncounted=HEALTH)  # health goes on for as long as anybody runs
    report()
    control.close()
    _send_last_words()
    return 1 if failed else 0


def _send_last_words() -> None:
    """What sockets that are closed have yet to send, each for as long as it may linger: a copy of the launcher ends without
    the interpreter's own end, which would see to it."""
    ending = threading.Thread(
        target=context().term, daemon=True
    )  # it waits for ever for a socket that a node left open
    ending.start()
    ending.join(LAST_WORDS_S)


def _pass_on(outgoing: queue.SimpleQueue[Value], control: ControlClient, nodes: Iterable[NodeThread]) -> bool:
    """What the nodes have to say, to the launcher. True when one of them failed: then all of the process end."""
    failed = False
    while not outgoing.empty():
        value = outgoing.get()
        control.send(value)
        if isinstance(value, Fault):
            failed = True
            for node in nodes:
                node.abandoned.set()
                node.context.stopping.set()
    return failed


def _obey(command: Request, nodes: dict[str, NodeThread], clock: Clock, began: threading.Event) -> None:
    if command.verb == "begin":
        if isinstance(clock, ReplayClock):
            clock.begin(int(command.argument))
        else:
            clock.start_ns = int(command.argument)
        began.set()
    elif command.verb in ("pause", "resume"):
        if isinstance(clock, ReplayClock):
            (clock.pause if command.verb == "pause" else clock.resume)()
    elif command.verb == "label":
        for node in nodes.values():
            if node.plan.is_sink:
                node.context.commands.put(command.argument)
    elif command.verb == "leave":
        for node in nodes.values():
            node.leave()
    elif command.verb == "stop":
        for node in [nodes[command.argument]] if command.argument in nodes else nodes.values():
            node.context.stopping.set()
    elif command.verb == "ended":
        for node in nodes.values():
            node.source_ended(command.argument)
    elif command.argument in nodes:
        muted = nodes[command.argument].context.muted
        (muted.set if command.verb == "mute" else muted.clear)()


def _die_with_parent() -> None:
    """Linux: be told (SIGTERM) when the launcher is killed, so that nothing outlives it. Elsewhere the loop notices."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
