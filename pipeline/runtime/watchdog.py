"""Whether a node still answers: its thread gives signs of life, or says that it waits; the main thread looks.

Example:
    watchdog = Watchdog(limit_s=10)
    watchdog.alive()                      # by the node's thread: at every message
    with watchdog.waiting(): send()       # by the node's thread: however long this takes, it is no failure
    watchdog.silent_s, watchdog.is_hung   # by the main thread
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DEFAULT_S = 10.0  # without a sign of life for so long, a node is started again
OPENING = 6  # opening a device or loading a model may take so many times as long
REPORTED = 0.3  # after this share of the limit, the node's state is "not answering"


class Watchdog:
    """Of one node.

    Args:
        limit_s: How long the node may be silent (s). None: for ever.
        monotonic_s: The clock.
    """

    def __init__(self, limit_s: float | None, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._usual_s = math.inf if limit_s is None else limit_s
        self._monotonic_s = monotonic_s
        self._waits = False
        self.alive()

    def alive(self, within_s: float = 0.0) -> None:
        """A sign of life. within_s: the next one may take so long, if that is longer than usual."""
        self._limit_s = max(self._usual_s, within_s)
        self._last_s = self._monotonic_s()

    def opens(self) -> None:
        """The node opens a device or loads a model, which may take longer."""
        self.alive(OPENING * self._usual_s)

    def produces(self, rate_hz: float | None) -> None:
        """The node is a source of this rate; without one, nobody knows when its next frame is due."""
        self._usual_s = max(self._usual_s, 100 / rate_hz) if rate_hz else math.inf
        self.alive()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The node waits for others, however long."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self.alive()

    def postpone(self, by_s: float) -> None:
        """This process did not run for so long, so the node could give no sign of life."""
        self._last_s += by_s

    @property
    def silent_s(self) -> float:
        """How long the node has given no sign of life; 0 where that means nothing."""
        silent_s = 0.0 if self._waits else self._monotonic_s() - self._last_s
        return silent_s if silent_s > REPORTED * self._limit_s else 0.0

    @property
    def is_hung(self) -> bool:
        return self.silent_s > self._limit_s


def stack_of(thread_id: int) -> str:
    """Where a thread is, for the log."""
    frame = sys._current_frames().get(thread_id)
    return "".join(traceback.format_stack(frame)) if frame is not None else "it has no Python frame\n"
