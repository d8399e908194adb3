"""Tells systemd the state of a run, where it is started by a unit of `Type=notify` (sd_notify(3)); else does nothing.

Example:
    notify("READY=1", "STATUS=4 nodes run")
    watchdog_every_s()                          # half of WatchdogSec=; None: the unit has none
"""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifying:
        try:
            # An address that begins with '@' lies in Linux's abstract namespace.
            notifying.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            pass  # systemd is restarted: the next line reaches it


def watchdog_every_s() -> float | None:
    """How often systemd wants a sign of life of this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
