"""Config → plan: check that each node reads what its sources send, choose processes and addresses. Starts nothing.

A config with hosts is planned on each of them from the same file; the plan holds what runs on that host. Every host
derives the same addresses for all: a host answers clock requests at its first port, and its streams have the ports
after it, in the order of the file.

Example:
    plan = plan_graph(config, run_folder)
    plan.processes[0].nodes[0].inputs          # edges with their addresses
"""

from __future__ import annotations

import secrets
from collections.abc import Container
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.frame import AlignedSet, Frame, Health, Prediction
from pipeline.node import Node, Sink, Source
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, ReplayConfig, resolve
from pipeline.runtime.run_folder import free_address
from pipeline.transport.input_queue import DEFAULT_QUEUE_DEPTH, QueueDepth
from pipeline.transport.keys import RunKeys

RECORDER_DEPTH = 1000  # an input with so deep a queue, such as a recorder's, is not meant to lose anything
EVENTS = ".events"  # "align.events" in `inputs`: the decisions of that node, as text (no node's name contains a '.')


class EdgePlan(msgspec.Struct):
    """One input of a node, with the address of its source."""

    source: str
    queue: QueueDepth
    address: str
    host: str = ""  # where the source runs, if on another host


class NodePlan(msgspec.Struct):
    """One node of this host, as its process runs it."""

    name: str
    use: str
    where: str
    options: dict[str, Any]
    optional: bool
    restarts: int
    watchdog_s: float | None
    is_source: bool
    is_sink: bool
    is_display: bool
    predicts: bool
    is_aligner: bool  # it groups frames into sets
    address: str
    inputs: list[EdgePlan]
    network: str = ""  # a second address, for readers on other hosts
    events: str = ""  # a third address, of its events, if anything reads them
    recorded: bool = False  # a reader with a deep queue, for which the sender does not wait, is to lose nothing


class ProcessPlan(msgspec.Struct):
    """One process: `python -m pipeline.runtime.worker` reads it as JSON."""

    name: str
    nodes: list[NodePlan]
    control: str = ""  # the launcher's address
    launcher: int = 0  # the launcher's process id
    start_ns: int = 0  # when the run began; 0: not yet
    restarts: int = 0
    folder: str = ""  # the run's
    mark: str = ""  # in the environment of all that it starts (guard.py)
    host: str = ""  # whose keys it uses
    run_keys: RunKeys | None = None  # of the sockets of this run, if they are TCP
    clocks: dict[str, str] = {}  # other hosts whose streams it reads → the addresses of their clocks
    replay: ReplayConfig | None = None


class Plan(msgspec.Struct):
    """What runs on this host."""

    config: str  # path
    processes: list[ProcessPlan]
    control: str  # address
    health: str  # address
    host: str = ""
    clock: str = ""  # where this host answers clock requests; "" when no other host reads from it
    name: str = ""  # what people call the run
    run_keys: RunKeys | None = None  # of the sockets of this run, if they are TCP

    @property
    def nodes(self) -> list[NodePlan]:
        return [node for process in self.processes for node in process.nodes]

    def is_useful_without(self, gone: Container[str]) -> bool:
        """Whether anything is left that predicts, or stores what it reads, with all that it reads from.

        In a graph without such nodes: whether any node is left.

        Args:
            gone: The nodes that run no more.
        """
        by_name = {node.name: node for node in self.nodes}

        def is_fed(node: NodePlan) -> bool:
            return node.name not in gone and (node.is_source or any(brings(edge) for edge in node.inputs))

        def brings(edge: EdgePlan) -> bool:
            source = by_name.get(edge.source.removesuffix(EVENTS))
            return bool(edge.host) or (source is not None and is_fed(source))

        purposes = [node for node in self.nodes if node.predicts or (node.is_sink and not node.is_display)]
        return any(map(is_fed, purposes or self.nodes))

    def use(self, run_keys: RunKeys) -> None:
        """Every socket of this run, of each of its processes, has these keys."""
        self.run_keys = run_keys
        for process in self.processes:
            process.run_keys = run_keys

    def streams(self) -> dict[str, str]:
        """Stream → address, for every stream that other programs on this host may read."""
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


