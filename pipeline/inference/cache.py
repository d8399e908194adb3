"""Built engines on disk: reused only where everything they depend on is the same, loaded only if this user wrote them.

An entry is two files, `<key's hash>.engine` and `.json` beside it, which holds the key, the engine's hash and the
parity gate's figures. Both are written under another name and renamed; the JSON comes last, so an entry is whole or
absent. One process builds at a time: a second one waits, and then reads what the first has built. Knows nothing of what
an engine is.

Example:
    cache = Cache()
    content = cache.get(key) or cache.build(key, build)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.assets import cache_folder
from pipeline.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two processes may then build the same engine, and the later rename wins
    fcntl = None  # type: ignore[assignment]

KEEP_ENTRIES = 48
log = logging.getLogger("engines")


@dataclass(frozen=True)
class Key:
    """All that a built engine depends on. profiles: their ranges, as text. flags: how it was built."""

    onnx_sha256: str
    backend: str
    version: str
    gpu: str
    capability: str
    driver: str
    precision: str
    profiles: str
    flags: str = ""

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:40]


class Cache:
    """folder: default $SENSORIUM_CACHE/engines. Readable and writable by its owner alone."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder().parent / "engines"

    def get(self, key: Key) -> bytes | None:
        """The engine; None: there is none, or it is not what was written, which is logged and then removed."""
        engine, note = self._paths(key)
        try:
            content, entry = engine.read_bytes(), json.loads(note.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._refuse(key, f"cannot be read ({error})")
        for path in (self.folder, engine, note):
            if wrong := _exposed(path):
                return self._refuse(key, wrong)
        if entry.get("key") != asdict(key):
            return self._refuse(key, "was built for something else")
        if entry.get("sha256") != hashlib.sha256(content).hexdigest():
            return self._refuse(key, "is cut short or altered")
        with contextlib.suppress(OSError):
            os.utime(note)  # its last use, which decides what `_prune` removes
        return content

    def build(self, key: Key, make: Callable[[], bytes]) -> bytes:
        """The engine, built by `make` unless another process did so while we waited for it."""
        with self._locked(key):
            existing = self.get(key)
            if existing is not None:
                return existing
            content = make()
            self._store(key, content, {})
        self._prune()
        return content

    def parity_figures(self, key: Key) -> dict[str, Any]:
        """What `approve` wrote; empty before."""
        try:
            entry = json.loads(self._paths(key)[1].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        figures = entry.get("parity")
        return figures if isinstance(figures, dict) else {}

    def approve(self, key: Key, figures: dict[str, Any]) -> None:
        """Store the parity gate's figures, so that the engine is not compared again at every start."""
        with self._locked(key):
            content = self.get(key)
            if content is not None:
                self._store(key, content, figures)

    def discard(self, key: Key) -> None:
        for path in reversed(self._paths(key)):
            path.unlink(missing_ok=True)

    def _paths(self, key: Key) -> tuple[Path, Path]:
        return self.folder / f"{key.name}.engine", self.folder / f"{key.name}.json"

    def _refuse(self, key: Key, why: str) -> bytes | None:
        log.warning("the engine in %s %s: it is built again", self._paths(key)[0], why)
        with contextlib.suppress(OSError):
            self.discard(key)
        return None

    def _store(self, key: Key, content: bytes, parity: dict[str, Any]) -> None:
        engine, note = self._paths(key)
        entry = {"key": asdict(key), "sha256": hashlib.sha256(content).hexdigest(), "parity": parity}
        try:
            self._make_folder()
            note.unlink(missing_ok=True)  # never an old JSON beside a new engine
            _write(engine, content)
            _write(note, json.dumps(entry, indent=1).encode())
        except OSError as error:
            raise ConfigError(
                f"cannot store the built engine in {self.folder}: {error}. Choose another folder with SENSORIUM_CACHE"
            ) from error

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix" and self.folder.stat().st_uid == os.getuid():
            self.folder.chmod(0o700)

    @contextlib.contextmanager
    def _locked(self, key: Key) -> Iterator[None]:
        try:
            self._make_folder()
            file = (self.folder / f"{key.name}.lock").open("a")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.folder}: {error}. Choose another folder with SENSORIUM_CACHE"
            ) from error
        with file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # gone with the process, however that ends
            yield

    def _prune(self) -> None:
        notes = sorted(self.folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)
        for note in notes[KEEP_ENTRIES:]:
            for suffix in (".json", ".engine", ".lock"):
                note.with_suffix(suffix).unlink(missing_ok=True)


def _exposed(path: Path) -> str:
    """Why somebody else could have written it; "" where nobody could."""
    if os.name != "posix":
        return ""
    status = path.stat()
    if status.st_uid != os.getuid():
        return f"belongs to another user ({path})"
    if stat.S_IMODE(status.st_mode) & 0o022:
        return f"can be written by others ({path})"
    return ""


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
