"""The control sockets between the launcher and its node processes: requests one way, reports and faults the other.

Example:
    server = ControlServer(address)                      # in the launcher
    client = ControlClient(address, "align")             # in the process of that name
    client.send(report); server.receive(timeout_ms=50)
    server.send("align", Request("stop", "")); client.receive(timeout_ms=50)
"""

from __future__ import annotations

import zmq

from pipeline.errors import ConfigError, WireError
from pipeline.transport.network import context
from pipeline.transport.wire_format import Codec, Value


class ControlServer:
    """The launcher's end."""

    def __init__(self, address: str) -> None:
        self._codec = Codec()
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted process takes its name over
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(f"the launcher cannot listen at {address}: {error}") from error

    def receive(self, timeout_ms: int) -> list[Value]:
        values: list[Value] = []
        while self._socket.poll(timeout_ms):
            timeout_ms = 0
            _, *parts = self._socket.recv_multipart()
            try:
                values.append(self._codec.decode(parts).value)
            except WireError:
                continue  # unknown sender: ignore
        return values

    def send(self, process: str, value: Value) -> None:
        self._socket.send_multipart([process.encode(), *self._codec.encode(0, 0, value)], zmq.DONTWAIT)

    def close(self) -> None:
        self._socket.close()


class ControlClient:
    """The end of one node process. Belongs to one thread."""

    def __init__(self, address: str, process: str) -> None:
        self._codec = Codec()
        self._socket = context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, process.encode())
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 5)  # the launcher binds only after it has started its processes
        self._socket.connect(address)

    def send(self, value: Value) -> None:
        self._socket.send_multipart(self._codec.encode(0, 0, value), zmq.DONTWAIT)

    def receive(self, timeout_ms: int) -> Value | None:
        if not self._socket.poll(timeout_ms):
            return None
        return self._codec.decode(self._socket.recv_multipart()).value

    def close(self) -> None:
        self._socket.close()
