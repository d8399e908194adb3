"""Flow control: a subscriber that must not miss a message grants credits; its publisher waits once they are used up.

Each message sent uses one credit. The subscriber grants it again when the message was taken from its input queue, so at
most INITIAL_CREDITS messages are on their way or waiting. Owns the publisher's count for one subscriber; sends nothing.

Example:
    window = CreditWindow(INITIAL_CREDITS)
    window.spend([payload])           # a message is sent; its payload stays alive until …
    window.grant(1)                   # … the subscriber has taken it
"""

from __future__ import annotations

from collections import deque

import numpy as np

INITIAL_CREDITS, MAX_CREDITS = 32, 1024


class CreditWindow:
    """What one subscriber may still be sent, and the payloads of the messages that it has yet to take."""

    __slots__ = ("_untaken", "available")

    def __init__(self, credits: int) -> None:
        self.available = min(credits, MAX_CREDITS)
        # Payloads in shared memory, a list per message, oldest first. No slot is reused while its array is referenced.
        self._untaken: deque[list[np.ndarray]] = deque()

    @property
    def holds_payloads(self) -> bool:
        """Whether a payload in shared memory is still to be taken, so that waiting for credits frees a slot."""
        return any(self._untaken)

    def spend(self, payloads: list[np.ndarray]) -> None:
        """One message is sent. payloads: its arrays in shared memory; empty if it travels in the message."""
        self.available -= 1
        self._untaken.append(payloads)

    def grant(self, count: int) -> None:
        """The subscriber has taken `count` more messages."""
        self.available = min(self.available + count, MAX_CREDITS)  # so much at most may lie untaken
        for _ in range(min(count, len(self._untaken))):
            self._untaken.popleft()
