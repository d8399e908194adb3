"""A whole run into which a test puts faults: what came out of it, what its page said, how soon it was whole again.

    with fault_run(folder, port) as run:
        fault = run.fault("kill -9 of the model", lambda: os.kill(run.pid_of("task"), signal.SIGKILL))
        run.recovered(fault, "task")            # at most 2 s after the end, or the detection, of the fault
    run.finish(fault)                           # exit code, nothing unaccounted for, a row of the table

`make faults` collects the rows of all tests in the file that FAULT_ROWS names; fault_table.py prints them.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from running import Running, a_file, last_line, wait_for
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from pipeline.clock import NS
from pipeline.frame import NodeHealth, Prediction
from pipeline.runtime.subscribe import subscribe

RECOVERY_S = 2.0  # what is promised, counted from the end or the detection of a fault
REPEATS = int(os.environ.get("FAULT_REPEATS", "1"))
TOKEN = "of-the-tests"

RATE_HZ = 20  # of predictions

# A process for every node. `Steady` and `Count` cost next to nothing, so that what is measured is the run, not a model.
GRAPH = """
    camera: {use: synthetic, encoding: bgr8, rate_hz: 20, width_px: 320, height_px: 200}
    sound: {use: "faulty_nodes:Steady", rate_hz: 50}
    align: {use: align, inputs: [camera, sound], anchor: camera, max_wait_ms: 60}
    task: {use: infer, task: "faulty_nodes:Count", inputs: [align]}
    dashboard: {use: dashboard, inputs: [task, health, {from: camera, queue: latest}, sound], port: PORT, token: TOKEN}
