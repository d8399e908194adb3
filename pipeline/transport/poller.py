"""Waits for the first of several connections that has something to receive.

Example:
    bells = Bells([left, right])
    for connection in bells.wait(timeout_ms=50): value, lost = connection.receive()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.transport.network import READABLE, poller

if TYPE_CHECKING:
    from pipeline.transport.wire import Connection  # which has bells of its own


class Bells:
    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections
        self._by_descriptor = {d: connection for connection in connections for d in connection.descriptors}
        self._poll = poller()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, READABLE)

    def wait(self, timeout_ms: int) -> list[Connection]:
        """Those that have something to receive, or may have."""
        # ZeroMQ's descriptors ring once, so before sleeping each must be asked whether all was heard.
        unheard = [connection for connection in self._connections if connection.has_zeromq]
        rung = [self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(0 if unheard else timeout_ms)]
        return list(dict.fromkeys(unheard + rung)) if unheard or len(rung) > 1 else rung
