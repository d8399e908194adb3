"""What is known of one stream: its recent frames, how far it is complete, when it was silent, how close its frames come.

Answers for one anchor at a time, from what the stream said up to then and never from what it said later: else an answer
would depend on how the streams interleave.

    history = History("lidar", Nearest(within_ms=50), start_ns, live=True, max_frames=512)
    history.add(frame, arrival_ns)
    history.answer(anchor_ns, anchor_arrival_ns)        # Found | Receipt (why there is nothing) | WAIT
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

from msgspec.structs import replace

from pipeline.alignment.sync_policies import MS, WAIT, Answer, Found, Nearest, Nothing, Pick, Wait
from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, Frame, Receipt

STOPPED_AFTER_NS = NS  # a stream that told nothing for so long is not waited for
# The shortest of so many gaps between frames is what the next one is trusted not to undercut.
GAPS = 64
GAPS_TO_TRUST = 8


class _Silence(NamedTuple):
    """Nothing happened in (after_ns, until_ns]."""

    after_ns: int
    until_ns: int
    reason: str


class History:
    """live: answers may be early, by the stream's learned minimum gap, and a stream that stopped without a word is not
    waited for. Not live: only proof counts.
    """

    def __init__(self, stream: str, pick: Pick, start_ns: int, *, live: bool, max_frames: int) -> None:
        self.stream = stream
        self.pick = self._asked_for = pick
        self.frames: deque[Frame] = deque()
        self.complete_before_ns = -FOREVER_NS  # every frame captured before this is here or was dropped
        self.reached_ns = -FOREVER_NS  # the same while the stream lived
        self._live = live
        self._max_frames = max_frames
        self._silences: deque[_Silence] = deque()
        self._late_until_ns = -FOREVER_NS
        self._answered_until_ns = -FOREVER_NS  # answers were given that rest on nothing coming until then
        self._gaps: list[int] = []  # of the current block of GAPS
        self._min_gap_ns = FOREVER_NS  # of this block and the one before
        self._last_block_min_ns = FOREVER_NS
        self._trusts_gaps = False
        self._block = GAPS_TO_TRUST
        self._last_capture_ns = -FOREVER_NS
        self._last_arrival_ns = start_ns

    def add(self, frame: Frame, arrival_ns: int) -> str:
        """Returns what was wrong with it, "" when nothing was."""
        capture_ns = frame.capture_ns
        if frame.encoding == "none":
            self._last_arrival_ns = arrival_ns
            if capture_ns > self.complete_before_ns:
                self._silences.append(_Silence(self.complete_before_ns, capture_ns, frame.reason or "nothing happened"))
                self._complete(capture_ns)
            return ""
        gap_ns = capture_ns - self._last_capture_ns
        if gap_ns <= 0:
            return "duplicate" if frame.seq <= self.frames[-1].seq else "time went back"
        # Here every frame of every stream passes: what is looked up twice is looked up once, and nothing is called for a line.
        if self._live:
            gaps = self._gaps
            gaps.append(gap_ns)
            if gap_ns < self._min_gap_ns:
                self._min_gap_ns = gap_ns
            if len(gaps) == self._block:
                self._learn()
        self._last_capture_ns, self._last_arrival_ns = capture_ns, arrival_ns
        # An instant at t proves everything up to and including t; a chunk proves everything up to its end.
        complete_ns = capture_ns + (frame.duration_ns or 1)
        if complete_ns > self.complete_before_ns:
            self.complete_before_ns = self.reached_ns = complete_ns
        frames = self.frames
        frames.append(frame)
        if len(frames) > self._max_frames:
            frames.popleft()
            return "buffer full"
        if capture_ns <= self._answered_until_ns:
            return "late" if capture_ns <= self._late_until_ns else "sooner than ever before"
        return ""

    def answer(self, anchor_ns: int, arrival_ns: int) -> Found | Receipt | Wait:
        """arrival_ns: of the anchor."""
        answer: Answer | Receipt = WAIT
        if self.complete_before_ns >= anchor_ns + self.pick.ahead_ns:
            answer = self.pick.answer(self.frames, anchor_ns, self.complete_before_ns)
        if self._live and isinstance(answer, Wait):
            answer = self._answer_early(anchor_ns, arrival_ns)
        if isinstance(answer, Nothing):
            return self._silent(anchor_ns) or Receipt(self.stream, "absent", reason=answer.reason)
        return answer

    def final_answer(self, anchor_ns: int, arrival_ns: int, *, now: bool) -> Found | Receipt:
        """When the set goes out. now: though something better may be on its way."""
        answer = self.answer(anchor_ns, arrival_ns)
        if not isinstance(answer, Wait):
            return answer
        return (self.answer_now(anchor_ns) if now else None) or self._answer_at_deadline(anchor_ns)

    def answer_now(self, anchor_ns: int) -> Found | None:
        """What there is, though something better may be on its way."""
        answer = self.pick.answer(self.frames, anchor_ns, FOREVER_NS)
        return answer if isinstance(answer, Found) else None

    def _answer_at_deadline(self, anchor_ns: int) -> Found | Receipt:
        answer = self.pick.answer(self.frames, anchor_ns, FOREVER_NS)
        self._late_until_ns = anchor_ns
        self._answered_until_ns = max(self._answered_until_ns, anchor_ns)
        if isinstance(answer, Found):
            if answer.state == "nearest":
                return replace(answer, reason="at the deadline: a nearer one may have come later")
            return answer
        if self.complete_before_ns == -FOREVER_NS:
            return Receipt(self.stream, "absent", reason="no frame yet")
        behind_ms = (anchor_ns - self.complete_before_ns) / MS
        found = f": {answer.reason}" if isinstance(answer, Nothing) else ""
        late = Receipt(
            self.stream, "late", reason=f"at the deadline its data ended {behind_ms:.0f} ms before the anchor{found}"
        )
        return self._silent(anchor_ns) or late

    def forget(self, anchor_ns: int) -> None:
        """No anchor before this one will be asked about again."""
        frames = self.frames
        horizon_ns = anchor_ns - self.pick.reach_ns
        while len(frames) > 1 and frames[1].capture_ns <= horizon_ns:
            frames.popleft()
        silences = self._silences
        while silences and silences[0].until_ns < anchor_ns:
            silences.popleft()

    def _answer_early(self, anchor_ns: int, arrival_ns: int) -> Answer | Receipt:
        idle_ns = arrival_ns - self._last_arrival_ns
        if idle_ns > STOPPED_AFTER_NS:
            answer = self.pick.answer(self.frames, anchor_ns, FOREVER_NS)
            if isinstance(answer, Nothing):
                return Receipt(self.stream, "silent", reason=f"nothing arrived for {idle_ns / NS:.1f} s")
            return answer
        if not self._trusts_gaps:
            return WAIT
        trusted_ns = self._last_capture_ns + self._min_gap_ns
        if trusted_ns <= self.complete_before_ns:  # chunks and sweeps already prove as much by their length
            return WAIT
        answer = self.pick.answer(self.frames, anchor_ns, trusted_ns)
        if not isinstance(answer, Wait):
            self._answered_until_ns = trusted_ns - 1
            if isinstance(answer, Found):
                answer = Found(answer.frames, "predicted", answer.reason, answer.used)
        return answer

    def _learn(self) -> None:
        """A block of gaps is full. Two blocks are remembered, so a rate that falls is believed after 64 to 128 frames."""
        block_min_ns = min(self._gaps)
        self._min_gap_ns = min(block_min_ns, self._last_block_min_ns)
        self._last_block_min_ns = block_min_ns
        self._trusts_gaps, self._block = True, GAPS
        if isinstance(self._asked_for, Nearest):
            self.pick = self._asked_for.learned(round(median(self._gaps)))
        self._gaps.clear()

    def _complete(self, before_ns: int) -> None:
        self.complete_before_ns = before_ns
        if before_ns < FOREVER_NS:
            self.reached_ns = before_ns

    def _silent(self, when_ns: int) -> Receipt | None:
        for silence in self._silences:
            if silence.after_ns < when_ns <= silence.until_ns:
                return Receipt(self.stream, "silent", reason=silence.reason)
        return None
