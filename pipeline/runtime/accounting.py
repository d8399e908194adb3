"""Message accounting of a run: what every node sent, received and dropped → one summary, and what is unaccounted for.

For each edge of the graph, the messages that were sent must be those that were received or dropped with a reason. Pure.

Example:
    summary = summarise(plan, health.nodes, ran_ns)
    summary["frames_in"], summary["dropped"], summary["unaccounted"]     # {}: every message is accounted for
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pipeline.clock import NS
from pipeline.frame import NodeHealth
from pipeline.runtime.graph import EVENTS, Plan
from pipeline.transport.drop_reasons import DIED, EDGE_REASONS, ON_ITS_WAY
from pipeline.transport.network import QUEUE_MESSAGES

QUEUED = 2 * QUEUE_MESSAGES + 1  # messages of one edge that the queues of both its ends hold at most


def summarise(plan: Plan, nodes: tuple[NodeHealth, ...], ran_ns: int, *, cut: bool = False) -> dict[str, Any]:
    """The last line of `--out`.

    Args:
        plan: What ran on this host.
        nodes: The counters of every node over the whole run.
        ran_ns: How long it ran (ns).
        cut: The end did not wait for what was on its way, which explains as many messages as the queues hold.
    """
    health = _with_evidence_of_readers(plan, {n.node: n for n in nodes})
    nodes = tuple(health.values())
    dropped = {n.node: {source: dict(reasons) for source, reasons in n.dropped.items()} for n in nodes if n.dropped}
    unaccounted: dict[str, int] = {}
    remote: dict[str, dict[str, Any]] = {}
    for node in plan.nodes:
        for edge in node.inputs:
            reader = health[node.name]
            sender = health.get(edge.source.removesuffix(EVENTS))
            if edge.host:  # the sender's counters are on another host: what was sent is known from seq
                sent = reader.promised.get(edge.source, 0)
                clock = reader.facts.get(f"{edge.source} on {edge.host}", "")
                remote[f"{edge.source} → {node.name}"] = {"host": edge.host, "sent": sent, "clock": clock}
            elif sender is None:
                continue
            else:
                sent = sender.events if edge.source.endswith(EVENTS) else sender.produced
            missing = sent - _accounted_for(reader, edge.source)
            reason, explained = _explained(sender, reader, cut=cut)
            if 0 < missing <= explained:
                dropped.setdefault(node.name, {}).setdefault(edge.source, {})[reason] = missing
            elif missing:
                unaccounted[f"{edge.source} → {node.name}"] = missing
        if node.is_aligner:
            unaccounted |= _without_outcome(health[node.name], cut=cut)
    plans = {node.name: node for node in plan.nodes}
    predicting = [n for n in nodes if "total" in n.latency_ms]
    return {
        "summary": True,
        "config": plan.config,
        "seconds": round(ran_ns / NS, 2),
        "frames_in": {n.node: n.produced for n in nodes if plans[n.node].is_source},
        "received": {n.node: dict(n.received) for n in nodes if n.received},
        "dropped": dropped,
        "sets": sum(n.produced for n in nodes if plans[n.node].is_aligner),
        "frames": {n.node: _outcomes(n) for n in nodes if plans[n.node].is_aligner},
        "predictions": sum(n.produced for n in predicting),
        "unaccounted": unaccounted,
        "latency_ms": predicting[0].latency_ms["total"] if predicting else {},
        "timing_ms": {name: ms for n in predicting for name, ms in n.latency_ms.items()},
        "engines": engines(nodes),
        "cpu_s": round(sum({n.pid: n.cpu_s for n in nodes}.values()), 2),
        "restarts": {n.node: n.restarts for n in nodes if n.restarts},
        "given_up": {n.node: n.note for n in nodes if n.state == "given up"},
        "incomplete": list(_incomplete(plan, nodes)),
        **({"host": plan.host, "from_other_hosts": remote} if plan.host else {}),
    }


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def _incomplete(plan: Plan, nodes: Iterable[NodeHealth]) -> Iterator[str]:
    """What the run was for and did not do: then its exit code is 5."""
    health = {node.node: node for node in nodes}
    for node in plan.nodes:
        if health[node.name].state == "given up" and not node.optional:
            yield f"node '{node.name}' was given up: {health[node.name].note}"
    predicting = [node.name for node in plan.nodes if node.predicts]
    if predicting and not any(health[name].produced for name in predicting):
        yield f"nothing was predicted: {' and '.join(predicting)} sent nothing"


def _outcomes(aligner: NodeHealth) -> dict[str, dict[str, int]]:
    """Source → what became of its frames in the aligner: used in a set, wanted by none, dropped (see "dropped")."""
    return {
        source: {
            "used": aligner.used.get(source, 0),
            "unused": aligner.unused.get(source, 0),
            "dropped": sum(aligner.dropped.get(source, {}).values()),
        }
        for source in aligner.received
    }


def engines(nodes: Iterable[NodeHealth]) -> dict[str, dict[str, str]]:
    """Node → what its predictions depend on besides the data: its model, and the engine that runs it."""
    facts = {n.node: {k: v for k, v in n.facts.items() if k == "model" or k.startswith("engine ")} for n in nodes}
    return {node: those for node, those in facts.items() if those}


def add(before: NodeHealth | None, now: NodeHealth) -> NodeHealth:
    """A node's counters over all its restarts. now: since the last of them."""
    if before is None:
        return now
    dropped = {source: dict(reasons) for source, reasons in before.dropped.items()}
    for source, reasons in now.dropped.items():
        for reason, count in reasons.items():
            dropped.setdefault(source, {})[reason] = dropped.get(source, {}).get(reason, 0) + count
    for source, sent in now.before.items():
        # Sent before this process connected, and not reported by the one before it: it died with that one.
        if (died := sent - _accounted_for(before, source)) > 0:
            dropped.setdefault(source, {})[DIED] = dropped.get(source, {}).get(DIED, 0) + died
    return msgspec.structs.replace(
        now,
        produced=before.produced + now.produced,
        received=_sum(before.received, now.received),
        dropped=dropped,
        cpu_s=round(before.cpu_s + now.cpu_s, 3),
        latency_ms=now.latency_ms or before.latency_ms,
        facts=now.facts or before.facts,
        promised=_sum(before.promised, now.promised),
        before=now.before | before.before,
        events=before.events + now.events,
        used=_sum(before.used, now.used),
        unused=_sum(before.unused, now.unused),
    )


