"""A faster way for small messages between the processes of one host, beside ZeroMQ and never instead of it.

ZeroMQ hands a message from thread to thread three times before its reader wakes: 0.24 ms for a stream at 30 Hz on a
two-core machine. A datagram wakes the reader at once: 0.09 ms. So a publisher sends what is one message part on both, and
the reader takes the next message from whichever brings it first; the other copy it knows by its number. What must be
right is decided on ZeroMQ: the handshake, order, losses, flow control, the end. A datagram may be missing, and is when its
reader falls behind (the kernel queues ten).

    receiver = ExpressReceiver(folder)           # its name goes into the reader's Hello
    ExpressSender(folder).send(receiver.name, header)
    receiver.receive()                           # bytes, or None
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

MAX_BYTES = 32 << 10


class ExpressSender:
    """For all readers of one publisher. Never waits, never fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, name: str, message: bytes) -> None:
        if len(message) > MAX_BYTES or "/" in name:
            return
        try:
            self._socket.sendto(message, f"{self._folder}/{name}")
        except OSError:
            pass  # full, or gone: it comes over ZeroMQ

    def close(self) -> None:
        self._socket.close()


class ExpressReceiver:
    """One reader's end."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}.express"
        self._path = folder / self.name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(os.fspath(self._path))

    def receive(self) -> bytes | None:
        try:
            return self.socket.recv(MAX_BYTES)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)
