"""CURVE keys: who this host is, and which other hosts it trusts; and those of a run, for its own sockets on the
loopback. Owns the files; network.py hands the keys to ZeroMQ.

Files:
    ~/.config/sensorium/keys/          or the folder that SENSORIUM_KEYS names
      front.secret                     this host's own key, readable by its owner only, never copied
      front.public                     to be copied to the other hosts
      allowed/brain.public             one file for each host that may connect, and that this host connects to

The folder `allowed/` decides both who may read from this host and which key proves that a publisher really is `brain`.
A host whose file is removed is rejected at its next connection; for one that is added nothing needs to be restarted.
A file or folder that other users could have written to is refused: whoever writes there decides who gets in.

Other users of this machine can connect to its loopback too. So a run that listens there (`portable: true`) has a pair
of keys of its own, in its folder, for this user alone: who does not have them gets nothing, and is not believed.

Example:
    keyring = Keyring.load("front")
    keyring.public_of("brain")          # its key, from allowed/brain.public
    keyring.name_of(public)             # "brain", or None for an unknown key
    RunKeys.create(run_folder, *new_keys()); RunKeys.load(run_folder)
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND

# A file is one line, like an ssh key: its type, the key in Z85 (40 characters), the host's name.
PUBLIC, SECRET = "sensorium-public", "sensorium-secret"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RUN_KEYS = "keys.json"
MAX_BYTES = 4096  # of a key's file


class Keys(Protocol):
    """What is needed to open a TCP socket: a key pair, and which other keys to believe."""

    @property
    def public(self) -> str: ...

    @property
    def secret(self) -> str: ...

    def public_of(self, name: str) -> str:
        """The key that proves to be `name`."""

    def name_of(self, public: str) -> str | None:
        """Who connects with this key; None for one that is not allowed."""


@dataclass(frozen=True)
class RunKeys:
    """The one pair of keys that all sockets of a run on the loopback have, and programs of the same user read."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def create(cls, folder: Path, public: str, secret: str) -> RunKeys:
        """Write a new pair into a folder that is closed to others; the pair that is there, if there is one already."""
        path = folder / RUN_KEYS
        part = folder / f".{RUN_KEYS}-{os.getpid()}-{public[:6].encode().hex()}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(msgspec.json.encode({"public": public, "secret": secret}))
        try:
            os.link(part, path)  # in one step, and without replacing what another run has just written
        except FileExistsError:
            return cls.load(folder)
        finally:
            part.unlink()
        return cls(public, secret)

    @classmethod
    def load(cls, folder: Path) -> RunKeys:
        """Raises ConfigError for a file that is missing, broken or not this user's alone."""
        path = folder / RUN_KEYS
        try:
            return msgspec.json.decode(_read_own(path, 0o077, "600", "read"), type=cls)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise ConfigError(f"{path}: not the keys of a run: {error}") from error

    def public_of(self, name: str) -> str:
        return self.public

    def name_of(self, public: str) -> str | None:
        return "this run" if public == self.public else None


