"""Files that a run writes: for this user alone (0600), written by one process at a time, never cut off in a line.

Example:
    lines = LineFile(Path("p.jsonl"))                    # replaced; ConfigError when another run writes it
    lines = LineFile(Path("p.jsonl"), goes_on=True)      # after a crash: it goes on behind the last whole line
    open("rec.mcap", "xb", opener=opener)                # any file that only this user can read
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: there a file that is open cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]

MODE = 0o600
TAIL_BYTES = 64 << 10  # read at a time, from the end, to find the last line


class LineFile:
    """A file of lines, written unbuffered: a program that follows it gets each line at once.

    Args:
        path: The file. One that exists is replaced.
        goes_on: Its writer was started again: it goes on behind the last whole line instead.

    Raises:
        ConfigError: Another run writes it.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self._file = _open(path)
        self._end = 0  # of the last whole line
        if _is_regular(self._file):
            self._end = _end_of_lines(path) if goes_on else 0
            self._cut_back()

    def write(self, line: bytes) -> None:
        """Write the whole line, or raise OSError and write nothing of it."""
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            if written:
                with suppress(OSError):  # a pipe cannot be cut back
                    self._cut_back()
            raise
        self._end += len(line)

    def close(self) -> None:
        self._file.close()

    def _cut_back(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(self._end)


def opener(path: str, flags: int) -> int:
    """For open(…, opener=opener): what it creates can be read by this user only."""
    return os.open(path, flags, MODE)


def _open(path: Path) -> IO[bytes]:
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), MODE), "wb", buffering=0)
    if _is_regular(file) and fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(f"{path}: another run writes it. End that run, or choose another name") from None
        except OSError:
            pass  # a file system without locks
        if os.fstat(file.fileno()).st_uid == os.getuid():
            os.fchmod(file.fileno(), MODE)  # it may have been there, and open to others
    return file


def _is_regular(file: IO[bytes]) -> bool:
    """Not a pipe or a device, which have neither a length nor a mode of ours."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _end_of_lines(path: Path) -> int:
    with path.open("rb") as file:
        begin = file.seek(0, os.SEEK_END)
        while begin > 0:
            end, begin = begin, max(0, begin - TAIL_BYTES)
            file.seek(begin)
            if (newline := file.read(end - begin).rfind(b"\n")) >= 0:
                return begin + newline + 1
    return 0
