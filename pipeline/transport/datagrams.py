"""A faster way for small messages between the processes of one host, in ZeroMQ's place while its reader keeps up.

ZeroMQ hands a message from thread to thread three times before its reader wakes: 0.24 ms for a stream at 30 Hz on a
two-core machine. A datagram wakes the reader at once: 0.09 ms, and no other thread. The kernel neither loses nor reorders
a datagram between two processes; it refuses one when ten wait. Then, and for what is larger, the publisher goes on over
ZeroMQ until the reader's hello says that it has read all of that: so nothing overtakes. What must be right stays on
ZeroMQ: the handshake, flow control, the end.

    receiver = DatagramReceiver(folder)           # its name goes into the reader's Hello
    DatagramSender(folder, receiver.name).send(header)
    receiver.receive()                           # bytes, or None
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

MAX_BYTES = 32 << 10


class DatagramSender:
    """A publisher's end of the way to one reader. Never waits."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises OSError when nobody of this name listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            # Connected: the kernel need not look up a path for every message.
            self._socket.connect(os.fspath(folder / Path(name).name))
        except OSError:
            self._socket.close()
            raise

    def send(self, message: bytes) -> bool:
        """Whether it is in the reader's hands now; not when that one is behind, or gone."""
        if len(message) > MAX_BYTES:
            return False
        try:
            self._socket.send(message)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


class DatagramReceiver:
    """One reader's end."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}.express"
        self._path = folder / self.name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(os.fspath(self._path))
        self._room = memoryview(bytearray(MAX_BYTES))

    def receive(self) -> memoryview | None:
        """The next message, until this is called again."""
        try:
            return self._room[: self.socket.recv_into(self._room)]
        except BlockingIOError:
            return None

    def close(self) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)
