"""Where the runs on this host announce themselves: one folder a run, with its sockets and a graph.json of its streams.

A run folder lies under `runs_folder()`, readable by this user only, and is removed with the run; folders of runs that
were killed are removed by the next run.

Example:
    with create_run_folder() as folder:
        announce(folder, config="configs/emotion-live.yaml", streams={"emotion": "ipc://…/emotion.sock"})
    find_stream("emotion")                     # "ipc:///run/user/1000/sensorium/…/emotion.sock", in any other program
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND
from pipeline.transport.shared_memory import shared_memory_root

log = logging.getLogger("launch")

GRAPH = "graph.json"
MAX_SOCKET_PATH = 103  # bytes, on macOS; Linux allows 107


def runs_folder() -> Path:
    """The folder of all runs of this user."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return (
        Path(base) / "sensorium" if base and Path(base).is_dir() else Path(tempfile.gettempdir()) / f"sensorium-{user}"
    )


@contextmanager
def create_run_folder() -> Iterator[Path]:
    """A folder for this run's sockets, and one of the same name for its shared memory; both are removed at the end.

    Raises ConfigError when the folder of all runs belongs to another user or is open to others.
    """
    bases = [runs_folder()]
    _create_private(bases[0])
    if (rings := shared_memory_root()) is not None:
        try:
            _create_private(rings)
            bases.append(rings)
        except (ConfigError, OSError) as error:
            log.warning("%s Until then large payloads are copied through sockets.", error)
    for base in bases:
        _remove_dead_runs(base)
    run = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=bases[0]))
    folders = [base / run.name for base in bases]
    try:
        for folder in folders[1:]:
            folder.mkdir(mode=0o700)
        yield run
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def announce(run_folder: Path, *, config: str, streams: Mapping[str, str]) -> None:
    """Write graph.json, by which other programs find the streams. streams: node → address."""
    text = json.dumps({"pid": os.getpid(), "config": config, "streams": streams})
    part = run_folder / "graph.part"
    part.write_text(text)
    part.replace(run_folder / GRAPH)  # a rename is atomic: no reader meets half a file


def announced_runs() -> list[dict[str, Any]]:
    """The graph.json of every run on this host whose launcher is alive, newest first."""
    graphs = []
    for path in runs_folder().glob(f"*/{GRAPH}"):
        try:
            graph, written_s = json.loads(path.read_bytes()), path.stat().st_mtime
            if is_alive(graph["pid"]):
                graphs.append((written_s, graph))
        except FileNotFoundError:
            continue  # that run has just ended
    return [graph for _, graph in sorted(graphs, key=lambda pair: pair[0], reverse=True)]


def announced_addresses() -> set[str]:
    """The addresses of all streams of all runs on this host."""
    return {address for graph in announced_runs() for address in graph["streams"].values()}


def find_stream(node: str) -> str:
    """The address of the stream of `node`, in the newest run that has one. Raises ConfigError that lists what runs."""
    graphs = announced_runs()
    for graph in graphs:
        if node in graph["streams"]:
            return str(graph["streams"][node])
    known = {name for graph in graphs for name in graph["streams"]}
    if not known:
        raise ConfigError(f"no Sensorium pipeline runs on this host. Start one with: {COMMAND}")
    raise ConfigError(f"no running node is called '{node}'. Running: {', '.join(sorted(known))}.{nearest(node, known)}")


def free_address(run_folder: Path, node: str, *, portable: bool) -> str:
    """An address for a node's stream: a socket file in the run folder, or, if portable, a free port of the loopback."""
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


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs. Always True on Windows, where asking would interrupt it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_dead_runs(base: Path) -> None:
    for folder in base.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _create_private(base: Path) -> None:
    """Create `base`, readable by this user only. Raises ConfigError when it belongs to another user."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_mode & 0o077 or (hasattr(os, "getuid") and base.stat().st_uid != os.getuid()):
        raise ConfigError(f"{base}: must belong to you and be closed to others. Remove it, or: chmod 700 {base}")
