"""A model of the scene around a rig, from clouds: ground, clusters, tracks, sectors, free space and the path ahead.

No task, socket or file: points in, state out. Several streams (of a lidar, of depth cameras) update one model: each has
its own ground and its own view of free space, and all update the same tracks. Advances by capture times alone.

Example:
    model = SceneModel()
    model.update("lidar", points_m, capture_ns, duration_ns=100_000_000, origin_m=(0.0, 0.0, 1.73))
    model.state(at_ns=anchor_ns).obstacles[0].range_m
    model.path_clearance(at_ns)         # at a much later time it is "unknown": the evidence is too old
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.perception.obstacles.clusters import Horizon, find_clusters
from pipeline.perception.obstacles.free_space import FreeSpaceMap
from pipeline.perception.obstacles.ground import ON_GROUND_M, GroundFinder
from pipeline.perception.obstacles.path_clearance import (
    MAX_AGE_NS,
    Corridor,
    Hazard,
    View,
    decide,
    is_fresh,
    nearest_in_corridor,
)
from pipeline.perception.obstacles.track import Approach, Track
from pipeline.perception.obstacles.tracking import CARRY_NS, Tracker
from pipeline.scene_state import FREE, FreeSpace, Obstacle, PathClearance, SceneState, Sector

Floats = npt.NDArray[np.float32]
Labels = Mapping[int, tuple[str, float]]  # track id → label and score

NO_LABELS: Labels = {}

BACK_NS = 200_000_000  # a stream's time that goes back by more is another run: the state is reset
MIN_BOTTOM_M = 0.5  # an obstacle whose lowest point is lower stands on the ground
FROZEN, EMPTY, OLDER = "the same data as before: frozen?", "an empty cloud", "older than the cloud before"
UNUSABLE = (FROZEN, EMPTY, OLDER)


@dataclass(frozen=True)
class GroundOptions:
    """The ground, and what stands on it.

    Args:
        z_m: The ground's height in the base frame (m), where it is known. null: estimated from the clouds.
        max_step_m: The rig drives over what is lower (m, > 0). Default 0.2: a kerb.
        clearance_m: The rig drives under what is higher (m, > max_step_m). Default 2.5: a van.
    """

    z_m: float | None = None
    max_step_m: float = 0.2
    clearance_m: float = 2.5

    def __post_init__(self) -> None:
        if not 0 < self.max_step_m < self.clearance_m:
            raise ValueError(
                f"ground: max_step_m {self.max_step_m:g} m, clearance_m {self.clearance_m:g} m: "
                "expected a step above 0 and below the clearance"
            )


@dataclass(frozen=True)
class GridOptions:
    """The free-space grid and the sectors.

    Args:
        x_m: [from, to] of the grid along x, forward (m). Default [-20, 40].
        y_m: [from, to] of the grid along y, to the left (m). Default [-20, 20].
        cell_m: Side of a cell (m). Default 0.4: 15,000 cells, and a person fills one.
        sectors: Number of sectors around the rig (≥ 1). Default 36: 10 degrees each.
    """

    x_m: Sequence[float] = (-20.0, 40.0)
    y_m: Sequence[float] = (-20.0, 20.0)
    cell_m: float = 0.4
    sectors: int = 36

    def __post_init__(self) -> None:
        for name, values in (("x_m", self.x_m), ("y_m", self.y_m)):
            if len(values) != 2:
                raise ValueError(f"grid.{name}: found {list(values)}, expected [from, to]")
        if self.sectors < 1:
            raise ValueError(f"grid.sectors: found {self.sectors}, expected at least 1")


@dataclass
class _Stream:
    """The state of one stream: its ground, its newest view, and a checksum that recognises the same data."""

    ground: GroundFinder
    view: View
    capture_ns: int
    checksum: int


class SceneModel:
    """The state of the scene, updated by clouds."""

    def __init__(
        self,
        *,
        corridor: Corridor | None = None,
        ground: GroundOptions | None = None,
        grid: GridOptions | None = None,
        range_m: float = 60.0,
        max_age_ns: int = MAX_AGE_NS,
    ) -> None:
        """
        Args:
            corridor: The path ahead.
            ground: The ground, and what can be driven over and under.
            grid: The free-space grid and the sectors.
            range_m: Obstacles farther than this are not tracked (m, > 1).
            max_age_ns: Older evidence does not make the path clear (ns).
        """
        if range_m <= 1:
            raise ValueError(f"range_m: found {range_m:g} m, expected above 1 m")
        ground, grid = ground or GroundOptions(), grid or GridOptions()
        self.corridor = corridor or Corridor()
        self._max_step_m, self._clearance_m, self._ground_z_m = ground.max_step_m, ground.clearance_m, ground.z_m
        self._range_m, self._sectors, self._max_age_ns = range_m, grid.sectors, max_age_ns
        self._map = FreeSpaceMap(x_m=(grid.x_m[0], grid.x_m[1]), y_m=(grid.y_m[0], grid.y_m[1]), cell_m=grid.cell_m)
        self._streams: dict[str, _Stream] = {}
        self._tracker, self._approach = Tracker(), Approach()

    def update(
        self,
        stream: str,
        points_m: Floats,
        capture_ns: int,
        *,
        duration_ns: int = 0,
        seconds: Floats | None = None,
        origin_m: Sequence[float] = (0.0, 0.0, 1.7),
    ) -> str:
        """Add one cloud of a stream; the same capture_ns again changes nothing.

        points_m: (n, 3) float32 in the base frame, measured by a sensor at origin_m. seconds: (n,) since capture_ns at
        which each was measured; None: all in the middle of the duration. Returns why the cloud is no evidence of free
        space, "" where it is.
        """
        known = self._streams.get(stream)
        if known is not None and known.capture_ns == capture_ns:
            return known.view.why
        if known is not None and capture_ns < known.capture_ns:
            if known.capture_ns - capture_ns < BACK_NS:
                return OLDER
            self.reset()
            known = None
        origin = (float(origin_m[0]), float(origin_m[1]), float(origin_m[2]))
        checksum = zlib.crc32(np.ascontiguousarray(points_m).data)
        if known is not None and len(points_m) and checksum == known.checksum:
            # The view keeps its end_ns: its evidence does not become newer.
            known.view, known.capture_ns = known.view._replace(why=FROZEN), capture_ns
            return known.view.why
        if seconds is None:
            seconds = np.full(len(points_m), duration_ns / (2 * NS), np.float32)
        finder = known.ground if known is not None else GroundFinder(range_m=self._range_m, ground_z_m=self._ground_z_m)
        view = self._view_of(stream, finder, points_m, seconds, capture_ns, origin)._replace(
            end_ns=capture_ns + duration_ns
        )
        self._streams[stream] = _Stream(finder, view, capture_ns, checksum)
        nearest_m = nearest_in_corridor(self.corridor, [view])
        if nearest_m is not None:
            self._approach.update(nearest_m, capture_ns + duration_ns // 2)
        return view.why

    def _view_of(
        self,
        stream: str,
        finder: GroundFinder,
        points_m: Floats,
        seconds: Floats,
        capture_ns: int,
        origin_m: tuple[float, float, float],
    ) -> View:
        if not len(points_m):
            self._tracker.update([], capture_ns)
            return View(stream, 0, np.zeros((0, 2), np.float32), None, EMPTY)
        ground = finder.find(points_m, origin_m)
        stands = (ground.height_m > self._max_step_m) & (ground.height_m < self._clearance_m)
        if self._max_step_m < ON_GROUND_M:
            stands &= ~ground.is_ground
        at = np.flatnonzero(stands)
        # take() needs a third of the time of [at] on rows.
        clusters = find_clusters(
            points_m.take(at, axis=0),
            ground.height_m.take(at),
            seconds.take(at),
            Horizon(points_m, origin_m),
            range_m=self._range_m,
        )
        grid = self._map.draw(points_m, ground.height_m, stands, origin_m, ground_visible=ground.visible)
        self._tracker.update(clusters, capture_ns, origin_m=origin_m, is_free=lambda x, y: grid.at(x, y) == FREE)
        places = np.concatenate([c.places_m for c in clusters]) if clusters else np.zeros((0, 2), np.float32)
        return View(stream, 0, places, grid, ground.why)

    def reset(self) -> None:
        """Forget everything: the clouds to come are of another run."""
        self._streams.clear()
        self._tracker.reset()
        self._approach = Approach()

    def state(
        self,
        at_ns: int,
        *,
        now_ns: int | None = None,
        labels: Labels = NO_LABELS,
        hazards: Sequence[Hazard] = (),
        absent: Sequence[str] = (),
    ) -> SceneState:
        """The state as of at_ns.

        now_ns: the time at which the age of evidence for a clear path is measured, where it is later than at_ns.
        labels: track → the camera's label for it, with its score. hazards, absent: more evidence about the path ahead,
        as in path_clearance.decide.
        """
        tracks, grid = self._current(at_ns), self._map.join([v.grid for v in self._fresh(at_ns) if v.grid is not None])
        ahead = self.path_clearance(at_ns, now_ns=now_ns, labels=labels, hazards=hazards, absent=absent)
        return SceneState(ahead, self.obstacles(at_ns, labels), self._sector_list(at_ns, tracks, grid), grid)

    def obstacles(self, at_ns: int, labels: Labels = NO_LABELS) -> tuple[Obstacle, ...]:
        """Nearest first."""
        obstacles = (self._obstacle(track, at_ns, *labels.get(track.id, ("", 0.0))) for track in self._current(at_ns))
        return tuple(sorted(obstacles, key=lambda obstacle: obstacle.range_m))

    def path_clearance(
        self,
        at_ns: int,
        *,
        now_ns: int | None = None,
        labels: Labels = NO_LABELS,
        hazards: Sequence[Hazard] = (),
        absent: Sequence[str] = (),
    ) -> PathClearance:
        """The path ahead alone, with the arguments of state()."""
        own = [self._hazard(track, at_ns, labels.get(track.id, ("", 0.0))[0]) for track in self._current(at_ns)]
        # The arrival time of a set that a timer starts is the tick: its newest cloud may have ended since.
        return decide(
            self.corridor,
            at_ns if now_ns is None else max(at_ns, now_ns),
            self.views,
            [*own, *hazards],
            closing_mps=self._approach.closing_mps(),
            max_age_ns=self._max_age_ns,
            absent=absent,
        )

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(stream.view for stream in self._streams.values())

    @property
    def tracks(self) -> tuple[Track, ...]:
        """All tracks, including those that the newest sweep has no points of."""
        return tuple(self._tracker.tracks)

    def _fresh(self, at_ns: int) -> list[View]:
        return [v for v in self.views if is_fresh(v, at_ns, self._max_age_ns)]

    def _current(self, at_ns: int) -> list[Track]:
        return [t for t in self._tracker.tracks if at_ns - t.last_seen_ns <= CARRY_NS]

    def _hazard(self, track: Track, at_ns: int, label: str) -> Hazard:
        outline = (track.nearest_at_m(at_ns),) if track.large else track.outline_m(at_ns)
        velocity, predicted = track.velocity and track.velocity[:2], self._points(track, at_ns) == 0
        return Hazard(f"obstacle {track.id}", outline, velocity, label, predicted)

    def _points(self, track: Track, at_ns: int) -> int:
        return track.points if at_ns - track.last_seen_ns <= self._max_age_ns else 0

    def _obstacle(self, track: Track, at_ns: int, label: str, score: float) -> Obstacle:
        (near_x, near_y), (x, y), closing_mps = (
            track.nearest_at_m(at_ns),
            track.middle_m(at_ns),
            track.closing_mps(at_ns),
        )
        range_m = math.hypot(near_x, near_y)
        long, wide = (0, 1) if track.size_m[0] >= track.size_m[1] else (1, 0)
        yaw_rad = (track.yaw_rad + long * math.pi / 2 + math.pi / 2) % math.pi - math.pi / 2
        bottom_m = track.bottom_m if track.bottom_m > MIN_BOTTOM_M else 0.0
        return Obstacle(
            track.id,
            (x, y, track.floor_m + (bottom_m + track.top_m) / 2),
            (track.size_m[long], track.size_m[wide], track.top_m - bottom_m),
            yaw_rad,
            range_m,
            math.degrees(math.atan2(near_y, near_x)),
            track.velocity and track.velocity[:2],
            track.velocity and track.velocity[2],
            range_m / closing_mps if closing_mps is not None and closing_mps > 0 else None,
            self._points(track, at_ns),
            label,
            score,
        )

    def _sector_list(self, at_ns: int, tracks: Sequence[Track], grid: FreeSpace | None) -> tuple[Sector, ...]:
        count, step_deg = self._sectors, 360 / self._sectors
        nearest, ttc = np.full(count, np.inf), np.full(count, np.inf)
        for view in self._fresh(at_ns):
            x, y = view.places_m[:, 0], view.places_m[:, 1]
            sector = ((np.degrees(np.arctan2(y, x)) + 180) * (count / 360)).astype(np.int64)
            np.minimum.at(nearest, np.minimum(sector, count - 1), np.sqrt(x * x + y * y))
        for track in tracks:
            place, closing_mps = track.nearest_at_m(at_ns), track.closing_mps(at_ns)
            hidden, approaches = self._points(track, at_ns) == 0, closing_mps is not None and closing_mps > 0
            if not hidden and not approaches:
                continue
            range_m = math.hypot(*place)
            for k in self._span([place] if track.large else [place, *track.outline_m(at_ns)]):
                if hidden:  # it has no points in the newest sweep, but is still there
                    nearest[k] = min(nearest[k], range_m)
                if approaches and closing_mps is not None:
                    ttc[k] = min(ttc[k], range_m / closing_mps)
        visible = self._map.visible_by_sector(grid, count) if grid is not None else np.zeros(count)
        return tuple(
            Sector(
                -180 + k * step_deg,
                -180 + (k + 1) * step_deg,
                _finite(nearest[k]),
                _finite(ttc[k]),
                float(visible[k]),
            )
            for k in range(count)
        )

    def _span(self, places_m: Sequence[tuple[float, float]]) -> list[int]:
        """The sectors that an outline covers, along the shorter arc."""
        count = self._sectors
        sector = [min(count - 1, int((math.degrees(math.atan2(y, x)) + 180) * count / 360)) for x, y in places_m]
        off = [(k - sector[0] + count // 2) % count - count // 2 for k in sector]
        return [(sector[0] + k) % count for k in range(min(off), max(off) + 1)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def warm_up() -> None:
    """Process an artificial sweep, so that the first real one does not wait for libraries to load."""
    ring = np.linspace(0, 6.28, 500, dtype=np.float32)
    flat = np.concatenate([np.column_stack([r * np.cos(ring), r * np.sin(ring), 0 * ring]) for r in (4, 5, 6, 7)])
    SceneModel().update("nothing", flat.astype(np.float32), 0, origin_m=(0.0, 0.0, 1.7))
