"""Simulated frames, delivered as a device would: each once it is complete or later, and some lost on the way.

Example:
    def frames(self, clock):
        # yields SimulatedFrame(frame, delay_ns, lost)
        return delivered(self, clock, self._simulate(clock), realtime=True)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.clock import Clock
from pipeline.frame import Frame
from pipeline.node import Source


class SimulatedFrame(NamedTuple):
    """delay_ns: time from completion to arrival. lost: it never arrives, is counted, and leaves a gap in `seq`."""

    frame: Frame
    delay_ns: int
    lost: bool


def delivered(source: Source, clock: Clock, simulated: Iterable[SimulatedFrame], *, realtime: bool) -> Iterator[Frame]:
    """What `source.frames` yields. realtime: wait for each frame's time; otherwise as fast as readers take them."""
    began_ns = clock.now_ns()
    for frame, delay_ns, lost in simulated:
        if realtime and source.context.restarts and frame.end_ns + delay_ns < began_ns:
            source.dropped(1, "missed while restarting")
            continue
        if realtime and not clock.sleep_until(frame.end_ns + delay_ns, source.context.stopping):
            return
        if source.context.stopping.is_set():
            return
        if lost:
            source.dropped(1, "simulated loss")
        else:
            yield frame
