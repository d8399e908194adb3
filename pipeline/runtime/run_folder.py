"""Where the runs on this host announce themselves: one folder a run, with its sockets and a graph.json of its streams.

A run folder lies under `runs_folder()`, readable by this user only, and is removed with the run; folders of runs that
were killed are removed by the next run. A folder that is not this user's own, or is a link, is neither used nor
removed: another user could have put it there.

Example:
    with create_run_folder() as folder:
        announce(folder, name="door", config="configs/emotion-live.yaml", streams={"emotion": "ipc://…/emotion.sock"})
    find_stream("emotion")                     # "ipc:///run/user/1000/sensorium/…/emotion.sock", in any other program
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND
from pipeline.private_file import opener
from pipeline.transport.keys import RUN_KEYS, Keyring, Keys, RunKeys
from pipeline.transport.network import new_keys

log = logging.getLogger("launch")

GRAPH = "graph.json"
PAGE = ".page"  # ends the names of files that hold the address of a node's page
# <process id>-<when that process started>-<random>: the number of a process that has ended is used again.
_RUN = re.compile(r"(\d{1,10})(?:-(\d{1,20}))?-[0-9A-Za-z_]{1,16}", re.ASCII)
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
    """A folder for this run's sockets, removed at the end.

    Raises ConfigError when the folder of all runs belongs to another user, is a link, or is open to others.
    """
    base = runs_folder()
    with suppress(FileExistsError):
        base.mkdir(mode=0o700, parents=True)
    _check_private(base)
    _remove_dead_runs(base)
    run = base / f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(2)}"
    run.mkdir(mode=0o700)
    try:
        yield run
    finally:
        _remove(run)


def announce(run_folder: Path, *, name: str, config: str, streams: Mapping[str, str]) -> str:
    """Write graph.json, by which other programs find the run and its streams.

    Args:
        run_folder: Of this run.
        name: What people call the run.
        config: The path of its config.
        streams: Node → address.

    Returns:
        The run's name: with a number behind it, where another run of that name is alive.
    """
    taken = {run["name"] for run in announced_runs()}
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    graph = {"name": unique, "pid": os.getpid(), "config": config, "streams": streams}
    _write(run_folder / GRAPH, json.dumps(graph))
    return unique


def announce_page(run_folder: Path, node: str, address: str) -> None:
    """Store where the page of a node is, with its token."""
    _write(run_folder / f"{node.replace('/', '+')}{PAGE}", address)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", opener=opener) as file:
        file.write(text)
    part.replace(path)  # a rename is atomic: no reader meets half a file


def announced_runs() -> list[dict[str, Any]]:
    """The graph.json of every run on this host whose launcher is alive, newest first.

    With them `pages` (node → address) and `began_s` (UTC).

    Raises ConfigError as create_run_folder does: what lies in a folder of somebody else is not believed.
    """
    graphs = []
    if not os.path.lexists(base := runs_folder()):
        return []
    _check_private(base, 0o022)  # that others can read the addresses makes none of them wrong
    for path in base.glob(f"*/{GRAPH}"):
        try:
            graph, written_s = json.loads(path.read_bytes()), path.stat().st_mtime
            named = _RUN.fullmatch(path.parent.name)
            if is_alive(graph["pid"], int(named[2] or 0) if named else 0):
                pages = {p.name.removesuffix(PAGE): p.read_text() for p in path.parent.glob(f"*{PAGE}")}
                graphs.append((written_s, {"name": "", **graph, "pages": pages, "began_s": written_s}))
        except FileNotFoundError:
            continue  # that run has just ended
    return [graph for _, graph in sorted(graphs, key=lambda pair: pair[0], reverse=True)]


def announced_addresses() -> set[str]:
    """The addresses of all streams of all runs on this host."""
    return {address for graph in announced_runs() for address in graph["streams"].values()}


def find_stream(node: str, run: str | None = None) -> str:
    """The address of the stream of `node`.

    Args:
        node: Its name in the config.
        run: The run's name. None: whichever has such a node, if there is only one.

    Raises:
        ConfigError: No such run, no such node, or several runs have it; the error lists what runs.
    """
    runs = _runs(run)
    having = [graph for graph in runs if node in graph["streams"]]
    if len(having) > 1:
        names = ", ".join(graph["name"] for graph in having)
        raise ConfigError(f"'{node}' is a node of several runs: {names}. Say which: run='{having[0]['name']}'")
    if having:
        return str(having[0]["streams"][node])
    known = {name for graph in runs for name in graph["streams"]}
    raise ConfigError(f"no running node is called '{node}'. Running: {', '.join(sorted(known))}.{nearest(node, known)}")


def page_address(path: str = "", *, run: str | None = None) -> str:
    """Where the page of a run on this host is, with its token: for programs of the user who started the run.

    Args:
        path: Of the page: "" itself; "ws" its WebSocket, then with ws:// in front; "metrics".
        run: The run's name. None: whichever has a page, if there is only one.

    Raises:
        ConfigError: No such run, no run with a page, or several; the error lists them.
    """
    pages = [(graph["name"], address) for graph in _runs(run) for address in graph["pages"].values()]
    if len(pages) != 1:
        names = ", ".join(name for name, _ in pages)
        problem = f"several runs have a page: {names}. Say which: run=NAME" if pages else "no run here has a page"
        raise ConfigError(problem)
    parts = urlsplit(pages[0][1])
    scheme = "ws" if path == "ws" else parts.scheme
    return str(urlunsplit(parts._replace(scheme=scheme, path=f"/{path}")))


def _runs(name: str | None) -> list[dict[str, Any]]:
    runs = announced_runs()
    if not runs:
        raise ConfigError(f"no Sensorium pipeline runs on this host. Start one with: {COMMAND}")
    chosen = [graph for graph in runs if name in (None, graph["name"])]
    if not chosen:
        names = [graph["name"] for graph in runs]
        raise ConfigError(f"no run is called '{name}'. Running: {', '.join(names)}.{nearest(str(name), names)}")
    return chosen


def keys_at(address: str) -> RunKeys | None:
    """The keys of the run on this host that has a stream at this address; None when its address needs none."""
    if not address.startswith("tcp://"):
        return None
    for path in runs_folder().glob(f"*/{GRAPH}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if address in json.loads(path.read_bytes())["streams"].values():
                return RunKeys.load(path.parent)
    return None


def keys_between_hosts(host: str, addresses: Iterable[str]) -> Keys | None:
    """The keys for addresses of a config's hosts: this host's own, or, where all of them are on the loopback, a pair
    that all runs of this user share. None for no address."""
    if not (addresses := [address for address in addresses if address]):
        return None
    if (keyring := Keyring.for_addresses(host, addresses)) is not None:
        return keyring
    base = runs_folder()
    with suppress(FileExistsError):
        base.mkdir(mode=0o700, parents=True)
    _check_private(base)
    return RunKeys.load(base) if (base / RUN_KEYS).exists() else RunKeys.create(base, *new_keys())


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


def is_alive(pid: int, started: int = 0) -> bool:
    """Whether a process of this id runs. Always True on Windows, where asking would interrupt it.

    started: when it started, as a run folder's name has it, so that another process of the same id is not taken for it.
    """
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not started or _started(pid) in (0, started)


def _remove_dead_runs(base: Path) -> None:
    """Folders that runs of this user made, and whose launcher has ended."""
    for folder in base.iterdir():
        matched = _RUN.fullmatch(folder.name)
        if matched and not is_alive(int(matched[1]), int(matched[2] or 0)):
            _remove(folder)


def _remove(folder: Path) -> None:
    """A folder that belongs to this user, with all that is in it. Links are removed, and not followed."""
    if _is_own_folder(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _is_own_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (os.name != "posix" or status.st_uid == os.getuid())


def _check_private(base: Path, closed: int = 0o077) -> None:
    """Raises ConfigError for a folder that others could have made, or whose mode has one of the bits of `closed`."""
    if not _is_own_folder(base):
        what = "is a link" if base.is_symlink() else "belongs to another user, or is no folder"
        raise ConfigError(
            f"{base}: {what}. Who made it could read this run and send it orders. Remove it, or set XDG_RUNTIME_DIR to "
            "a folder of yours"
        )
    if os.name != "posix":
        return
    if base.lstat().st_mode & closed:
        raise ConfigError(f"{base}: must be closed to others. Remove it, or: chmod 700 {base}")
    parent = base.parent.stat()
    writable = 0o002 if parent.st_gid == os.getgid() else 0o022
    replaceable = parent.st_mode & writable and not parent.st_mode & stat.S_ISVTX
    if parent.st_uid not in (0, os.getuid()) or replaceable:
        raise ConfigError(
            f"{base.parent}: others can replace the folders in it. Set XDG_RUNTIME_DIR to a folder that is yours alone"
        )


def _started(pid: int) -> int:
    """When a process started, in the kernel's ticks since the host did; 0 where that is not known."""
    try:
        # After the name, which may hold anything: the 22nd field of /proc/PID/stat.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
