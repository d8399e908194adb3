"""Aligns the frames of a recording as the recorded run did. `run_pipeline.py replay` puts it in place of `align`.

Example:
    align: {use: align_replay, path: rec.mcap, options: {anchor: camera}, inputs: [camera, microphone]}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pipeline.alignment.event_log import AlignerConfig, Event
from pipeline.alignment.options import AlignerOptions
from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Message
from pipeline.node import Arrival, Transform
from pipeline.recording.arrival_replay import ArrivalReplay, realigned_events, recorded_events
from pipeline.recording.faults import parse


class AlignReplay(Transform):
    """Sets decided by what arrived when in the recorded run, not by what arrives now: the same at every speed.

    Args:
        path: The recording.
        options: The options of the `align` node that it replaces. Where they are not those of the recorded run, its
            arrivals are aligned by the new ones. `event_log` is ignored: nothing is decided here that is not recorded.
        realign: Ignore the recorded arrival times: align as if every frame had arrived when it left its source.
        unclosed: Read a recording that was not closed, up to its last whole chunk.
        from_ns: Where the replay begins, in the recording's time. null: at its beginning.
        to_ns: Where it ends. null: at the recording's end.
        faults: With `realign`: delays to apply, such as "camera: delay=40ms" (pipeline/recording/faults.py).
    """

    consumes: ClassVar[tuple[type, ...]] = (Frame,)
    produces: ClassVar[type | None] = AlignedSet
    publishes_events: ClassVar[bool] = True  # as `align`, so that the same graph is valid; nothing is published

    def __init__(
        self,
        *,
        path: str,
        options: dict[str, Any],
        realign: bool = False,
        unclosed: bool = False,
        from_ns: int | None = None,
        to_ns: int | None = None,
        faults: list[str] | None = None,
    ) -> None:
        self._options = AlignerOptions(**{name: value for name, value in options.items() if name != "event_log"})
        self._path, self._realign, self._unclosed = Path(path), realign, unclosed
        self._from_ns, self._to_ns = from_ns, to_ns
        self._faults = tuple(map(parse, faults or ()))

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        return self._options.named_inputs()

    def open(self) -> None:
        """Raises ConfigError when the recording cannot be read, or holds no events of this node."""
        self._replay = self._realigned() if self._realign else self._as_recorded()

    def process(self, arrival: Arrival) -> Iterable[Message]:
        assert isinstance(arrival.message, Frame)
        return self._send(self._replay.add(arrival.message))

    def ready_for(self, source: str) -> bool:
        return self._replay.next_stream in (None, source)

    def ended(self, source: str, arrival_ns: int) -> Iterable[Message]:
        return self._send(self._replay.ended(source))

    def finish(self) -> Iterable[Message]:
        return self._send(self._replay.finish())

    def _realigned(self) -> ArrivalReplay:
        start_ns = self._from_ns or self.context.clock.start_ns
        events = realigned_events(
            self._path,
            self._options.config(self.context.inputs, start_ns),
            self.context.inputs,
            unclosed=self._unclosed,
            from_ns=self._from_ns,
            to_ns=self._to_ns,
            faults=self._faults,
        )
        return ArrivalReplay(events, own_policies=self._options.own_policies)

    def _as_recorded(self) -> ArrivalReplay:
        recorded = next(self._recorded_events(), None)
        if not isinstance(recorded, AlignerConfig):
            raise ConfigError(f"{self._path}: it does not hold the events of '{self.name}'. Align again: --realign")
        config = self._options.config(self.context.inputs, recorded.start_ns)
        return ArrivalReplay(
            self._recorded_events(self._from_ns),
            None if config.decides_like(recorded) else config,
            own_policies=self._options.own_policies,
            partial=self._from_ns is not None or self._to_ns is not None,
        )

    def _recorded_events(self, from_ns: int | None = None) -> Iterator[Event]:
        return recorded_events(self._path, self.name, unclosed=self._unclosed, from_ns=from_ns)

    def _send(self, ready: list[AlignedSet]) -> list[AlignedSet]:
        """Sets keep the sent_ns of the recorded run, as far as the data has it."""
        self.context.metrics.add_outcomes(self._replay.take_counts())
        return ready
