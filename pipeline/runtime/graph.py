"""Config → plan: resolve names, check that what is sent is what is read, choose processes and addresses. Starts nothing.

    plan = plan_graph(config, run_folder)
    plan.processes[0].nodes[0].inputs          # edges with their addresses

A config with hosts is planned on each of them, from the same file: the plan holds what runs there. Every host works out
the same addresses for all: it tells the time at its first port, and the streams it has follow, in the file's order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.frame import Frame, Health
from pipeline.node import Sink, Source
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, ReplayConfig, resolve
from pipeline.runtime.run_folder import free_address
from pipeline.transport.input_queue import DEFAULT_QUEUE_DEPTH, QueueDepth

MANY = 1000  # a reader that keeps so many, such as a recorder, means to miss none
EVENTS = (
    ".events"  # "align.events" in `inputs`: what that node was told and decided, as text (no node's name holds a '.')
)


class EdgePlan(msgspec.Struct):
    source: str
    queue: QueueDepth
    address: str
    host: str = ""  # where the source runs, if on another host


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
    network: str = ""  # a second address, where other hosts read it
    events: str = ""  # a third, where its journal is read
    recorded: bool = False  # somebody who is not waited for wants to miss nothing


class ProcessPlan(msgspec.Struct):
    """One process: what `python -m pipeline.runtime.worker` reads as JSON."""

    name: str
    nodes: list[NodePlan]
    control: str = ""
    launcher: int = 0  # its process id
    start_ns: int = 0
    restarts: int = 0
    host: str = ""  # whose keys to use
    clocks: dict[str, str] = {}  # of the other hosts it reads from: name → where it tells the time
    replay: ReplayConfig | None = None  # its clock is that of a recorded run


class Plan(msgspec.Struct):
    config: str
    processes: list[ProcessPlan]
    control: str
    health: str  # address
    host: str = ""
    clock: str = ""  # where this host tells others the time; "" when nobody asks

    @property
    def nodes(self) -> list[NodePlan]:
        return [node for process in self.processes for node in process.nodes]

    def streams(self) -> dict[str, str]:
        """Node → address, of every node that publishes."""
        events = {n.name + EVENTS: n.events for n in self.nodes if n.events}
        return {n.name: n.address for n in self.nodes if not n.is_sink} | events | {HEALTH: self.health}


def check_graph(config: Config) -> None:
    """Raises ConfigError for an input that does not exist, does not fit, or closes a cycle."""
    for node in config.nodes.values():
        kind = resolve(node.use, node.where)
        if issubclass(kind, Source) and node.inputs:
            raise ConfigError(f"{node.where}.inputs: '{node.use}' is a source and reads nothing. Remove the key")
        if not issubclass(kind, Source) and not node.inputs:
            raise ConfigError(
                f"{node.where}.inputs: missing. Which nodes does it read? Here: {', '.join(config.nodes)}"
            )
        if node.shared and issubclass(kind, Sink):
            raise ConfigError(f"{node.where}.shared: '{node.use}' sends nothing: it is a sink")
        for i, edge in enumerate(node.inputs):
            _check_edge(config, node, edge, f"{node.where}.inputs[{i}]")
    _check_cycles(config)


def plan_graph(config: Config, run_folder: Path, host: str = "") -> Plan:
    """host: which of config.hosts this is. Raises ConfigError as check_graph does, and for a host that is not there."""
    check_graph(config)
    if (config.hosts or host) and host not in config.hosts:
        found = (
            f"--host: no host called '{host}'"
            if host
            else f"{config.path}: it has several hosts. Say which one this is: --host NAME"
        )
        raise ConfigError(f"{found}. Hosts here: {', '.join(config.hosts) or 'none'}.{nearest(host, config.hosts)}")
    portable = config.portable

    def address(name: str) -> str:
        return free_address(run_folder, name.replace("/", "+"), portable=portable)  # no node's name holds a '+'

    here = [node for node in config.nodes.values() if node.host == host]
    addresses = {node.name: address(node.name) for node in here} | {HEALTH: address(HEALTH)}
    journals = {e.source for node in here for e in node.inputs if e.source.endswith(EVENTS)}
    addresses |= {name: address(name) for name in sorted(journals)}
    recorded = {e.source for n in here for e in n.inputs if isinstance(e.queue, int) and e.queue >= MANY}
    network, clocks = _network_addresses(config), _clock_addresses(config)
    read_elsewhere = {e.source for node in config.nodes.values() if node.host != host for e in node.inputs}
    waits = _fed_by_unpaced(config)
    processes: dict[str, ProcessPlan] = {}
    for node in here:
        kind = resolve(node.use, node.where)
        edges = []
        for edge in node.inputs:
            # A source that is not paced by real time can wait, so nothing needs to be dropped behind it.
            queue: QueueDepth = (
                "all"
                if edge.source.removesuffix(EVENTS) in waits and edge.queue != "latest"
                else edge.queue or DEFAULT_QUEUE_DEPTH
            )
            if edge.source in addresses:
                edges.append(EdgePlan(edge.source, queue, addresses[edge.source]))
            else:
                edges.append(EdgePlan(edge.source, queue, network[edge.source], config.nodes[edge.source].host))
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
            network[node.name] if node.name in read_elsewhere or node.shared else "",
            addresses.get(node.name + EVENTS, ""),
            node.name in recorded,
        )
        group = node.process or node.name
        process = processes.setdefault(group, ProcessPlan(group, [], host=host, replay=config.replay))
        process.nodes.append(plan)
        process.clocks |= {e.host: clocks[e.host] for e in edges if e.host}
    control = address("/control")
    for process in processes.values():
        process.control = control
    tells_time = any(node.network for process in processes.values() for node in process.nodes)
    return Plan(
        config.path, list(processes.values()), control, addresses[HEALTH], host, clocks[host] if tells_time else ""
    )


def shared_stream(config: Config, name: str) -> tuple[str, str, str]:
    """A shared node's host, and where other hosts read it and its clock. Raises ConfigError for one that is not shared."""
    shared = [node.name for node in config.nodes.values() if node.shared]
    if name not in shared:
        fix = (
            f"Set nodes.{name}.shared: true"
            if name in config.nodes
            else f"Shared: {', '.join(shared) or 'none'}.{nearest(name, shared)}"
        )
        raise ConfigError(f"{config.path}: '{name}' is not shared with other hosts. {fix}")
    host = config.nodes[name].host
    return host, _network_addresses(config)[name], _clock_addresses(config)[host]


