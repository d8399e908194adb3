"""The way ahead: clear, caution, blocked or unknown, and why. A pure function over evidence.

"clear" needs fresh evidence that the corridor was seen free, all along. What is old, frozen, cut or hidden makes it
"unknown", never "clear". Worst first: blocked, unknown, caution, clear.

    corridor = Corridor(width_m=2.0, length_m=20.0, stop_m=6.0)
    decide(corridor, at_ns, views, things).because      # ("obstacle 7 at 4.2 m, closing at 3.1 m/s",)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.scene_state import FREE, OCCUPIED, Ahead, AheadState, FreeSpace

Outline = Sequence[tuple[float, float]]

STATES: tuple[str, ...] = get_args(AheadState)
MAX_AGE_NS = 300_000_000  # three sweeps of 10 Hz
FUTURE_NS = 1_000_000_000  # a cloud newer than the moment asked about by more than this: one of the two clocks jumped
SEEN_SHARE = 0.6  # of the cells across the corridor
GAP_M = 1.5  # of the corridor that may stay unseen on the way: between the rings of a lidar with few beams
BLOCKED_TTC_S, CAUTION_TTC_S = 2.0, 4.0
CROSSING_S, CROSSING_STEP_S = 3.0, 0.25
MOVES_MPS, MIN_CLOSING_MPS = 0.5, 0.3
PERSON_M = 5.0  # a person this near is a reason for care, in the corridor or beside it
PERSON = "person"
SAME_M = 0.5  # nearest points that differ by less are one thing's


@dataclass(frozen=True)
class Corridor:
    """What the rig is going to need of the world: straight on, width_m wide, from front_m (its own front, over the base
    frame's origin) to length_m. Something within stop_m of the front blocks it. blind_m: how near to the base frame's
    origin the ground may stay unseen, as no sensor looks at its own feet.
    """

    width_m: float = 2.0
    length_m: float = 20.0
    stop_m: float = 6.0
    front_m: float = 0.0
    blind_m: float = 5.0

    def __post_init__(self) -> None:
        if not (self.width_m > 0 and 0 <= self.front_m and 0 < self.stop_m <= self.length_m and self.blind_m >= 0):
            raise ValueError(
                f"corridor: width {self.width_m:g} m, stop {self.stop_m:g} m, length {self.length_m:g} m: expected width above 0 "
                "and stop from above 0 to length"
            )

    def __str__(self) -> str:
        return f"{self.width_m:g} m wide, {self.length_m:g} m long"

    @classmethod
    def at_speed(
        cls,
        speed_mps: float,
        *,
        width_m: float = 2.0,
        front_m: float = 0.0,
        blind_m: float = 5.0,
        reaction_s: float = 1.0,
        braking_mps2: float = 3.0,
    ) -> Corridor:
        """As long as it takes to stop at speed_mps, with 2 m to spare; it looks twice as far."""
        stop_m = 2.0 + speed_mps * reaction_s + speed_mps**2 / (2 * braking_mps2)
        return cls(width_m=width_m, length_m=2 * stop_m, stop_m=stop_m, front_m=front_m, blind_m=blind_m)


class View(NamedTuple):
    """What one stream has seen, as of end_ns (its newest cloud's last point)."""

    stream: str
    end_ns: int
    places_m: npt.NDArray[np.float32]  # (k, 2) of what stands in the way
    grid: FreeSpace | None
    why: str = ""  # why it is no evidence that anything is free: no ground seen, the same data again under a new time


class Thing(NamedTuple):
    """Something at a place: a tracked obstacle, or what a camera saw and something measured."""

    name: str  # for people: "obstacle 7", "person"
    outline_m: Outline  # x, y of its corners in turn, or of one point; base frame
    velocity_mps: tuple[float, float] | None = None
    label: str = ""
    ghost: bool = False  # carried on from before: it was not seen in the newest sweep


@dataclass
class _Found:
    """Reasons by state."""

    blocked: list[str] = field(default_factory=list)
    caution: list[str] = field(default_factory=list)
    nearest_m: float | None = None
    ttc_s: float | None = None

    def at(self, range_m: float) -> None:
        self.nearest_m = range_m if self.nearest_m is None else min(self.nearest_m, range_m)

    def reached(self, ttc_s: float) -> None:
        self.ttc_s = ttc_s if self.ttc_s is None else min(self.ttc_s, ttc_s)


def decide(
    corridor: Corridor,
    at_ns: int,
    views: Sequence[View],
    things: Sequence[Thing] = (),
    *,
    closing_mps: float | None = None,
    max_age_ns: int = MAX_AGE_NS,
    absent: Sequence[str] = (),
) -> Ahead:
    """at_ns: now, which the freshness of each view is told by. closing_mps: by how much the nearest thing in the corridor is
    known to come nearer, where that is known without a track (a wall). absent: reasons of the caller's, in words, why
    evidence is missing that there should be; they are told, and decide nothing.
    """
    near = [v for v in views if is_fresh(v, at_ns, max_age_ns)]
    fresh = [v for v in near if not v.why]
    found = _Found()
    for thing in things:
        _weigh(found, corridor, thing)
    _weigh_places(found, corridor, near, closing_mps)
    if found.blocked:
        return Ahead("blocked", (*found.blocked, *found.caution), found.nearest_m, found.ttc_s)
    seen_m, why = _seen_to(corridor, fresh)
    # Up to what stands in the way and no further: behind it nothing can be seen, and nothing need be.
    needed_m = corridor.front_m + (
        corridor.length_m if found.nearest_m is None else min(corridor.length_m, found.nearest_m) - SAME_M
    )
    if not fresh or seen_m < needed_m:
        stale = _missing(views, at_ns, max_age_ns)
        reasons = (*(stale if views else ["no cloud yet"]), *([why] if why else []), *absent, *found.caution)
        return Ahead("unknown", reasons, found.nearest_m, found.ttc_s)
    if found.caution:
        return Ahead("caution", (*found.caution, *absent), found.nearest_m, found.ttc_s)
    names = " and ".join(v.stream for v in fresh)
    return Ahead("clear", (f"{names}: seen free to {corridor.length_m:.0f} m, {why}", *absent))


def is_fresh(view: View, at_ns: int, max_age_ns: int) -> bool:
    return -FUTURE_NS <= at_ns - view.end_ns <= max_age_ns


def _weigh(found: _Found, corridor: Corridor, thing: Thing) -> None:
    outline, velocity = thing.outline_m, thing.velocity_mps
    ghost = ", seen a moment ago" if thing.ghost else ""
    name = thing.name if not thing.label or thing.label == thing.name else f"{thing.name} ({thing.label})"
    inside_m = _into_corridor(outline, corridor)
    if inside_m is not None:
        closing_mps = 0.0 if velocity is None else -velocity[0]
        ttc_s = inside_m / closing_mps if closing_mps > MIN_CLOSING_MPS else None
        how = f", closing at {closing_mps:.1f} m/s" if ttc_s is not None else ""
        found.at(inside_m)
        if ttc_s is not None:
            found.reached(ttc_s)
        blocks = inside_m <= corridor.stop_m or (ttc_s is not None and ttc_s < BLOCKED_TTC_S)
        (found.blocked if blocks else found.caution).append(f"{name} at {inside_m:.1f} m{how}{ghost}")
        return
    if velocity is not None and math.hypot(*velocity) > MOVES_MPS:
        _weigh_path(found, corridor, outline, velocity, name, ghost)
    nearest_m = min(math.hypot(x - corridor.front_m, y) for x, y in outline)
    if thing.label == PERSON and nearest_m < PERSON_M and max(x for x, _ in outline) > 0:
        found.caution.append(f"{name} {nearest_m:.1f} m beside the way{ghost}")


def _weigh_path(
    found: _Found, corridor: Corridor, outline: Outline, velocity: tuple[float, float], name: str, ghost: str
) -> None:
    """Something that is not in the corridor, but may come there."""
    swept = [*outline, *_moved(outline, velocity, CROSSING_S)]
    if _may_reach(swept, corridor):
        for step in range(1, round(CROSSING_S / CROSSING_STEP_S) + 1):
            ahead_m = _into_corridor(_moved(outline, velocity, step * CROSSING_STEP_S), corridor)
            if ahead_m is not None:
                found.caution.append(
                    f"{name} comes into the way at {ahead_m:.1f} m in {step * CROSSING_STEP_S:.1f} s{ghost}"
                )
                return
    across = [x for x, y in outline if abs(y) < corridor.width_m / 2 and x > corridor.front_m]
    if across and velocity[0] < -MIN_CLOSING_MPS:
        ttc_s = (min(across) - corridor.front_m) / -velocity[0]
        if ttc_s < CAUTION_TTC_S:
            found.reached(ttc_s)
            found.caution.append(f"{name} reaches the rig in {ttc_s:.1f} s{ghost}")


def _moved(outline: Outline, velocity: tuple[float, float], seconds: float) -> list[tuple[float, float]]:
    return [(x + seconds * velocity[0], y + seconds * velocity[1]) for x, y in outline]


def _into_corridor(outline: Outline, corridor: Corridor) -> float | None:
    """How far before the rig's front an outline enters the corridor; None: it does not. Clipped, not asked corner by
    corner: a lorry across the way has no corner in it."""
    if not _may_reach(outline, corridor):
        return None
    half_m, begin_m, end_m = corridor.width_m / 2, corridor.front_m, corridor.front_m + corridor.length_m
    inside = list(outline)
    for axis, sign, limit in ((0, 1, begin_m), (0, -1, -end_m), (1, 1, -half_m), (1, -1, -half_m)):
        inside = _clipped(inside, axis, sign, limit)
    return min(x for x, _ in inside) - begin_m if inside else None


def _clipped(outline: list[tuple[float, float]], axis: int, sign: int, limit: float) -> list[tuple[float, float]]:
    """What of a polygon lies where sign · its coordinate is at least limit (Sutherland–Hodgman)."""
    kept: list[tuple[float, float]] = []
    for a, b in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        over_a, over_b = sign * a[axis] - limit, sign * b[axis] - limit
        if over_a >= 0:
            kept.append(a)
        if (over_a < 0) != (over_b < 0):
            t = over_a / (over_a - over_b)
            kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
    return kept


def _may_reach(places: Outline, corridor: Corridor) -> bool:
    """Whether the upright rectangle around places touches the corridor: most things are told apart by that."""
    x, y = [p[0] for p in places], [p[1] for p in places]
    half_m, begin_m = corridor.width_m / 2, corridor.front_m
    return max(x) > begin_m and min(x) <= begin_m + corridor.length_m and max(y) >= -half_m and min(y) <= half_m


def _weigh_places(found: _Found, corridor: Corridor, views: Sequence[View], closing_mps: float | None) -> None:
    """What stands in the corridor and is no tracked thing: walls, hedges, or what was seen this once."""
    nearest_m = nearest_in_corridor(corridor, views)
    if nearest_m is None:
        return
    told, timed = found.nearest_m is not None and found.nearest_m < nearest_m + SAME_M, found.ttc_s is not None
    found.at(nearest_m)
    ttc_s = nearest_m / closing_mps if closing_mps is not None and closing_mps > MIN_CLOSING_MPS else None
    if ttc_s is not None:
        found.reached(ttc_s)
    blocks = nearest_m <= corridor.stop_m or (ttc_s is not None and ttc_s < BLOCKED_TTC_S)
    if told and (ttc_s is None or timed) and (found.blocked or not blocks):
        return  # a tracked thing has said as much
    how = f", closing at {closing_mps:.1f} m/s" if ttc_s is not None else ""
    (found.blocked if blocks else found.caution).append(f"something stands in the way at {nearest_m:.1f} m{how}")


def nearest_in_corridor(corridor: Corridor, views: Sequence[View]) -> float | None:
    """From the rig's front to the nearest thing any of the views saw in it; None: nothing."""
    found = []
    for view in views:
        x, y = view.places_m[:, 0], np.abs(view.places_m[:, 1])
        ahead_m = x[(y <= corridor.width_m / 2) & (x > corridor.front_m) & (x <= corridor.front_m + corridor.length_m)]
        if len(ahead_m):
            found.append(float(ahead_m.min()) - corridor.front_m)
    return min(found, default=None)


def _seen_to(corridor: Corridor, fresh: Sequence[View]) -> tuple[float, str]:
    """Up to where (x, metres) the corridor was seen, without a gap; and in words, from where or why no further."""
    grids = [v.grid for v in fresh if v.grid is not None]
    if not grids:
        return 0.0, ""
    seen_to, began = 0.0, None
    grid = grids[0]
    cells = grids[0].cells if len(grids) == 1 else np.maximum.reduce([g.cells for g in grids])
    x = grid.origin_m[0] + (np.arange(cells.shape[0]) + 0.5) * grid.cell_m
    y = grid.origin_m[1] + (np.arange(cells.shape[1]) + 0.5) * grid.cell_m
    across = np.abs(y) <= max(corridor.width_m / 2, grid.cell_m / 2)
    known = ((cells == FREE) | (cells == OCCUPIED))[:, across].mean(axis=1) >= SEEN_SHARE
    for at_m in x[known & (x > corridor.front_m)]:
        start = max(corridor.blind_m, corridor.front_m) if began is None else seen_to
        if at_m - grid.cell_m / 2 - start > (0 if began is None else GAP_M):
            break
        began = at_m - grid.cell_m / 2 if began is None else began
        seen_to = at_m + grid.cell_m / 2
    if began is None:
        return 0.0, f"no ground seen ahead within {max(corridor.blind_m, corridor.front_m):.0f} m"
    if seen_to < corridor.front_m + corridor.length_m:
        return seen_to, f"the way is seen only to {seen_to:.1f} m"
    return seen_to, f"from {began:.1f} m on"


def _missing(views: Sequence[View], at_ns: int, max_age_ns: int) -> list[str]:
    """Why each view is no evidence now."""
    reasons = []
    for view in views:
        age_ns = at_ns - view.end_ns
        if age_ns > max_age_ns:
            frozen = f" ({view.why})" if view.why else ""
            reasons.append(f"no new {view.stream} for {age_ns / NS:.1f} s{frozen}")
        elif age_ns < -FUTURE_NS:
            reasons.append(f"{view.stream} is {-age_ns / NS:.1f} s ahead of its set: a clock jumped")
        elif view.why:
            reasons.append(f"{view.stream}: {view.why}")
    return reasons


def one_hot(ahead: Ahead) -> npt.NDArray[np.float32]:
    """(states,) in the order of STATES: a decision, not a probability."""
    return np.array([state == ahead.state for state in STATES], np.float32)
