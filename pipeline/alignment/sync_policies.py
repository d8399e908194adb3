"""Sync policies: which frames of a stream belong to an anchor. Pure; a new policy is one class (see SyncPolicy).

A policy gets the buffered frames and the time before which the stream is complete. It returns one of three answers:
`Match`, `NoMatch`, or `WAIT` when a frame that has not arrived yet could change the answer.

Policies and their three answers follow the interpolators of Microsoft \\psi.

Example:
    policy = Nearest(within_ms=20)
    policy.answer(frames, anchor_ns, complete_before_ns)      # Match((frame,), "nearest") | NoMatch(reason) | WAIT
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


# A struct, because one is built for every stream of every set: it takes a third of a named tuple's time.
class Match(msgspec.Struct, frozen=True, gc=False):
    """The frames that belong to the anchor."""

    frames: tuple[Frame, ...]
    state: ReceiptState
    reason: str = ""
    used: tuple[Frame, ...] = ()  # the frames that `frames` were computed from; empty: themselves


class NoMatch(NamedTuple):
    """No frame belongs to the anchor, and none will."""

    reason: str


class Wait(NamedTuple):
    """A frame that has not arrived yet could change the answer."""


WAIT = Wait()
Answer = Match | NoMatch | Wait


class SyncPolicy(Protocol):
    """How the frames of one stream are matched with an anchor."""

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        """The frames that belong to the anchor, or why there are none, or WAIT.

        Args:
            frames: In rising capture_ns.
            anchor_ns: The capture time of the anchor.
            complete_before_ns: Every frame captured before this is in `frames` or was dropped. FOREVER_NS: no more
                frames will arrive; WAIT is then no valid answer.
        """
        ...

    @property
    def lookback_ns(self) -> int:
        """How long before an anchor it needs frames, beyond the last one at the anchor; older frames are dropped."""
        ...

    @property
    def lookahead_ns(self) -> int:
        """Until the stream is complete up to this long after the anchor, the answer is WAIT and is not asked for."""
        ...


def neighbours(frames: Sequence[Frame], when_ns: int) -> tuple[Frame | None, Frame | None]:
    """The last frame at or before when_ns, and the first after it. Searched from the end: anchors are recent."""
    after = None
    for frame in reversed(frames):
        if frame.capture_ns <= when_ns:
            return frame, after
        after = frame
    return None, after


MAX_MS = 86_400_000.0  # of every option that is a time


@dataclass(frozen=True)
class Nearest:
    """The frame nearest in time to the anchor, before or after it.

    Args:
        within_ms: The most it may be away (ms, ≥ 0). null: half of the stream's own period, which the aligner learns;
            until then, and with `max_wait_ms: null`, 50 ms.
    """

    within_ms: float | None = None
    lookback_ns: ClassVar[int] = 0
    lookahead_ns: ClassVar[int] = 0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        within_ns = self._within_ns
        before, after = neighbours(frames, anchor_ns)
        if after is None:
            # Only a frame strictly closer than the newest one would be nearer; the older side is complete already.
            nearest_ns = min(within_ns + 1, anchor_ns - before.capture_ns) if before else within_ns + 1
            if complete_before_ns < anchor_ns + nearest_ns:
                return WAIT
            if before is None:
                return NoMatch("no frame yet")
            best = before
        elif before is not None and anchor_ns - before.capture_ns <= after.capture_ns - anchor_ns:
            best = before
        else:
            best = after
        skew_ns = best.capture_ns - anchor_ns
        if not -within_ns <= skew_ns <= within_ns:
            return NoMatch(f"the nearest is {skew_ns / MS:+.1f} ms away, tolerance {within_ns / MS:g} ms")
        if within_ns < best.clock_error_ns:
            error_ms = best.clock_error_ns / MS
            return Match(
                (best,), "nearest", f"tolerance {within_ns / MS:g} ms is finer than the clock error {error_ms:.1f} ms"
            )
        return Match((best,), "nearest" if skew_ns else "exact")

    def learned(self, period_ns: int) -> Nearest:
        """The policy for a stream of this period."""
        return Nearest(period_ns / 2 / MS) if self.within_ms is None else self

    @cached_property
    def _within_ns(self) -> int:
        return 50 * MS if self.within_ms is None else round(self.within_ms * MS)


@dataclass(frozen=True)
class Latest:
    """The last frame at or before the anchor.

    Args:
        max_age_ms: The most that the frame's end may lie before the anchor (ms, ≥ 0). Default 200: two sweeps of a
            lidar at 10 Hz.
    """

    max_age_ms: float = 200.0
    lookback_ns: ClassVar[int] = 0
    lookahead_ns: ClassVar[int] = 0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        frame, after = neighbours(frames, anchor_ns)
        if after is None and complete_before_ns <= anchor_ns:
            return WAIT
        if frame is None:
            return NoMatch("no frame before the anchor")
        age_ns = anchor_ns - frame.end_ns
        if age_ns > self.max_age_ms * MS:
            return NoMatch(f"the latest is {age_ns / MS:.0f} ms old, at most {self.max_age_ms:g} ms allowed")
        return Match((frame,), "exact" if frame.capture_ns == anchor_ns else "held")


@dataclass(frozen=True)
class Window:
    """Every frame that overlaps [anchor − before_ms, anchor + after_ms]; for sampled streams, gaps are reported.

    Args:
        before_ms: Where the window begins, before the anchor (ms). Default 1000: what the voice network takes.
        after_ms: Where it ends, after the anchor (ms). A set waits that long. Default 0.
    """

    before_ms: float = 1000.0
    after_ms: float = 0.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        begin_ns, end_ns = anchor_ns - self.lookback_ns, anchor_ns + self.lookahead_ns
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
            return NoMatch("nothing in the window")
        if inside[0].duration_ns == 0:  # instants have no coverage: the window holds what there was
            return Match(tuple(inside), "exact")
        if end_ns - covered_to_ns > SEAM_NS:
            missing_ns += end_ns - covered_to_ns
        if missing_ns:
            whole_ms = self.before_ms + self.after_ms
            return Match(tuple(inside), "partial", f"{missing_ns / MS:.0f} of {whole_ms:.0f} ms are missing")
        return Match(tuple(inside), "exact")

    @cached_property
    def lookback_ns(self) -> int:
        return round(self.before_ms * MS)

    @cached_property
    def lookahead_ns(self) -> int:
        return round(self.after_ms * MS)


@dataclass(frozen=True)
class Interpolate:
    """The value at the anchor, linearly interpolated between its neighbours; for numeric streams (imu_f64, series_f32).

    Args:
        max_gap_ms: The most that the two neighbours may be apart (ms). Default 100.
    """

    max_gap_ms: float = 100.0
    lookback_ns: ClassVar[int] = 0
    lookahead_ns: ClassVar[int] = -FOREVER_NS  # a watermark may prove long before the anchor that the gap is too wide

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        before, after = neighbours(frames, anchor_ns)
        if before and before.capture_ns == anchor_ns:
            return Match((before,), "exact")
        if after is None:
            # Every frame before complete_before_ns is here, so the gap is at least that wide.
            begin_ns = before.capture_ns if before else anchor_ns
            return (
                WAIT if complete_before_ns <= begin_ns + self.max_gap_ms * MS else NoMatch("nothing after the anchor")
            )
        if before is None:
            return NoMatch("nothing before the anchor")
        gap_ns = after.capture_ns - before.capture_ns
        if gap_ns > self.max_gap_ms * MS:
            return NoMatch(f"its neighbours are {gap_ns / MS:.0f} ms apart, at most {self.max_gap_ms:g} ms allowed")
        if before.encoding not in ("imu_f64", "series_f32") or before.data.shape != after.data.shape:
            return NoMatch(f"there is nothing between two frames of '{before.encoding}'")
        share = (anchor_ns - before.capture_ns) / gap_ns
        value = (before.data + (after.data - before.data) * share).astype(before.data.dtype)
        error_ns = max(before.clock_error_ns, after.clock_error_ns)
        between = Frame(before.stream, before.seq, anchor_ns, before.encoding, value, clock_error_ns=error_ns)
        return Match((between,), "interpolated", used=(before, after))


POLICIES: dict[str, type[Any]] = {"nearest": Nearest, "latest": Latest, "window": Window, "interpolate": Interpolate}


def parse_policy(entry: Mapping[str, Any], where: str, *, own: Collection[Mapping[str, Any]] = ()) -> SyncPolicy:
    """A policy as YAML has it: {policy: window, before_ms: 1000} or {policy: "module:Name", …}.

    Args:
        entry: Of the user's config, or of a file, which may come from anybody.
        where: Its place, which begins every error.
        own: The entries of the user's own config. No other may name code: a class is imported only for one of these.

    Raises:
        ValueError: There is no such policy, its options do not fit, or it names code and is not one of `own`.
    """
    options = dict(entry)
    policy = options.pop("policy", None)
    if not isinstance(policy, str):
        raise ValueError(f"{where}: 'policy' is missing. Known: {', '.join(POLICIES)}, or module:Name")
    kind: Any = POLICIES.get(policy)
    if kind is None and ":" in policy:
        if entry not in own:
            raise ValueError(
                f"{where}.policy: '{policy}' names code, and code is run only where your own config names it, with the "
                f"same options: {dict(entry)}"
            )
        kind = find(policy, object, "pipeline", what="sync policy")
        if not all(hasattr(kind, name) for name in ("answer", "lookback_ns", "lookahead_ns")):
            raise ValueError(f"{where}.policy: '{policy}' is no sync policy: it needs what SyncPolicy describes")
    if kind is None:
        known = f"Known: {', '.join(POLICIES)}.{nearest(policy, POLICIES)}"
        raise ValueError(f"{where}.policy: no sync policy called '{policy}'. {known}")
    sync_policy: SyncPolicy = kind(**check_options(kind, options, where))
    for name in options if policy in POLICIES else ():
        value = getattr(sync_policy, name)
        if isinstance(value, float) and not (0 if name != "before_ms" else -MAX_MS) <= value <= MAX_MS:
            raise ValueError(f"{where}.{name}: found {value:g}, expected 0 to {MAX_MS:g} ms (a day)")
    return sync_policy
