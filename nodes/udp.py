"""Predictions → JSON over UDP, one datagram a prediction, for a robot's own program or a bridge to another system.

Example:
    robot: {use: udp, inputs: [scene], address: "127.0.0.1:9870"}
    robot: {use: udp, inputs: [scene], address: "192.168.1.20:9870", allow_remote: true, grid: true}

A datagram is the object of docs/prediction.schema.json. No receiver is needed, and nothing waits for one: a datagram
that cannot be sent at once is dropped and counted.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any, ClassVar

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Prediction
from pipeline.node import Arrival, Sink

MAX_BYTES = 65_507  # of an IPv4 datagram's payload
GRID = "free_space"


class Udp(Sink):
    """Sends predictions as JSON datagrams. A prediction larger than max_bytes is sent without its grid, and dropped if
    it is still too large."""

    consumes: ClassVar[tuple[type, ...]] = (Prediction,)

    def __init__(
        self,
        *,
        address: str = "127.0.0.1:9870",
        grid: bool = False,
        max_bytes: int = MAX_BYTES,
        allow_remote: bool = False,
    ) -> None:
        """
        Args:
            address: The destination: host:port or [ipv6]:port.
            grid: Send the free-space grid too (tens of kilobytes).
            max_bytes: Largest datagram (bytes, 100 to 65507). 1472 fits into one Ethernet packet; larger ones are split
                on the network and lost if any part is. Default 65507: the most that UDP has.
            allow_remote: Allow any other host than this one. Default false, since nothing is encrypted.
        """
        matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]]+)):(\d{1,5})", address)
        if not matched or not 0 < int(matched[3]) < 65_536:
            raise ConfigError(f"address: found '{address}', expected host:port, such as 127.0.0.1:9870 or [::1]:9870.")
        if not 100 <= max_bytes <= MAX_BYTES:
            raise ConfigError(f"max_bytes must be from 100 to {MAX_BYTES}, not {max_bytes}.")
        self._host, self._port = matched[1] or matched[2], int(matched[3])
        if not allow_remote and not _is_here(self._host):
            raise ConfigError(
                f"address: {self._host} is not this host. UDP is not encrypted, so predictions about the people "
                "and places in view could be read and forged by anyone on the way. Send them to 127.0.0.1, or set "
                "allow_remote: true to allow it."
            )
        self._grid, self._max_bytes = grid, max_bytes
        self._socket: socket.socket | None = None
        self._to: Any = None
        self._without_grid = self._sent = 0

    def open(self) -> None:
        try:
            family, kind, protocol, _, self._to = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise ConfigError(
                f"udp '{self.name}': address: there is no host '{self._host}': {error.strerror}."
            ) from error
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        # Anyone may send to the port that the system chose for it. Nothing is read, so as little as possible is held.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if not _is_here(self._host):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self.context.metrics.facts["sends to"] = f"{self._host}:{self._port}, not encrypted"

    def consume(self, arrival: Arrival) -> None:
        assert self._socket is not None and isinstance(arrival.message, Prediction)
        datagram = self._datagram(arrival.message.record())
        if datagram is None:
            return self.context.metrics.drop(arrival.source, f"larger than {self._max_bytes} bytes")
        try:
            self._socket.sendto(datagram, self._to)
            self._sent += 1
        except BlockingIOError:
            self.context.metrics.drop(arrival.source, "the send buffer is full")
        except OSError as error:
            self.context.metrics.drop(arrival.source, f"not sent: {error.strerror}")

    def _datagram(self, record: dict[str, Any]) -> bytes | None:
        """None: it is too large even without the grid."""
        surroundings: dict[str, Any] = record.get("surroundings") or {}
        has_grid = GRID in surroundings
        if self._grid or not has_grid:
            datagram = msgspec.json.encode(record)
            if len(datagram) <= self._max_bytes:
                return datagram
            if not has_grid:
                return None
            self._without_grid += 1
            self.context.metrics.facts["without the grid"] = (
                f"{self._without_grid}, which were larger than {self._max_bytes} bytes with it"
            )
            if self._without_grid == 1:
                self.context.log.warning(
                    "a prediction has %d bytes with its grid, more than %d: it is sent without. Set grid: false, or a "
                    "coarser grid",
                    len(datagram),
                    self._max_bytes,
                )
        plain = {name: value for name, value in surroundings.items() if name != GRID}
        datagram = msgspec.json.encode({**record, "surroundings": plain})
        return datagram if len(datagram) <= self._max_bytes else None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _is_here(host: str) -> bool:
    """Whether it can only be this host. Of names, only localhost counts."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
