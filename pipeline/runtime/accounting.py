"""The books of a run: what every node says it sent, read and dropped → one summary, and whether it balances. Pure.

Example:
    summary = summarise(plan, health.nodes, ran_ns)
    summary["frames_in"], summary["dropped"], summary["unaccounted"]     # {} when every message is accounted for
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline.clock import NS
from pipeline.frame import AlignedSet, Frame, NodeHealth
from pipeline.runtime.config import resolve
from pipeline.runtime.graph import EVENTS, NodePlan, Plan
from pipeline.transport.drop_reasons import EDGE_REASONS


def summarise(plan: Plan, nodes: tuple[NodeHealth, ...], ran_ns: int, *, cut: bool = False) -> dict[str, Any]:
    """The last line of `--out`: everything that came in, went out and was dropped, and whether the books balance."""
    health = _at_least_what_was_read(plan, {n.node: n for n in nodes})
    nodes = tuple(health.values())
    dropped = {n.node: {source: dict(reasons) for source, reasons in n.dropped.items()} for n in nodes if n.dropped}
    unaccounted: dict[str, int] = {}
    remote: dict[str, dict[str, Any]] = {}
    for node in plan.nodes:
        for edge in node.inputs:
            reader = health[node.name]
            if edge.host:  # its sender's books are another host's: what was sent is known from the numbers it bears
                sent, restarted = reader.promised.get(edge.source, 0), bool(reader.restarts)
                clock = reader.facts.get(f"{edge.source} on {edge.host}", "")
                remote[f"{edge.source} → {node.name}"] = {"host": edge.host, "sent": sent, "clock": clock}
            elif edge.source.endswith(EVENTS):  # a journal's numbers are its own
                sent, restarted = reader.promised.get(edge.source, 0), bool(reader.restarts)
            elif edge.source in health:
                sent, restarted = health[edge.source].produced, bool(health[edge.source].restarts or reader.restarts)
            else:
                continue
            missing = sent - _known_of(reader, edge.source)
            # Neither a killed process nor one that was cut short can say what it still held.
            why = "lost with a process that died" if restarted else "on its way at the end"
            if missing and (cut or restarted):
                dropped.setdefault(node.name, {}).setdefault(edge.source, {})[why] = missing
            elif missing:
                unaccounted[f"{edge.source} → {node.name}"] = missing
    kinds = {node.name: node for node in plan.nodes}
    predicting = [n for n in nodes if "total" in n.latency_ms]
    return {
        "summary": True,
        "config": plan.config,
        "seconds": round(ran_ns / NS, 2),
        "frames_in": {n.node: n.produced for n in nodes if kinds[n.node].is_source},
        "dropped": dropped,
        "sets": sum(n.produced for n in nodes if _aligns(kinds[n.node])),
        "predictions": sum(n.produced for n in predicting),
        "unaccounted": unaccounted,
        "latency_ms": predicting[0].latency_ms["total"] if predicting else {},
        "timing_ms": {name: ms for n in predicting for name, ms in n.latency_ms.items()},
        "engines": engines(nodes),
        "cpu_s": round(sum({n.pid: n.cpu_s for n in nodes}.values()), 2),
        "restarts": {n.node: n.restarts for n in nodes if n.restarts},
        **({"host": plan.host, "from_other_hosts": remote} if plan.host else {}),
    }


def _aligns(node: NodePlan) -> bool:
    """Whether it groups frames into sets, also in a replay."""
    kind = resolve(node.use, node.where)
    return Frame in kind.consumes and kind.produces is AlignedSet


def engines(nodes: Iterable[NodeHealth]) -> dict[str, dict[str, str]]:
    """Node → what its answers hang on besides the data: its model, and what runs it."""
    found = {n.node: {k: v for k, v in n.facts.items() if k == "model" or k.startswith("engine ")} for n in nodes}
    return {node: facts for node, facts in found.items() if facts}


def add(before: NodeHealth | None, now: NodeHealth) -> NodeHealth:
    """A node's counters over all its incarnations."""
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


def _at_least_what_was_read(plan: Plan, health: dict[str, NodeHealth]) -> dict[str, NodeHealth]:
    """A sender that was killed had no time to report its last messages, but its readers know of them."""
    produced = {name: node.produced for name, node in health.items()}
    for node in plan.nodes:
        for edge in node.inputs:
            if edge.source in health and health[edge.source].restarts:
                produced[edge.source] = max(produced[edge.source], _known_of(health[node.name], edge.source))
    return {name: msgspec.structs.replace(node, produced=produced[name]) for name, node in health.items()}


def _known_of(reader: NodeHealth, source: str) -> int:
    """How many messages of `source` came to the reader, or are known to it as lost."""
    dropped = reader.dropped.get(source, {})
    return reader.received.get(source, 0) + sum(dropped.get(reason, 0) for reason in EDGE_REASONS)
