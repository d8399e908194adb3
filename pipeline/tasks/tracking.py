"""Things followed from sweep to sweep: who is who, where, how large, how fast.

A thing is a box on the ground. What is measured of it is its near edges, for the far ones come and go with what hides
them; its size is remembered, so that its middle does not jump when more of it comes into view. Constant velocity, by
capture times alone: what was seen when, never when it was asked.

    tracker = Tracker()
    tracker.update(things, capture_ns, origin_m=(0.0, 0.0), is_free=lambda x_m, y_m: False)
    for track in tracker.tracks: track.id, track.velocity(), track.corners_m(at_ns)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.tasks.clusters import Cluster

Array = npt.NDArray[Any]

ACCELERATION_MPS2 = 2.5  # standard deviation of what changes a velocity
EDGE_M, EDGE_PER_M = 0.04, 0.002  # of a measured edge: at 0 m, and more with range
UNKNOWN_MPS, WORLD_MPS = 10.0, 5.0  # of a new thing's velocity; where the rest of the world moves alike, from that
WORLD_TRACKS, WORLD_HITS = 5, 6
LARGE_M = 15.0  # a wall, a hedge: what is seen of it changes along it, so it has no velocity that could be seen
THIN_M = (7.0, 0.6)  # longer than the one and thinner than the other: a piece of such
GATE, SIZE_WEIGHT = 3.2, 0.4
SURE_HITS, SURE_MPS = 4, 0.8  # a velocity is told after so many sweeps, and with a standard deviation below this
CARRY_NS, FLEETING_NS, SEEN_THROUGH_NS = 600_000_000, 150_000_000, 250_000_000
CARRIED_HITS = 3  # seen less often, a thing is not carried on where it is not seen
BACK_NS, GAP_NS = 200_000_000, 1_000_000_000  # a jump back or ahead by more: another time, other things
YAW_SHARE, EDGES_AGREE_M = 0.2, 0.3
GROW_SHARE, SHRINK_SHARE = 0.5, 0.03
MIN_CLOSING_MPS = 0.3
MISFIT_SHARE = 0.3
RANGE_JUMP_M, INSIDE_M = 1.0, 0.1


class Approach:
    """How fast a distance shrinks: a distance and its rate, filtered; a jump begins anew."""

    def __init__(self) -> None:
        self.hits, self._time_ns = 0, 0
        self._state, self._covariance = np.zeros(2), np.zeros((2, 2))

    def update(self, range_m: float, time_ns: int) -> None:
        dt = (time_ns - self._time_ns) / NS
        if self.hits and 0 < dt < GAP_NS / NS:
            step = np.array([[1.0, dt], [0.0, 1.0]])
            state = step @ self._state
            noise = np.array([dt * dt / 2, dt]) * ACCELERATION_MPS2
            covariance = step @ self._covariance @ step.T + np.outer(noise, noise)
            off = range_m - state[0]
            spread = covariance[0, 0] + (EDGE_M + EDGE_PER_M * range_m) ** 2
            if abs(off) < RANGE_JUMP_M + 3 * math.sqrt(covariance[0, 0]):
                gain = covariance[:, 0] / spread
                self._state, self._covariance = state + gain * off, covariance - np.outer(gain, covariance[0])
                self.hits, self._time_ns = self.hits + 1, time_ns
                return
        elif self.hits and dt == 0:
            return
        self._state = np.array([range_m, 0.0])
        self._covariance = np.diag([(EDGE_M + EDGE_PER_M * range_m) ** 2, UNKNOWN_MPS**2])
        self.hits, self._time_ns = 1, time_ns

    def closing_mps(self) -> float | None:
        """None: not known yet."""
        sigma_mps = math.sqrt(self._covariance[1, 1])
        return _certain(-float(self._state[1]), sigma_mps) if self.hits >= SURE_HITS and sigma_mps < SURE_MPS else None


class Track:
    def __init__(self, id: int, cluster: Cluster, time_ns: int, velocity_mps: Array, sigma_mps: float) -> None:
        self.id, self.hits, self.time_ns, self.seen_ns = id, 0, time_ns, time_ns
        self.passed_ns: int | None = None  # since when its place is seen to be free
        self._sigma_mps = sigma_mps
        self.velocity_mps = np.array(velocity_mps, np.float64)
        self.approach, self.misfit = Approach(), 1.0
        self._begin(cluster, time_ns)

    def _begin(self, cluster: Cluster, time_ns: int) -> None:
        self.yaw_rad = cluster.yaw_rad if cluster.yaw_sure else 0.0
        low, high = _edges(cluster, self.yaw_rad)
        self.size_m = np.maximum(high - low, 0.1)
        self.centre_m = self._from_axes((low + high) / 2)
        sigma_m = EDGE_M + EDGE_PER_M * cluster.range_m
        self.covariance = np.diag([sigma_m**2, sigma_m**2, self._sigma_mps**2, self._sigma_mps**2])
        self.time_ns = time_ns
        self._saw(cluster, time_ns)

    def begin_again(self, cluster: Cluster, time_ns: int) -> None:
        """It is there, but not as it was expected: merged with a neighbour, come apart, or seen from another side."""
        velocity_mps = self.velocity_mps
        self.hits = min(self.hits, 1)
        self._begin(cluster, time_ns)
        self.velocity_mps, self.misfit = velocity_mps, 1.0

    def _saw(self, cluster: Cluster, time_ns: int) -> None:
        self.hits, self.seen_ns, self.passed_ns, self.points = self.hits + 1, time_ns, None, cluster.points
        self.bottom_m, self.top_m, self.floor_m = cluster.bottom_m, cluster.top_m, cluster.floor_m
        self.nearest_m = np.array(cluster.nearest_m)  # at seen_ns
        middle, extent = _bounds(cluster)
        self.seen_from_centre_m, self.seen_extent_m = middle - self.centre_m, extent
        self.approach.update(cluster.range_m, time_ns)

    @property
    def large(self) -> bool:
        return _endless(self.size_m)

    def _axes(self) -> Array:
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return np.array([[c, s], [-s, c]])

    def _from_axes(self, along: Array) -> Array:
        turned: Array = along @ self._axes()
        return turned

    def predict(self, time_ns: int) -> None:
        dt = (time_ns - self.time_ns) / NS
        step = np.eye(4)
        step[0, 2] = step[1, 3] = dt
        self.centre_m = self.centre_m + dt * self.velocity_mps
        self.covariance = step @ self.covariance @ step.T
        q = ACCELERATION_MPS2**2
        dt = abs(dt)
        for k in (0, 1):
            self.covariance[k, k] += q * dt**4 / 4
            self.covariance[k, k + 2] += q * dt**3 / 2
            self.covariance[k + 2, k] += q * dt**3 / 2
            self.covariance[k + 2, k + 2] += q * dt**2
        self.time_ns = time_ns

    def update(self, cluster: Cluster, time_ns: int, origin_m: Array) -> None:
        """A cluster that is this thing, measured from a sensor at origin_m (x, y)."""
        extent = _bounds(cluster)[1]
        if self.large or _endless(extent):
            velocity = self.velocity_mps
            self._begin(cluster, time_ns)
            self.velocity_mps = velocity
            return
        self.predict(time_ns)
        if cluster.yaw_sure:
            turn = (cluster.yaw_rad - self.yaw_rad + math.pi / 4) % (math.pi / 2) - math.pi / 4
            if self.hits < 2:
                self._turn_young(cluster, turn)
            else:
                self.yaw_rad += YAW_SHARE * turn
        low, high = _edges(cluster, self.yaw_rad)
        axes = self._axes()
        centre, eye = axes @ self.centre_m, axes @ origin_m
        off, shift = np.zeros(2), np.zeros(2)
        for k in (0, 1):
            at_low = low[k] - (centre[k] - self.size_m[k] / 2)
            at_high = high[k] - (centre[k] + self.size_m[k] / 2)
            grown = self._grown(k, high[k] - low[k])
            if eye[k] < low[k]:
                off[k], shift[k] = at_low, grown / 2
            elif eye[k] > high[k]:
                off[k], shift[k] = at_high, -grown / 2
            elif abs(at_low - at_high) < EDGES_AGREE_M:
                off[k] = (at_low + at_high) / 2
            else:  # one edge is hidden, or another thing's: the one that lies where it was expected is its own
                off[k], shift[k] = (at_low, grown / 2) if abs(at_low) < abs(at_high) else (at_high, -grown / 2)
            self.size_m[k] += grown
        sigma_m = EDGE_M + EDGE_PER_M * cluster.range_m
        spread = np.linalg.inv(self.covariance[:2, :2] + np.eye(2) * sigma_m**2)
        gain, surprise = self.covariance[:, :2] @ spread, axes.T @ off
        if self.hits >= 2:
            self.misfit += MISFIT_SHARE * (min(20.0, float(surprise @ spread @ surprise) / 2) - self.misfit)
        change = gain @ surprise
        self.centre_m = self.centre_m + change[:2] + axes.T @ shift
        self.velocity_mps = self.velocity_mps + change[2:]
        self.covariance = self.covariance - gain @ self.covariance[:2]
        self._saw(cluster, time_ns)

    def _turn_young(self, cluster: Cluster, turn: float) -> None:
        """Its first direction was a guess: the box is laid anew around the same middle."""
        self.yaw_rad += turn
        low, high = _edges(cluster, self.yaw_rad)
        self.size_m = np.maximum(high - low, 0.1)

    def _grown(self, k: int, seen_m: float) -> float:
        more_m = seen_m - float(self.size_m[k])
        if more_m > 1.0 + 0.5 * self.size_m[k] and self.hits > 3:
            return 0.1 * more_m  # perhaps it only touches a neighbour
        return more_m * (GROW_SHARE if more_m > 0 else SHRINK_SHARE)

    def velocity(self) -> tuple[Array, float] | None:
        """(x, y) m/s and the standard deviation of either; None: not known yet, or not to be known. Where sweeps fall further
        from what was expected than their noise explains, the velocity is as much less sure."""
        sigma_mps = math.sqrt(max(self.covariance[2, 2], self.covariance[3, 3]) * max(1.0, self.misfit))
        if self.large or self.hits < SURE_HITS or sigma_mps > SURE_MPS:
            return None
        return self.velocity_mps, sigma_mps

    def moved_m(self, at_ns: int) -> Array:
        """By how much it goes on from where it is now, as far as it is known to move."""
        known = self.velocity()
        return np.zeros(2) if known is None else known[0] * ((at_ns - self.time_ns) / NS)

    def corners_m(self, at_ns: int) -> Array:
        """(4, 2) of its box, in turn."""
        half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * self.size_m / 2
        corners: Array = self.centre_m + self.moved_m(at_ns) + half @ self._axes()
        return corners

    def holds(self, place_m: Array, at_ns: int) -> bool:
        """Whether a place, (2,), lies in its box."""
        along = np.abs(self._axes() @ (place_m - self.centre_m - self.moved_m(at_ns)))
        return bool((along < self.size_m / 2 + INSIDE_M).all())

    def nearest_at_m(self, at_ns: int) -> Array:
        """(2,) its nearest point as it was last seen, carried on."""
        known = self.velocity()
        return self.nearest_m + (0 if known is None else known[0] * ((at_ns - self.seen_ns) / NS))

    def closing_mps(self, at_ns: int) -> float | None:
        """By how much its distance from the base frame's origin shrinks in a second; None: not known."""
        if self.large:
            return self.approach.closing_mps()
        known = self.velocity()
        if known is None:
            return None
        nearest = self.nearest_at_m(at_ns)
        closing_mps = -float(known[0] @ nearest) / max(1e-6, float(np.hypot(*nearest)))
        return _certain(closing_mps, known[1])


