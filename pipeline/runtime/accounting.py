"""Message accounting of a run: what every node sent, received and dropped → one summary, and what is unaccounted for.

For each edge of the graph, the messages that were sent must be those that were received or dropped with a reason. Pure.

Example:
    summary = summarise(plan, health.nodes, ran_ns)
    summary["frames_in"], summary["dropped"], summary["unaccounted"]     # {}: every message is accounted for
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pipeline.clock import NS
from pipeline.frame import NodeHealth
from pipeline.runtime.graph import EVENTS, Plan
from pipeline.transport.drop_reasons import EDGE_REASONS


def summarise(plan: Plan, nodes: tuple[NodeHealth, ...], ran_ns: int, *, cut: bool = False) -> dict[str, Any]:
    """The last line of `--out`.

    Args:
        plan: What ran on this host.
        nodes: The counters of every node over the whole run.
        ran_ns: How long it ran (ns).
        cut: The end did not wait for what was on its way, so that missing messages are explained by it.
    """
    health = _with_evidence_of_readers(plan, {n.node: n for n in nodes})
    nodes = tuple(health.values())
    dropped = {n.node: {source: dict(reasons) for source, reasons in n.dropped.items()} for n in nodes if n.dropped}
    unaccounted: dict[str, int] = {}
    remote: dict[str, dict[str, Any]] = {}
    for node in plan.nodes:
        for edge in node.inputs:
            reader = health[node.name]
            if edge.host:  # the sender's counters are on another host: what was sent is known from seq
                sent, restarted = reader.promised.get(edge.source, 0), bool(reader.restarts)
                clock = reader.facts.get(f"{edge.source} on {edge.host}", "")
                remote[f"{edge.source} → {node.name}"] = {"host": edge.host, "sent": sent, "clock": clock}
            elif edge.source.endswith(EVENTS):  # events have a seq of their own, which no counter of the node holds
                sent, restarted = reader.promised.get(edge.source, 0), bool(reader.restarts)
            elif edge.source in health:
                sent, restarted = health[edge.source].produced, bool(health[edge.source].restarts or reader.restarts)
            else:
                continue
            missing = sent - _accounted_for(reader, edge.source)
            # A process that was killed, or cut short, reports no counts of what it still held.
            reason = "lost with a process that died" if restarted else "on its way at the end"
            if missing and (cut or restarted):
                dropped.setdefault(node.name, {}).setdefault(edge.source, {})[reason] = missing
            elif missing:
                unaccounted[f"{edge.source} → {node.name}"] = missing
    plans = {node.name: node for node in plan.nodes}
    predicting = [n for n in nodes if "total" in n.latency_ms]
    return {
        "summary": True,
        "config": plan.config,
        "seconds": round(ran_ns / NS, 2),
        "frames_in": {n.node: n.produced for n in nodes if plans[n.node].is_source},
        "dropped": dropped,
        "sets": sum(n.produced for n in nodes if plans[n.node].is_aligner),
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


def _incomplete(plan: Plan, nodes: Iterable[NodeHealth]) -> Iterator[str]:
    """What the run was for and did not do: then its exit code is 5."""
    health = {node.node: node for node in nodes}
    for node in plan.nodes:
        if health[node.name].state == "given up" and not node.optional:
            yield f"node '{node.name}' was given up: {health[node.name].note}"
    predicting = [node.name for node in plan.nodes if node.predicts]
    if predicting and not any(health[name].produced for name in predicting):
        yield f"nothing was predicted: {' and '.join(predicting)} sent nothing"


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
    received = {s: before.received.get(s, 0) + now.received.get(s, 0) for s in {**before.received, **now.received}}
    return msgspec.structs.replace(
        now,
        produced=before.produced + now.produced,
        received=received,
        dropped=dropped,
        cpu_s=round(before.cpu_s + now.cpu_s, 3),
        latency_ms=now.latency_ms or before.latency_ms,
        facts=now.facts or before.facts,
        promised={s: before.promised.get(s, 0) + now.promised.get(s, 0) for s in {**before.promised, **now.promised}},
    )


def _with_evidence_of_readers(plan: Plan, health: dict[str, NodeHealth]) -> dict[str, NodeHealth]:
    """A sender that was killed could not report its last messages: it sent at least what its readers account for."""
    produced = {name: node.produced for name, node in health.items()}
    for node in plan.nodes:
        for edge in node.inputs:
            if edge.source in health and health[edge.source].restarts:
                produced[edge.source] = max(produced[edge.source], _accounted_for(health[node.name], edge.source))
    return {name: msgspec.structs.replace(node, produced=produced[name]) for name, node in health.items()}


def _accounted_for(reader: NodeHealth, source: str) -> int:
    """How many messages of `source` the reader received, or counted as dropped before it received them."""
    dropped = reader.dropped.get(source, {})
    return reader.received.get(source, 0) + sum(dropped.get(reason, 0) for reason in EDGE_REASONS)
