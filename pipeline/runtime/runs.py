"""The runs on this host: where each says what it publishes, and how any program reads it.

Example:
    for prediction in pipeline.subscribe("emotion"): ...
    find_run("emotion")                     # "ipc:///run/user/1000/sensorium/…/emotion.sock"
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.clock import LiveClock
from pipeline.errors import ConfigError, WireError, nearest
from pipeline.frame import AlignedSet, Frame, Health, Prediction, left_ns, moved
from pipeline.transport.compression import decompress
from pipeline.transport.keys import Keyring, leaves_host
from pipeline.transport.network import ClockClient
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import End

SILENT_S = 1.0  # after this, a reader looks whether the run still lives
MAX_SOCKET_PATH = 103  # of macOS; Linux allows 107


def runs_folder() -> Path:
    """Where the runs of this user say what they publish: one folder a run, readable by this user only."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return (
        Path(base) / "sensorium" if base and Path(base).is_dir() else Path(tempfile.gettempdir()) / f"sensorium-{user}"
    )


def announced() -> list[dict[str, Any]]:
    """The graph.json of every run on this host whose launcher lives, newest first."""
    found = []
    for path in runs_folder().glob("*/graph.json"):
        try:
            graph, when_s = json.loads(path.read_bytes()), path.stat().st_mtime
            if process_runs(graph["pid"]):
                found.append((when_s, graph))
        except FileNotFoundError:
            continue  # it has just ended
    return [graph for _, graph in sorted(found, key=lambda pair: pair[0], reverse=True)]


def addresses() -> set[str]:
    """At which the runs on this host publish."""
    return {address for graph in announced() for address in graph["streams"].values()}


def process_runs(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, asking would be a Ctrl-C
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_run(node: str) -> str:
    """The address at which `node` of the newest run on this host publishes. Raises ConfigError with what there is."""
    graphs = announced()
    for graph in graphs:
        if node in graph["streams"]:
            return str(graph["streams"][node])
    known = {name for graph in graphs for name in graph["streams"]}
    if not known:
        raise ConfigError("no Sensorium pipeline runs on this host. Start one with: python run_pipeline.py")
    raise ConfigError(f"no running node is called '{node}'. Running: {', '.join(sorted(known))}.{nearest(node, known)}")


def subscribe(
    node: str, *, address: str | None = None, config: str | Path | None = None, host: str = "", wait_s: float = 0.0
) -> Iterator[Any]:
    """What `node` of the running pipeline publishes (Prediction, Frame, …), newest last, until the pipeline ends.

    config: of a pipeline on another host, in which the node is `shared: true`; host: whose keys this program uses. Times
    are then this host's, and the clock errors hold what is not known of the other's clock.
    wait_s: how long to wait for a pipeline on this host. Raises ConfigError when there is none, naming what runs.
    A program that is too slow loses messages; the pipeline is never held up.
    """
    reader = f"{node}<-{os.getpid()}-{secrets.token_hex(3)}"
    if config is not None:
        connection, here = _to_other_host(config, node, host, reader), False
    else:
        connection = Subscriber(address or _wait_for_run(node, wait_s), reader)
        here = address is None  # only of a run on this host can we see whether it lives
    clock, line, heard_s = LiveClock(), connection.clock_client, time.monotonic()
    try:
        while True:
            connection.keep_alive()
            if connection.wait(100):
                heard_s = time.monotonic()
                try:
                    value, _ = connection.receive()
                    message = decompress(value) if isinstance(value, Frame | AlignedSet | Prediction | Health) else None
                except WireError:
                    continue
                if isinstance(value, End):
                    return
                if message is None:
                    continue
                if line is None:
                    yield message
                elif line.clock.admits(
                    left_ns(message), clock.now_ns()
                ):  # else that clock has jumped, and it cannot be dated
                    yield moved(message, line.clock.to_local)
            elif here and time.monotonic() - heard_s > SILENT_S and connection.address not in addresses():
                return  # the pipeline was killed: nobody is left to say that it ended
    finally:
        connection.close()
        if line is not None:
            line.stop()


def _wait_for_run(node: str, wait_s: float) -> str:
    give_up_s = time.monotonic() + wait_s
    while True:
        try:
            return find_run(node)
        except ConfigError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(0.1)


def _to_other_host(config: str | Path, node: str, host: str, reader: str) -> Subscriber:
    from pipeline.runtime import graph  # it plans with the addresses of this module
    from pipeline.runtime.config import load

    there, address, clock = graph.shared_stream(load(config), node)
    if leaves_host(address) and not host:
        raise ConfigError(
            f"'{node}' is read from {address}: say whose keys to use, such as subscribe('{node}', config=…, host='laptop')"
        )
    keyring = Keyring.for_addresses(host, [address, clock])
    line = ClockClient(there, clock, keyring)
    connection = Subscriber(address, reader, payloads="packed", clock_client=line, keyring=keyring)
    line.start()
    return connection


def free_address(run_folder: Path, node: str, *, portable: bool) -> str:
    """An address for a node to publish at: a socket file, or a free port of the loopback on the portable path."""
    if not portable:
        path = f"{run_folder / node}.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"{path}: too long for a socket's name. Set XDG_RUNTIME_DIR to a shorter folder, or portable: true"
            )
        return f"ipc://{path}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
