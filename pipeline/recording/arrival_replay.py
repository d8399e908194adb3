"""Replays recorded arrival times through the Aligner, so that alignment matches the recorded run.

Pure: frames in any order of streams (within a stream, in its own order), aligned sets out, the same ones every time.
`next_stream` is the stream whose frame is due, so that only due frames need to be buffered.

Example:
    replay = ArrivalReplay(recorded_events(path, "align"))
    while frame := next_frame(replay.next_stream): sets += replay.add(frame)
    replay.counts                                 # frames recorded but not received, or vice versa
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.event_log import (
    AlignerConfig,
    ArrivalEvent,
    Event,
    FinishEvent,
    SetEvent,
    parse_events,
)
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Prediction
from pipeline.recording import faults as fault_streams
from pipeline.recording.faults import Fault
from pipeline.recording.reader import Reader
from pipeline.runtime.graph import EVENTS

NOT_RECORDED, NOT_RECEIVED = "not in the recording", "not received in the recorded run"


class ArrivalReplay:
    """An Aligner that decides by recorded arrival times.

    Args:
        events: The events of the recorded run, in order.
        config: Build the aligner from this instead of the recorded configuration. None: as recorded.
        own_policies: The sync policies of the user's own config; the recorded events may name no other code.
        partial: Only a part of the run is replayed: an arrival whose frame does not come is skipped, not missed.
    """

    def __init__(
        self,
        events: Iterator[Event],
        config: AlignerConfig | None = None,
        *,
        own_policies: Collection[Mapping[str, Any]] = (),
        partial: bool = False,
    ) -> None:
        self._events, self._config, self._partial = events, config, partial
        self._own_policies = own_policies
        self._last_arrival_ns = 0
        self._aligner: Aligner | None = None
        self._waiting: dict[str, deque[Frame]] = {}
        self._ended: set[str] = set()
        self._next: Event | None = next(events, None)
        self._unconfirmed = 0  # sets derived so far without their SetEvent
        self.counts: Counter[tuple[str, str]] = Counter()  # (stream, why a frame of it has no counterpart) → how often

    @property
    def next_stream(self) -> str | None:
        """The stream whose frame is due; None: no arrival is due, and frames still to come were not received."""
        return self._next.stream if isinstance(self._next, ArrivalEvent) else None

    def add(self, frame: Frame) -> list[AlignedSet]:
        self._waiting.setdefault(frame.stream, deque()).append(frame)
        return self._advance()

    def ended(self, stream: str) -> list[AlignedSet]:
        self._ended.add(stream)
        return self._advance()

    def take_counts(self) -> Counter[tuple[str, str]]:
        """(stream, what became of its frames) → how many, since the last call: as Aligner.take_counts, and `counts`."""
        counts, self.counts = self.counts, Counter()
        if self._aligner is not None:
            counts += self._aligner.take_counts()
        return counts

    def finish(self) -> list[AlignedSet]:
        """Every stream has ended. Sets that were pending at the end of the run are sent only if that run sent them."""
        ready = self._advance()
        for stream, frames in self._waiting.items():
            if frames:
                self.counts[stream, NOT_RECEIVED] += len(frames)
        return ready

    def _advance(self) -> list[AlignedSet]:
        """Replay events as far as the frames that are here reach."""
        ready: list[AlignedSet] = []
        while (event := self._next) is not None:
            if isinstance(event, AlignerConfig):
                self._aligner = (self._config or event).aligner("the recording", self._own_policies)
            elif isinstance(event, FinishEvent):
                now_ns = self._last_arrival_ns if self._partial else event.now_ns
                at_end = self._aligner.finish(now_ns) if self._aligner else []
                ready += at_end
                self._unconfirmed += len(at_end)
            elif isinstance(event, SetEvent):
                ready += self._due()
                self._unconfirmed -= 1
            elif isinstance(event, ArrivalEvent):
                if (frame := self._frame_of(event)) is None:
                    return ready
                if self._partial and not frame.data.size and event.encoding != "none":
                    self._next = next(self._events, None)
                    continue
                self._last_arrival_ns = event.arrival_ns
                of_frame = self._aligner.add(frame, event.arrival_ns) if self._aligner else []
                ready += of_frame
                self._unconfirmed += len(of_frame)
            self._next = next(self._events, None)
        return ready

    def _due(self) -> list[AlignedSet]:
        """A set that the run sent at a deadline, before the next arrival: it need not wait for that arrival."""
        ready: list[AlignedSet] = []
        while self._unconfirmed == 0 and not self._partial and self._aligner is not None:
            if (wake_ns := self._aligner.wake_ns() or FOREVER_NS) >= FOREVER_NS:
                break
            ready += self._aligner.advance(wake_ns)
            self._unconfirmed += len(ready)
        return ready

    def _frame_of(self, event: ArrivalEvent) -> Frame | None:
        """None: it has not come yet."""
        if event.seq < 0:  # not a frame of the stream: the node's own watermark for a stream that has ended
            return event.frame()
        waiting = self._waiting.setdefault(event.stream, deque())
        while waiting:
            frame = waiting[0]
            if (frame.seq, frame.capture_ns) == (event.seq, event.capture_ns):
                return waiting.popleft()
            if frame.capture_ns > event.capture_ns:
                break
            waiting.popleft()
            self.counts[event.stream, NOT_RECEIVED] += 1
        if waiting or event.stream in self._ended:
            self.counts[event.stream, NOT_RECORDED] += not self._partial
            return event.frame()  # its times are known, its payload is not
        return None


def recorded_events(path: Path, align: str, *, unclosed: bool = False, from_ns: int | None = None) -> Iterator[Event]:
    """The events of the node `align` in a recording. from_ns: without arrivals and sets before this time."""
    with Reader(path, unclosed=unclosed) as reader:
        yield from events_of(reader, align, from_ns=from_ns)


def events_of(reader: Reader, align: str, *, from_ns: int | None = None) -> Iterator[Event]:
    frames = (m.message for m in reader.messages([align + EVENTS]))
    lines = (line for frame in frames if isinstance(frame, Frame) for line in frame.data.tobytes().splitlines())
    for event in parse_events(lines, f"{reader.path}: {align}{EVENTS}"):
        if (
            from_ns is None
            or isinstance(event, AlignerConfig)
            or (isinstance(event, ArrivalEvent) and event.arrival_ns >= from_ns)
        ):
            yield event


def realigned_events(
    path: Path,
    config: AlignerConfig,
    streams: Sequence[str],
    *,
    unclosed: bool = False,
    from_ns: int | None = None,
    to_ns: int | None = None,
    faults: Sequence[Fault] = (),
) -> Iterator[Event]:
    """The events of a run in which every frame arrives when it left its source, plus the delays of `faults`: the same
    every time."""
    with Reader(path, unclosed=unclosed) as reader:
        recorded_streams = [stream for stream in streams if stream in reader.streams]
        yield config
        last_ns = config.start_ns
        recorded = reader.messages(recorded_streams, from_ns=from_ns, to_ns=to_ns)
        timing = fault_streams.timing(faults)
        for _, frame, log_ns in fault_streams.apply(recorded, timing, start_ns=reader.span_ns[0]):
            if isinstance(frame, Frame):
                last_ns = max(last_ns, log_ns)
                yield ArrivalEvent.of(frame, last_ns)
        yield FinishEvent(last_ns)


def predicted_anchors(path: Path, node: str, *, unclosed: bool = False) -> Iterator[int]:
    """The anchors of the sets from which `node` predicted, in order; all others were shed."""
    with Reader(path, unclosed=unclosed) as reader:
        for _, message, _ in reader.messages([node]):
            if isinstance(message, Prediction):
                yield message.capture_ns


class ShedSets:
    """The sets from which the recorded run made no prediction. Ask in rising order of time.

    Args:
        predicted_anchors_ns: The anchors of all sets from which it did, in rising order.
    """

    def __init__(self, predicted_anchors_ns: Iterable[int]) -> None:
        self._anchors_ns = iter(predicted_anchors_ns)
        self._next_ns = next(self._anchors_ns, None)

    def __contains__(self, anchor_ns: int) -> bool:
        while self._next_ns is not None and self._next_ns < anchor_ns:
            self._next_ns = next(self._anchors_ns, None)
        return self._next_ns != anchor_ns
