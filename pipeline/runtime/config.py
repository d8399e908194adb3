"""YAML → typed config. Knows names and types, opens no device and no socket.

Every error says where in the file, what was found and what to write instead. A node's options are its constructor's
keyword arguments with their types; there is no other schema.

    config = load("configs/emotion-live.yaml", overrides=["nodes.camera.device=1"])
    config.nodes["camera"].options            # {"device": 1, "width_px": 1280, …}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, closest, nearest
from pipeline.installation import CONFIGS, shipped
from pipeline.node import Node
from pipeline.plugins import all_named, check_options, construct, find, renamed_key
from pipeline.transport.input_queue import DEFAULT_QUEUE_DEPTH, QueueDepth

RESERVED = ("use", "inputs", "process", "host", "shared", "restart", "optional")
INPUT_KEYS = ("from", "queue")
HOST_PORT = 7700  # a host tells the time at this port, and its streams are at those above
HEALTH = "health"  # the launcher's own stream: a name any `inputs` may use


@dataclass(frozen=True)
class InputConfig:
    source: str
    queue: QueueDepth | None  # None: the default


@dataclass(frozen=True)
class NodeConfig:
    name: str
    use: str
    where: str  # "configs/emotion-live.yaml: nodes.camera"
    inputs: tuple[InputConfig, ...] = ()
    process: str = ""
    host: str = ""  # where it runs; "" in a config without hosts
    shared: bool = False  # programs on other hosts may subscribe to it
    restart: bool = True
    optional: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # converted to the types of its constructor


@dataclass(frozen=True)
class ReplayConfig:
    """The run is a recorded one again: its time begins at start_ns. speed 0: as fast as the machine can."""

    start_ns: int
    speed: float


@dataclass(frozen=True)
class Config:
    path: str
    nodes: dict[str, NodeConfig]
    portable: bool = False  # loopback TCP and inline payloads only: no ipc://, no shared memory
    hosts: dict[str, tuple[str, int]] = field(default_factory=dict)  # name → address, first port
    replay: ReplayConfig | None = None  # not of the file: `replay` sets it


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """overrides: "nodes.camera.device=1", the value in YAML. Raises ConfigError."""
    path = found(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise ConfigError(
            f"{path}: cannot be read: {why}. A config is a YAML file, such as configs/emotion-live.yaml"
        ) from error
    from pipeline.runtime import yaml_text

    try:
        tree = yaml_text.parse(text, name=str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file holds {_a(tree)}, expected 'nodes:' with the graph below it")
    for override in overrides:
        _override(tree, override)
    return parse(tree, str(path))


def found(path: str | Path) -> Path:
    """Where a config is: one that comes with Sensorium is found from any folder, as configs/NAME.yaml or NAME.yaml."""
    return shipped(path, CONFIGS)


def _no_such_file(path: Path) -> ConfigError:
    ours = {p.stem: f"{CONFIGS.name}/{p.name}" for p in sorted(CONFIGS.glob("*.yaml"))}
    known = ours | {p.stem: str(p) for p in path.parent.glob("*.y*ml")}
    close = closest(path.stem, known)
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    meant = f" Did you mean '{known[close]}'?" if close else ""
    return ConfigError(
        f"{path}: there is no such file{where}.{meant} Those that come with Sensorium, found from any folder: "
        f"{', '.join(ours.values())}"
    )


def parse(tree: dict[str, Any], path: str) -> Config:
    """A config from what its YAML holds. `path` is named in errors."""
    known = ("nodes", "hosts", "portable")
    for key in tree:
        if key not in known:
            raise ConfigError(f"{path}: unknown key '{key}'. Known here: {', '.join(known)}.{nearest(str(key), known)}")
    nodes = tree.get("nodes")
    if not isinstance(nodes, dict) or not nodes:
        raise ConfigError(f"{path}: nodes: found {_a(nodes)}, expected a table of nodes")
    portable = tree.get("portable", False)
    if not isinstance(portable, bool):
        raise ConfigError(f"{path}: portable: found {portable!r}, expected true or false")
    hosts = _parse_hosts(tree.get("hosts", {}), path)
    return Config(
        path, {str(name): _parse_node(name, node, path, hosts) for name, node in nodes.items()}, portable, hosts
    )


def without(config: Config, *uses: str) -> Config:
    """Its nodes of these kinds left out: "dashboard"."""
    return replace(config, nodes={name: node for name, node in config.nodes.items() if node.use not in uses})


def without_displays(config: Config) -> Config:
    """Its nodes left out that show the run to a person: for runs that nobody watches."""
    watched = {name for name, node in config.nodes.items() if resolve(node.use, node.where).is_display}
    return replace(config, nodes={name: node for name, node in config.nodes.items() if name not in watched})


def _parse_hosts(hosts: Any, path: str) -> dict[str, tuple[str, int]]:
    """{front: 192.168.1.20, brain: "192.168.1.21:7800"} → name → (address, first port)."""
    if not isinstance(hosts, dict):
        raise ConfigError(
            f"{path}: hosts: found {_a(hosts)}, expected a table such as {{front: 192.168.1.20, brain: 192.168.1.21}}"
        )
    parsed = {}
    for name, given in hosts.items():
        address, colon, port = given.partition(":") if isinstance(given, str) else ("", "", "")
        if not address or (colon and not (port.isdecimal() and 0 < int(port) < 65000)):
            raise ConfigError(f"{path}: hosts.{name}: found {given!r}, expected an address such as 192.168.1.20:7700")
        parsed[str(name)] = (address, int(port or HOST_PORT))
    return parsed


def _parse_node(name: Any, node: Any, path: str, hosts: dict[str, tuple[str, int]]) -> NodeConfig:
    where = f"{path}: nodes.{name}"
    if not isinstance(name, str):
        raise ConfigError(f"{where}: YAML reads this name as {_a(name)}. Put it in quotes, or choose another")
    if name == HEALTH or not name.replace("_", "").replace("-", "").replace("/", "").isalnum():
        raise ConfigError(
            f"{where}: '{name}' cannot be a node's name. Use letters, digits, '_', '-'; '{HEALTH}' is taken"
        )
    if not isinstance(node, dict):
        raise ConfigError(f"{where}: found {_a(node)}, expected options such as {{use: camera, device: 0}}")
    if not isinstance(use := node.get("use"), str):
        raise ConfigError(
            f"{where}.use: missing. It names what the node is: {', '.join(all_named(Node, 'nodes'))}, or module:Name"
        )
    host = node.get("host", "")
    if hosts and host not in hosts:
        found = f"no host called '{host}'." if "host" in node else "missing: this config has several hosts."
        raise ConfigError(f"{where}.host: {found} Hosts here: {', '.join(hosts)}.{nearest(str(host), hosts)}")
    if host and not hosts:
        raise ConfigError(
            f"{where}.host: '{host}' has no address. Give it one at the top: hosts: {{{host}: 192.168.1.20}}"
        )
    for key in ("shared", "restart", "optional"):
        if not isinstance(node.get(key, False), bool):
            raise ConfigError(f"{where}.{key}: found {node[key]!r}, expected true or false")
    if node.get("shared") and not hosts:
        raise ConfigError(
            f"{where}.shared: this host has no address. Give it one: hosts: {{robot: 192.168.1.20}}, and each node a host"
        )
    if not isinstance(node.get("process", ""), str):
        raise ConfigError(f"{where}.process: found {node['process']!r}, expected a name")
    inputs = node.get("inputs", [])
    if not isinstance(inputs, list):
        raise ConfigError(f"{where}.inputs: found {_a(inputs)}, expected a list such as [camera, microphone]")
    given = {str(key): value for key, value in node.items() if key not in RESERVED}
    options = check_options(resolve(use, where), given, where, reserved=RESERVED)
    return NodeConfig(
        name,
        use,
        where,
        tuple(_parse_input(entry, f"{where}.inputs[{i}]") for i, entry in enumerate(inputs)),
        node.get("process", ""),
        host,
        node.get("shared", False),
        node.get("restart", True),
        node.get("optional", False),
        options,
    )


def _parse_input(entry: Any, where: str) -> InputConfig:
    if isinstance(entry, str):
        return InputConfig(entry, None)
    if not isinstance(entry, dict) or not isinstance(entry.get("from"), str):
        raise ConfigError(f"{where}: found {entry!r}, expected a node's name or {{from: camera, queue: latest}}")
    for key in entry:
        if key not in INPUT_KEYS:
            if renamed := renamed_key(str(key), INPUT_KEYS, where):
                raise renamed
            raise ConfigError(
                f"{where}: unknown key '{key}'. Known here: {', '.join(INPUT_KEYS)}.{nearest(str(key), INPUT_KEYS)}"
            )
    queue = entry.get("queue", DEFAULT_QUEUE_DEPTH)
    if queue not in ("all", "latest") and not (isinstance(queue, int) and not isinstance(queue, bool) and queue > 0):
        raise ConfigError(
            f"{where}.queue: found {queue!r}, expected all, latest, or how many messages may wait, such as 8"
        )
    return InputConfig(entry["from"], queue)


# --- names → classes ------------------------------------------------------------------------------------------------


def resolve(use: str, where: str) -> type[Node]:
    """ "camera" → the node in nodes/camera.py; "module:Name" → that class of anyone's module."""
    try:
        return find(use, Node, "nodes", what="node")
    except ConfigError as error:
        raise ConfigError(f"{where}.use: {error}") from error


def instantiate(use: str, options: dict[str, Any], *, where: str, inputs: Sequence[str] | None = None) -> Node:
    """inputs: the nodes it will read from, which its options must fit; None: not known here."""
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
        if isinstance(at, dict) and depth > 1:  # below a node: a table that it may have, such as `options`
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


def _a(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
