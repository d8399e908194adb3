"""The control sockets between the launcher and its node processes: requests one way, reports and faults the other.

Neither end ever waits for the other, and neither ends because the other is suspended. What does not fit into the
socket's queue waits here: of reports only the newest, since it replaces all before it; of the rest the last MAX_UNSENT.

Example:
    server = ControlServer(address)                      # in the launcher
    client = ControlClient(address, "align")             # in the process of that name
    client.send(report); server.receive(timeout_ms=50)
    server.send("align", Request("stop", "")); client.receive(timeout_ms=50)
"""

from __future__ import annotations

import time
from collections import deque

import zmq

from pipeline.errors import ConfigError, WireError
from pipeline.transport.keys import Keys
from pipeline.transport.network import bind, connect, context, receive
from pipeline.transport.wire_format import Codec, Fault, Report, Request, Value

QUEUE_MESSAGES = 64  # in the socket, each way: old reports are of no use
MAX_UNSENT = 256  # requests and faults of one process for a launcher that is suspended
MAX_AT_ONCE = 4096  # messages that one call of receive() reads, so that no process keeps the launcher from its loop
MAX_BYTES = 8 << 20  # of a message: the report of a process with hundreds of nodes has a tenth of it
CLOSE_S = 0.5  # so long a closing client tries to send what waits


class ControlServer:
    """The launcher's end."""

    def __init__(self, address: str, keys: Keys | None = None) -> None:
        """keys: of the run; required for TCP addresses. Raises ConfigError when the address cannot be opened."""
        self._codec = Codec()
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted process takes its name over
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        try:
            bind(self._socket, address, keys)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(f"the launcher cannot listen at {address}: {error}") from error

    def receive(self, timeout_ms: int) -> list[Report | Fault | Request]:
        """What has arrived. A report is passed on only from the process that it names."""
        values: list[Report | Fault | Request] = []
        for _ in range(MAX_AT_ONCE):
            if not self._socket.poll(timeout_ms):
                break
            timeout_ms = 0
            process, *parts = receive(self._socket)
            try:
                value = self._codec.decode(parts).value
            except WireError:
                continue  # unknown sender: ignore
            if isinstance(value, Report) and value.process.encode() != process:
                continue
            if isinstance(value, Report | Fault | Request):
                values.append(value)
        return values

    def send(self, process: str, value: Request) -> None:
        """Dropped when the process is gone, or suspended and QUEUE_MESSAGES wait for it already."""
        try:
            self._socket.send_multipart([process.encode(), *self._codec.encode(0, 0, value)], zmq.DONTWAIT)
        except zmq.Again:
            pass

    def close(self) -> None:
        self._socket.close()


class ControlClient:
    """The end of one node process. Belongs to one thread."""

    def __init__(self, address: str, process: str, keys: Keys | None = None) -> None:
        """keys: as for ControlServer."""
        self._codec = Codec()
        self._unsent: deque[Value] = deque(maxlen=MAX_UNSENT)
        self._unsent_report: Report | None = None
        self._socket = context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, process.encode())
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 5)  # the launcher binds only after it has started its processes
        connect(self._socket, address, keys)

    def send(self, value: Report | Fault | Request) -> None:
        """Never waits, and never fails: what does not fit is sent by a later call of send, receive or close."""
        if isinstance(value, Report):
            self._unsent_report = value
        else:
            self._unsent.append(value)
        self._send_unsent()

    def receive(self, timeout_ms: int) -> Value | None:
        """The next request; None when none came for that long, or what came is no message."""
        self._send_unsent()
        if not self._socket.poll(timeout_ms):
            return None
        try:
            return self._codec.decode(receive(self._socket)).value
        except WireError:
            return None

    def close(self) -> None:
        give_up_s = time.monotonic() + CLOSE_S
        while not self._send_unsent() and time.monotonic() < give_up_s:
            time.sleep(0.01)
        self._socket.close()

    def _send_unsent(self) -> bool:
        """Whether nothing waits any more. A fault is said before the report that follows it."""
        try:
            while self._unsent:
                self._socket.send_multipart(self._codec.encode(0, 0, self._unsent[0]), zmq.DONTWAIT)
                self._unsent.popleft()
            if self._unsent_report is not None:
                self._socket.send_multipart(self._codec.encode(0, 0, self._unsent_report), zmq.DONTWAIT)
                self._unsent_report = None
        except zmq.Again:
            return False
        return True
