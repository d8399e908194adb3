"""One tracked obstacle: a box on the ground, with a constant velocity.

Its near edges are measured, since the far ones appear and disappear with what hides them; its size is remembered, so
that its middle does not jump when more of it comes into view. tracking.py decides which cluster belongs to it.

Example:
    track = Track(7, cluster, time_ns, velocity_mps=(0.0, 0.0), sigma_mps=10.0)
    track.turn(next_one); track.update(next_one, edges([next_one], [track.yaw_rad])[0], next_ns, sensor_m=(0.0, 0.0))
    track.velocity                     # (x, y, standard deviation) in m/s, or None
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.clock import NS
from pipeline.perception.obstacles.clusters import Cluster

Place = tuple[float, float]
Edges = tuple[float, float, float, float]  # least along both axes of a box, then greatest

ACCELERATION_MPS2 = 2.5  # standard deviation of the acceleration
EDGE_M, EDGE_PER_M = 0.04, 0.002  # standard deviation of a measured edge: at 0 m, and more with range
UNKNOWN_MPS = 10.0  # standard deviation of a new track's velocity
LARGE_M = 15.0  # a wall, a hedge: its visible part shifts along it, so its velocity cannot be measured
THIN_M = (7.0, 0.6)  # longer than the one and thinner than the other: a piece of a wall
CARRIED_HITS = 3  # with fewer sweeps, a track is not predicted while it has no points
GUESS_MPS = 1.5
SURE_HITS, SURE_MPS = 4, 0.5  # a velocity is reported after so many sweeps, with a standard deviation below this
GAP_NS = 1_000_000_000  # a longer gap resets the filter
YAW_SHARE, EDGES_AGREE_M = 0.2, 0.3
FACE_M = 0.4  # an extent across of at least this is a face, not an end
GROW_SHARE, SHRINK_SHARE = 0.5, 0.03
MISFIT_SHARE, GAP_SHARE = 0.3, 0.15
ADRIFT_M = 1.0  # added where no edge can be compared with the sweep before
MIN_CLOSING_MPS = 0.3
RANGE_JUMP_M, MIN_M = 1.0, 0.1


class Spread:
    """Covariance of a position and its rate, the same in every direction: standard deviations in, gains out."""

    def __init__(self, place_m: float, rate_mps: float) -> None:
        self.pp, self.pv, self.vv = place_m**2, 0.0, rate_mps**2

    def predict(self, dt: float) -> None:
        noise = ACCELERATION_MPS2**2
        self.pp += 2 * dt * self.pv + dt * dt * self.vv + noise * dt**4 / 4
        self.pv += dt * self.vv + noise * abs(dt) ** 3 / 2
        self.vv += noise * dt * dt

    def update(self, sigma_m: float) -> tuple[float, float]:
        """Apply a measurement of standard deviation sigma_m. Returns the gains of position and rate on its
        innovation."""
        total = self.pp + sigma_m**2
        place, rate = self.pp / total, self.pv / total
        self.vv -= rate * self.pv
        self.pv -= rate * self.pp
        self.pp -= place * self.pp
        return place, rate


class Approach:
    """How fast a distance shrinks: a distance and its rate, filtered; a jump resets the filter."""

    def __init__(self) -> None:
        self.hits, self._time_ns = 0, 0
        self._range_m, self._rate_mps, self._spread = 0.0, 0.0, Spread(1.0, UNKNOWN_MPS)

    def update(self, range_m: float, time_ns: int) -> None:
        dt = (time_ns - self._time_ns) / NS
        if self.hits and dt == 0:
            return
        sigma_m = EDGE_M + EDGE_PER_M * range_m
        if self.hits and 0 < dt < GAP_NS / NS:
            self._spread.predict(dt)
            off = range_m - (self._range_m + dt * self._rate_mps)
            if abs(off) < RANGE_JUMP_M + 3 * math.sqrt(self._spread.pp):
                place, rate = self._spread.update(sigma_m)
                self._range_m += dt * self._rate_mps + place * off
                self._rate_mps += rate * off
                self.hits, self._time_ns = self.hits + 1, time_ns
                return
        self._range_m, self._rate_mps, self._spread = range_m, 0.0, Spread(sigma_m, UNKNOWN_MPS)
        self.hits, self._time_ns = 1, time_ns

    def closing_mps(self) -> float | None:
        """None: not known yet."""
        sigma_mps = math.sqrt(max(0.0, self._spread.vv))
        return _certain(-self._rate_mps, sigma_mps) if self.hits >= SURE_HITS and sigma_mps < SURE_MPS else None


class Track:
    """centre_m, velocity_mps: x, y as of time_ns. size_m: along the box's two axes, turned by yaw_rad. velocity: (x, y)
    and the standard deviation of either, None while it is not known or cannot be measured."""

    velocity: tuple[float, float, float] | None = None
    large: bool = False

    def __init__(self, id: int, cluster: Cluster, time_ns: int, velocity_mps: Place, sigma_mps: float) -> None:
        self.id, self.hits = id, 0
        self.free_since_ns: int | None = None  # since when sweeps show its position to be free
        self.velocity_mps, self._sigma_mps = velocity_mps, sigma_mps
        self.endless = False  # both of its ends are hidden: it may extend beyond them, and its motion is unknown
        self.approach, self.misfit = Approach(), 1.0
        self._begin(cluster, time_ns)

    def _begin(self, cluster: Cluster, time_ns: int) -> None:
        self.yaw_rad = cluster.yaw_rad if cluster.yaw_sure else 0.0
        self.centre_m, (a_m, b_m) = cluster.middle_m, cluster.extent_m
        if cluster.yaw_sure:
            low_a, low_b, high_a, high_b = edges([cluster], [self.yaw_rad])[0]
            a_m, b_m = high_a - low_a, high_b - low_b
            self.centre_m = self._from_axes((low_a + high_a) / 2, (low_b + high_b) / 2)
        self.size_m = [max(a_m, MIN_M), max(b_m, MIN_M)]
        self.spread = Spread(EDGE_M + EDGE_PER_M * cluster.range_m, self._sigma_mps)
        self.time_ns = time_ns
        self._soft: list[tuple[bool, bool] | None] = [
            None,
            None,
        ]  # by axis: whether the least, the greatest edge was hidden
        self._observe(cluster, time_ns)

    def restart(self, cluster: Cluster, time_ns: int) -> None:
        """The object is there, but not as expected: merged with a neighbour, split, or seen from another side."""
        self.hits, self.misfit = min(self.hits, 1), 1.0
        self._begin(cluster, time_ns)

    def _observe(self, cluster: Cluster, time_ns: int) -> None:
        self.hits, self.last_seen_ns, self.free_since_ns, self.points = self.hits + 1, time_ns, None, cluster.points
        self.bottom_m, self.top_m, self.floor_m = cluster.bottom_m, cluster.top_m, cluster.floor_m
        self.nearest_m = cluster.nearest_m  # at last_seen_ns
        self.visible_offset_m = (cluster.middle_m[0] - self.centre_m[0], cluster.middle_m[1] - self.centre_m[1])
        self.visible_extent_m = cluster.extent_m
        self.approach.update(cluster.range_m, time_ns)
        self.large = _endless(*self.size_m)
        # Where sweeps differ from the prediction by more than their noise, the velocity is accordingly less certain.
        worst = self.spread.vv * max(1.0, self.misfit)
        sure = not self.large and not self.endless and self.hits >= SURE_HITS and worst < SURE_MPS**2
        self.velocity = (*self.velocity_mps, math.sqrt(worst)) if sure else None
        # For the short time between the sweep and a query, a velocity is used that is not yet certain enough to report.
        self._is_predictable = (
            not self.large and not self.endless and self.hits >= CARRIED_HITS and self.spread.vv < GUESS_MPS**2
        )

    def _to_axes(self, x: float, y: float) -> Place:
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return c * x + s * y, c * y - s * x

    def _from_axes(self, a: float, b: float) -> Place:
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return c * a - s * b, s * a + c * b

    def turn(self, cluster: Cluster) -> None:
        """Turn towards the direction that was just measured of its sides."""
        if not cluster.yaw_sure:
            return
        turn = (cluster.yaw_rad - self.yaw_rad + math.pi / 4) % (math.pi / 2) - math.pi / 4
        self.yaw_rad += turn if self.hits < 2 else YAW_SHARE * turn

    def update(self, cluster: Cluster, edges_m: Edges, time_ns: int, sensor_m: Place) -> None:
        """Add a cluster of this object, with its edges (least along both axes, then greatest) in the direction of
        yaw_rad, measured from a sensor at sensor_m."""
        if self.large or _endless(*cluster.extent_m):
            self._begin(cluster, time_ns)
            return
        if self.hits < 2:  # its first direction was a guess: a new box around the same middle
            self.size_m = [max(edges_m[2] - edges_m[0], MIN_M), max(edges_m[3] - edges_m[1], MIN_M)]
        dt = (time_ns - self.time_ns) / NS
        self.spread.predict(dt)
        x, y = self.centre_m[0] + dt * self.velocity_mps[0], self.centre_m[1] + dt * self.velocity_mps[1]
        off, shift, sensor = [0.0, 0.0], [0.0, 0.0], self._to_axes(*sensor_m)
        self.endless, adrift = False, False
        for k, (centre, at) in enumerate(zip(self._to_axes(x, y), sensor, strict=True)):
            low, high = edges_m[k], edges_m[k + 2]
            at_low, at_high = low - (centre - self.size_m[k] / 2), high - (centre + self.size_m[k] / 2)
            if low <= at <= high or edges_m[3 - k] - edges_m[1 - k] < FACE_M:
                # From in front of it, or a thin one from anywhere, both ends are visible unless something hides them.
                right, left = cluster.ends_hidden
                across = (edges_m[1 - k] + edges_m[3 - k]) / 2 > sensor[1 - k]
                soft = (left, right) if across == (k == 0) else (right, left)
                self.endless |= all(soft)
            else:  # a face of it, and a far edge that it hides itself
                soft = (False, True) if at < low else (True, False)
            # An edge shows motion only if it was not hidden in this sweep and in the one before.
            low_sure, high_sure = (not (now or before) for now, before in zip(soft, self._soft[k] or soft, strict=True))
            self._soft[k] = soft
            if not low_sure and not high_sure:
                adrift, shift[k], grown = True, (at_low + at_high) / 2, high - low - self.size_m[k]
            elif low_sure and high_sure and abs(at_low - at_high) < EDGES_AGREE_M:
                off[k], grown = (at_low + at_high) / 2, self._grown(k, high - low)
            else:
                grown = self._grown(k, high - low)
                by_low = low_sure and (not high_sure or abs(at_low) < abs(at_high))
                off[k], shift[k] = (at_low, grown / 2) if by_low else (at_high, -grown / 2)
            self.size_m[k] = max(MIN_M, self.size_m[k] + grown)
        # An edge is as precise as the points along it are dense.
        sigma_m = EDGE_M + EDGE_PER_M * cluster.range_m + GAP_SHARE * max(cluster.extent_m) / len(cluster.places_m)
        if adrift:
            sigma_m += ADRIFT_M
        elif self.hits >= 2:
            innovation = (off[0] ** 2 + off[1] ** 2) / (self.spread.pp + sigma_m**2) / 2
            self.misfit += MISFIT_SHARE * (min(20.0, innovation) - self.misfit)
        place, rate = self.spread.update(sigma_m)
        (off_x, off_y), (shift_x, shift_y) = self._from_axes(*off), self._from_axes(*shift)
        self.centre_m = (x + place * off_x + shift_x, y + place * off_y + shift_y)
        self.velocity_mps = (self.velocity_mps[0] + rate * off_x, self.velocity_mps[1] + rate * off_y)
        self.time_ns = time_ns
        self._observe(cluster, time_ns)

    def _grown(self, k: int, visible_m: float) -> float:
        more_m = visible_m - self.size_m[k]
        if more_m > 1.0 + 0.5 * self.size_m[k] and self.hits > 3:
            return 0.1 * more_m  # perhaps it only touches a neighbour
        return more_m * (GROW_SHARE if more_m > 0 else SHRINK_SHARE)

    def expected_m(self, at_ns: int) -> Place:
        """Its middle by the most likely motion, certain or not."""
        dt = (at_ns - self.time_ns) / NS
        return self.centre_m[0] + dt * self.velocity_mps[0], self.centre_m[1] + dt * self.velocity_mps[1]

    def middle_m(self, at_ns: int) -> Place:
        """Its middle; predicted only where its motion is certain enough."""
        return self.expected_m(at_ns) if self._is_predictable else self.centre_m

    def outline_m(self, at_ns: int) -> tuple[Place, Place, Place, Place]:
        """The corners of its box, in turn."""
        x, y = self.middle_m(at_ns)
        (ax, ay), (bx, by) = self._from_axes(self.size_m[0] / 2, 0.0), self._from_axes(0.0, self.size_m[1] / 2)
        return (
            (x + ax + bx, y + ay + by),
            (x + ax - bx, y + ay - by),
            (x - ax - bx, y - ay - by),
            (x - ax + bx, y - ay + by),
        )

    def nearest_at_m(self, at_ns: int) -> Place:
        """Its nearest point as it was last seen, predicted to at_ns."""
        dt = (at_ns - self.last_seen_ns) / NS if self._is_predictable else 0.0
        return self.nearest_m[0] + dt * self.velocity_mps[0], self.nearest_m[1] + dt * self.velocity_mps[1]

    def closing_mps(self, at_ns: int) -> float | None:
        """By how much its distance from the base frame's origin shrinks in a second; None: not known."""
        if self.large:
            return self.approach.closing_mps()
        if self.velocity is None:
            return None
        x, y = self.nearest_at_m(at_ns)
        return _certain(-(self.velocity[0] * x + self.velocity[1] * y) / max(1e-6, math.hypot(x, y)), self.velocity[2])


