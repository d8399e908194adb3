"""Ray casting: one caster for the spinning lidar and for the depth camera.

Both have columns and rows: a column has its own direction over the ground, origin and time, a row its slope. All pairs
of a solid and a column that may intersect go through the same few large operations; an upright face is the same for all
rows of a column.

Example:
    hits = Caster(things).cast(t_s=t_s, origin=origin, direction=direction, slopes=np.tan(elevation_rad), farthest_m=80)
    hits.t                # (columns, rows): a ray goes origin + t·(direction, slope); inf where it hits nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.sensors.rendered import ground
from pipeline.sensors.rendered.solids import Thing
from pipeline.sensors.rendered.traffic import LOOP_S, STREET_M

BEHIND_M = 72.0  # every thing appears once: from this far behind the rig to STREET_M − BEHIND_M ahead of it
GAIT_HZ = 74 / LOOP_S  # whole steps in a loop


@dataclass(frozen=True, eq=False)
class Hits:
    """All (columns, rows). id: of the thing, 0 the ground, −1 nothing. facing: cosine to the face's normal, in [0,
    1]."""

    t: np.ndarray  # float32
    id: np.ndarray  # int32
    reflectance: np.ndarray  # float32, of the material; NaN on the ground, which has its own
    facing: np.ndarray  # float32


def lap_shift(x_m: np.ndarray, rig_x_m: float) -> np.ndarray:
    """The offset of a thing's x to its copy that is visible from the rig."""
    shift: np.ndarray = np.mod(x_m - rig_x_m + BEHIND_M, STREET_M) - BEHIND_M - (x_m - rig_x_m)
    return shift


def gait(thing: Thing, t_s: np.ndarray) -> np.ndarray:
    """How far a walker's limbs are swung, −1 to 1; 0 while it stands."""
    x, y, _ = thing.track(t_s)
    x2, y2, _ = thing.track(t_s + 1e-3)
    walks = np.hypot(x2 - x, y2 - y) > 1e-5
    return np.where(walks, np.sin(2 * np.pi * GAIT_HZ * t_s), 0.0)


