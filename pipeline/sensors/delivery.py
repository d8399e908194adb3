"""Frames that are made up, delivered as a device would: each once it is complete or later, and some lost on the way.

Example:
    def frames(self, clock):
        return delivered(self, clock, self._made(clock), realtime=True)         # _made yields Made(frame, delay_ns, lost)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.clock import Clock
from pipeline.frame import Frame
from pipeline.node import Source


class Made(NamedTuple):
    """delay_ns: it arrives so long after it is complete. lost: it never does; it is counted, and leaves a gap in `seq`."""

    frame: Frame
    delay_ns: int
    lost: bool


def delivered(source: Source, clock: Clock, made: Iterable[Made], *, realtime: bool) -> Iterator[Frame]:
    """What `source.frames` yields. realtime: wait for each one's time; else as fast as readers take them."""
    for frame, delay_ns, lost in made:
        if realtime and not clock.sleep_until(frame.end_ns + delay_ns, source.context.stopping):
            return
        if source.context.stopping.is_set():
            return
        if lost:
            source.dropped(1, "simulated loss")
        else:
            yield frame
