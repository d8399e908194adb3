"""Frames of several streams → aligned sets. A thin shell around pipeline.alignment.aligner.Aligner.

Example:
    align: {use: align, inputs: [camera, microphone], anchor: camera, max_wait_ms: 60,
            sync: {microphone: {policy: window, before_ms: 1000}}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from pipeline.alignment.aligner import Aligner, Emit
from pipeline.alignment.event_log import EventLog, Rules
from pipeline.alignment.sync_policies import MS, from_rule
from pipeline.errors import ConfigError
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Message, silence
from pipeline.node import Arrival, Transform
from pipeline.recording.faults import parse

if TYPE_CHECKING:
    from pipeline.recording.arrival_replay import Retold


class Align(Transform):
    """anchor: the input every frame of which starts a set; or give anchor_rate_hz for sets at a fixed rate.
    max_wait_ms: how long after the anchor's arrival a set may wait for the others; 0 sends at once; null waits for proof.
    emit: now sends a set as soon as every input has something that fits; ready waits until nothing nearer can come.
    sync: for each other input its policy (nearest, latest, window, interpolate, or module:Name) and that policy's own
    options; without one, the nearest frame within half of the stream's own period.
    event_log: a file to write all that decided, from which `run_pipeline.py verify` derives every set again.
    replay: a recording: sets are decided by what arrived when in the recorded run; realign: true decides afresh, as if every
    frame had arrived the moment it left its source, but for what `faults` says is wrong (pipeline/recording/faults.py). Set by
    `run_pipeline.py replay`, as replay_unclosed, from_ns, to_ns and derived: an input is no stream of the recording but made of
    some, so that when it arrived stands nowhere: aligned afresh, sets then wait for proof, whatever max_wait_ms says.
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
        replay: str | None = None,
        realign: bool = False,
        replay_unclosed: bool = False,
        from_ns: int | None = None,
        to_ns: int | None = None,
        faults: list[str] | None = None,
        derived: bool = False,
    ) -> None:
        if (anchor is None) == (anchor_rate_hz is None):
            raise ValueError("give either anchor (an input's name) or anchor_rate_hz")
        if max_wait_ms is not None and max_wait_ms < 0:
            raise ValueError(f"max_wait_ms: found {max_wait_ms}, expected 0 or more, or null")
        self._anchor = anchor
        self._anchor_rate_hz = anchor_rate_hz
        self._max_wait_ns = None if max_wait_ms is None else round(max_wait_ms * MS)
        self._emit: Emit = emit
        self._rules = sync or {}
        for stream, rule in self._rules.items():
            from_rule(rule, f"sync.{stream}")  # said now, not when the first frame arrives
        self._event_log_path = event_log
        self._event_log: EventLog | None = None
        self._aligner: Aligner | None = None
        self._replay, self._realign, self._unclosed = replay, realign, replay_unclosed
        self._from_ns, self._to_ns = from_ns, to_ns
        self._faults = tuple(map(parse, faults or ()))
        self._retold: Retold | None = None
        self._derived = derived

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        yield from ((f"sync.{stream}", stream) for stream in self._rules)
        if self._anchor:
            yield "anchor", self._anchor

    def open(self) -> None:
        if self._replay and self._realign and self._derived:
            self._max_wait_ns = None
            self.context.metrics.facts["replay"] = (
                "sets wait for proof: an input is not in the recording, but made of it"
            )
        elif self._replay:
            self._retold = self._as_recorded(Path(self._replay))

    def process(self, arrival: Arrival) -> Iterable[Message]:
        assert isinstance(arrival.message, Frame)
        if self._retold is not None:
            return self._again(self._retold.add(arrival.message))
        return self._add(arrival.message, arrival.arrival_ns)

    def ready_for(self, source: str) -> bool:
        if self._retold is not None:
            return self._retold.wanted in (None, source)
        return self._max_wait_ns is not None or self.aligner.has_room(source)

    def wake_ns(self) -> int | None:
        return None if self._retold is not None else self.aligner.wake_ns()

    def advance(self, now_ns: int) -> Iterable[Message]:
        return () if self._retold is not None else self._sent(self.aligner.advance(now_ns))

    def ended(self, source: str, arrival_ns: int) -> Iterable[Message]:
        if self._retold is not None:
            return self._again(self._retold.ended(source))
        return self._add(silence(source, FOREVER_NS, "it has ended"), arrival_ns)

    def finish(self) -> Iterable[Message]:
        if self._retold is not None:
            return self._again(self._retold.finish())
        now_ns = self.context.clock.now_ns()
        ready = self.aligner.finish(now_ns)
        if self._event_log:
            self._event_log.finished(now_ns)
        sent = self._sent(ready)
        if self._event_log:
            self._event_log.pass_on(now=True)
        return sent

    def close(self) -> None:
        if self._event_log:
            self._event_log.close()

    @property
    def aligner(self) -> Aligner:
        """Made on first use, because the run's start is not known before."""
        if self._aligner is None:
            clock = self.context.clock
            # After a restart the run is old, and ticks for the time before would be about nothing.
            rules = self.rules(clock.start_ns if self._max_wait_ns is None else max(clock.start_ns, clock.now_ns()))
            self._aligner = rules.aligner()
            if self._event_log_path or self.context.publish_event:
                path = Path(self._event_log_path) if self._event_log_path else None
                self._event_log = EventLog(path, rules, self.context.publish_event)
        return self._aligner

    def rules(self, start_ns: int) -> Rules:
        picks = {
            name: self._rules.get(name, {"policy": "nearest"}) for name in self.context.inputs if name != self._anchor
        }
        return Rules(self._anchor or float(self._anchor_rate_hz or 0), picks, self._max_wait_ns, self._emit, start_ns)

    def _as_recorded(self, path: Path) -> Retold:
        """Raises ConfigError when the recording cannot be read."""
        # Here, because a live run must not wait for what reads recordings to be imported.
        from pipeline.recording.arrival_replay import Retold, afresh, recorded_events, same_rules

        if self._realign:
            rules = self.rules(self._from_ns or self.context.clock.start_ns)
            streams = self.context.inputs
            return Retold(
                afresh(
                    path,
                    streams,
                    rules,
                    unclosed=self._unclosed,
                    from_ns=self._from_ns,
                    to_ns=self._to_ns,
                    wrong=self._faults,
                )
            )
        recorded = next(recorded_events(path, self.name, unclosed=self._unclosed), None)
        if not isinstance(recorded, Rules):
            raise ConfigError(f"{path}: it does not hold what '{self.name}' was told. Align afresh: --realign")
        mine = self.rules(recorded.start_ns)
        events = recorded_events(path, self.name, unclosed=self._unclosed, from_ns=self._from_ns)
        part = self._from_ns is not None or self._to_ns is not None
        return Retold(events, None if same_rules(mine, recorded) else mine, part=part)

    def _again(self, ready: list[AlignedSet]) -> list[AlignedSet]:
        """Sent at the time at which the recorded run sent them, as far as that is in the data."""
        assert self._retold is not None
        counts, self._retold.counts = self._retold.counts, Counter()
        for (stream, what), count in counts.items():
            self.context.metrics.drop(stream, what, count)
        return ready

    def _add(self, frame: Frame, arrival_ns: int) -> list[AlignedSet]:
        ready = self.aligner.add(frame, arrival_ns)
        if self._event_log:
            self._event_log.told(frame, arrival_ns)
        return self._sent(ready)

    def _sent(self, ready: list[AlignedSet]) -> list[AlignedSet]:
        counts = self.aligner.take_counts()
        for (stream, what), count in counts.items():
            self.context.metrics.drop(stream, what, count)
        if self._event_log:
            for aligned in ready:
                self._event_log.sent(aligned)
            self._event_log.pass_on()
        return [msgspec.structs.replace(aligned, sent_ns=self.context.clock.now_ns()) for aligned in ready]
