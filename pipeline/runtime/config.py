"""YAML → typed config. Knows names and types; opens no device and no socket.

Every error says where in the file, what was found and what to write instead. A node's options are its constructor's
keyword arguments with their types: they are checked and converted here, once (plugins.check_options).

Example:
    config = load("configs/emotion-live.yaml", overrides=["nodes.camera.device=1"])
    config.nodes["camera"].options            # {"device": 1, "width_px": 1280, …}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, closest, nearest
from pipeline.files import read_text
from pipeline.installation import CONFIGS, shipped
from pipeline.node import Node
from pipeline.plugins import all_named, check_options, construct, find, renamed_key
from pipeline.runtime import watchdog
from pipeline.transport.input_queue import DEFAULT_QUEUE_DEPTH, QueueDepth

TOP_KEYS = {
    "nodes": "the graph: a table of nodes, each with a name of your choice",
    "hosts": "where the nodes run, if on several computers: name → address[:port]",
    "portable": "true: loopback TCP only, no socket files and no shared memory; default false",
}
# Keys that every node may have; every other key is an option of the node itself.
RESERVED = {
    "use": "what the node is: a file of nodes/, or module:Name",
    "inputs": "the nodes it reads from: names, or {from: NAME, queue: DEPTH}",
    "process": "nodes with the same name here run in one process; default: each has its own",
    "host": "where it runs, in a config with hosts",
    "shared": "true: programs on other hosts may subscribe to it; default false",
    "restarts": "how often a minute it may be started again after it failed, then it is given up; default 5",
    "watchdog_s": "without a sign of life for so long (s) it is started again; null: never; default 10",
    "optional": "true: the run goes on without it: its device is retried, and to give it up is no failure of the run",
}
INPUT_KEYS = {
    "from": "the node that sends; or health, the state of all nodes",
    "queue": "how many messages may wait: all (the sender waits), latest, or a number; default 32",
}
DEFAULT_RESTARTS = 5
FIRST_PORT = 7700  # where a host answers clock requests; its streams have the ports above
HEALTH = "health"  # the launcher's own stream, which any node may read


@dataclass(frozen=True)
class InputConfig:
    """One input of a node."""

    source: str
    queue: QueueDepth | None  # None: the default, or all behind a source that can wait


@dataclass(frozen=True)
class NodeConfig:
    """One node. The keys are described in RESERVED."""

    name: str
    use: str
    where: str  # "configs/emotion-live.yaml: nodes.camera"
    inputs: tuple[InputConfig, ...] = ()
    process: str = ""
    host: str = ""  # "" in a config without hosts
    shared: bool = False
    restarts: int = DEFAULT_RESTARTS
    watchdog_s: float | None = watchdog.DEFAULT_S
    optional: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # converted to the types of its constructor


@dataclass(frozen=True)
class ReplayConfig:
    """The clock of a run that replays a recording."""

    start_ns: int  # the time of the recorded run at which it begins
    speed: float  # 1: real time; 0: as fast as possible


@dataclass(frozen=True)
class Config:
    """A graph of nodes."""

    path: str  # of the file, for errors
    nodes: dict[str, NodeConfig]
    portable: bool = False
    hosts: dict[str, tuple[str, int]] = field(default_factory=dict)  # name → address, first port
    replay: ReplayConfig | None = None  # set by `replay`; no key of the file


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config.

    Args:
        path: A YAML file. One that comes with Sensorium is found from any folder, as configs/NAME.yaml or NAME.yaml.
        overrides: Values to change, as with --set: "nodes.camera.device=1", the value in YAML.

    Raises:
        ConfigError: The file cannot be read, or something in it is wrong: with the place, what was found and the fix.
    """
    path = shipped(path, CONFIGS)
    from pipeline.bounded_yaml import MAX_BYTES
    from pipeline.runtime import yaml_text

    if not path.exists():
        raise _no_such_file(path)
    try:
        text = read_text(path, most=MAX_BYTES)
    except ConfigError as error:
        raise ConfigError(f"{error}. A config is a YAML file, such as configs/emotion-live.yaml") from error
    try:
        tree = yaml_text.parse(text, name=str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file holds {_describe(tree)}, expected 'nodes:' with the graph below it")
    for override in overrides:
        _override(tree, override)
    return parse(tree, str(path))


def _no_such_file(path: Path) -> ConfigError:
    packaged = {p.stem: f"{CONFIGS.name}/{p.name}" for p in sorted(CONFIGS.glob("*.yaml"))}
    known = packaged | {p.stem: str(p) for p in path.parent.glob("*.y*ml")}
    close = closest(path.stem, known)
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    meant = f" Did you mean '{known[close]}'?" if close else ""
    return ConfigError(
        f"{path}: there is no such file{where}.{meant} Those that come with Sensorium, found from any folder: "
        f"{', '.join(packaged.values())}"
    )


def parse(tree: dict[str, Any], path: str) -> Config:
    """A config from the values of its YAML. `path` begins every error."""
    for key in tree:
        if key not in TOP_KEYS:
            raise _unknown_key(path, key, TOP_KEYS)
    nodes = tree.get("nodes")
    if not isinstance(nodes, dict) or not nodes:
        raise ConfigError(f"{path}: nodes: found {_describe(nodes)}, expected a table of nodes")
    portable = tree.get("portable", False)
    if not isinstance(portable, bool):
        raise ConfigError(f"{path}: portable: found {portable!r}, expected true or false")
    hosts = _parse_hosts(tree.get("hosts", {}), path)
    return Config(
        path, {str(name): _parse_node(name, node, path, hosts) for name, node in nodes.items()}, portable, hosts
    )


def without(config: Config, *uses: str) -> Config:
    """The config without the nodes whose `use` is one of these."""
    return replace(config, nodes={name: node for name, node in config.nodes.items() if node.use not in uses})


def without_displays(config: Config) -> Config:
    """The config without the nodes that show the run to a person: for runs that nobody watches."""
    displays = {name for name, node in config.nodes.items() if resolve(node.use, node.where).is_display}
    return replace(config, nodes={name: node for name, node in config.nodes.items() if name not in displays})


def _parse_hosts(hosts: Any, path: str) -> dict[str, tuple[str, int]]:
    """{front: 192.168.1.20, brain: "192.168.1.21:7800"} → name → (address, first port)."""
    if not isinstance(hosts, dict):
        raise ConfigError(
            f"{path}: hosts: found {_describe(hosts)}, "
            "expected a table such as {front: 192.168.1.20, brain: 192.168.1.21}"
        )
    parsed = {}
    for name, value in hosts.items():
        address, colon, port = value.partition(":") if isinstance(value, str) else ("", "", "")
        if not address or (colon and not (port.isdecimal() and 0 < int(port) < 65000)):
            raise ConfigError(f"{path}: hosts.{name}: found {value!r}, expected an address such as 192.168.1.20:7700")
        parsed[str(name)] = (address, int(port or FIRST_PORT))
    return parsed


def _parse_node(name: Any, node: Any, path: str, hosts: dict[str, tuple[str, int]]) -> NodeConfig:
    where = f"{path}: nodes.{name}"
    _check_name(name, where)
    if not isinstance(node, dict):
        raise ConfigError(
            f"{where}: found {_describe(node)}, expected a table that says what the node is: {{use: NODE, …}}"
        )
    if not isinstance(use := node.get("use"), str):
        raise ConfigError(
            f"{where}.use: missing. It names what the node is: {', '.join(all_named(Node, 'nodes'))}, or module:Name"
        )
    _check_reserved(node, where, hosts)
    options = {str(key): value for key, value in node.items() if key not in RESERVED}
    return NodeConfig(
        name,
        use,
        where,
        tuple(_parse_input(entry, f"{where}.inputs[{i}]") for i, entry in enumerate(node.get("inputs", []))),
        node.get("process", ""),
        node.get("host", ""),
        node.get("shared", False),
        node.get("restarts", DEFAULT_RESTARTS),
        node.get("watchdog_s", watchdog.DEFAULT_S),
        node.get("optional", False),
        check_options(resolve(use, where), options, where, reserved=RESERVED),
    )


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"{where}: YAML reads this name as {_describe(name)}. Put it in quotes, or choose another")
    if name == HEALTH or not name.replace("_", "").replace("-", "").replace("/", "").isalnum():
        raise ConfigError(
            f"{where}: '{name}' cannot be a node's name. Use letters, digits, '_', '-'; '{HEALTH}' is taken"
        )


