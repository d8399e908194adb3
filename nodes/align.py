"""Frames of several streams → aligned sets. A thin shell around pipeline.alignment.aligner.Aligner.

Example:
    align: {use: align, inputs: [camera, microphone], anchor: camera, max_wait_ms: 60,
            sync: {microphone: {policy: window, before_ms: 1000}}}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from pipeline.alignment.aligner import Aligner, Emit
from pipeline.alignment.event_log import EventLog
from pipeline.alignment.options import AlignerOptions
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Message, silence
from pipeline.node import Arrival, Stored, Transform


class Align(Transform):
    """Groups the frames of its inputs into sets by capture time.

    Args:
        anchor: The input whose every frame starts a set. Either this or `anchor_rate_hz`.
        anchor_rate_hz: Sets at this fixed rate instead (Hz, > 0), for inputs of which none sets the pace.
        max_wait_ms: How long after the anchor's arrival a set may wait for the other inputs (ms, ≥ 0). 0 sends at once.
            null waits for proof: a set is then sent only when no frame that could still arrive would change it. Default
            60: the delay of a usual webcam and microphone on a busy laptop, and still unnoticed by people.
        emit: "ready" waits until no nearer frame can come; "now" sends a set as soon as every input has a match.
        sync: The sync policy of each other input, and the policy's own options: nearest, latest, window, interpolate
            (pipeline/alignment/sync_policies.py), or module:Name. Default: the nearest frame within half of the input's
            own period.
        event_log: A file for everything that decided about the sets, from which `run_pipeline.py verify` derives every
            set again. It holds times and no data. Default: none.
    """

    consumes: ClassVar[tuple[type, ...]] = (Frame,)
    produces: ClassVar[type | None] = AlignedSet
    publishes_events: ClassVar[bool] = True

    def __init__(
        self,
        *,
        anchor: str | None = None,
        anchor_rate_hz: float | None = None,
        max_wait_ms: float | None = 60.0,
        emit: Emit = "ready",
        sync: dict[str, dict[str, Any]] | None = None,
        event_log: str | None = None,
    ) -> None:
        self._options = AlignerOptions(anchor, anchor_rate_hz, max_wait_ms, emit, sync)
        self._event_log_path = None if event_log is None else Path(event_log)
        self._event_log: EventLog | None = None
        self._aligner: Aligner | None = None

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        return self._options.named_inputs()

    def stored(self) -> Stored | None:
        path = self._event_log_path
        return None if path is None else Stored(str(path), "times of frames, without their data")

    @property
    def aligner(self) -> Aligner:
        """Built on first use, because the start of the run is not known before."""
        if self._aligner is None:
            clock = self.context.clock
            # After a restart of this node sets begin now: ticks for the time before would refer to lost frames.
            now_ns = clock.start_ns if self._options.max_wait_ns is None else max(clock.start_ns, clock.now_ns())
            config = self._options.config(self.context.inputs, now_ns)
            self._aligner = config.aligner(own=self._options.own_policies)
            if self._event_log_path or self.context.publish_event:
                goes_on = self.context.restarts > 0
                self._event_log = EventLog(self._event_log_path, config, self.context.publish_event, goes_on=goes_on)
        return self._aligner

    def process(self, arrival: Arrival) -> Iterable[Message]:
        assert isinstance(arrival.message, Frame)
        return self._add(arrival.message, arrival.arrival_ns)

    def ready_for(self, source: str) -> bool:
        return self._options.max_wait_ns is not None or self.aligner.has_room(source)

    def wake_ns(self) -> int | None:
        return self.aligner.wake_ns()

    def advance(self, now_ns: int) -> Iterable[Message]:
        return self._send(self.aligner.advance(now_ns))

    def ended(self, source: str, arrival_ns: int) -> Iterable[Message]:
        return self._add(silence(source, FOREVER_NS, "it has ended"), arrival_ns)

    def finish(self) -> Iterable[Message]:
        now_ns = self.context.clock.now_ns()
        ready = self.aligner.finish(now_ns)
        if self._event_log:
            self._event_log.add_finish(now_ns)
        aligned = self._send(ready)
        if self._event_log:
            self._event_log.flush(now=True)
        return aligned

    def close(self) -> None:
        if self._event_log:
            self._event_log.close()

    def _add(self, frame: Frame, arrival_ns: int) -> list[AlignedSet]:
        ready = self.aligner.add(frame, arrival_ns)
        if self._event_log:
            self._event_log.add_arrival(frame, arrival_ns)
        return self._send(ready)

    def _send(self, ready: list[AlignedSet]) -> list[AlignedSet]:
        """Count what became of the frames, log the sets, and stamp them with the time at which they leave."""
        self.context.metrics.add_outcomes(self.aligner.take_counts())
        if self._event_log:
            for aligned in ready:
                self._event_log.add_set(aligned)
            self._event_log.flush()
        return [msgspec.structs.replace(aligned, sent_ns=self.context.clock.now_ns()) for aligned in ready]
