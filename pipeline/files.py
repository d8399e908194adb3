"""Files that a user names, opened and read so that none can hold the program up: no pipe, and none without an end.

Example:
    with open_regular(path) as file: file.read(8)
    read_bytes(path, most=1 << 20); read_text(path, most=1 << 20)        # ConfigError names the file and the reason
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigError, nearest

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading.

    Raises ConfigError for one that is missing, may not be read, or is no file but a folder, a pipe, a device: opening
    or reading those could wait for ever.
    """
    try:
        # A pipe opens at once with O_NONBLOCK, and is then refused; for a file it changes nothing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file.{_beside(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}. Name a file that you may read") from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise ConfigError(f"{path}: cannot be read: it is {_KINDS.get(kind, 'no file')}. Name a file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, most: int) -> bytes:
    """The content of a file. Raises ConfigError as open_regular, and for more than `most` bytes."""
    with open_regular(path) as file:
        try:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise ConfigError(
                    f"{path}: it has {_size(size)}, expected at most {_size(most)}: is it the right file?"
                )
            return file.read(size)  # not of `most` bytes: Python would allocate them
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}. Copy it again") from error


def read_text(path: Path, *, most: int) -> str:
    """The text of a file, UTF-8 with or without a mark. Raises ConfigError as read_bytes, and for other bytes."""
    try:
        return read_bytes(path, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it holds no text ({error}). Save it as UTF-8") from error


def _beside(path: Path) -> str:
    try:
        return nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    except (OSError, ValueError):
        return ""


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count:,} bytes"
