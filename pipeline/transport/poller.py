"""Waits for the first of several subscribers that has something to receive.

Example:
    poller = Poller([left, right])
    for subscriber in poller.wait(timeout_ms=50): value, lost = subscriber.receive()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from pipeline.transport.network import READABLE, system_poller


class Pollable(Protocol):
    """What a Poller can wait for."""

    @property
    def descriptors(self) -> list[int]:
        """File descriptors that become readable when something arrives."""

    @property
    def has_zeromq(self) -> bool:
        """Whether ZeroMQ has something to read; its descriptor signals only changes."""


P = TypeVar("P", bound=Pollable)


class Poller(Generic[P]):
    """Waits for several subscribers at once."""

    def __init__(self, subscribers: Sequence[P]) -> None:
        self._subscribers = subscribers
        self._by_descriptor = {d: subscriber for subscriber in subscribers for d in subscriber.descriptors}
        self._poll = system_poller()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, READABLE)

    def wait(self, timeout_ms: int) -> list[P]:
        """Those that have something to receive, or may have."""
        # ZeroMQ's descriptor signals a change once, so before sleeping each socket must be asked for unread messages.
        pending = [subscriber for subscriber in self._subscribers if subscriber.has_zeromq]
        readable = [self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(0 if pending else timeout_ms)]
        return list(dict.fromkeys(pending + readable)) if pending or len(readable) > 1 else readable
