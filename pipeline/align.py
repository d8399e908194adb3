"""The Aligner: frames in, aligned sets out. Pure: no sockets, no threads, no clock of its own.

Its decisions depend on data alone. A frame is in time for an anchor iff arrival_ns <= deadline_ns, so before a frame is
added everything whose deadline lies before its arrival is settled; `advance` settles the same things, only sooner. How
often it is called changes when a set is sent, never what is in it.

    aligner = Aligner("camera", {"microphone": Window(before_ms=1000)}, max_wait_ns=60_000_000)
    for frame, arrival_ns in arrivals:          # arrival_ns never falls
        for aligned in aligner.add(frame, arrival_ns): ...
    for aligned in aligner.advance(clock.now_ns()): ...

Two modes. With `max_wait_ns` a set is sent at its deadline without what is late. With None (proof) a set waits until
every answer is final, so the result does not depend on how the streams interleave.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Receipt
from pipeline.pick import MS, Found, Nothing, Pick, Wait

DEFAULT_PERIOD_NS = NS // 10  # of a silent anchor that never said its rate
STOPPED_AFTER_NS = NS  # a stream that told nothing for so long is not waited for
ROOM = 64  # frames of one stream, or anchors, that may lie here before a sender with flow control waits
MAX_PENDING = 256
MAX_BUFFERED = 4096


class Aligner:
    """anchor: a stream's name, every frame of which starts a set; or a rate in Hz, every tick of which does.
    picks: one rule for each other stream. max_wait_ns: from the anchor's arrival to the deadline; 0 sends at once;
    None waits for proof. start_ns: when the run began: the first tick, and the moment from which silence counts.
    """

    def __init__(
        self,
        anchor: str | float,
        picks: Mapping[str, Pick],
        *,
        max_wait_ns: int | None,
        start_ns: int = 0,
        anchor_rate_hz: float | None = None,
        max_pending: int = MAX_PENDING,
        max_buffered: int = MAX_BUFFERED,
    ) -> None:
        self.anchor = anchor if isinstance(anchor, str) else ""
        self.max_wait_ns = max_wait_ns
        self._counts: Counter[tuple[str, str]] = Counter()
        self._max_pending, self._max_buffered = max_pending, max_buffered
        self._streams = {name: _Stream(pick, start_ns) for name, pick in picks.items()}
        self._pending: deque[_Pending] = deque()
        self._last_anchor_ns = -FOREVER_NS  # no anchor at or before this will be made
        if self.anchor:
            period_ns = round(NS / anchor_rate_hz) if anchor_rate_hz else DEFAULT_PERIOD_NS
            self._ticks = _Ticks(start_ns, period_ns)
        else:
            self._ticks = _Ticks(start_ns, round(NS / float(anchor)), free_running=True)

    # --- what may happen ------------------------------------------------------------------------------------------

    def add(self, frame: Frame, arrival_ns: int) -> list[AlignedSet]:
        """A frame, or a silence, of any stream. arrival_ns never falls. Returns the sets that became ready."""
        ready = self.advance(arrival_ns)
        if frame.stream == self.anchor:
            self._add_anchor(frame, arrival_ns)
        elif (stream := self._streams.get(frame.stream)) is None:
            self._counts[frame.stream, "not asked for"] += 1
        else:
            trouble = stream.add(frame, arrival_ns, self._max_buffered)
            if trouble:
                self._counts[frame.stream, trouble] += 1
            elif frame.encoding != "none" and frame.capture_ns <= stream.late_until_ns:
                self._counts[frame.stream, "late"] += 1
        if self.max_wait_ns is None and self._ticks.free_running:
            self._prove_ticks()
        ready += self._send_answered(arrival_ns)
        return ready

    def advance(self, now_ns: int) -> list[AlignedSet]:
        """Everything that arrived before now_ns has been added. Returns the sets whose deadline has passed."""
        ready: list[AlignedSet] = []
        if self.max_wait_ns is None:
            return ready
        while True:
            deadline_ns = self._pending[0].deadline_ns if self._pending else FOREVER_NS
            tick_ns = self._ticks.arrival_ns
            if min(deadline_ns, tick_ns) >= now_ns:
                return ready
            if tick_ns <= deadline_ns:
                self._append(self._ticks.take(tick_ns + self.max_wait_ns))
                ready += self._send_answered(tick_ns)
            else:
                ready.append(self._settle(self._pending.popleft(), deadline_ns))
                ready += self._send_answered(deadline_ns)

    def wake_ns(self) -> int | None:
        """The next moment at which `advance` would do something; None in proof mode."""
        if self.max_wait_ns is None:
            return None
        return 1 + min(self._pending[0].deadline_ns if self._pending else FOREVER_NS, self._ticks.arrival_ns)

    def finish(self, now_ns: int) -> list[AlignedSet]:
        """Nothing more will come: every set still waiting is sent with what is there."""
        ready = self.advance(now_ns)
        while self._pending:
            ready.append(self._settle(self._pending.popleft(), now_ns))
        return ready

    def take_counts(self) -> Counter[tuple[str, str]]:
        """(stream, what happened to a frame of it) → how often, since this was last asked."""
        counts, self._counts = self._counts, Counter()
        return counts

    def has_room(self, stream: str) -> bool:
        """False when `stream` is so far ahead that its sender should wait. Never so for all streams at once."""
        if stream == self.anchor:
            return len(self._pending) < ROOM
        ahead = self._streams.get(stream)
        if ahead is None or len(ahead.frames) < ROOM:
            return True
        if not self._pending:  # the anchor must speak first, unless ticks of a fixed rate do
            return self._ticks.free_running
        return isinstance(ahead.answer(stream, self._pending[0], live=False), Wait)

    # --- anchors --------------------------------------------------------------------------------------------------

    def _add_anchor(self, frame: Frame, arrival_ns: int) -> None:
        if frame.encoding == "none":
            self._ticks.told(frame.reason, frame.capture_ns)
            if self.max_wait_ns is None:
                self._prove_ticks()
            return
        if frame.capture_ns <= self._last_anchor_ns:
            self._counts[self.anchor, "behind an anchor already made"] += 1
            return
        self._ticks.heard(frame.capture_ns, arrival_ns)
        deadline_ns = FOREVER_NS if self.max_wait_ns is None else arrival_ns + self.max_wait_ns
        self._append(_Pending(frame.capture_ns, arrival_ns, deadline_ns, frame))

    def _prove_ticks(self) -> None:
        """Proof mode: a tick exists where the anchor said that it is silent, or, at a fixed rate, where any stream has been."""
        reached_ns = max((s.reached_ns for s in self._streams.values()), default=0)
        limit_ns = reached_ns if self._ticks.free_running else self._ticks.told_until_ns
        while self._ticks.anchor_ns < limit_ns:
            self._append(self._ticks.take(FOREVER_NS))

    def _append(self, pending: _Pending) -> None:
        if pending.anchor_ns <= self._last_anchor_ns:
            return
        self._last_anchor_ns = pending.anchor_ns
        self._pending.append(pending)
        if len(self._pending) > self._max_pending:
            self._pending.popleft()
            self._counts[self.anchor or "tick", "too many anchors waiting"] += 1

    # --- answers --------------------------------------------------------------------------------------------------

    def _send_answered(self, now_ns: int) -> list[AlignedSet]:
        ready: list[AlignedSet] = []
        while self._pending and self._is_answered(self._pending[0]):
            ready.append(self._settle(self._pending.popleft(), now_ns))
        return ready

    def _is_answered(self, pending: _Pending) -> bool:
        for name, stream in self._streams.items():
            if name not in pending.answers:
                answer = stream.answer(name, pending, live=self.max_wait_ns is not None)
                if isinstance(answer, Wait):
                    return False
                pending.answers[name] = answer
        return True

    def _settle(self, pending: _Pending, now_ns: int) -> AlignedSet:
        """The set as it stands: streams without a final answer give the best they have."""
        frames: dict[str, tuple[Frame, ...]] = {}
        receipts = []
        if self.anchor and pending.frame is not None:
            frames[self.anchor] = (pending.frame,)
            receipts.append(_receipt(self.anchor, Found((pending.frame,), "exact"), pending.anchor_ns, now_ns))
        elif self.anchor:
            receipts.append(Receipt(self.anchor, "silent", reason=pending.reason))
        for name, stream in self._streams.items():
            answer = pending.answers.get(name) or stream.answer(name, pending, live=self.max_wait_ns is not None)
            if isinstance(answer, Wait):
                answer = stream.answer_at_deadline(name, pending)
            if isinstance(answer, Found):
                frames[name] = answer.frames
                receipts.append(_receipt(name, answer, pending.anchor_ns, now_ns))
            else:
                receipts.append(answer)
        for stream in self._streams.values():
            stream.forget(pending.anchor_ns)
        missing = tuple(r.stream for r in receipts if not r.present)
        return AlignedSet(
            self.anchor, pending.anchor_ns, frames, tuple(receipts), missing, pending.arrival_ns, max(now_ns, pending.arrival_ns)
        )


class _Pending:
    """An anchor that waits for its answers. reason: why no frame started it."""

    __slots__ = ("anchor_ns", "answers", "arrival_ns", "deadline_ns", "frame", "reason")

    def __init__(self, anchor_ns: int, arrival_ns: int, deadline_ns: int, frame: Frame | None, reason: str = "") -> None:
        self.anchor_ns, self.arrival_ns, self.deadline_ns = anchor_ns, arrival_ns, deadline_ns
        self.frame, self.reason = frame, reason
        self.answers: dict[str, Found | Receipt] = {}  # final ones; a Receipt says why there is nothing


class _Ticks:
    """Anchors that no frame starts: those of a fixed rate, or those that stand in for a silent anchor stream.

    The stand-ins begin when the anchor has been silent for 250 ms or three of its periods, and keep its last rate.
    """

    def __init__(self, start_ns: int, period_ns: int, *, free_running: bool = False) -> None:
        self.free_running = free_running
        self.period_ns = period_ns
        self._reason = ""
        self.told_until_ns = 0
        self._captures: deque[int] = deque(maxlen=16)
        if free_running:
            self.anchor_ns = self.arrival_ns = start_ns
        else:
            self._restart(start_ns, start_ns)

    def heard(self, capture_ns: int, arrival_ns: int) -> None:
        """The anchor stream spoke: the stand-ins start over."""
        self._captures.append(capture_ns)
        if len(self._captures) > 2:
            self.period_ns = max(MS, round(median(b - a for a, b in pairwise(self._captures))))
        self._reason = ""
        self._restart(capture_ns, arrival_ns)

    def told(self, reason: str, until_ns: int) -> None:
        """The anchor stream said that nothing happens until `until_ns`; FOREVER: it is finished, and sets end with it."""
        self._reason = reason
        self._captures.clear()  # the gap that follows is not a period
        self.told_until_ns = max(self.told_until_ns, until_ns)
        if until_ns >= FOREVER_NS:
            self.anchor_ns = self.arrival_ns = FOREVER_NS

    def take(self, deadline_ns: int) -> _Pending:
        """The next tick as an anchor."""
        # In proof mode time is the data's: a tick "arrives" when it is.
        arrival_ns = self.anchor_ns if deadline_ns == FOREVER_NS else self.arrival_ns
        tick = _Pending(self.anchor_ns, arrival_ns, deadline_ns, None, self._reason or "no frames arrive")
        self.anchor_ns += self.period_ns
        self.arrival_ns += self.period_ns
        return tick

    def _restart(self, capture_ns: int, arrival_ns: int) -> None:
        silent_after_ns = max(NS // 4, 3 * self.period_ns)
        self.anchor_ns, self.arrival_ns = capture_ns + silent_after_ns, arrival_ns + silent_after_ns


class _Silence(NamedTuple):
    """Nothing happened in (after_ns, until_ns]."""

    after_ns: int
    until_ns: int
    reason: str


class _Stream:
    """What is known of one stream: its frames, how far it is complete, and when it was silent.

    Whatever is asked about an anchor is answered from what the stream said up to that time, never from what it said
    later: else the answer would depend on how the streams interleave.
    """

    def __init__(self, pick: Pick, start_ns: int) -> None:
        self.pick = pick
        self.frames: deque[Frame] = deque()
        self.complete_before_ns = -FOREVER_NS
        self.reached_ns = -FOREVER_NS  # complete_before_ns while the stream lived
        self.late_until_ns = -FOREVER_NS
        self._silences: deque[_Silence] = deque()
        self._last_seq = -1
        self._last_capture_ns = -FOREVER_NS
        self._last_arrival_ns = start_ns

    def add(self, frame: Frame, arrival_ns: int, max_buffered: int) -> str:
        """Returns what was wrong with it, "" when nothing was."""
        if frame.encoding == "none":
            self._last_arrival_ns = arrival_ns
            if frame.capture_ns > self.complete_before_ns:
                self._silences.append(_Silence(self.complete_before_ns, frame.capture_ns, frame.reason or "nothing happened"))
                self._complete(frame.capture_ns)
            return ""
        if frame.capture_ns <= self._last_capture_ns:
            return "duplicate" if frame.seq <= self._last_seq else "time went back"
        self._last_seq, self._last_capture_ns, self._last_arrival_ns = frame.seq, frame.capture_ns, arrival_ns
        # An instant at t proves everything up to and including t; a chunk proves everything up to its end.
        self._complete(max(self.complete_before_ns, frame.capture_ns + max(frame.duration_ns, 1)))
        self.frames.append(frame)
        if len(self.frames) > max_buffered:
            self.frames.popleft()
            return "buffer full"
        return ""

    def answer(self, name: str, pending: _Pending, *, live: bool) -> Found | Receipt | Wait:
        """live: a stream that stopped without a word is not waited for."""
        answer = self.pick.answer(self.frames, pending.anchor_ns, self.complete_before_ns)
        idle_ns = pending.arrival_ns - self._last_arrival_ns
        if isinstance(answer, Wait) and live and idle_ns > STOPPED_AFTER_NS:
            answer = self.pick.answer(self.frames, pending.anchor_ns, FOREVER_NS)
            if isinstance(answer, Nothing):
                return Receipt(name, "silent", reason=f"nothing arrived for {idle_ns / NS:.1f} s")
        if isinstance(answer, Nothing):
            return self._silent(name, pending.anchor_ns) or Receipt(name, "absent", reason=answer.reason)
        return answer

    def answer_at_deadline(self, name: str, pending: _Pending) -> Found | Receipt:
        """The best there is, though something better may be on its way."""
        answer = self.pick.answer(self.frames, pending.anchor_ns, FOREVER_NS)
        self.late_until_ns = pending.anchor_ns
        if isinstance(answer, Found):
            if answer.state == "nearest":
                return Found(answer.frames, "nearest", "at the deadline: a nearer one may have come later")
            return answer
        if self.complete_before_ns == -FOREVER_NS:
            return Receipt(name, "absent", reason="no frame yet")
        behind_ms = (pending.anchor_ns - self.complete_before_ns) / MS
        found = f": {answer.reason}" if isinstance(answer, Nothing) else ""
        late = Receipt(name, "late", reason=f"at the deadline its data ended {behind_ms:.0f} ms before the anchor{found}")
        return self._silent(name, pending.anchor_ns) or late

    def _complete(self, before_ns: int) -> None:
        self.complete_before_ns = before_ns
        if before_ns < FOREVER_NS:
            self.reached_ns = before_ns

    def _silent(self, name: str, when_ns: int) -> Receipt | None:
        for silence in self._silences:
            if silence.after_ns < when_ns <= silence.until_ns:
                return Receipt(name, "silent", reason=silence.reason)
        return None

    def forget(self, anchor_ns: int) -> None:
        horizon_ns = self.pick.forget_before_ns(anchor_ns)
        while len(self.frames) > 1 and self.frames[1].capture_ns <= horizon_ns:
            self.frames.popleft()
        while self._silences and self._silences[0].until_ns < anchor_ns:
            self._silences.popleft()


def _receipt(name: str, found: Found, anchor_ns: int, now_ns: int) -> Receipt:
    first, last = found.frames[0], found.frames[-1]
    nearest = min(found.frames, key=lambda f: max(f.capture_ns - anchor_ns, anchor_ns - f.end_ns, 0))
    # A chunk that covers the anchor has no skew; one before it is off by the distance to its end.
    skew_ns = nearest.capture_ns - anchor_ns if nearest.capture_ns > anchor_ns else min(0, nearest.end_ns - anchor_ns)
    return Receipt(
        name,
        found.state,
        tuple(frame.seq for frame in found.frames),
        span_ns=last.end_ns - first.capture_ns,
        skew_ns=skew_ns,
        age_ns=now_ns - last.end_ns,
        clock_error_ns=max(frame.clock_error_ns for frame in found.frames),
        reason=found.reason,
    )