@dataclass(frozen=True)
class Keyring:
    """What one host needs to prove its identity and to check that of others."""

    name: str
    public: str
    secret: str = field(repr=False)
    allowed: Path

    @classmethod
    def load(cls, name: str, folder: Path | None = None) -> Keyring:
        """Raises ConfigError, with the fixing command, for keys that are missing, broken or readable by others."""
        folder = folder or keys_folder()
        secret_path = folder / f"{name}.secret"
        if not secret_path.exists():
            raise ConfigError(
                f"host '{name}' has no key ({secret_path} is missing), and without one it neither sends to "
                f"nor reads from other hosts. Create it: {COMMAND} keys new {name}"
            )
        allowed = folder / "allowed"
        for path in (folder, allowed):
            if path.is_dir():
                _check_permissions(path, path.stat(), 0o022, "700", "write to")
        secret, public = _read(secret_path, SECRET), _read(folder / f"{name}.public", PUBLIC)
        for path in sorted(allowed.glob("*.public")):
            _check_permissions(path, path.stat(), 0o022, "600", "write to")
        return cls(name, public, secret, allowed)

    @classmethod
    def for_addresses(cls, name: str, addresses: Iterable[str]) -> Keyring | None:
        """The keys of host `name` if any of these ZeroMQ addresses needs them. Raises ConfigError as `load` does."""
        return cls.load(name) if any(leaves_host(address) for address in addresses) else None

    def public_of(self, name: str) -> str:
        """The public key of host `name`. Raises ConfigError when it is not in allowed/."""
        path = self.allowed / f"{name}.public"
        if not path.exists():
            known = sorted(p.stem for p in self.allowed.glob("*.public"))
            raise ConfigError(
                f"the key of host '{name}' is not here: copy its {name}.public into {self.allowed}/. "
                f"Allowed here: {', '.join(known) or 'none yet'}.{nearest(name, known)}"
            )
        return _read(path, PUBLIC)

    def name_of(self, public: str) -> str | None:
        """The host that has this key; None for one that is not allowed. Reads the files each time."""
        try:
            paths = sorted(self.allowed.glob("*.public"))
            _check_permissions(self.allowed, self.allowed.stat(), 0o022, "700", "write to")
        except (OSError, ConfigError):
            return None  # whoever may write there could have allowed anyone
        for path in paths:
            try:
                if _read(path, PUBLIC) == public:
                    return path.stem
            except ConfigError:
                continue  # a broken file, or one that others can write to, allows nobody, and excludes no other host
        return None


def leaves_host(address: str) -> bool:
    """Whether data sent to this ZeroMQ address can be read outside this machine, so that keys are required."""
    if not address.startswith("tcp://"):
        return False
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def keys_folder() -> Path:
    if folder := os.environ.get("SENSORIUM_KEYS"):
        return Path(folder)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sensorium" / "keys"


def write_new(name: str, public: str, secret: str, folder: Path | None = None) -> Path:
    """Store a new pair of keys for this host; returns the public file. Raises ConfigError if there is a key already."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' cannot be a host's name. Use letters, digits, '_' and '-'")
    folder = folder or keys_folder()
    (folder / "allowed").mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    secret_path, public_path = folder / f"{name}.secret", folder / f"{name}.public"
    try:
        file = os.open(secret_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{secret_path}: '{name}' has a key already. To create a new one, remove that file first; "
            f"every host that allows the old one then needs the new {public_path.name}"
        ) from None
    with os.fdopen(file, "w") as opened:
        opened.write(f"{SECRET} {secret} {name}\n")
    public_path.write_text(f"{PUBLIC} {public} {name}\n")
    return public_path


def _read(path: Path, kind: str) -> str:
    others = (0o077, "600", "read") if kind == SECRET else (0o022, "600", "write to")
    try:
        words = _read_own(path, *others).decode().split()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(words) < 2 or words[0] != kind or len(words[1]) != 40:
        content = f"it begins with '{words[0]:.20}'" if words else "it is empty"
        raise ConfigError(f"{path}: not a key: expected one line '{kind} <40 characters> NAME', {content}")
    return words[1]


def _read_own(path: Path, mask: int, mode: str, what: str) -> bytes:
    """A small file of this user's, whose mode has none of the bits of `mask`: checked on what is opened, not before."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            status = os.fstat(opened.fileno())
            _check_permissions(path, status, mask, mode, what)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: not a key: it is no file")
            return opened.read(MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _check_permissions(path: Path, status: os.stat_result, mask: int, mode: str, what: str) -> None:
    if os.name != "posix":
        return  # no file modes there; the folder is in the user's own profile
    if status.st_uid != os.getuid():
        raise ConfigError(f"{path}: belongs to another user. Make it yours: sudo chown {os.getuid()} {path}")
    if status.st_mode & mask:
        raise ConfigError(
            f"{path}: others can {what} it (mode {status.st_mode & 0o777:o}). Fix it: chmod {mode} {path}"
        )
