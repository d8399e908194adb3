"""Config → plan: resolve names, check that what is sent is what is read, choose processes and addresses. Starts nothing.

    plan = plan_graph(config, run_folder)
    plan.processes[0].nodes[0].inputs          # edges with their addresses
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import HEALTH, Config, InputConfig, NodeConfig, resolve
from pipeline.errors import ConfigError, nearest
from pipeline.frame import Health
from pipeline.inbox import KEEP_DEFAULT, Keep
from pipeline.node import Sink, Source
from pipeline.wire import free_address


class EdgePlan(msgspec.Struct):
    source: str
    keep: Keep
    address: str


class NodePlan(msgspec.Struct):
    name: str
    use: str
    where: str
    options: dict[str, Any]
    optional: bool
    restart: bool
    is_source: bool
    is_sink: bool
    address: str
    inputs: list[EdgePlan]


class ProcessPlan(msgspec.Struct):
    """One process: what `python -m pipeline.process` reads as JSON."""

    name: str
    nodes: list[NodePlan]
    control: str = ""
    launcher: int = 0  # its process id
    start_ns: int = 0
    restarts: int = 0


class Plan(msgspec.Struct):
    config: str
    processes: list[ProcessPlan]
    control: str
    health: str  # address

    @property
    def nodes(self) -> list[NodePlan]:
        return [node for process in self.processes for node in process.nodes]

    def streams(self) -> dict[str, str]:
        """Node → address, of every node that publishes."""
        return {n.name: n.address for n in self.nodes if not n.is_sink} | {HEALTH: self.health}


def check_graph(config: Config) -> None:
    """Raises ConfigError for an input that does not exist, does not fit, or closes a cycle."""
    for node in config.nodes.values():
        kind = resolve(node.use, node.where)
        if issubclass(kind, Source) and node.inputs:
            raise ConfigError(f"{node.where}.inputs: '{node.use}' is a source and reads nothing. Remove the key")
        if not issubclass(kind, Source) and not node.inputs:
            raise ConfigError(f"{node.where}.inputs: missing. Which nodes does it read? Here: {', '.join(config.nodes)}")
        for i, edge in enumerate(node.inputs):
            _check_edge(config, node, edge, f"{node.where}.inputs[{i}]")
    _check_cycles(config)


def plan_graph(config: Config, run_folder: Path) -> Plan:
    """Raises ConfigError as check_graph does."""
    check_graph(config)
    portable = config.portable

    def address(name: str) -> str:
        return free_address(run_folder, name.replace("/", "+"), portable=portable)  # no node's name holds a '+'

    addresses = {name: address(name) for name in config.nodes} | {HEALTH: address(HEALTH)}
    waits = _fed_by_unpaced(config)
    processes: dict[str, ProcessPlan] = {}
    for node in config.nodes.values():
        kind = resolve(node.use, node.where)
        edges = []
        for edge in node.inputs:
            # A source that is not paced by real time can wait, so nothing needs to be dropped behind it.
            keep: Keep = "all" if edge.source in waits and edge.keep != "latest" else edge.keep or KEEP_DEFAULT
            edges.append(EdgePlan(edge.source, keep, addresses[edge.source]))
        plan = NodePlan(
            node.name,
            node.use,
            node.where,
            node.options,
            node.optional,
            node.restart,
            issubclass(kind, Source),
            issubclass(kind, Sink),
            addresses[node.name],
            edges,
        )
        group = node.process or node.name
        processes.setdefault(group, ProcessPlan(group, [])).nodes.append(plan)
    control = address("/control")
    for process in processes.values():
        process.control = control
    return Plan(config.path, list(processes.values()), control, addresses[HEALTH])


def _check_edge(config: Config, node: NodeConfig, edge: InputConfig, where: str) -> None:
    reader = resolve(node.use, node.where)
    if edge.source == HEALTH:
        produces: type | None = Health
    elif edge.source not in config.nodes:
        others = [name for name in config.nodes if name != node.name]
        raise ConfigError(
            f"{where}: no node called '{edge.source}'. Nodes here: {', '.join(others)}.{nearest(edge.source, [*others, HEALTH])}"
        )
    else:
        source = config.nodes[edge.source]
        produces = resolve(source.use, source.where).produces
    if produces is None:
        raise ConfigError(f"{where}: '{edge.source}' sends nothing: it is a sink")
    if produces not in reader.consumes:
        wanted = " or ".join(kind.__name__ for kind in reader.consumes)
        fix = " Put an align node between them." if wanted == "AlignedSet" else ""
        raise ConfigError(f"{where}: '{edge.source}' sends {produces.__name__}, but {node.use} reads {wanted}.{fix}")


def _check_cycles(config: Config) -> None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycle = " → ".join([*path[path.index(name) :], name])
            raise ConfigError(f"{config.nodes[name].where}.inputs: a cycle: {cycle}. A graph must flow one way")
        if name in done or name == HEALTH:
            return
        for edge in config.nodes[name].inputs:
            visit(edge.source, [*path, name])
        done.add(name)

    for name in config.nodes:
        visit(name, [])


def _fed_by_unpaced(config: Config) -> set[str]:
    """The nodes that are, or are fed by, a source with `realtime: false`."""
    fed = {name for name, node in config.nodes.items() if node.options.get("realtime") is False}
    while True:
        more = {n.name for n in config.nodes.values() if any(e.source in fed for e in n.inputs)} - fed
        if not more:
            return fed
        fed |= more
