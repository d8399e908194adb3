"""Pick rules: which frames of a stream belong to an anchor. Pure; a new rule is one class with these two methods.

A rule is asked with the frames at hand and the time before which the stream is complete, and gives one of three answers:
`Found`, `Nothing`, or `WAIT` when a frame that may still come could change the answer.

    Nearest(within_ms=20).answer(frames, anchor_ns, complete_before_ns)      # Found((frame,), "nearest") | Nothing(…) | WAIT

Rules and their three answers follow the interpolators of Microsoft \\psi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from pipeline.errors import nearest
from pipeline.frame import FOREVER_NS, Frame, ReceiptState
from pipeline.plugins import check_options, find

MS = 1_000_000
# Chunks are stamped by a fitted sample clock; neighbours may disagree by its error without a sample being missing.
SEAM_NS = MS


class Found(
    msgspec.Struct, frozen=True, gc=False
):  # made for every stream of every set: a third of a named tuple's time
    """used: what `frames` were made from, where that is not themselves."""

    frames: tuple[Frame, ...]
    state: ReceiptState
    reason: str = ""
    used: tuple[Frame, ...] = ()


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

    @property
    def reach_ns(self) -> int:
        """How long before an anchor it looks, beyond the newest frame there: what is older serves no anchor from there on."""
        ...

    @property
    def ahead_ns(self) -> int:
        """Until the stream is complete up to this long after the anchor the answer is WAIT, and need not be asked for."""
        ...


def around(frames: Sequence[Frame], when_ns: int) -> tuple[Frame | None, Frame | None]:
    """The last frame at or before when_ns, and the first after it. Anchors lie near the end, so this looks from there."""
    after = None
    for frame in reversed(frames):
        if frame.capture_ns <= when_ns:
            return frame, after
        after = frame
    return None, after


@dataclass(frozen=True)
class Nearest:
    """The frame nearest in time, at most `within_ms` away on either side.

    within_ms None: half of the stream's own period, which the aligner learns; until then, and in proof mode, 50 ms.
    """

    within_ms: float | None = None
    reach_ns: ClassVar[int] = 0
    ahead_ns: ClassVar[int] = 0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        within_ns = self._within_ns
        before, after = around(frames, anchor_ns)
        if after is None:
            # Nearer than the newest is only what lies strictly inside its distance; the older side is complete already.
            nearest_ns = min(within_ns + 1, anchor_ns - before.capture_ns) if before else within_ns + 1
            if complete_before_ns < anchor_ns + nearest_ns:
                return WAIT
            if before is None:
                return Nothing("no frame yet")
            best = before
        elif before is not None and anchor_ns - before.capture_ns <= after.capture_ns - anchor_ns:
            best = before
        else:
            best = after
        skew_ns = best.capture_ns - anchor_ns
        if not -within_ns <= skew_ns <= within_ns:
            return Nothing(f"the nearest is {skew_ns / MS:+.1f} ms away, tolerance {within_ns / MS:g} ms")
        if within_ns < best.clock_error_ns:
            error_ms = best.clock_error_ns / MS
            return Found(
                (best,), "nearest", f"tolerance {within_ns / MS:g} ms is finer than the clock error {error_ms:.1f} ms"
            )
        return Found((best,), "nearest" if skew_ns else "exact")

    def learned(self, period_ns: int) -> Nearest:
        """The rule for a stream of this period."""
        return Nearest(period_ns / 2 / MS) if self.within_ms is None else self

    @cached_property
    def _within_ns(self) -> int:
        return 50 * MS if self.within_ms is None else round(self.within_ms * MS)


@dataclass(frozen=True)
class Latest:
    """The last frame at or before the anchor, at most `max_age_ms` old."""

    max_age_ms: float = 200.0
    reach_ns: ClassVar[int] = 0
    ahead_ns: ClassVar[int] = 0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        frame, after = around(frames, anchor_ns)
        if after is None and complete_before_ns <= anchor_ns:
            return WAIT
        if frame is None:
            return Nothing("no frame before the anchor")
        age_ns = anchor_ns - frame.end_ns
        if age_ns > self.max_age_ms * MS:
            return Nothing(f"the latest is {age_ns / MS:.0f} ms old, at most {self.max_age_ms:g} ms allowed")
        return Found((frame,), "exact" if frame.capture_ns == anchor_ns else "held")


@dataclass(frozen=True)
class Window:
    """Every frame that overlaps [anchor − before_ms, anchor + after_ms]; for sampled streams exact to the sample."""

    before_ms: float = 1000.0
    after_ms: float = 0.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        begin_ns, end_ns = anchor_ns - self.reach_ns, anchor_ns + self.ahead_ns
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

    @cached_property
    def reach_ns(self) -> int:
        return round(self.before_ms * MS)

    @cached_property
    def ahead_ns(self) -> int:
        return round(self.after_ms * MS)


@dataclass(frozen=True)
class Interpolate:
    """The value at the anchor, on the straight line between its neighbours, at most `max_gap_ms` apart; numeric streams."""

    max_gap_ms: float = 100.0
    reach_ns: ClassVar[int] = 0
    ahead_ns: ClassVar[int] = -FOREVER_NS  # a silence may tell long before that the gap is too wide

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        before, after = around(frames, anchor_ns)
        if before and before.capture_ns == anchor_ns:
            return Found((before,), "exact")
        if after is None:
            # Every frame before complete_before_ns is here, so the gap is at least that wide.
            begin_ns = before.capture_ns if before else anchor_ns
            return (
                WAIT if complete_before_ns <= begin_ns + self.max_gap_ms * MS else Nothing("nothing after the anchor")
            )
        if before is None:
            return Nothing("nothing before the anchor")
        gap_ns = after.capture_ns - before.capture_ns
        if gap_ns > self.max_gap_ms * MS:
            return Nothing(f"its neighbours are {gap_ns / MS:.0f} ms apart, at most {self.max_gap_ms:g} ms allowed")
        if before.encoding not in ("imu_f64", "series_f32") or before.data.shape != after.data.shape:
            return Nothing(f"there is nothing between two frames of '{before.encoding}'")
        share = (anchor_ns - before.capture_ns) / gap_ns
        value = (before.data + (after.data - before.data) * share).astype(before.data.dtype)
        error_ns = max(before.clock_error_ns, after.clock_error_ns)
        between = Frame(before.stream, before.seq, anchor_ns, before.encoding, value, clock_error_ns=error_ns)
        return Found((between,), "interpolated", used=(before, after))


POLICIES: dict[str, type[Any]] = {"nearest": Nearest, "latest": Latest, "window": Window, "interpolate": Interpolate}


def from_rule(rule: Mapping[str, Any], where: str) -> Pick:
    """A rule as the YAML has it: {policy: window, before_ms: 1000}, or {policy: "module:Name", …}. Raises ValueError."""
    options = dict(rule)
    policy = options.pop("policy", None)
    if not isinstance(policy, str):
        raise ValueError(f"{where}: 'policy' is missing. Known: {', '.join(POLICIES)}, or module:Name")
    kind: Any = find(policy, object, "pipeline", what="sync policy") if ":" in policy else POLICIES.get(policy)
    if kind is None:
        raise ValueError(
            f"{where}.policy: no sync policy called '{policy}'. Known: {', '.join(POLICIES)}.{nearest(policy, POLICIES)}"
        )
    pick: Pick = kind(**check_options(kind, options, where))
    return pick
