"""The buffer of one stream: its recent frames, how far it is complete, when it was silent, its minimum interval.

It answers for one anchor at a time, from what arrived up to then and never from what arrived later: otherwise an answer
would depend on how the streams interleave.

Example:
    buffer = StreamBuffer("lidar", Nearest(within_ms=50), start_ns, live=True, max_frames=512)
    buffer.add(frame, arrival_ns)
    buffer.answer(anchor_ns, anchor_arrival_ns)        # Match | Receipt (why there is no match) | WAIT
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from msgspec.structs import replace

from pipeline.alignment.sync_policies import MS, WAIT, Answer, Match, Nearest, NoMatch, SyncPolicy, Wait
from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, Frame, Receipt

STOPPED_AFTER_NS = NS  # a stream from which nothing arrived for this long is not waited for
# Number of intervals between frames whose minimum is trusted as a lower bound of the next one; fewer at the start.
INTERVALS = 64
FIRST_INTERVALS = 8

# Why a frame is in no set although one might have wanted it, as summaries and recordings hold it.
LATE, BUFFER_FULL, DUPLICATE = "late", "buffer full", "duplicate"
BACK_IN_TIME = "timestamp before the last one"
EARLIER_THAN_PREDICTED = "earlier than its rate predicts"


class _Silence(NamedTuple):
    """Nothing happened in (after_ns, until_ns]."""

    after_ns: int
    until_ns: int
    reason: str


class StreamBuffer:
    """The frames of one stream that anchors may still match, and what is known of the stream's timing.

    Args:
        stream: Its name.
        policy: How its frames are matched with an anchor.
        start_ns: When the run began; silence counts from there.
        live: Answers may come early, by the stream's learned minimum interval, and a stream that stopped without a
            watermark is not waited for. False: only proof counts.
        max_frames: Frames that are buffered; the oldest is dropped.
    """

    def __init__(self, stream: str, policy: SyncPolicy, start_ns: int, *, live: bool, max_frames: int) -> None:
        self.stream = stream
        self.policy = self._configured_policy = policy
        self.frames: deque[Frame] = deque()
        self.complete_before_ns = -FOREVER_NS  # every frame captured before this is here or was dropped
        self.reached_ns = -FOREVER_NS  # the same, until the stream ended
        self._live = live
        self._max_frames = max_frames
        self._silences: deque[_Silence] = deque()
        self._late_until_ns = -FOREVER_NS
        self._answered_until_ns = -FOREVER_NS  # answers were sent that assume no further frame before this
        self._intervals_ns: list[int] = []  # of the current block
        self._min_interval_ns = FOREVER_NS  # of this block and the one before
        self._last_block_min_ns = FOREVER_NS
        self._trusts_intervals = False
        self._block_length = FIRST_INTERVALS
        self._last_capture_ns = -FOREVER_NS
        self._last_arrival_ns = start_ns
        # What became of the frames that are no longer here; each is in exactly one of the three.
        self.used = self.unused = 0
        self.dropped: Counter[str] = Counter()  # by reason
        self._used_ns: set[int] = set()  # capture times of buffered frames that are in a set
        self._unusual: dict[int, str] = {}  # capture time of a buffered frame → why it may have missed its sets

    def add(self, frame: Frame, arrival_ns: int) -> None:
        """Buffer a frame, or take note of a watermark."""
        capture_ns = frame.capture_ns
        if frame.encoding == "none":
            self._last_arrival_ns = arrival_ns
            self.used += frame.seq >= 0  # below 0: the aligner's own, which nobody sent
            if capture_ns > self.complete_before_ns:
                self._silences.append(_Silence(self.complete_before_ns, capture_ns, frame.reason or "nothing happened"))
                self._mark_complete(capture_ns)
            return
        interval_ns = capture_ns - self._last_capture_ns
        if interval_ns <= 0:
            self.dropped[DUPLICATE if frame.seq <= self.frames[-1].seq else BACK_IN_TIME] += 1
            return
        # Hot path, runs for every frame: attribute look-ups are hoisted, helpers inlined.
        if self._live:
            intervals_ns = self._intervals_ns
            intervals_ns.append(interval_ns)
            if interval_ns < self._min_interval_ns:
                self._min_interval_ns = interval_ns
            if len(intervals_ns) == self._block_length:
                self._learn()
        self._last_capture_ns, self._last_arrival_ns = capture_ns, arrival_ns
        # An instant at t proves everything up to and including t; a chunk proves everything up to its end.
        complete_ns = capture_ns + (frame.duration_ns or 1)
        if complete_ns > self.complete_before_ns:
            self.complete_before_ns = self.reached_ns = complete_ns
        frames = self.frames
        frames.append(frame)
        if len(frames) > self._max_frames:
            self._unusual.setdefault(frames[0].capture_ns, BUFFER_FULL)
            self._count_out(frames.popleft().capture_ns)
        elif capture_ns <= self._answered_until_ns:
            self._unusual[capture_ns] = LATE if capture_ns <= self._late_until_ns else EARLIER_THAN_PREDICTED

    def answer(self, anchor_ns: int, arrival_ns: int) -> Match | Receipt | Wait:
        """anchor_ns, arrival_ns: when the anchor was captured and when it arrived."""
        answer: Answer | Receipt = WAIT
        if self.complete_before_ns >= anchor_ns + self.policy.lookahead_ns:
            answer = self.policy.answer(self.frames, anchor_ns, self.complete_before_ns)
        if self._live and isinstance(answer, Wait):
            answer = self._answer_early(anchor_ns, arrival_ns)
        if isinstance(answer, NoMatch):
            return self._silent(anchor_ns) or Receipt(self.stream, "absent", reason=answer.reason)
        return answer

    def final_answer(self, anchor_ns: int, arrival_ns: int, *, now: bool) -> Match | Receipt:
        """The answer when the set is sent. now: use the best match there is, though a nearer frame may come."""
        answer = self.answer(anchor_ns, arrival_ns)
        if not isinstance(answer, Wait):
            return answer
        return (self.answer_now(anchor_ns) if now else None) or self._answer_at_deadline(anchor_ns)

    def answer_now(self, anchor_ns: int) -> Match | None:
        """The best match there is, though a nearer frame may be on its way."""
        answer = self.policy.answer(self.frames, anchor_ns, FOREVER_NS)
        return answer if isinstance(answer, Match) else None

    def _answer_at_deadline(self, anchor_ns: int) -> Match | Receipt:
        answer = self.policy.answer(self.frames, anchor_ns, FOREVER_NS)
        self._late_until_ns = anchor_ns
        self._answered_until_ns = max(self._answered_until_ns, anchor_ns)
        if isinstance(answer, Match):
            if answer.state == "nearest":
                return replace(answer, reason="at the deadline: a nearer one may have come later")
            return answer
        if self.complete_before_ns == -FOREVER_NS:
            return Receipt(self.stream, "absent", reason="no frame yet")
        behind_ms = (anchor_ns - self.complete_before_ns) / MS
        detail = f": {answer.reason}" if isinstance(answer, NoMatch) else ""
        late = Receipt(
            self.stream, "late", reason=f"at the deadline its data ended {behind_ms:.0f} ms before the anchor{detail}"
        )
        return self._silent(anchor_ns) or late

    def forget(self, anchor_ns: int) -> None:
        """No anchor before this one will be asked for again: drop the frames that only such anchors could match."""
        frames = self.frames
        horizon_ns = anchor_ns - self.policy.lookback_ns
        while len(frames) > 1 and frames[1].capture_ns <= horizon_ns:
            self._count_out(frames.popleft().capture_ns)
        silences = self._silences
        while silences and silences[0].until_ns < anchor_ns:
            silences.popleft()

    def mark_used(self, frames: Sequence[Frame]) -> None:
        """These frames are in a set."""
        used_ns = self._used_ns
        for frame in reversed(frames):
            if frame.capture_ns in used_ns:
                return  # and so are those before it, since the frames of a set follow each other
            used_ns.add(frame.capture_ns)

    def finish(self) -> None:
        """No more sets will be sent."""
        while self.frames:
            self._count_out(self.frames.popleft().capture_ns)

    def _count_out(self, capture_ns: int) -> None:
        """A frame leaves the buffer: it was used, or had a reason to miss its sets, or no set wanted it."""
        if capture_ns in self._used_ns:
            self._used_ns.discard(capture_ns)
            self._unusual.pop(capture_ns, None)
            self.used += 1
        elif self._unusual and (reason := self._unusual.pop(capture_ns, "")):
            self.dropped[reason] += 1
        else:
            self.unused += 1

    def _answer_early(self, anchor_ns: int, arrival_ns: int) -> Answer | Receipt:
        idle_ns = arrival_ns - self._last_arrival_ns
        if idle_ns > STOPPED_AFTER_NS:
            answer = self.policy.answer(self.frames, anchor_ns, FOREVER_NS)
            if isinstance(answer, NoMatch):
                return Receipt(self.stream, "silent", reason=f"nothing arrived for {idle_ns / NS:.1f} s")
            return answer
        if not self._trusts_intervals:
            return WAIT
        trusted_ns = self._last_capture_ns + self._min_interval_ns
        if trusted_ns <= self.complete_before_ns:  # the length of chunks and sweeps already proves as much
            return WAIT
        answer = self.policy.answer(self.frames, anchor_ns, trusted_ns)
        if not isinstance(answer, Wait):
            self._answered_until_ns = trusted_ns - 1
            if isinstance(answer, Match):
                answer = Match(answer.frames, "predicted", answer.reason, answer.used)
        return answer

    def _learn(self) -> None:
        """A block of intervals is full. The minimum is over two blocks, so a lower one is forgotten after 64 to 128."""
        block_min_ns = min(self._intervals_ns)
        self._min_interval_ns = min(block_min_ns, self._last_block_min_ns)
        self._last_block_min_ns = block_min_ns
        self._trusts_intervals, self._block_length = True, INTERVALS
        if isinstance(self._configured_policy, Nearest):
            self.policy = self._configured_policy.learned(round(median(self._intervals_ns)))
        self._intervals_ns.clear()

    def _mark_complete(self, before_ns: int) -> None:
        self.complete_before_ns = before_ns
        if before_ns < FOREVER_NS:
            self.reached_ns = before_ns

    def _silent(self, when_ns: int) -> Receipt | None:
        for silence in self._silences:
            if silence.after_ns < when_ns <= silence.until_ns:
                return Receipt(self.stream, "silent", reason=silence.reason)
        return None
