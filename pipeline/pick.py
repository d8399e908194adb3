"""Pick rules: which frames of a stream belong to an anchor. Pure; a new rule is one class with these two methods.

A rule is asked with the frames at hand and the time before which the stream is complete, and gives one of three answers:
`Found`, `Nothing`, or `WAIT` when a frame that may still come could change the answer.

    Nearest(within_ms=20).answer(frames, anchor_ns, complete_before_ns)      # Found((frame,), "nearest") | Nothing(…) | WAIT

Rules and their three answers follow the interpolators of Microsoft \\psi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.frame import Frame, ReceiptState

MS = 1_000_000
# Chunks are stamped by a fitted sample clock; neighbours may disagree by its error without a sample being missing.
SEAM_NS = MS


class Found(NamedTuple):
    frames: tuple[Frame, ...]
    state: ReceiptState
    reason: str = ""


class Nothing(NamedTuple):
    reason: str


class Wait(NamedTuple):
    pass


WAIT = Wait()
Answer = Found | Nothing | Wait


class Pick(Protocol):
    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        """frames: in rising capture_ns. Every frame with capture_ns < complete_before_ns is among them or was dropped.

        Must not answer WAIT when complete_before_ns is pipeline.frame.FOREVER_NS: then this is all there will be.
        """
        ...

    def forget_before_ns(self, anchor_ns: int) -> int:
        """Frames that end before this time serve no anchor at or after `anchor_ns` (the newest of them is kept)."""
        ...


def count_until(frames: Sequence[Frame], when_ns: int) -> int:
    """How many frames have capture_ns <= when_ns. Anchors lie near the end, so this looks from there."""
    i = len(frames)
    while i and frames[i - 1].capture_ns > when_ns:
        i -= 1
    return i


@dataclass(frozen=True)
class Nearest:
    """The frame nearest in time, at most `within_ms` away on either side."""

    within_ms: float = 50.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        within_ns = round(self.within_ms * MS)
        i = count_until(frames, anchor_ns)
        before = frames[i - 1] if i else None
        after = frames[i] if i < len(frames) else None
        best = before
        if after is not None and (before is None or after.capture_ns - anchor_ns < anchor_ns - before.capture_ns):
            best = after
        # Nearer than the best is only what lies strictly inside its distance; the older side is complete already.
        needed_ns = within_ns + 1 if best is None else min(abs(best.capture_ns - anchor_ns), within_ns + 1)
        if after is None and complete_before_ns < anchor_ns + needed_ns:
            return WAIT
        if best is None:
            return Nothing("no frame yet")
        skew_ns = best.capture_ns - anchor_ns
        if abs(skew_ns) > within_ns:
            return Nothing(f"the nearest is {skew_ns / MS:+.1f} ms away, tolerance {self.within_ms:g} ms")
        if skew_ns == 0:
            return Found((best,), "exact")
        if within_ns < best.clock_error_ns:
            error_ms = best.clock_error_ns / MS
            return Found((best,), "nearest", f"tolerance {self.within_ms:g} ms is finer than the clock error {error_ms:.1f} ms")
        return Found((best,), "nearest")

    def forget_before_ns(self, anchor_ns: int) -> int:
        return anchor_ns - round(self.within_ms * MS)


@dataclass(frozen=True)
class Latest:
    """The last frame at or before the anchor, at most `max_age_ms` old."""

    max_age_ms: float = 200.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        i = count_until(frames, anchor_ns)
        if i == len(frames) and complete_before_ns <= anchor_ns:
            return WAIT
        if i == 0:
            return Nothing("no frame before the anchor")
        frame = frames[i - 1]
        age_ns = anchor_ns - frame.end_ns
        if age_ns > self.max_age_ms * MS:
            return Nothing(f"the latest is {age_ns / MS:.0f} ms old, at most {self.max_age_ms:g} ms allowed")
        return Found((frame,), "exact" if frame.capture_ns == anchor_ns else "held")

    def forget_before_ns(self, anchor_ns: int) -> int:
        return anchor_ns


@dataclass(frozen=True)
class Window:
    """Every frame that overlaps [anchor − before_ms, anchor + after_ms]; for sampled streams exact to the sample."""

    before_ms: float = 1000.0
    after_ms: float = 0.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        begin_ns, end_ns = anchor_ns - round(self.before_ms * MS), anchor_ns + round(self.after_ms * MS)
        if complete_before_ns < end_ns:
            return WAIT
        covered_to_ns = begin_ns
        missing_ns = 0
        inside = []
        for frame in frames:
            if frame.end_ns <= begin_ns and frame.capture_ns != begin_ns:
                continue
            if frame.capture_ns > end_ns or (frame.duration_ns and frame.capture_ns == end_ns):
                break
            inside.append(frame)
            if frame.capture_ns - covered_to_ns > SEAM_NS:
                missing_ns += frame.capture_ns - covered_to_ns
            covered_to_ns = max(covered_to_ns, frame.end_ns)
        if not inside:
            return Nothing("nothing in the window")
        if inside[0].duration_ns == 0:  # instants have no coverage: the window holds what there was
            return Found(tuple(inside), "exact")
        if end_ns - covered_to_ns > SEAM_NS:
            missing_ns += end_ns - covered_to_ns
        if missing_ns:
            whole_ms = self.before_ms + self.after_ms
            return Found(tuple(inside), "partial", f"{missing_ns / MS:.0f} of {whole_ms:.0f} ms are missing")
        return Found(tuple(inside), "exact")

    def forget_before_ns(self, anchor_ns: int) -> int:
        return anchor_ns - round(self.before_ms * MS)
