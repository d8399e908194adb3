"""The path ahead: clear, caution, blocked or unknown, and why. A pure function of evidence.

"clear" needs fresh evidence of free ground all along the corridor. Data that is old, frozen, cut off or hidden makes it
"unknown", never "clear". Worst first: blocked, unknown, caution, clear.

Example:
    corridor = Corridor(width_m=2.0, length_m=20.0, stop_m=6.0)
    decide(corridor, at_ns, views, hazards).because      # ("obstacle 7 at 4.2 m, closing at 3.1 m/s",)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.scene_state import FREE, OCCUPIED, ClearanceState, FreeSpace, PathClearance

Outline = Sequence[tuple[float, float]]

STATES: tuple[str, ...] = get_args(ClearanceState)
MAX_AGE_NS = 300_000_000  # three sweeps of 10 Hz
FUTURE_NS = 1_000_000_000  # a cloud newer than at_ns by more than this: one of the two clocks jumped
VISIBLE_SHARE = 0.6  # least share of known cells across the corridor
GAP_M = 1.5  # longest stretch of the corridor that may be unknown: between the rings of a lidar with few beams
BLOCKED_TTC_S, CAUTION_TTC_S = 2.0, 4.0
CROSSING_S, CROSSING_STEP_S = 3.0, 0.25
MOVES_MPS, MIN_CLOSING_MPS = 0.5, 0.3
PERSON_M = 5.0  # a person this near means caution, in the corridor or beside it
PERSON = "person"
SAME_M = 0.5  # nearest points that differ by less belong to the same object
REACTION_S, BRAKING_MPS2, SPARE_M = 1.0, 3.0, 2.0  # of the stopping distance at a given speed


@dataclass(frozen=True)
class Corridor:
    """The space straight ahead that the rig is about to drive through.

    Args:
        width_m: Its width (m, > 0). Default 2: a car.
        length_m: Its length from the rig's front (m). Default 20.
        stop_m: An obstacle this near to the rig's front blocks it (m, > 0, at most length_m). Default 6.
        front_m: The rig's front, ahead of the base frame's origin (m, ≥ 0).
        min_range_m: Distance from the base frame's origin up to which the ground may be unknown (m, ≥ 0): no sensor
            sees the ground right below it. Default 5: a lidar on a car's roof.
        speed_mps: The rig's speed (m/s). It sets stop_m to the stopping distance with 1 s of reaction, 3 m/s² of
            braking and 2 m to spare, and length_m to twice that. null: as given.
    """

    width_m: float = 2.0
    length_m: float = 20.0
    stop_m: float = 6.0
    front_m: float = 0.0
    min_range_m: float = 5.0
    speed_mps: float | None = None

    def __post_init__(self) -> None:
        if self.speed_mps is not None:
            stop_m = SPARE_M + self.speed_mps * REACTION_S + self.speed_mps**2 / (2 * BRAKING_MPS2)
            object.__setattr__(self, "stop_m", stop_m)
            object.__setattr__(self, "length_m", 2 * stop_m)
        if not (self.width_m > 0 and 0 <= self.front_m and 0 < self.stop_m <= self.length_m and self.min_range_m >= 0):
            raise ValueError(
                f"corridor: width {self.width_m:g} m, stop {self.stop_m:g} m, length {self.length_m:g} m: "
                "expected width above 0 and stop from above 0 to length"
            )

    def __str__(self) -> str:
        return f"{self.width_m:g} m wide, {self.length_m:g} m long"


class View(NamedTuple):
    """The evidence of one stream, as of end_ns (its newest cloud's last point)."""

    stream: str
    end_ns: int
    places_m: npt.NDArray[np.float32]  # (k, 2) of cells with points above the ground
    grid: FreeSpace | None
    why: str = ""  # why it is no evidence of free space: no ground seen, the same data under a new time


class Hazard(NamedTuple):
    """An object with a position: a tracked obstacle, or a camera's object with a measured range."""

    name: str  # for people: "obstacle 7", "person"
    outline_m: Outline  # x, y of its corners in turn, or of one point; base frame
    velocity_mps: tuple[float, float] | None = None
    label: str = ""
    predicted: bool = False  # from earlier sweeps: the newest one has no points of it


@dataclass
class _Evidence:
    """Reasons by state."""

    blocked: list[str] = field(default_factory=list)
    caution: list[str] = field(default_factory=list)
    nearest_m: float | None = None
    ttc_s: float | None = None

    def add_range(self, range_m: float) -> None:
        self.nearest_m = range_m if self.nearest_m is None else min(self.nearest_m, range_m)

    def add_ttc(self, ttc_s: float) -> None:
        self.ttc_s = ttc_s if self.ttc_s is None else min(self.ttc_s, ttc_s)


def decide(
    corridor: Corridor,
    at_ns: int,
    views: Sequence[View],
    hazards: Sequence[Hazard] = (),
    *,
    closing_mps: float | None = None,
    max_age_ns: int = MAX_AGE_NS,
    absent: Sequence[str] = (),
) -> PathClearance:
    """The state of the path ahead.

    Args:
        corridor: The path.
        at_ns: The present, from which the age of each view is measured.
        views: The evidence of each stream.
        hazards: Objects with positions.
        closing_mps: Speed at which the nearest object in the corridor approaches, where it is known without a track
            (a wall).
        max_age_ns: Older views do not count.
        absent: Reasons for people why expected evidence is missing; they are reported and do not change the state.
    """
    near = [v for v in views if is_fresh(v, at_ns, max_age_ns)]
    fresh = [v for v in near if not v.why]
    evidence = _Evidence()
    for hazard in hazards:
        _weigh(evidence, corridor, hazard)
    _weigh_places(evidence, corridor, near, closing_mps)
    if evidence.blocked:
        return PathClearance("blocked", (*evidence.blocked, *evidence.caution), evidence.nearest_m, evidence.ttc_s)
    visible_m, why = _visible_to(corridor, fresh)
    # Only the path up to the nearest object has to be visible: behind it nothing can be seen.
    needed_m = corridor.front_m + (
        corridor.length_m if evidence.nearest_m is None else min(corridor.length_m, evidence.nearest_m) - SAME_M
    )
    if not fresh or visible_m < needed_m:
        stale = _missing(views, at_ns, max_age_ns)
        reasons = (*(stale if views else ["no cloud yet"]), *([why] if why else []), *absent, *evidence.caution)
        return PathClearance("unknown", reasons, evidence.nearest_m, evidence.ttc_s)
    if evidence.caution:
        return PathClearance("caution", (*evidence.caution, *absent), evidence.nearest_m, evidence.ttc_s)
    names = " and ".join(v.stream for v in fresh)
    return PathClearance("clear", (f"{names}: seen free to {corridor.length_m:.0f} m, {why}", *absent))


def is_fresh(view: View, at_ns: int, max_age_ns: int) -> bool:
    return -FUTURE_NS <= at_ns - view.end_ns <= max_age_ns


def _weigh(evidence: _Evidence, corridor: Corridor, hazard: Hazard) -> None:
    outline, velocity = hazard.outline_m, hazard.velocity_mps
    suffix = ", seen a moment ago" if hazard.predicted else ""
    name = hazard.name if not hazard.label or hazard.label == hazard.name else f"{hazard.name} ({hazard.label})"
    inside_m = _into_corridor(outline, corridor)
    if inside_m is not None:
        closing_mps = 0.0 if velocity is None else -velocity[0]
        ttc_s = inside_m / closing_mps if closing_mps > MIN_CLOSING_MPS else None
        how = f", closing at {closing_mps:.1f} m/s" if ttc_s is not None else ""
        evidence.add_range(inside_m)
        if ttc_s is not None:
            evidence.add_ttc(ttc_s)
        blocks = inside_m <= corridor.stop_m or (ttc_s is not None and ttc_s < BLOCKED_TTC_S)
        (evidence.blocked if blocks else evidence.caution).append(f"{name} at {inside_m:.1f} m{how}{suffix}")
        return
    if velocity is not None and math.hypot(*velocity) > MOVES_MPS:
        _weigh_path(evidence, corridor, outline, velocity, name, suffix)
    nearest_m = min(math.hypot(x - corridor.front_m, y) for x, y in outline)
    if hazard.label == PERSON and nearest_m < PERSON_M and max(x for x, _ in outline) > 0:
        evidence.caution.append(f"{name} {nearest_m:.1f} m beside the way{suffix}")


def _weigh_path(
    evidence: _Evidence, corridor: Corridor, outline: Outline, velocity: tuple[float, float], name: str, suffix: str
) -> None:
    """An object outside the corridor that may enter it."""
    swept = [*outline, *_moved(outline, velocity, CROSSING_S)]
    if _may_reach(swept, corridor):
        for step in range(1, round(CROSSING_S / CROSSING_STEP_S) + 1):
            ahead_m = _into_corridor(_moved(outline, velocity, step * CROSSING_STEP_S), corridor)
            if ahead_m is not None:
                evidence.caution.append(
                    f"{name} comes into the way at {ahead_m:.1f} m in {step * CROSSING_STEP_S:.1f} s{suffix}"
                )
                return
    across = [x for x, y in outline if abs(y) < corridor.width_m / 2 and x > corridor.front_m]
    if across and velocity[0] < -MIN_CLOSING_MPS:
        ttc_s = (min(across) - corridor.front_m) / -velocity[0]
        if ttc_s < CAUTION_TTC_S:
            evidence.add_ttc(ttc_s)
            evidence.caution.append(f"{name} reaches the rig in {ttc_s:.1f} s{suffix}")


def _moved(outline: Outline, velocity: tuple[float, float], seconds: float) -> list[tuple[float, float]]:
    return [(x + seconds * velocity[0], y + seconds * velocity[1]) for x, y in outline]


def _into_corridor(outline: Outline, corridor: Corridor) -> float | None:
    """How far ahead of the rig's front an outline enters the corridor; None: it does not. The outline is clipped, since
    a lorry across the path has no corner in the corridor."""
    if not _may_reach(outline, corridor):
        return None
    half_m, begin_m, end_m = corridor.width_m / 2, corridor.front_m, corridor.front_m + corridor.length_m
    inside = list(outline)
    for axis, sign, limit in ((0, 1, begin_m), (0, -1, -end_m), (1, 1, -half_m), (1, -1, -half_m)):
        inside = _clipped(inside, axis, sign, limit)
    return min(x for x, _ in inside) - begin_m if inside else None


def _clipped(outline: list[tuple[float, float]], axis: int, sign: int, limit: float) -> list[tuple[float, float]]:
    """The part of a polygon where sign · its coordinate is at least limit (Sutherland–Hodgman)."""
    clipped: list[tuple[float, float]] = []
    for a, b in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        over_a, over_b = sign * a[axis] - limit, sign * b[axis] - limit
        if over_a >= 0:
            clipped.append(a)
        if (over_a < 0) != (over_b < 0):
            t = over_a / (over_a - over_b)
            clipped.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
    return clipped


def _may_reach(places: Outline, corridor: Corridor) -> bool:
    """Whether the upright rectangle around places touches the corridor: a quick test that rules most objects out."""
    x, y = [p[0] for p in places], [p[1] for p in places]
    half_m, begin_m = corridor.width_m / 2, corridor.front_m
    return max(x) > begin_m and min(x) <= begin_m + corridor.length_m and max(y) >= -half_m and min(y) <= half_m


def _weigh_places(evidence: _Evidence, corridor: Corridor, views: Sequence[View], closing_mps: float | None) -> None:
    """Points in the corridor that belong to no track: walls, hedges, or objects of a single sweep."""
    nearest_m = nearest_in_corridor(corridor, views)
    if nearest_m is None:
        return
    reported, timed = (
        evidence.nearest_m is not None and evidence.nearest_m < nearest_m + SAME_M,
        evidence.ttc_s is not None,
    )
    evidence.add_range(nearest_m)
    ttc_s = nearest_m / closing_mps if closing_mps is not None and closing_mps > MIN_CLOSING_MPS else None
    if ttc_s is not None:
        evidence.add_ttc(ttc_s)
    blocks = nearest_m <= corridor.stop_m or (ttc_s is not None and ttc_s < BLOCKED_TTC_S)
    if reported and (ttc_s is None or timed) and (evidence.blocked or not blocks):
        return  # a track has reported the same object
    how = f", closing at {closing_mps:.1f} m/s" if ttc_s is not None else ""
    (evidence.blocked if blocks else evidence.caution).append(f"something stands in the way at {nearest_m:.1f} m{how}")


def nearest_in_corridor(corridor: Corridor, views: Sequence[View]) -> float | None:
    """From the rig's front to the nearest point of any view in the corridor; None: there is none."""
    ranges_m = []
    for view in views:
        x, y = view.places_m[:, 0], np.abs(view.places_m[:, 1])
        ahead_m = x[(y <= corridor.width_m / 2) & (x > corridor.front_m) & (x <= corridor.front_m + corridor.length_m)]
        if len(ahead_m):
            ranges_m.append(float(ahead_m.min()) - corridor.front_m)
    return min(ranges_m, default=None)


def _visible_to(corridor: Corridor, fresh: Sequence[View]) -> tuple[float, str]:
    """Up to where (x, metres) the corridor is visible without a gap; and in words, from where or why no farther."""
    grids = [v.grid for v in fresh if v.grid is not None]
    if not grids:
        return 0.0, ""
    visible_to, began = 0.0, None
    grid = grids[0]
    cells = grids[0].cells if len(grids) == 1 else np.maximum.reduce([g.cells for g in grids])
    x = grid.origin_m[0] + (np.arange(cells.shape[0]) + 0.5) * grid.cell_m
    y = grid.origin_m[1] + (np.arange(cells.shape[1]) + 0.5) * grid.cell_m
    across = np.abs(y) <= max(corridor.width_m / 2, grid.cell_m / 2)
    known = ((cells == FREE) | (cells == OCCUPIED))[:, across].mean(axis=1) >= VISIBLE_SHARE
    for at_m in x[known & (x > corridor.front_m)]:
        start = max(corridor.min_range_m, corridor.front_m) if began is None else visible_to
        if at_m - grid.cell_m / 2 - start > (0 if began is None else GAP_M):
            break
        began = at_m - grid.cell_m / 2 if began is None else began
        visible_to = at_m + grid.cell_m / 2
    if began is None:
        return 0.0, f"no ground seen ahead within {max(corridor.min_range_m, corridor.front_m):.0f} m"
    if visible_to < corridor.front_m + corridor.length_m:
        return visible_to, f"the way is seen only to {visible_to:.1f} m"
    return visible_to, f"from {began:.1f} m on"


def _missing(views: Sequence[View], at_ns: int, max_age_ns: int) -> list[str]:
    """Why each view is no evidence at present."""
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


def one_hot(ahead: PathClearance) -> npt.NDArray[np.float32]:
    """(states,) in the order of STATES: a decision, not a probability."""
    return np.array([state == ahead.state for state in STATES], np.float32)