def _explained(sender: NodeHealth | None, reader: NodeHealth, *, cut: bool) -> tuple[str, float]:
    """(why messages may be missing at the end, at most how many): what a process that was killed could not report.

    What a reader lost when it was killed and started again is counted already (`add`), so a larger number is an error.
    """
    if reader.state in ("given up", "restarting", "starting", "not answering"):
        return DIED, math.inf  # its last report is old, and nothing that was sent since reached it
    if sender is not None and sender.restarts:
        # What it had sent and its queues still held when it died; of a reader that died too nothing more is known.
        return DIED, math.inf if reader.restarts else sender.restarts * QUEUED
    if not cut:
        return "", 0
    return ON_ITS_WAY, QUEUED if reader.state in ("finished", "stopped") else math.inf  # else it was killed at the end


def _without_outcome(aligner: NodeHealth, *, cut: bool) -> dict[str, int]:
    """Frames that an aligner received, and that were neither used, nor not wanted, nor dropped: there must be none.

    A process that died reports no outcome of what it still held.
    """
    if cut or aligner.restarts or aligner.state not in ("finished", "stopped"):
        return {}
    balances = {}
    for source, received in aligner.received.items():
        dropped = aligner.dropped.get(source, {})
        after = sum(count for reason, count in dropped.items() if reason not in EDGE_REASONS)
        balances[source] = received - aligner.used.get(source, 0) - aligner.unused.get(source, 0) - after
    return {f"{source} in {aligner.node}": left for source, left in balances.items() if left}


def _with_evidence_of_readers(plan: Plan, health: dict[str, NodeHealth]) -> dict[str, NodeHealth]:
    """A sender that was killed could not report its last messages: it sent at least what its readers account for."""
    with_evidence = dict(health)
    for node in plan.nodes:
        for edge in node.inputs:
            sender = with_evidence.get(name := edge.source.removesuffix(EVENTS))
            if sender is not None and sender.restarts:
                accounted = _accounted_for(health[node.name], edge.source)
                if edge.source == name:
                    sender = msgspec.structs.replace(sender, produced=max(sender.produced, accounted))
                else:
                    sender = msgspec.structs.replace(sender, events=max(sender.events, accounted))
                with_evidence[name] = sender
    return with_evidence


def _accounted_for(reader: NodeHealth, source: str) -> int:
    """How many messages of `source` the reader received, or counted as dropped before it received them."""
    dropped = reader.dropped.get(source, {})
    return reader.received.get(source, 0) + sum(dropped.get(reason, 0) for reason in EDGE_REASONS)