def _check_reserved(node: dict[Any, Any], where: str, hosts: dict[str, tuple[str, int]]) -> None:
    """The types of the keys that every node may have, and whether its host is one of the config's."""
    host = node.get("host", "")
    if hosts and host not in hosts:
        problem = f"no host called '{host}'." if "host" in node else "missing: this config has several hosts."
        raise ConfigError(f"{where}.host: {problem} Hosts here: {', '.join(hosts)}.{nearest(str(host), hosts)}")
    if host and not hosts:
        raise ConfigError(
            f"{where}.host: '{host}' has no address. Give it one at the top: hosts: {{{host}: 192.168.1.20}}"
        )
    for key in ("shared", "optional"):
        if not isinstance(node.get(key, False), bool):
            raise ConfigError(f"{where}.{key}: found {node[key]!r}, expected true or false")
    restarts = node.get("restarts", DEFAULT_RESTARTS)
    if type(restarts) is not int or restarts < 0:
        raise ConfigError(f"{where}.restarts: found {restarts!r}, expected how often a minute, 0 or more")
    silent_s = node.get("watchdog_s", watchdog.DEFAULT_S)
    if silent_s is not None and not (type(silent_s) in (int, float) and 1 <= silent_s < math.inf):
        raise ConfigError(f"{where}.watchdog_s: found {silent_s!r}, expected seconds, 1 or more, or null")
    if node.get("shared") and not hosts:
        raise ConfigError(
            f"{where}.shared: this host has no address. "
            "Give it one: hosts: {robot: 192.168.1.20}, and each node a host"
        )
    if not isinstance(node.get("process", ""), str):
        raise ConfigError(f"{where}.process: found {node['process']!r}, expected a name")
    if not isinstance(inputs := node.get("inputs", []), list):
        raise ConfigError(f"{where}.inputs: found {_describe(inputs)}, expected a list such as [camera, microphone]")


