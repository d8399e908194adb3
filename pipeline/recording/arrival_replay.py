"""The arrivals of a recorded run, told again: an aligner that decides by what arrived when in that run, not by what arrives now.

Pure: frames in any order of streams (within one, in theirs), aligned sets out, the same ones every time. `wanted` says
which stream is to speak next, so that nothing needs to be held but what is due.

    retold = Retold(recorded_events(path, "align"))
    while frame := next_of(retold.wanted): sets += retold.add(frame)
    retold.counts                                 # frames of that run which the recording has and its aligner never got, …
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from pipeline.alignment import event_log
from pipeline.alignment.aligner import Aligner
from pipeline.alignment.event_log import Event, Finished, Rules, Sent, Told
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Prediction
from pipeline.recording import faults
from pipeline.recording.faults import Fault
from pipeline.recording.reader import Reader
from pipeline.runtime.graph import EVENTS

NOT_RECORDED, NOT_HEARD = "not in the recording", "not heard in the recorded run"


class Retold:
    """rules: decide by these instead of the recorded ones. part: only a part of the run is played: a frame that does not
    come never was."""

    def __init__(self, events: Iterator[Event], rules: Rules | None = None, *, part: bool = False) -> None:
        self._events, self._rules, self._part = events, rules, part
        self._told_ns = 0  # the last arrival
        self._aligner: Aligner | None = None
        self._waiting: dict[str, deque[Frame]] = {}
        self._ended: set[str] = set()
        self._next: Event | None = next(events, None)
        self._ahead = 0  # sets derived whose sending was not told yet
        self.counts: Counter[tuple[str, str]] = Counter()  # (stream, what happened to a frame of it)

    @property
    def wanted(self) -> str | None:
        """The stream whose frame is due; None: nothing is, and what still comes was never heard."""
        return self._next.stream if isinstance(self._next, Told) else None

    def add(self, frame: Frame) -> list[AlignedSet]:
        self._waiting.setdefault(frame.stream, deque()).append(frame)
        return self._go_on()

    def ended(self, stream: str) -> list[AlignedSet]:
        self._ended.add(stream)
        return self._go_on()

    def finish(self) -> list[AlignedSet]:
        """Every stream has ended. What the run held at its end is not sent unless that run sent it."""
        ready = self._go_on()
        for stream, frames in self._waiting.items():
            if frames:
                self.counts[stream, NOT_HEARD] += len(frames)
        return ready

    def _go_on(self) -> list[AlignedSet]:
        """As far as the frames that are here reach."""
        ready: list[AlignedSet] = []
        while (event := self._next) is not None:
            if isinstance(event, Rules):
                self._aligner = (self._rules or event).aligner()
            elif isinstance(event, Finished):
                now_ns = self._told_ns if self._part else event.now_ns
                at_end = self._aligner.finish(now_ns) if self._aligner else []
                ready += at_end
                self._ahead += len(at_end)
            elif isinstance(event, Sent):
                ready += self._due()
                self._ahead -= 1
            elif isinstance(event, Told):
                if (frame := self._frame_of(event)) is None:
                    return ready
                if self._part and not frame.data.size and event.encoding != "none":
                    self._next = next(self._events, None)
                    continue
                self._told_ns = event.arrival_ns
                of_frame = self._aligner.add(frame, event.arrival_ns) if self._aligner else []
                ready += of_frame
                self._ahead += len(of_frame)
            self._next = next(self._events, None)
        return ready

    def _due(self) -> list[AlignedSet]:
        """What that run sent at a deadline, though nothing has arrived since: it need not wait for what comes next."""
        ready: list[AlignedSet] = []
        while self._ahead == 0 and not self._part and self._aligner is not None:
            if (wake_ns := self._aligner.wake_ns() or FOREVER_NS) >= FOREVER_NS:
                break
            ready += self._aligner.advance(wake_ns)
            self._ahead += len(ready)
        return ready

    def _frame_of(self, told: Told) -> Frame | None:
        """None: it has yet to come."""
        if told.seq < 0:  # the aligner's own word that a stream has ended
            return told.frame()
        waiting = self._waiting.setdefault(told.stream, deque())
        while waiting:
            frame = waiting[0]
            if (frame.seq, frame.capture_ns) == (told.seq, told.capture_ns):
                return waiting.popleft()
            if frame.capture_ns > told.capture_ns:
                break
            waiting.popleft()
            self.counts[told.stream, NOT_HEARD] += 1
        if waiting or told.stream in self._ended:
            self.counts[told.stream, NOT_RECORDED] += not self._part
            return told.frame()  # what is known of it: its times, not its payload
        return None


def recorded_events(path: Path, align: str, *, unclosed: bool = False, from_ns: int | None = None) -> Iterator[Event]:
    """What the node `align` was told and decided. from_ns: begin with what arrived from then on."""
    with Reader(path, unclosed=unclosed) as reader:
        yield from events_of(reader, align, from_ns=from_ns)


def events_of(reader: Reader, align: str, *, from_ns: int | None = None) -> Iterator[Event]:
    frames = (m.message for m in reader.messages([align + EVENTS]))
    lines = (line for frame in frames if isinstance(frame, Frame) for line in frame.data.tobytes().splitlines())
    for event in event_log.parse(lines, f"{reader.path}: {align}{EVENTS}"):
        if from_ns is None or isinstance(event, Rules) or (isinstance(event, Told) and event.arrival_ns >= from_ns):
            yield event


def afresh(
    path: Path,
    streams: Sequence[str],
    rules: Rules,
    *,
    unclosed: bool = False,
    from_ns: int | None = None,
    to_ns: int | None = None,
    wrong: Sequence[Fault] = (),
) -> Iterator[Event]:
    """The events of a run in which every frame arrived the moment it left its source: the same every time. wrong: but for these."""
    with Reader(path, unclosed=unclosed) as reader:
        here = [stream for stream in streams if stream in reader.streams]
        yield rules
        last_ns = rules.start_ns
        recorded = reader.messages(here, from_ns=from_ns, to_ns=to_ns)
        for _, frame, log_ns in faults.apply(recorded, faults.timing(wrong), start_ns=reader.span_ns[0]):
            if isinstance(frame, Frame):
                last_ns = max(last_ns, log_ns)
                yield told(frame, last_ns)
        yield Finished(last_ns)


def told(frame: Frame, arrival_ns: int) -> Told:
    return Told(
        frame.stream,
        frame.seq,
        frame.capture_ns,
        frame.duration_ns,
        frame.clock_error_ns,
        frame.encoding,
        frame.reason,
        arrival_ns,
    )


def predicted(path: Path, node: str, *, unclosed: bool = False) -> Iterator[int]:
    """The anchors of the sets from which `node` made a prediction, in order; all others were shed."""
    with Reader(path, unclosed=unclosed) as reader:
        for _, message, _ in reader.messages([node]):
            if isinstance(message, Prediction):
                yield message.capture_ns


def same_rules(one: Rules, other: Rules) -> bool:
    """Alike in all but when they began."""
    return msgspec.structs.replace(one, start_ns=0) == msgspec.structs.replace(other, start_ns=0)


class Shed:
    """Which of the sets that come again were never predicted from in the recorded run. Both in the order of time."""

    def __init__(self, anchors: Iterable[int]) -> None:
        self._anchors = iter(anchors)
        self._next = next(self._anchors, None)

    def was(self, anchor_ns: int) -> bool:
        while self._next is not None and self._next < anchor_ns:
            self._next = next(self._anchors, None)
        return self._next != anchor_ns