class Tracker:
    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._next_id, self._newest_ns = 1, 0

    def reset(self) -> None:
        self.tracks = []

    def update(
        self, clusters: Sequence[Cluster], capture_ns: int, *, origin_m: Sequence[float] = (0.0, 0.0),
        is_free: Callable[[float, float], bool] = lambda x_m, y_m: False,
    ) -> None:  # fmt: skip
        """One sweep's clusters. is_free: this sweep saw through that place, down to the ground."""
        if self.tracks and not -BACK_NS < capture_ns - self._newest_ns < GAP_NS:
            self.reset()
        self._newest_ns = capture_ns if not self.tracks else max(self._newest_ns, capture_ns)
        eye = np.array(origin_m[:2], np.float64)
        pairs, fragments = self._matched(clusters, capture_ns)
        for t, c in pairs:
            self.tracks[t].update(clusters[c], capture_ns + round(clusters[c].seconds * NS), eye)
        again = self._overlapping(clusters, capture_ns, {t for t, _ in pairs}, {c for _, c in pairs} | fragments)
        for t, c in again:
            self.tracks[t].begin_again(clusters[c], capture_ns + round(clusters[c].seconds * NS))
        matched, taken = {t for t, _ in pairs + again}, {c for _, c in pairs + again} | fragments
        world, sigma_mps = self._world()
        seen = [self.tracks[t] for t in matched]
        self.tracks = [
            t for k, t in enumerate(self.tracks)
            if k in matched or (self._stays(t, capture_ns, is_free) and not any(s.holds(t.centre_m + t.moved_m(s.time_ns), s.time_ns) for s in seen))
        ]  # fmt: skip
        for c, cluster in enumerate(clusters):
            if c not in taken:
                self.tracks.append(Track(self._next_id, cluster, capture_ns + round(cluster.seconds * NS), world, sigma_mps))
                self._next_id += 1

    def _world(self) -> tuple[Array, float]:
        """What a new thing most likely does: seen from a rig that drives, all that stands moves alike."""
        known = [t.velocity_mps for t in self.tracks if t.hits >= WORLD_HITS and t.velocity() is not None]
        return (np.zeros(2), UNKNOWN_MPS) if len(known) < WORLD_TRACKS else (np.median(known, axis=0), WORLD_MPS)

    def _stays(self, track: Track, capture_ns: int, is_free: Callable[[float, float], bool]) -> bool:
        track.points = 0
        unseen_ns = capture_ns - track.seen_ns
        place = track.centre_m + track.velocity_mps * ((capture_ns - track.time_ns) / NS)
        if not is_free(float(place[0]), float(place[1])):
            track.passed_ns = None
        elif track.passed_ns is None:
            track.passed_ns = capture_ns
        through_ns = 0 if track.passed_ns is None else capture_ns - track.seen_ns
        carried = track.hits >= CARRIED_HITS
        return unseen_ns <= (CARRY_NS if carried else FLEETING_NS) and through_ns <= SEEN_THROUGH_NS

    def _overlapping(
        self, clusters: Sequence[Cluster], capture_ns: int, matched: set[int], taken: set[int]
    ) -> list[tuple[int, int]]:
        """Pairs of what is left: the track was to be where the cluster is, though not as it is."""
        pairs: list[tuple[int, int]] = []
        left = [(c, *_bounds(clusters[c])) for c in range(len(clusters)) if c not in taken]
        for t, track in enumerate(self.tracks):
            if t in matched or track.hits < 2:
                continue
            place = track.centre_m + track.velocity_mps * ((capture_ns - track.time_ns) / NS)
            for c, middle, extent in left:
                if c not in taken and (np.abs(middle - place) < extent / 2 + INSIDE_M).all():
                    pairs.append((t, c))
                    taken = taken | {c}
                    break
        return pairs

    def _matched(self, clusters: Sequence[Cluster], capture_ns: int) -> tuple[list[tuple[int, int]], set[int]]:
        """(track, cluster) pairs, the likeliest first; and the clusters that are only pieces of a track's box."""
        if not clusters or not self.tracks:
            return [], set()
        bounds = [_bounds(c) for c in clusters]
        middle, extent = np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds])
        when = np.array([capture_ns + round(c.seconds * NS) for c in clusters])
        cost = np.empty((len(self.tracks), len(clusters)))
        for t, track in enumerate(self.tracks):
            dt = (when - track.time_ns) / NS  # (clusters,)
            expected = track.centre_m + track.seen_from_centre_m + dt[:, None] * track.velocity_mps
            spread_m2 = track.covariance[0, 0] + dt**2 * track.covariance[2, 2] + 0.1**2
            # A box that is seen in part may have its middle anywhere along what it lacks.
            between = np.abs(middle - expected)
            slack = 0.5 * np.abs(extent - track.seen_extent_m)
            off = np.maximum(between - slack, 0)
            misfit = np.abs(np.log((np.hypot(*extent.T) + 0.3) / (np.hypot(*track.seen_extent_m) + 0.3)))
            cost[t] = np.sqrt((off**2).sum(axis=1) / spread_m2) + SIZE_WEIGHT * misfit + 0.05 * between.sum(axis=1)
        pairs: list[tuple[int, int]] = []
        tracks_left, clusters_left = np.ones(len(self.tracks), bool), np.ones(len(clusters), bool)
        for flat in np.argsort(cost, axis=None, kind="stable"):
            t, c = divmod(int(flat), len(clusters))
            if cost[t, c] > GATE:
                break
            if tracks_left[t] and clusters_left[c]:
                pairs.append((t, c))
                tracks_left[t] = clusters_left[c] = False
        owners = [self.tracks[t] for t, _ in pairs if self.tracks[t].hits >= CARRIED_HITS and not self.tracks[t].large]
        fragments = {int(c) for c in np.flatnonzero(clusters_left)
                     if any(track.holds(middle[c], int(when[c])) for track in owners)}  # fmt: skip
        return pairs, fragments


def _endless(size_m: Array) -> bool:
    return bool(size_m.max() > LARGE_M or (size_m.max() > THIN_M[0] and size_m.min() < THIN_M[1]))


def _certain(closing_mps: float, sigma_mps: float) -> float:
    """0 where it may well be nothing: what stands still must not be told to arrive some day."""
    return closing_mps if closing_mps < 0 or closing_mps > max(MIN_CLOSING_MPS, 2 * sigma_mps) else 0.0


def _edges(cluster: Cluster, yaw_rad: float) -> tuple[Array, Array]:
    """Least and greatest along the two axes of a box turned by yaw_rad: (2,), (2,)."""
    c, s = math.cos(yaw_rad), math.sin(yaw_rad)
    along = cluster.places_m @ np.array([[c, -s], [s, c]], np.float32)
    return along.min(axis=0).astype(np.float64), along.max(axis=0).astype(np.float64)


def _bounds(cluster: Cluster) -> tuple[Array, Array]:
    low, high = _edges(cluster, 0.0)
    return (low + high) / 2, high - low