def plan_graph(config: Config, run_folder: Path, host: str = "", name: str = "") -> Plan:
    """The plan of one host.

    Args:
        config: The graph; checked here.
        run_folder: Where its sockets will lie.
        host: Which of config.hosts this is; "" for a config without hosts.
        name: Of the run. "": its config's.

    Raises:
        ConfigError: As check_graph, and for a host that the config does not have.
    """
    check_graph(config)
    _check_host(config, host)

    def address(name: str) -> str:
        return free_address(run_folder, name.replace("/", "+"), portable=config.portable)  # no node's name contains '+'

    here = [node for node in config.nodes.values() if node.host == host]
    addresses = {node.name: address(node.name) for node in here} | {HEALTH: address(HEALTH)}
    event_streams = {e.source for node in here for e in node.inputs if e.source.endswith(EVENTS)}
    addresses |= {name: address(name) for name in sorted(event_streams)}
    recorded = {e.source for n in here for e in n.inputs if isinstance(e.queue, int) and e.queue >= RECORDER_DEPTH}
    network, clocks = _network_addresses(config), _clock_addresses(config)
    read_elsewhere = {e.source for node in config.nodes.values() if node.host != host for e in node.inputs}
    can_wait = _behind_unpaced_sources(config)

    def edge_plan(edge: InputConfig) -> EdgePlan:
        # A source that is not paced by real time can wait, so nothing needs to be dropped behind it.
        waits = edge.source.removesuffix(EVENTS) in can_wait and edge.queue != "latest"
        queue: QueueDepth = "all" if waits else edge.queue or DEFAULT_QUEUE_DEPTH
        if edge.source in addresses:
            return EdgePlan(edge.source, queue, addresses[edge.source])
        return EdgePlan(edge.source, queue, network[edge.source], config.nodes[edge.source].host)

    processes: dict[str, ProcessPlan] = {}
    for node in here:
        kind = resolve(node.use, node.where)
        plan = NodePlan(
            name=node.name,
            use=node.use,
            where=node.where,
            options=_with_token(kind, node.options),
            optional=node.optional,
            restarts=node.restarts,
            watchdog_s=node.watchdog_s,
            is_source=issubclass(kind, Source),
            is_sink=issubclass(kind, Sink),
            is_display=kind.is_display,
            predicts=kind.produces is Prediction,
            is_aligner=Frame in kind.consumes and kind.produces is AlignedSet,
            address=addresses[node.name],
            inputs=[edge_plan(edge) for edge in node.inputs],
            network=network[node.name] if node.name in read_elsewhere or node.shared else "",
            events=addresses.get(node.name + EVENTS, ""),
            recorded=node.name in recorded,
        )
        group = node.process or node.name
        plan_of_group = ProcessPlan(group, [], host=host, replay=config.replay, folder=str(run_folder))
        process = processes.setdefault(group, plan_of_group)
        process.nodes.append(plan)
        process.clocks |= {edge.host: clocks[edge.host] for edge in plan.inputs if edge.host}
    control = address("/control")
    for process in processes.values():
        process.control = control
    serves_others = any(node.network for process in processes.values() for node in process.nodes)
    return Plan(
        config.path,
        list(processes.values()),
        control,
        addresses[HEALTH],
        host,
        clocks[host] if serves_others else "",
        name or Path(config.path).stem,
    )


def _with_token(kind: type[Node], options: dict[str, Any]) -> dict[str, Any]:
    """A page whose token the config does not choose gets one of its own in each run."""
    if kind.serves_page and options.get("token") is None:
        return {**options, "token": secrets.token_urlsafe(18)}
    return options


def _check_host(config: Config, host: str) -> None:
    if (config.hosts or host) and host not in config.hosts:
        problem = (
            f"--host: no host called '{host}'"
            if host
            else f"{config.path}: it has several hosts. Say which one this is: --host NAME"
        )
        raise ConfigError(f"{problem}. Hosts here: {', '.join(config.hosts) or 'none'}.{nearest(host, config.hosts)}")


def shared_stream(config: Config, name: str) -> tuple[str, str, str]:
    """(host, address of the stream, address of the host's clock) of a node. ConfigError for one that is not shared."""
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
    """Node → its address for other hosts. Sinks get no port, so adding one (--out) changes no other address."""
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
    elif edge.source.endswith(EVENTS) and _publishes_events(config, edge.source.removesuffix(EVENTS)):
        produces = Frame
    elif edge.source not in config.nodes:
        others = [name for name in config.nodes if name != node.name]
        meant = nearest(edge.source, [*others, HEALTH])
        raise ConfigError(f"{where}: no node called '{edge.source}'. Nodes here: {', '.join(others)}.{meant}")
    else:
        source = config.nodes[edge.source]
        produces = resolve(source.use, source.where).produces
    if edge.source.endswith(EVENTS) and config.nodes[edge.source.removesuffix(EVENTS)].host != node.host:
        raise ConfigError(f"{where}: '{edge.source}' can only be read on its own host")
    if produces is None:
        raise ConfigError(f"{where}: '{edge.source}' sends nothing: it is a sink")
    if produces not in reader.consumes:
        accepted = " or ".join(kind.__name__ for kind in reader.consumes)
        fix = " Put an align node between them." if accepted == "AlignedSet" else ""
        raise ConfigError(f"{where}: '{edge.source}' sends {produces.__name__}, but {node.use} reads {accepted}.{fix}")


def _publishes_events(config: Config, name: str) -> bool:
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


def _behind_unpaced_sources(config: Config) -> set[str]:
    """Sources with `realtime: false`, and all nodes that read from them, directly or not."""
    unpaced = {name for name, node in config.nodes.items() if node.options.get("realtime") is False}
    while True:
        more = {
            node.name
            for node in config.nodes.values()
            if any(edge.source.removesuffix(EVENTS) in unpaced for edge in node.inputs)
        } - unpaced
        if not more:
            return unpaced
        unpaced |= more
