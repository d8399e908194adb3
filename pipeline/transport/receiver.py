"""The thread that reads the sockets of one process, so that arrival times do not depend on what its nodes compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from pipeline.errors import WireError
from pipeline.transport.poller import Poller
from pipeline.transport.service_thread import ServiceThread
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import Value

Deliver = Callable[[Value | OverwrittenPayload | None, int], None]


class _Route(NamedTuple):
    """What is called for the messages of one subscriber."""

    subscriber: Subscriber
    deliver: Deliver
    malformed: Callable[[], None]
    take_credits: Callable[[], int]


class Receiver(ServiceThread):
    """Reads every subscriber of the process, and does nothing else."""

    def __init__(self) -> None:
        super().__init__(name="receiver", daemon=True)
        self._routes: list[_Route] = []
        self._stopping = threading.Event()

    def add(
        self,
        subscriber: Subscriber,
        deliver: Deliver,
        malformed: Callable[[], None],
        take_credits: Callable[[], int],
    ) -> None:
        """Before start().

        Args:
            subscriber: Read and closed by this thread from start() on.
            deliver: Called with each message and the number of messages lost before it. The message is None when only a
                loss is reported: a welcome after which messages are missing.
            malformed: Called for each message that cannot be decoded.
            take_credits: Returns how many messages were processed since its last call; they are granted as credits.
        """
        self._routes.append(_Route(subscriber, deliver, malformed, take_credits))

    def serve(self) -> None:
        poller = Poller([route.subscriber for route in self._routes])
        routes = {route.subscriber: route for route in self._routes}
        # A credit that is granted late makes a fast source wait, so with flow control the thread wakes more often.
        timeout_ms = 2 if any(subscriber.uses_credits for subscriber in routes) else 50
        while not self._stopping.is_set():
            for subscriber, _, _, take_credits in self._routes:
                subscriber.keep_alive()
                if subscriber.uses_credits and (count := take_credits()):
                    subscriber.grant_credits(count)
            for subscriber in poller.wait(timeout_ms):
                _, deliver, malformed, _ = routes[subscriber]
                try:
                    value, lost = subscriber.receive()
                except WireError:
                    malformed()
                    continue
                if value is not None or lost:
                    deliver(value, lost)
        for route in self._routes:
            route.subscriber.close()

    def stop(self) -> None:
        """Close the subscribers; does nothing if the thread was never started."""
        self._stopping.set()
        if self.is_alive():
            self.join(1.0)
