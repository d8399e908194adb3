"""Which messages of a stream were missed, counted from the session and seq numbers of those received. No I/O.

A welcome names the first seq that a subscriber is promised; each message after it has the next number. Another session
means that the publisher was restarted, and its numbers start again with its own welcome.

Example:
    sequence = Sequence()
    sequence.welcome(session, 5)      # 0 missed: nothing before 5 was promised
    sequence.received(session, 7)     # 2 missed: 5 and 6
"""

from __future__ import annotations


class Sequence:
    """Belongs to one subscriber. Each method returns how many messages were missed before the one it is called for."""

    __slots__ = ("expected", "publisher_restarts", "session")

    def __init__(self) -> None:
        self.session: int | None = None  # of the publisher, as its last welcome named it
        self.expected = 0  # the next seq of that session
        self.publisher_restarts = 0

    def welcome(self, session: int, seq: int) -> int:
        missed = 0
        if self.session is not None and session != self.session:
            self.publisher_restarts += 1
        elif self.session is not None:
            # This process was suspended until the publisher forgot it: what was sent meanwhile had been promised.
            missed = max(0, seq - self.expected)
        self.session, self.expected = session, seq
        return missed

    def received(self, session: int, seq: int) -> int:
        missed = max(0, seq - self.expected) if session == self.session else 0
        self.expected = seq + 1
        return missed

    def ended(self, session: int, seq: int) -> int:
        """The end of a stream carries the next number without using it up."""
        missed = self.received(session, seq)
        self.expected = seq
        return missed

    def malformed(self) -> None:
        """A message that cannot be decoded had a number too: it is counted as malformed, and must not become a gap."""
        self.expected += 1