def _endless(a_m: float, b_m: float) -> bool:
    return max(a_m, b_m) > LARGE_M or (max(a_m, b_m) > THIN_M[0] and min(a_m, b_m) < THIN_M[1])


def _certain(closing_mps: float, sigma_mps: float) -> float:
    """0 where the speed may be noise: no time to collision is reported for what stands still."""
    return closing_mps if closing_mps < 0 or closing_mps > max(MIN_CLOSING_MPS, 2 * sigma_mps) else 0.0


def edges(clusters: Sequence[Cluster], yaws_rad: Sequence[float]) -> list[Edges]:
    """Least along the two axes of a box turned by each one's yaw, then greatest along them; for all clusters at
    once."""
    if not clusters:
        return []
    counts = [len(c.places_m) for c in clusters]
    places, yaw = np.concatenate([c.places_m for c in clusters]), np.repeat(np.array(yaws_rad, np.float32), counts)
    c, s = np.cos(yaw), np.sin(yaw)
    along = np.column_stack([c * places[:, 0] + s * places[:, 1], c * places[:, 1] - s * places[:, 0]])
    begins = np.r_[0, np.cumsum(counts[:-1])].astype(np.intp)
    both = np.hstack([np.minimum.reduceat(along, begins), np.maximum.reduceat(along, begins)])
    return [(a, b, c, d) for a, b, c, d in both.tolist()]
