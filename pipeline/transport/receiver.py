"""The thread that takes messages off the sockets of one process, so that they arrive on time whatever the process is busy with."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.errors import WireError
from pipeline.transport.poller import Poller
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import Value


class Receiver(threading.Thread):
    """Does nothing else.

    deliver(value, lost) is called for each message of a connection (value None: a welcome after which some are lost);
    `malformed()` for one that is not ours.
    """

    def __init__(self) -> None:
        super().__init__(name="drain", daemon=True)
        self._edges: list[
            tuple[
                Subscriber,
                Callable[[Value | OverwrittenPayload | None, int], None],
                Callable[[], None],
                Callable[[], int],
            ]
        ] = []
        self._stopping = threading.Event()

    def add(
        self,
        connection: Subscriber,
        deliver: Callable[[Value | OverwrittenPayload | None, int], None],
        malformed: Callable[[], None],
        taken: Callable[[], int],
    ) -> None:
        """Before start(). taken() says how many messages were consumed since it was last asked: credits to give back."""
        self._edges.append((connection, deliver, malformed, taken))

    def run(self) -> None:
        bells = Poller([edge[0] for edge in self._edges])
        edges = {edge[0]: edge for edge in self._edges}
        credited = any(connection.uses_credits for connection in edges)
        # A credit given back late makes a fast source wait, so with flow control the thread looks up more often.
        timeout_ms = 2 if credited else 50
        while not self._stopping.is_set():
            for connection, _, _, taken in self._edges:
                connection.keep_alive()
                if connection.uses_credits and (count := taken()):
                    connection.grant_credits(count)
            for connection in bells.wait(timeout_ms):
                _, deliver, malformed, _ = edges[connection]
                try:
                    value, lost = connection.receive()
                except WireError:
                    malformed()
                    continue
                if value is not None or lost:
                    deliver(value, lost)
        for connection, *_ in self._edges:
            connection.close()

    def stop(self) -> None:
        """Close the connections; does nothing when it was never started."""
        self._stopping.set()
        if self.is_alive():
            self.join(1.0)