def _clock_addresses(config: Config) -> dict[str, str]:
    return {name: f"tcp://{at}:{port}" for name, (at, port) in config.hosts.items()}


def _network_addresses(config: Config) -> dict[str, str]:
    """Node → where other hosts read it. Sinks have no place in the row, so adding one (--out) moves no other."""
    addresses = {}
    next_port = {name: port + 1 for name, (_, port) in config.hosts.items()}
    for node in config.nodes.values():
        if node.host and not issubclass(resolve(node.use, node.where), Sink):
            addresses[node.name] = f"tcp://{config.hosts[node.host][0]}:{next_port[node.host]}"
            next_port[node.host] += 1
    return addresses


def _check_edge(config: Config, node: NodeConfig, edge: InputConfig, where: str) -> None:
    reader = resolve(node.use, node.where)
    if edge.source == HEALTH:
        produces: type | None = Health
    elif edge.source.endswith(EVENTS) and _journals(config, edge.source.removesuffix(EVENTS)):
        produces = Frame
    elif edge.source not in config.nodes:
        others = [name for name in config.nodes if name != node.name]
        raise ConfigError(
            f"{where}: no node called '{edge.source}'. Nodes here: {', '.join(others)}.{nearest(edge.source, [*others, HEALTH])}"
        )
    else:
        source = config.nodes[edge.source]
        produces = resolve(source.use, source.where).produces
    if edge.source.endswith(EVENTS) and config.nodes[edge.source.removesuffix(EVENTS)].host != node.host:
        raise ConfigError(f"{where}: '{edge.source}' can only be read on its own host")
    if produces is None:
        raise ConfigError(f"{where}: '{edge.source}' sends nothing: it is a sink")
    if produces not in reader.consumes:
        wanted = " or ".join(kind.__name__ for kind in reader.consumes)
        fix = " Put an align node between them." if wanted == "AlignedSet" else ""
        raise ConfigError(f"{where}: '{edge.source}' sends {produces.__name__}, but {node.use} reads {wanted}.{fix}")


def _journals(config: Config, name: str) -> bool:
    node = config.nodes.get(name)
    return node is not None and resolve(node.use, node.where).publishes_events


def _check_cycles(config: Config) -> None:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycle = " → ".join([*path[path.index(name) :], name])
            raise ConfigError(f"{config.nodes[name].where}.inputs: a cycle: {cycle}. A graph must flow one way")
        if name in done or name == HEALTH:
            return
        for edge in config.nodes[name].inputs:
            visit(edge.source.removesuffix(EVENTS), [*path, name])
        done.add(name)

    for name in config.nodes:
        visit(name, [])


def _fed_by_unpaced(config: Config) -> set[str]:
    """The nodes that are, or are fed by, a source with `realtime: false`."""
    fed = {name for name, node in config.nodes.items() if node.options.get("realtime") is False}
    while True:
        more = {
            n.name for n in config.nodes.values() if any(e.source.removesuffix(EVENTS) in fed for e in n.inputs)
        } - fed
        if not more:
            return fed
        fed |= more
