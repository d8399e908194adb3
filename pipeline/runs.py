"""The runs on this host: where each says what it publishes, and how any program reads it.

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

from pipeline.codec import End
from pipeline.errors import ConfigError, WireError, nearest
from pipeline.frame import AlignedSet, Frame, Health, Prediction
from pipeline.wire import Connection

SILENT_S = 1.0  # after this, a reader looks whether the run still lives
MAX_SOCKET_PATH = 103  # of macOS; Linux allows 107


def runs_folder() -> Path:
    """Where the runs of this user say what they publish: one folder a run, readable by this user only."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(base) / "sensorium" if base and Path(base).is_dir() else Path(tempfile.gettempdir()) / f"sensorium-{user}"


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


def subscribe(node: str, *, address: str | None = None, wait_s: float = 0.0) -> Iterator[Any]:
    """What `node` of the running pipeline publishes (Prediction, Frame, …), newest last, until the pipeline ends.

    wait_s: how long to wait for a pipeline to be there. Raises ConfigError when there is none, naming what runs.
    A program that is too slow loses messages; the pipeline is never held up.
    """
    give_up_s = time.monotonic() + wait_s
    here = address is None  # only of a run on this host can we see whether it lives
    while address is None:
        try:
            address = find_run(node)
        except ConfigError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(0.1)
    connection = Connection(address, f"{node}<-{os.getpid()}-{secrets.token_hex(3)}")
    heard_s = time.monotonic()
    try:
        while True:
            connection.greet()
            if connection.wait(100):
                heard_s = time.monotonic()
                try:
                    value, _ = connection.receive()
                except WireError:
                    continue
                if isinstance(value, End):
                    return
                if isinstance(value, Frame | AlignedSet | Prediction | Health):
                    yield value
            elif here and time.monotonic() - heard_s > SILENT_S and address not in addresses():
                return  # the pipeline was killed: nobody is left to say that it ended
    finally:
        connection.close()


def free_address(run_folder: Path, node: str, *, portable: bool) -> str:
    """An address for a node to publish at: a socket file, or a free port of the loopback on the portable path."""
    if not portable:
        path = f"{run_folder / node}.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ConfigError(f"{path}: too long for a socket's name. Set XDG_RUNTIME_DIR to a shorter folder, or portable: true")
        return f"ipc://{path}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