"""


@dataclass
class Fault:
    """One fault of a run; times on the monotonic clock, the clock of every stamp on this host."""

    name: str
    began_ns: int
    ended_ns: int  # from when on recovery is counted, unless it is detected later
    before: dict[str, NodeHealth]
    detected_ns: int | None = None
    recovered_ns: int | None = None
    page: list[str] = field(default_factory=list)  # what the page said while it lasted

    @property
    def recovery_s(self) -> float:
        assert self.recovered_ns is not None, f"no recovery from: {self.name}"
        return max(0.0, (self.recovered_ns - self.ended_ns) / NS)

    @property
    def detection_s(self) -> float | None:
        return None if self.detected_ns is None else (self.detected_ns - self.began_ns) / NS


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    recovery_s: float
    detection_s: float | None
    lost: str
    page: str
    summary: str


class Watching(threading.Thread):
    """Reads one thing that the run says until the test ends, and keeps all of it with the time of its arrival."""

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        super().__init__(daemon=True)
        self.all: list[tuple[int, Any]] = []
        self._read, self.over = read, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                for value in self._read():
                    self.all.append((time.monotonic_ns(), value))
                    if self.over.is_set():
                        return
            except (OSError, WebSocketException):
                pass  # not there yet, or not any more
            time.sleep(0.02)

    def since(self, when_ns: int) -> list[tuple[int, Any]]:
        return [(at_ns, value) for at_ns, value in self.all if at_ns >= when_ns]


class FaultRun:
    """A run of GRAPH (or of another with a node `task`), recorded, written to --out and watched.

    Args:
        folder: Of this run.
        port: Of its page.
        graph: Its nodes.
        verb: "record" records everything into run.mcap; "run" does not.
        into: Where the recording and --out go. Default: the folder.
        inside: A command that starts the run: in a namespace, with limits.
        more: Further arguments of the command line.
        head: Lines of the config before its nodes.
        has_page: Whether the graph has a page that can be reached from here; else `health` takes its place.
        environment: Further variables.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        graph: str = GRAPH,
        verb: str = "record",
        into: Path | None = None,
        inside: Sequence[str] = (),
        more: Sequence[str] = (),
        head: str = "",
        has_page: bool = True,
        **environment: str,
    ) -> None:
        self.folder, self.port = folder, port
        nodes = graph.replace("PORT", str(port)).replace("TOKEN", TOKEN)
        self.out = (into or folder) / "out.jsonl"
        recorded = [str((into or folder) / "run.mcap")] if verb == "record" else []
        config = Path(a_file(folder, nodes))
        config.write_text(head + config.read_text())
        arguments = [verb, str(config), *recorded, "--out", str(self.out), *more]
        self.run = Running(folder, *arguments, inside=inside, **environment)
        streams = self.run.graph()["streams"]
        self.health = Watching(lambda: subscribe("health", address=streams["health"]))
        self.predictions = Watching(lambda: subscribe("task", address=streams["task"]))
        self.page = Watching(self._page_messages) if has_page else self.health

    def _page_messages(self) -> Iterator[dict[str, Any]]:
        with connect(f"ws://127.0.0.1:{self.port}/ws?pictures=0&token={TOKEN}", compression=None) as browser:
            for text in browser:
                message = json.loads(text)
                if message["type"] in ("health", "prediction"):
                    yield message

    def end(self) -> None:
        for watching in (self.health, self.predictions, self.page):
            watching.over.set()
        self.run.end()

    # --- what is there now --------------------------------------------------------------------------------------------

    def nodes(self) -> dict[str, NodeHealth]:
        return {node.node: node for node in self.health.all[-1][1].nodes} if self.health.all else {}

    def pid_of(self, node: str) -> int:
        return self.run.process.pid if node == "launcher" else self.nodes()[node].pid

    def flows(self) -> None:
        """Wait until whole sets are predicted, shown and written."""
        wait_for(lambda: self._whole_after(time.monotonic_ns() - NS), f"whole predictions; {self.run.err}")
        wait_for(lambda: self.page.all, "the page")
        wait_for(lambda: all(n.state == "running" for n in self.nodes().values()), "all nodes")
        time.sleep(0.3)

    def _whole_after(self, when_ns: int) -> Prediction | None:
        """The first prediction about a moment after this one that nothing is missing in."""
        for _, prediction in self.predictions.since(when_ns):
            if prediction.capture_ns > when_ns and not prediction.missing:
                return prediction
        return None

    # --- faults -------------------------------------------------------------------------------------------------------

    def fault(
        self, name: str, begin: Callable[[], object], end: Callable[[], object] | None = None, *, for_s: float = 0
    ) -> Fault:
        """Let it happen; `end` ends it after for_s."""
        before, began_ns = self.nodes(), time.monotonic_ns()
        begin()
        if end is not None:
            time.sleep(for_s)
            end()
        return Fault(name, began_ns, time.monotonic_ns(), before)

    def detected(self, fault: Fault, node: str, *, give_up_s: float = 15.0) -> None:
        """Wait until the page shows that something is wrong with `node`."""
        watched = self.health if node == "dashboard" else self.page

        def first() -> int | None:
            for at_ns, message in watched.since(fault.began_ns):
                if (note := self._complaint(message, fault, node)) is not None:
                    fault.page.append(note)
                    return at_ns
            return None

        fault.detected_ns = wait_for(first, f"the page to say what is wrong with '{node}'", give_up_s=give_up_s)

    def ended_when(self, fault: Fault, node: str, true: Callable[[NodeHealth], bool]) -> None:
        """Wait until the run has ended the fault itself; recovery is counted from then on."""

        def first() -> int | None:
            for at_ns, health in self.health.since(fault.began_ns):
                if any(now.node == node and true(now) for now in health.nodes):
                    return at_ns
            return None

        fault.ended_ns = wait_for(first, f"the run to act on {fault.name}", give_up_s=15)

    def _complaint(self, message: Any, fault: Fault, name: str) -> str | None:
        """What a message of the page or of `health` says against a node; None: nothing."""
        if isinstance(message, dict):
            nodes = {n["node"]: n for n in message.get("nodes", [])}
        else:
            nodes = {n.node: asdict_of(n) for n in message.nodes}
        now, before = nodes.get(name), fault.before.get(name)
        if now is None or before is None:
            return None
        if now["state"] != "running":
            return f"{now['state']}: {now['note']}" if now["note"] else str(now["state"])
        if now["restarts"] > before.restarts:
            return f"restarted ({now['restarts']})"
        return str(now["note"]) or None

    def recovered(self, fault: Fault, node: str = "task") -> None:
        """Wait until the run is whole again; finish() holds how long that took to RECOVERY_S."""
        is_sink = node in ("dashboard", "record", "out")
        find = (lambda: self._sink_again(fault, node)) if is_sink else (lambda: self._sent_again(fault))
        fault.recovered_ns = wait_for(find, f"recovery from {fault.name}; {self.run.err[-2000:]}", give_up_s=20)

    def _sent_again(self, fault: Fault) -> int | None:
        """When the first whole prediction about a moment after the fault was sent."""
        prediction = self._whole_after(fault.ended_ns)
        return None if prediction is None else prediction.capture_ns + prediction.timing_ns["total"]

    def _sink_again(self, fault: Fault, node: str) -> int | None:
        """When the sink had taken messages again: the page by what a browser gets, others by their own report."""
        if node == "dashboard":
            return next((at_ns for at_ns, m in self.page.since(fault.ended_ns) if m["type"] == "prediction"), None)
        pid, before = fault.before[node].pid, 0
        for at_ns, health in self.health.since(fault.began_ns - NS):
            now = next(n for n in health.nodes if n.node == node)
            received = sum(now.received.values())
            if at_ns <= fault.ended_ns or (now.pid == pid and now.restarts):
                before = received
            elif now.state == "running" and received > before:
                return at_ns
        return None

    # --- the end ------------------------------------------------------------------------------------------------------

    def finish(
        self,
        *faults: Fault,
        exit_code: int = 0,
        says: Callable[[dict[str, Any]], str] | None = None,
        summary: Callable[[], dict[str, Any]] | None = None,
        traces: bool = False,
    ) -> dict[str, Any]:
        """End the run as Ctrl-C does; every message must be accounted for. Writes the rows; returns the summary.

        Args:
            faults: Those of the run.
            exit_code: That it must end with.
            says: What the table holds of the summary.
            summary: Reads it, where it does not stand at the end of a file.
            traces: Whether the log may hold tracebacks: of a node whose code is wrong.
        """
        self.run.interrupt()
        code = self.run.wait(20)
        assert code == exit_code, (code, self.run.err)
        end = summary() if summary else last_line(self.out)
        assert end.get("summary"), end
        assert end["unaccounted"] == {}, (end, self.run.err)
        counts = [n for s in end["dropped"].values() for w in s.values() for n in w.values()]
        assert all(n > 0 for n in counts), end["dropped"]
        assert traces or "Traceback" not in self.run.err, self.run.err
        text = says(end) if says else f"restarts {end['restarts'] or 'none'}, exit code {code}"
        reasons = lost(end)
        for fault in faults:
            missed = self._predictions_missed(fault)
            lost_text = f"{missed} predictions" + (f"; in all: {reasons}" if fault is faults[-1] else "")
            page = "; ".join(dict.fromkeys(fault.page))
            write_row(Row(fault.name, fault.recovery_s, fault.detection_s, lost_text, page, text))
        slow = {fault.name: round(fault.recovery_s, 2) for fault in faults if fault.recovery_s > RECOVERY_S}
        assert not slow, f"recovery took longer than {RECOVERY_S:g} s: {slow}"
        return end

    def _predictions_missed(self, fault: Fault) -> int:
        """How many pictures of the time of the fault got no prediction that a program could read."""
        assert fault.recovered_ns is not None
        until_ns = fault.recovered_ns + NS // 2
        times_ns = [p.capture_ns for _, p in self.predictions.since(fault.began_ns - NS)]
        times_ns = sorted(t for t in times_ns if fault.began_ns - NS // 2 <= t <= until_ns)
        gaps = [b - a for a, b in pairwise(times_ns)]
        return sum(round(gap * RATE_HZ / NS) - 1 for gap in gaps)


def asdict_of(node: NodeHealth) -> dict[str, Any]:
    return {"node": node.node, "state": node.state, "note": node.note, "restarts": node.restarts}


def lost(summary: dict[str, Any]) -> str:
    """All reasons of a summary, each with its count over all connections."""
    totals: dict[str, int] = {}
    for sources in summary["dropped"].values():
        for reasons in sources.values():
            for reason, count in reasons.items():
                totals[reason] = totals.get(reason, 0) + count
    return ", ".join(f"{count} {reason}" for reason, count in sorted(totals.items())) or "none"


def write_row(row: Row) -> None:
    """For the table of `make faults`."""
    if path := os.environ.get("FAULT_ROWS"):
        with open(path, "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


@contextmanager
def fault_run(folder: Path, port: int, **options: Any) -> Iterator[FaultRun]:
    run = FaultRun(folder, port, **options)
    try:
        run.flows()
        yield run
    finally:
        run.end()


def suspend(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