class Caster:
    """All solids of a street as flat arrays."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = things
        solids = [(k, solid) for k, thing in enumerate(things) for solid in thing.solids]
        # Sorted by the number of slanted faces, so that those with a k-th face are always the beginning of the list.
        counts = [self._slanted(solid.normals, float(solid.low[2])).sum() for _, solid in solids]
        solids = [solids[i] for i in np.argsort(-np.array(counts), kind="stable")]
        max_faces = max(len(solid.faces) for _, solid in solids)
        n = len(solids)
        self._low, self._high = np.array([s.low for _, s in solids]), np.array([s.high for _, s in solids])
        self._swing = np.array([s.swing_m for _, s in solids])
        self._reflectance = np.array([s.reflectance for _, s in solids], np.float32)
        self._slanted_count = np.array(sorted(counts, reverse=True))
        # A face that is none: no ray comes nearer to it or leaves it. Upright ones come first, then the slanted.
        self._normals, self._offsets = np.zeros((2, n, max_faces, 3)), np.ones((2, n, max_faces))
        for i, (_, solid) in enumerate(solids):
            slanted = self._slanted(solid.normals, float(solid.low[2]))
            for kind, faces in enumerate((np.abs(solid.normals[:, 2]) < 1e-9, slanted)):
                count = int(faces.sum())
                self._normals[kind, i, :count], self._offsets[kind, i, :count] = (
                    solid.normals[faces],
                    solid.offsets[faces],
                )
        self._upright_most = max(int((np.abs(s.normals[:, 2]) < 1e-9).sum()) for _, s in solids)
        thing_of = np.array([k for k, _ in solids])
        self._solids_of = np.argsort(thing_of, kind="stable")
        self._solids_count = np.bincount(thing_of, minlength=len(things))
        self._solids_from = np.cumsum(self._solids_count) - self._solids_count
        self._moving = [k for k, thing in enumerate(things) if thing.moves]
        self._walking = [k for k in self._moving if any(solid.swing_m for solid in things[k].solids)]
        self._standing_at = np.array([[float(v[0]) for v in thing.track(np.zeros(1))] for thing in things])
        self._reach = np.array([np.hypot(*thing.size_m[:2]) / 2 + 0.3 for thing in things])
        self._ids = np.array([thing.id for thing in things], np.int32)[thing_of]

    @staticmethod
    def _slanted(normals: np.ndarray, lowest_m: float) -> np.ndarray:
        """Which faces are not upright, without an underside that lies in the ground, where no ray gets to."""
        slanted: np.ndarray = (np.abs(normals[:, 2]) >= 1e-9) & ~((normals[:, 2] < -0.999) & (lowest_m < 0))
        return slanted

    def cast(
        self,
        *,
        t_s: np.ndarray,
        origin: np.ndarray,
        direction: np.ndarray,
        slopes: np.ndarray,
        farthest_m: float,
        nearest_m: float = 0.3,
    ) -> Hits:
        """t_s: (columns,) the time of each. origin: (3, columns) in the street's frame, all within a metre or two.
        direction: (2, columns), of length about 1. slopes: (rows,), rising.
        """
        t = ground.meet(origin, direction, slopes, farthest_m=farthest_m)
        shape = t.shape
        hits = Hits(
            t,
            np.where(np.isfinite(t), 0, -1).astype(np.int32),
            np.full(shape, np.nan, np.float32),
            np.ones(shape, np.float32),
        )
        solid, column, local_o, local_d = self._near(t_s, origin, direction, farthest_m)
        # Seen from above, what holds a solid is a rectangle: which columns cross it, and from where to where.
        with np.errstate(divide="ignore", invalid="ignore"):
            a = (self._low[solid, :2].T - local_o[:2]) / local_d
            b = (self._high[solid, :2].T - local_o[:2]) / local_d
        box_in, box_out = np.minimum(a, b).max(axis=0), np.maximum(a, b).min(axis=0)
        rise, top = self._low[solid, 2] - local_o[2], self._high[solid, 2] - local_o[2]
        near, far = np.maximum(box_in, 1e-3), np.maximum(box_out, 1e-3)
        first = np.searchsorted(slopes, np.minimum(rise / near, rise / far))
        count = np.searchsorted(slopes, np.maximum(top / near, top / far), "right") - first
        met = np.flatnonzero((box_in <= box_out) & (box_out > nearest_m) & (box_in < farthest_m) & (count > 0))
        met = met[np.argsort(solid[met], kind="stable")]
        if len(met):
            self._meet(
                hits,
                solid[met],
                column[met],
                local_o[:, met],
                local_d[:, met],
                first[met],
                count[met],
                slopes,
                nearest_m,
            )
        return hits

    def _near(
        self, t_s: np.ndarray, origin: np.ndarray, direction: np.ndarray, farthest_m: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a solid and a column that passes its thing by closely: solid, column, and the ray in the thing's own
        frame, origin (3, pairs) and direction (2, pairs).
        """
        middle = len(t_s) // 2
        rig_x = float(origin[0, middle])
        place = self._standing_at.copy()
        for k in self._moving:
            place[k] = [float(v[0]) for v in self.things[k].track(t_s[middle : middle + 1])]
        shift = lap_shift(place[:, 0], rig_x)
        place[:, 0] += shift
        reach = self._reach + np.isin(np.arange(len(place)), self._moving)  # as far as one goes within a sweep
        here = np.flatnonzero(np.hypot(*(place[:, :2] - origin[:2, middle]).T) - reach < farthest_m)
        from_x = (place[here, :1] - origin[0]).astype(np.float32)
        from_y = (place[here, 1:2] - origin[1]).astype(np.float32)
        to_x, to_y = direction.astype(np.float32)
        wide = (reach[here, None] * np.hypot(*direction).max()).astype(np.float32)
        passes = np.abs(to_x * from_y - to_y * from_x) <= wide
        passes &= to_x * from_x + to_y * from_y > -wide
        which, column = np.nonzero(passes)
        thing = here[which]
        x, y, yaw = place[thing].T.copy()
        swing = np.zeros(len(thing))
        for k in self._moving:
            own = slice(*np.searchsorted(thing, (k, k + 1)))
            at = t_s[column[own]]
            x[own], y[own], yaw[own] = self.things[k].track(at)
            x[own] += shift[k]
            if k in self._walking:
                swing[own] = gait(self.things[k], at)
        cos, sin, (dx, dy) = np.cos(yaw), np.sin(yaw), direction[:, column]
        ox, oy, oz = origin[0, column] - x, origin[1, column] - y, origin[2, column] - ground.stand(x, y)
        ray = np.stack([cos * ox + sin * oy, cos * oy - sin * ox, oz, cos * dx + sin * dy, cos * dy - sin * dx])
        count = self._solids_count[thing]
        pair = np.repeat(np.arange(len(thing)), count)
        solid = self._solids_of[
            np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + self._solids_from[thing[pair]]
        ]
        ray = ray[:, pair]
        ray[0] -= self._swing[solid] * swing[pair]
        return solid, column[pair], ray[:3], ray[3:]

    def _meet(
        self,
        hits: Hits,
        solid: np.ndarray,
        column: np.ndarray,
        origin: np.ndarray,
        direction: np.ndarray,
        first: np.ndarray,
        count: np.ndarray,
        slopes: np.ndarray,
        nearest_m: float,
    ) -> None:
        """Pairs as _near gives them, in the order of the solids; first, count: the rows that each may be met in.

        A ray enters a solid through the last face that it comes in by, and leaves it by the first that it goes out by.
        """
        upright = slice(0, self._upright_most)
        normals, offsets = self._normals[:, solid], self._offsets[:, solid]  # (2, pairs, faces …)
        along = np.einsum("kpfi,ip->kpf", normals[..., :2], direction).astype(np.float32)
        room = (offsets - np.einsum("kpfi,ip->kpf", normals, origin)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = room[0, :, upright] / along[0, :, upright]
        entering = np.where(along[0, :, upright] < 0, flat, -np.inf)
        face = entering.argmax(axis=1)
        facing_speed = -np.take_along_axis(along[0], face[:, None], axis=1)[:, 0]
        column_in = entering.max(axis=1)
        column_out = np.where(along[0, :, upright] > 0, flat, np.inf).min(axis=1)

        pair = np.repeat(np.arange(len(solid)), count)  # from here on a ray each
        row = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + first[pair]
        s = slopes.astype(np.float32)[row]
        t_in, t_out, speed_in = column_in[pair], column_out[pair], facing_speed[pair]
        ends = np.cumsum(count)
        for f in range(int(self._slanted_count[0])):
            pairs = int(
                np.searchsorted(-self._slanted_count[solid], -f)
            )  # the beginning of the list: those with more than f
            if not pairs:
                break
            part = slice(0, int(ends[pairs - 1]))
            of = pair[part]
            speed = along[1, :, f][of] + normals[1, :, f, 2].astype(np.float32)[of] * s[part]
            with np.errstate(divide="ignore", invalid="ignore"):
                t = room[1, :, f][of] / speed
            comes_in = speed < 0
            later = comes_in & (t > t_in[part])
            np.copyto(t_in[part], t, where=later)
            np.copyto(speed_in[part], -speed, where=later)
            np.copyto(t_out[part], t, where=(speed > 0) & (t < t_out[part]))
        at = column[pair] * len(slopes) + row
        known = hits.t.reshape(-1)
        hit = np.flatnonzero((t_in <= t_out) & (t_in > nearest_m) & (t_in < known[at]))
        at, t, pair = at[hit], t_in[hit], pair[hit]
        np.minimum.at(known, at, t)
        won = np.flatnonzero(known[at] == t)
        at, pair, hit = at[won], pair[won], hit[won]
        hits.id.reshape(-1)[at] = self._ids[solid[pair]]
        hits.reflectance.reshape(-1)[at] = self._reflectance[solid[pair]]
        length = np.sqrt((direction[:, pair] ** 2).sum(axis=0) + s[hit] ** 2)
        hits.facing.reshape(-1)[at] = speed_in[hit] / length
