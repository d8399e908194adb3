"""A small process beside the launcher that ends everything the run has started, when the launcher is killed.

The kernel's signal on a parent's death reaches the node processes alone, not what they have started, and one whose
interpreter is held cannot handle it. The guard is a bare interpreter that imports nothing of ours. It reads the ids of
the node processes from its standard input, which ends when the launcher does, however that dies.

Example:
    guard = Guard(mark)            # in the launcher: starts `python guard.py MARK`
    guard.watch(process.pid)
    guard.close()                  # the run has ended: what its nodes left behind is ended too
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

MARK = "SENSORIUM_RUN"  # in the environment of all that node processes start: which run it belongs to
GRACE_S = 1.5  # node processes end by themselves at the signal on the launcher's death, and close their files


class Guard:
    """The launcher's end. mark: names the run, see MARK."""

    def __init__(self, mark: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a terminal's Ctrl-C is none of its business
        )

    def watch(self, pid: int) -> None:
        self._write(f"{pid}\n".encode())

    def close(self) -> None:
        self._write(b"end\n")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except OSError:
            pass  # it was killed: the run goes on without it


class _Watched:
    """A node process; a descriptor of it, where there are such, is never another process of the same number."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self._descriptor = None

    def kill(self) -> None:
        try:
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            elif not hasattr(os, "pidfd_open"):
                os.kill(self._pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended


def _kill_marked(mark: str) -> None:
    """End what node processes have started, in whichever group or session. Linux only: others show no environment."""
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                is_marked = f"{MARK}={mark}".encode() in file.read().split(b"\0")
            if is_marked:
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            continue  # it has ended, or belongs to somebody else


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: list[_Watched] = []
    for line in iter(sys.stdin.readline, ""):
        if line == "end\n":
            break
        watched.append(_Watched(int(line)))
    else:
        time.sleep(GRACE_S)
        for process in watched:
            process.kill()
    _kill_marked(sys.argv[1])


if __name__ == "__main__":
    main()
