"""CURVE keys: who this host is, and which other hosts it trusts. Owns the files; wire.py does the cryptography.

    ~/.config/sensorium/keys/          or the folder that SENSORIUM_KEYS names
      front.secret                     this host's own key, readable by you only, never copied
      front.public                     give it to the others
      allowed/brain.public             one file for each host that may connect, and that we connect to

One folder answers both questions: who may read from us, and is that really `brain` whom we read from. A host that is
taken out of `allowed/` is refused at its next connection; nothing needs to be started again for one that is added.

    keyring = Keyring.load("front")
    keyring.public_of("brain")          # its key, from allowed/brain.public
    keyring.name_of(public)             # "brain", or None: a stranger
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, nearest

# A file is one line, as an ssh key is: what it is, the key in Z85 (40 characters), whose it is.
PUBLIC, SECRET = "sensorium-public", "sensorium-secret"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Keyring:
    """What one host needs to prove who it is and to know the others."""

    name: str
    public: str
    secret: str = field(repr=False)
    allowed: Path

    @classmethod
    def load(cls, name: str, folder: Path | None = None) -> Keyring:
        """Raises ConfigError, with the command that helps, for keys that are missing, broken or open to others."""
        folder = folder or keys_folder()
        secret_path = folder / f"{name}.secret"
        if not secret_path.exists():
            raise ConfigError(
                f"host '{name}' has no key, and without one nothing leaves or enters this machine: {secret_path} is missing. "
                f"Make one with: python run_pipeline.py keys new {name}"
            )
        allowed = folder / "allowed"
        _check_closed(secret_path, 0o077, "600", "read")
        for path in (folder, allowed):
            if path.is_dir():
                _check_closed(path, 0o022, "700", "write to")
        secret, public = _read(secret_path, SECRET), _read(folder / f"{name}.public", PUBLIC)
        return cls(name, public, secret, allowed)

    @classmethod
    def for_addresses(cls, name: str, addresses: Iterable[str]) -> Keyring | None:
        """The keys of host `name` if any of these ZeroMQ addresses needs them. Raises ConfigError as `load` does."""
        return cls.load(name) if any(leaves_host(address) for address in addresses) else None

    def public_of(self, name: str) -> str:
        """The key that host `name` must prove to have. Raises ConfigError when it is not among the allowed."""
        path = self.allowed / f"{name}.public"
        if not path.exists():
            known = sorted(p.stem for p in self.allowed.glob("*.public"))
            raise ConfigError(
                f"the key of host '{name}' is not here: copy its {name}.public into {self.allowed}/. "
                f"Allowed here: {', '.join(known) or 'nobody yet'}.{nearest(name, known)}"
            )
        return _read(path, PUBLIC)

    def name_of(self, public: str) -> str | None:
        """Whose key this is; None for one that is not allowed. Looked up anew each time."""
        for path in sorted(self.allowed.glob("*.public")):
            try:
                if _read(path, PUBLIC) == public:
                    return path.stem
            except ConfigError:
                continue  # one broken file shuts nobody else out, and lets nobody in
        return None


def leaves_host(address: str) -> bool:
    """Whether what is sent to this ZeroMQ address can be seen outside this machine, and so needs keys."""
    if not address.startswith("tcp://"):
        return False
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def keys_folder() -> Path:
    if given := os.environ.get("SENSORIUM_KEYS"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sensorium" / "keys"


def write_new(name: str, public: str, secret: str, folder: Path | None = None) -> Path:
    """Keep a new pair of keys for this host; returns the file to give to the others. Never replaces a key."""
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
            f"{secret_path}: '{name}' has a key already. To make a new one, remove that file first; "
            f"every host that trusts the old one then needs the new {public_path.name}"
        ) from None
    with os.fdopen(file, "w") as opened:
        opened.write(f"{SECRET} {secret} {name}\n")
    public_path.write_text(f"{PUBLIC} {public} {name}\n")
    return public_path


def _read(path: Path, kind: str) -> str:
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(words) < 2 or words[0] != kind or len(words[1]) != 40:
        found = f"it begins with '{words[0]:.20}'" if words else "it is empty"
        raise ConfigError(f"{path}: not a key: expected one line '{kind} <40 characters> NAME', {found}")
    return words[1]


def _check_closed(path: Path, mask: int, mode: str, what: str) -> None:
    if os.name != "posix":
        return  # file modes mean nothing there; the folder lies in the user's own profile
    status = path.stat()
    if status.st_uid != os.getuid():
        raise ConfigError(f"{path}: belongs to another user. Make it yours: sudo chown {os.getuid()} {path}")
    if status.st_mode & mask:
        raise ConfigError(
            f"{path}: others can {what} it (mode {status.st_mode & 0o777:o}). Close it: chmod {mode} {path}"
        )
