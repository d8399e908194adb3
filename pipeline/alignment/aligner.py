"""The Aligner: frames in, aligned sets out. Pure: no sockets, no threads, no clock of its own.

Its decisions depend on data alone. A frame is in time for an anchor iff arrival_ns <= deadline_ns, so before a frame
is added, every set whose deadline lies before its arrival is completed. `advance` completes the same sets, only
sooner: how often it is called changes when a set is sent, never what is in it.

There are two modes. With `max_wait_ns` a set is sent as soon as every answer is final, by proof or by a stream's
learned minimum interval, and at its deadline without what is late. With None (proof mode) only proof counts, so the
result does not depend on how the streams interleave.

Example:
    aligner = Aligner("camera", {"microphone": Window(before_ms=1000)}, max_wait_ns=60_000_000)
    for frame, arrival_ns in arrivals:          # arrival_ns never falls
        for aligned in aligner.add(frame, arrival_ns): ...
    for aligned in aligner.advance(clock.now_ns()): ...
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise, zip_longest
from statistics import median
from typing import Literal

import msgspec

from pipeline.alignment.stream_buffer import StreamBuffer
from pipeline.alignment.sync_policies import MS, Match, SyncPolicy, Wait
from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Receipt
from pipeline.metrics import UNUSED, USED

# Shorter pauses happen on a busy laptop, and an anchor frame that arrives after a stand-in tick took its place is lost.
SILENT_AFTER_NS = NS // 2
MAX_BEHIND_NS = 5 * NS  # a stream that comes back with a longer delay than this has stamps of another clock
DEFAULT_PERIOD_NS = NS // 10  # of stand-in ticks for an anchor stream whose rate is not known yet
PERIOD_INTERVALS = 8  # number of anchor intervals used for each period estimate
HISTORY_DEPTH = 64  # frames of one stream, or anchors, that may be buffered before a sender with flow control waits
MAX_PENDING = 256
MAX_BUFFERED = 4096

# Why a frame was dropped, as summaries and recordings hold it (stream_buffer.py has the reasons of the other streams).
NOT_AN_INPUT = "not an input"
SET_ALREADY_SENT = "late: its set was already sent"
TOO_MANY_PENDING = "too many anchors pending"

Emit = Literal["ready", "now"]


class Aligner:
    """Groups frames into sets: one for each anchor, with the matching frames of every other stream.

    Args:
        anchor: The stream whose every frame starts a set; or a rate in Hz, at which ticks start them.
        policies: One sync policy for each other stream.
        max_wait_ns: From the anchor's arrival to the deadline of its set. 0 sends at once; None waits for proof.
        emit: "now" sends a set as soon as every stream has a match, without proof that no nearer frame will come.
        start_ns: When the run began: time of the first tick, and the moment from which silence counts.
        max_pending: Anchors that may wait for their sets; the oldest is dropped and counted.
        max_buffered: Frames of one stream that are buffered; the oldest is dropped and counted.
    """

    def __init__(
        self,
        anchor: str | float,
        policies: Mapping[str, SyncPolicy],
        *,
        max_wait_ns: int | None,
        emit: Emit = "ready",
        start_ns: int = 0,
        max_pending: int = MAX_PENDING,
        max_buffered: int = MAX_BUFFERED,
    ) -> None:
        self.anchor = anchor if isinstance(anchor, str) else ""
        self.max_wait_ns = max_wait_ns
        self._emit_now = emit == "now"
        self._counts: Counter[tuple[str, str]] = Counter()
        self._max_pending = max_pending
        live = max_wait_ns is not None
        self._buffers = {
            name: StreamBuffer(name, policy, start_ns, live=live, max_frames=max_buffered)
            for name, policy in policies.items()
        }
        self._in_order = tuple(self._buffers.values())
        self._pending: deque[_Pending] = deque()
        self._blocker: StreamBuffer | None = None  # the stream that the first pending anchor waits for
        self._last_anchor_ns = -FOREVER_NS  # anchors at or before this are refused
        self._due_ns = -FOREVER_NS  # `advance` has nothing to do before this
        if self.anchor:
            self._ticks = _Ticks(start_ns, DEFAULT_PERIOD_NS)
        else:
            self._ticks = _Ticks(start_ns, round(NS / float(anchor)), free_running=True)
        self._proves_ticks = self._ticks.free_running and not live

    # --- events ------------------------------------------------------------------------------------------

    def add(self, frame: Frame, arrival_ns: int) -> list[AlignedSet]:
        """Add a frame, or a watermark, of any stream. arrival_ns never falls. Returns the sets that became ready."""
        ready = self.advance(arrival_ns) if arrival_ns > self._due_ns else []
        buffer = self._buffers.get(frame.stream)
        if buffer is not None:
            buffer.add(frame, arrival_ns)
            if self._proves_ticks:
                self._prove_ticks(buffer.reached_ns)
                if self._blocker is None:
                    ready += self._send_answered(arrival_ns)
            if buffer is self._blocker:
                ready += self._send_answered(arrival_ns)
        elif frame.stream == self.anchor:
            self._add_anchor(frame, arrival_ns)
            if self._blocker is None:  # else the anchors before it still wait, and for another stream
                ready += self._send_answered(arrival_ns)
        else:
            self._counts[frame.stream, NOT_AN_INPUT] += 1
        return ready

    def advance(self, now_ns: int) -> list[AlignedSet]:
        """Everything that arrived before now_ns has been added. Returns the sets whose deadline has passed."""
        ready: list[AlignedSet] = []
        if self.max_wait_ns is None:
            return ready
        while True:
            deadline_ns = self._pending[0].deadline_ns if self._pending else FOREVER_NS
            tick_ns = self._ticks.arrival_ns
            if deadline_ns >= now_ns and tick_ns >= now_ns:
                self._due_ns = min(deadline_ns, tick_ns)
                return ready
            if tick_ns <= deadline_ns:
                self._append(self._ticks.take(tick_ns + self.max_wait_ns))
                ready += self._send_answered(tick_ns)
            else:
                ready.append(self._complete(self._pending.popleft(), deadline_ns))
                ready += self._send_answered(deadline_ns)

    def wake_ns(self) -> int | None:
        """The next moment at which `advance` would do something; None in proof mode."""
        if self.max_wait_ns is None:
            return None
        return 1 + min(self._pending[0].deadline_ns if self._pending else FOREVER_NS, self._ticks.arrival_ns)

    def ticks_until(self, arrival_ns: int, frame: Frame | None = None) -> int:
        """How many anchors without a frame `add`, `advance` or `finish` would make: each takes time and memory."""
        ticks = self._ticks
        if self.max_wait_ns is not None:
            return max(0, arrival_ns - ticks.arrival_ns) // ticks.period_ns
        if frame is None or frame.capture_ns >= FOREVER_NS or not (ticks.free_running or frame.stream == self.anchor):
            return 0
        return max(0, frame.end_ns - ticks.anchor_ns) // ticks.period_ns if self._proves(frame) else 0

    def _proves(self, frame: Frame) -> bool:
        return self._ticks.free_running or frame.encoding == "none"

    def finish(self, now_ns: int) -> list[AlignedSet]:
        """No more frames will arrive: every pending set is sent with the matches there are."""
        ready = self.advance(now_ns)
        while self._pending:
            ready.append(self._complete(self._pending.popleft(), now_ns))
        for buffer in self._in_order:
            buffer.finish()
        return ready

    def take_counts(self) -> Counter[tuple[str, str]]:
        """(stream, what became of its frames) → how many, since the last call.

        Every frame that was added ends in exactly one of: USED in a set, UNUSED by any, or dropped with a reason.
        Watermarks are used; frames that may still be used are counted once they are.
        """
        counts, self._counts = self._counts, Counter()
        for buffer in self._in_order:
            if buffer.used:
                counts[buffer.stream, USED] += buffer.used
            if buffer.unused:
                counts[buffer.stream, UNUSED] += buffer.unused
            if buffer.dropped:
                for reason, count in buffer.dropped.items():
                    counts[buffer.stream, reason] += count
                buffer.dropped.clear()
            buffer.used = buffer.unused = 0
        return counts

    def has_room(self, stream: str) -> bool:
        """False when `stream` is so far ahead that its sender should wait; never False for all streams at once."""
        if stream == self.anchor:
            return len(self._pending) < HISTORY_DEPTH
        buffer = self._buffers.get(stream)
        if buffer is None or len(buffer.frames) < HISTORY_DEPTH:
            return True
        if not self._pending:  # the anchor must come first, unless ticks of a fixed rate are the anchors
            return self._ticks.free_running
        return isinstance(buffer.answer(self._pending[0].anchor_ns, self._pending[0].arrival_ns), Wait)

    # --- anchors --------------------------------------------------------------------------------------------------

    def _add_anchor(self, frame: Frame, arrival_ns: int) -> None:
        if frame.encoding == "none":
            if frame.seq >= 0:  # below 0: this node's own, which nobody sent
                self._counts[self.anchor, USED] += 1
            self._ticks.anchor_is_silent(frame.reason, frame.capture_ns)
            if self.max_wait_ns is None:
                self._prove_ticks(self._ticks.silent_until_ns)
            return
        if frame.capture_ns <= self._last_anchor_ns:
            self._counts[self.anchor, SET_ALREADY_SENT] += 1
            if self.max_wait_ns is not None:  # proof mode knows no arrivals
                self._ticks.anchor_is_behind(self._last_anchor_ns - frame.capture_ns, arrival_ns)
            return
        self._ticks.anchor_arrived(frame.capture_ns, arrival_ns)
        deadline_ns = FOREVER_NS if self.max_wait_ns is None else arrival_ns + self.max_wait_ns
        self._append(_Pending(frame.capture_ns, arrival_ns, deadline_ns, frame))

    def _prove_ticks(self, until_ns: int) -> None:
        """Proof mode: ticks exist up to where the anchor declared silence, or, at a fixed rate, where any stream is."""
        while self._ticks.anchor_ns < until_ns:
            self._append(self._ticks.take(FOREVER_NS))

    def _append(self, pending: _Pending) -> None:
        if pending.anchor_ns <= self._last_anchor_ns:
            return
        self._last_anchor_ns = pending.anchor_ns
        self._pending.append(pending)
        self._due_ns = min(self._due_ns, pending.deadline_ns)
        if len(self._pending) > self._max_pending:
            dropped = self._pending.popleft()
            self._blocker = None
            self._counts[self.anchor if dropped.frame is not None else "tick", TOO_MANY_PENDING] += 1

    # --- answers --------------------------------------------------------------------------------------------------

    def _send_answered(self, now_ns: int) -> list[AlignedSet]:
        ready: list[AlignedSet] = []
        self._blocker = None
        while self._pending and self._is_answered(self._pending[0]):
            ready.append(self._complete(self._pending.popleft(), now_ns))
        return ready

    def _is_answered(self, pending: _Pending) -> bool:
        answers = pending.answers
        for buffer in self._in_order[len(answers) :]:
            answer = buffer.answer(pending.anchor_ns, pending.arrival_ns)
            if not isinstance(answer, Wait):
                answers.append(answer)
            elif self._emit_now and buffer.answer_now(pending.anchor_ns) is not None:
                answers.append(None)
            else:
                self._blocker = buffer
                return False
        return True

    def _complete(self, pending: _Pending, now_ns: int) -> AlignedSet:
        """The set as it stands: of streams without a final answer, the best match there is."""
        anchor, anchor_ns, frame = self.anchor, pending.anchor_ns, pending.frame
        frames: dict[str, tuple[Frame, ...]] = {}
        receipts: list[Receipt] = []
        missing: list[str] = []
        if frame is not None:
            frames[anchor] = (frame,)
            self._counts[anchor, USED] += 1
            receipts.append(_receipt(anchor, Match((frame,), "exact"), anchor_ns, now_ns))
        elif anchor:
            receipts.append(Receipt(anchor, "silent", reason=pending.reason))
            missing.append(anchor)
        for buffer, answer in zip_longest(self._in_order, pending.answers):
            if answer is None:
                answer = buffer.final_answer(anchor_ns, pending.arrival_ns, now=self._emit_now)
            if isinstance(answer, Match):
                frames[buffer.stream] = answer.frames
                buffer.mark_used(answer.used or answer.frames)
                receipts.append(_receipt(buffer.stream, answer, anchor_ns, now_ns))
            else:
                receipts.append(answer)
                missing.append(buffer.stream)
            buffer.forget(anchor_ns)
        sent_ns = max(now_ns, pending.arrival_ns)
        return AlignedSet(anchor, anchor_ns, frames, tuple(receipts), tuple(missing), pending.arrival_ns, sent_ns)


class _Pending(msgspec.Struct, gc=False):
    """An anchor whose set waits for the answers of the other streams."""

    anchor_ns: int
    arrival_ns: int
    deadline_ns: int
    frame: Frame | None = None
    reason: str = ""  # why no frame started it
    # Answers of the first streams, in order. A Receipt: why there is no match. None: the best there is will do.
    answers: list[Match | Receipt | None] = []  # msgspec copies the default


class _Ticks:
    """Anchors that no frame starts: those of a fixed rate, or stand-ins for a silent anchor stream.

    Stand-ins begin when the anchor has been silent for SILENT_AFTER_NS or five of its periods, and continue at its last
    rate.
    """

    def __init__(self, start_ns: int, period_ns: int, *, free_running: bool = False) -> None:
        self.free_running = free_running
        self.period_ns = period_ns
        self._reason = ""
        self._is_returning = False  # it waits for the anchor stream, see anchor_is_behind
        self.silent_until_ns = 0
        self._captures: list[int] = []
        self._silent_after_ns = max(SILENT_AFTER_NS, 5 * period_ns)
        self.anchor_ns = self.arrival_ns = start_ns + (0 if free_running else self._silent_after_ns)

    def anchor_arrived(self, capture_ns: int, arrival_ns: int) -> None:
        """A frame of the anchor stream arrived: stand-ins begin again after it."""
        self._captures.append(capture_ns)
        if len(self._captures) > PERIOD_INTERVALS:
            self.period_ns = max(MS, round(median(b - a for a, b in pairwise(self._captures))))
            self._silent_after_ns = max(SILENT_AFTER_NS, 5 * self.period_ns)
            del self._captures[:-1]
        self._reason, self._is_returning = "", False
        self.anchor_ns, self.arrival_ns = capture_ns + self._silent_after_ns, arrival_ns + self._silent_after_ns

    def anchor_is_behind(self, by_ns: int, arrival_ns: int) -> None:
        """A frame arrived whose place a stand-in has taken: the stream is back. Stand-ins wait until it has caught up.

        Went they on, each of its frames might come too late for ever: a tick is always a little ahead of a stream that
        comes back in the same phase, or with a longer delay.
        """
        if not self._is_returning and by_ns <= MAX_BEHIND_NS:
            self._is_returning = True
            wait_ns = max(0, arrival_ns + by_ns + self._silent_after_ns - self.arrival_ns)
            self.anchor_ns += wait_ns
            self.arrival_ns += wait_ns

    def anchor_is_silent(self, reason: str, until_ns: int) -> None:
        """The anchor stream declared silence until `until_ns`. FOREVER_NS: it has ended, and so do the sets."""
        self._reason = reason
        self._captures.clear()  # the gap that follows is not a period
        self.silent_until_ns = max(self.silent_until_ns, until_ns)
        if until_ns >= FOREVER_NS:
            self.anchor_ns = self.arrival_ns = FOREVER_NS

    def take(self, deadline_ns: int) -> _Pending:
        """The next tick as an anchor."""
        # In proof mode time is the time of the data: a tick arrives at its own anchor time.
        arrival_ns = self.anchor_ns if deadline_ns == FOREVER_NS else self.arrival_ns
        tick = _Pending(self.anchor_ns, arrival_ns, deadline_ns, None, self._reason or "no frames arrive")
        self.anchor_ns += self.period_ns
        self.arrival_ns += self.period_ns
        return tick


def _receipt(name: str, match: Match, anchor_ns: int, now_ns: int) -> Receipt:
    used = match.used or match.frames
    first, last = used[0], used[-1]
    if first is last and not first.duration_ns:  # the commonest case; this runs for every stream of every set
        skew_ns = first.capture_ns - anchor_ns
        age_ns = now_ns - first.capture_ns
        return Receipt(name, match.state, (first.seq,), 0, skew_ns, age_ns, first.clock_error_ns, match.reason)
    if match.used:
        skew_ns = 0
    else:
        # A chunk that covers the anchor has no skew; for one before it, the skew is the distance to its end.
        near = min(match.frames, key=lambda f: max(f.capture_ns - anchor_ns, anchor_ns - f.end_ns, 0))
        skew_ns = near.capture_ns - anchor_ns if near.capture_ns > anchor_ns else min(0, near.end_ns - anchor_ns)
    return Receipt(
        name,
        match.state,
        tuple([frame.seq for frame in used]),
        span_ns=last.end_ns - first.capture_ns,
        skew_ns=skew_ns,
        age_ns=now_ns - last.end_ns,
        clock_error_ns=max([frame.clock_error_ns for frame in used]),
        reason=match.reason,
    )