def _parse_input(entry: Any, where: str) -> InputConfig:
    if isinstance(entry, str):
        return InputConfig(entry, None)
    if not isinstance(entry, dict) or not isinstance(entry.get("from"), str):
        raise ConfigError(f"{where}: found {entry!r}, expected a node's name or {{from: camera, queue: latest}}")
    for key in entry:
        if key not in INPUT_KEYS:
            raise renamed_key(str(key), INPUT_KEYS, where) or _unknown_key(where, key, INPUT_KEYS)
    queue = entry.get("queue", DEFAULT_QUEUE_DEPTH)
    if queue not in ("all", "latest") and not (isinstance(queue, int) and not isinstance(queue, bool) and queue > 0):
        raise ConfigError(
            f"{where}.queue: found {queue!r}, expected all, latest, or how many messages may wait, such as 8"
        )
    return InputConfig(entry["from"], queue)


# --- names → classes ------------------------------------------------------------------------------------------------


def resolve(use: str, where: str) -> type[Node]:
    """ "camera" → the node in nodes/camera.py; "module:Name" → that class of any module."""
    try:
        return find(use, Node, "nodes", what="node")
    except ConfigError as error:
        raise ConfigError(f"{where}.use: {error}") from error


def instantiate(use: str, options: dict[str, Any], *, where: str, inputs: Sequence[str] | None = None) -> Node:
    """A node, not yet open. Raises ConfigError.

    Args:
        use: As in the config.
        options: As NodeConfig has them.
        where: Begins every error.
        inputs: The nodes it will read from, which its options must fit. None: not known here.
    """
    node = construct(resolve(use, where), options, where, reserved=RESERVED)
    if inputs is not None:
        try:
            node.check_inputs(inputs)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return node


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a path and a value, such as nodes.camera.device=1")
    at: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if isinstance(at, dict) and depth > 1:  # below a node a table may be added, such as `options`
            at.setdefault(key, {})
        if not isinstance(at, dict) or key not in at:
            known = list(at) if isinstance(at, dict) else []
            raise ConfigError(
                f"--set {override}: there is no '{'.'.join(keys[: depth + 1])}' in the config.{nearest(key, known)}"
            )
        at = at[key]
    if not isinstance(at, dict):
        raise ConfigError(f"--set {override}: '{'.'.join(keys[:-1])}' is not a table")
    from pipeline.runtime import yaml_text

    try:
        at[keys[-1]] = yaml_text.parse(text)
    except ValueError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error


def _unknown_key(where: str, key: Any, known: Iterable[str]) -> ConfigError:
    return ConfigError(f"{where}: unknown key '{key}'. Known here: {', '.join(known)}.{nearest(str(key), known)}")


def _describe(value: Any) -> str:
    """ "nothing", or type and beginning of a value, for errors."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
