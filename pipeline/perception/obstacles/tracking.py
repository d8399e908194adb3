"""Association of clusters with tracks from sweep to sweep. track.py holds the state of each track.

Depends on capture times alone, never on when it is queried, so that a replay gives the tracks of the live run.

Example:
    tracker = Tracker()
    tracker.update(clusters, capture_ns, origin_m=(0.0, 0.0), is_free=lambda x_m, y_m: False)
    for track in tracker.tracks: track.id, track.velocity, track.outline_m(at_ns)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.clock import NS
from pipeline.perception.obstacles.clusters import Cluster
from pipeline.perception.obstacles.track import CARRIED_HITS, GAP_NS, UNKNOWN_MPS, Place, Track, edges

WORLD_MPS = 5.0  # standard deviation of a new track's velocity, where the static world has a common velocity
WORLD_TRACKS, WORLD_HITS = 5, 6
GATE, SIZE_WEIGHT = 3.2, 0.4
CARRY_NS, FLEETING_NS, FREE_FOR_NS = 600_000_000, 150_000_000, 250_000_000
BACK_NS = 200_000_000  # time that goes back by more, or ahead by more than GAP_NS, resets all tracks
INSIDE_M = 0.1


class Tracker:
    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._next_id, self._newest_ns = 1, 0

    def reset(self) -> None:
        self.tracks = []

    def update(
        self,
        clusters: Sequence[Cluster],
        capture_ns: int,
        *,
        origin_m: Sequence[float] = (0.0, 0.0),
        is_free: Callable[[float, float], bool] = lambda x_m, y_m: False,
    ) -> None:
        """Add one sweep's clusters. is_free: whether this sweep shows free ground at a position."""
        if self.tracks and not -BACK_NS < capture_ns - self._newest_ns < GAP_NS:
            self.reset()
        self._newest_ns = capture_ns if not self.tracks else max(self._newest_ns, capture_ns)
        when_ns = [capture_ns + round(c.seconds * NS) for c in clusters]
        pairs, fragments = self._matched(clusters, when_ns)
        for t, c in pairs:
            self.tracks[t].turn(clusters[c])
        measured = edges([clusters[c] for _, c in pairs], [self.tracks[t].yaw_rad for t, _ in pairs])
        for (t, c), own in zip(pairs, measured, strict=True):
            self.tracks[t].update(clusters[c], own, when_ns[c], (float(origin_m[0]), float(origin_m[1])))
        matched, taken = {t for t, _ in pairs}, {c for _, c in pairs} | fragments
        for t, c in self._overlapping(clusters, capture_ns, matched, taken):
            self.tracks[t].restart(clusters[c], when_ns[c])
            matched.add(t)
            taken.add(c)
        world, sigma_mps = self._world()
        # A track without a cluster inside the box of a matched track is an older track of the same object.
        within = _within(
            [t.middle_m(capture_ns) for t in self.tracks],
            [capture_ns] * len(self.tracks),
            [self.tracks[t] for t in sorted(matched)],
        )
        self.tracks = [
            t
            for k, t in enumerate(self.tracks)
            if k in matched or (self._stays(t, capture_ns, is_free) and not within[k])
        ]
        for c, cluster in enumerate(clusters):
            if c not in taken:
                self.tracks.append(Track(self._next_id, cluster, when_ns[c], world, sigma_mps))
                self._next_id += 1

    def _world(self) -> tuple[Place, float]:
        """The most likely velocity of a new track: relative to a moving rig, everything static has the same
        velocity."""
        known = [t.velocity_mps for t in self.tracks if t.hits >= WORLD_HITS and t.velocity is not None]
        if len(known) < WORLD_TRACKS:
            return (0.0, 0.0), UNKNOWN_MPS
        x, y = np.median(known, axis=0)
        return (float(x), float(y)), WORLD_MPS

    def _stays(self, track: Track, capture_ns: int, is_free: Callable[[float, float], bool]) -> bool:
        track.points = 0
        if not is_free(*track.expected_m(capture_ns)):
            track.free_since_ns = None
        elif track.free_since_ns is None:
            track.free_since_ns = capture_ns
        unseen_ns = capture_ns - track.last_seen_ns
        through_ns = 0 if track.free_since_ns is None else unseen_ns
        established = track.hits >= CARRIED_HITS
        return unseen_ns <= (CARRY_NS if established else FLEETING_NS) and through_ns <= FREE_FOR_NS

    def _overlapping(
        self, clusters: Sequence[Cluster], capture_ns: int, matched: set[int], taken: set[int]
    ) -> list[tuple[int, int]]:
        """Pairs among the rest: the track was predicted at the cluster's position, with another shape."""
        pairs: list[tuple[int, int]] = []
        left = [c for c in range(len(clusters)) if c not in taken]
        for t, track in enumerate(self.tracks):
            if t in matched or track.hits < 2:
                continue
            x, y = track.expected_m(capture_ns)
            for c in left:
                (middle_x, middle_y), (wide_x, wide_y) = clusters[c].middle_m, clusters[c].extent_m
                if abs(middle_x - x) < wide_x / 2 + INSIDE_M and abs(middle_y - y) < wide_y / 2 + INSIDE_M:
                    pairs.append((t, c))
                    left.remove(c)
                    break
        return pairs

    def _matched(self, clusters: Sequence[Cluster], when_ns: Sequence[int]) -> tuple[list[tuple[int, int]], set[int]]:
        """(track, cluster) pairs, the likeliest first; and the clusters that are only parts of a track's box."""
        if not clusters or not self.tracks:
            return [], set()
        tracks = self.tracks
        middle, extent = np.array([c.middle_m for c in clusters]), np.array([c.extent_m for c in clusters])
        dt = (np.array(when_ns) - np.array([t.time_ns for t in tracks])[:, None]) / NS  # (tracks, clusters)
        velocity, centre = np.array([t.velocity_mps for t in tracks]), np.array([t.centre_m for t in tracks])
        expected = (centre + [t.visible_offset_m for t in tracks])[:, None] + dt[..., None] * velocity[:, None]
        variance = np.array([(t.spread.pp, t.spread.vv) for t in tracks])
        spread_m2 = variance[:, :1] + dt**2 * variance[:, 1:] + 0.1**2
        # The middle of a partly visible box may lie anywhere along its hidden part.
        visible_extent = np.array([t.visible_extent_m for t in tracks])
        between = np.abs(middle - expected)
        off = np.maximum(between - 0.5 * np.abs(extent - visible_extent[:, None]), 0)
        misfit = np.abs(np.log((np.hypot(*extent.T) + 0.3) / (np.hypot(*visible_extent.T) + 0.3)[:, None]))
        cost = np.sqrt((off**2).sum(axis=2) / spread_m2) + SIZE_WEIGHT * misfit + 0.05 * between.sum(axis=2)
        pairs: list[tuple[int, int]] = []
        tracks_left, clusters_left = set(range(len(tracks))), set(range(len(clusters)))
        near = np.flatnonzero(cost.ravel() <= GATE)
        for flat in near[np.argsort(cost.ravel()[near], kind="stable")]:
            t, c = divmod(int(flat), len(clusters))
            if t in tracks_left and c in clusters_left:
                pairs.append((t, c))
                tracks_left.remove(t)
                clusters_left.remove(c)
        owners = [tracks[t] for t, _ in pairs if tracks[t].hits >= CARRIED_HITS and not tracks[t].large]
        left = sorted(clusters_left)
        within = _within([clusters[c].middle_m for c in left], [when_ns[c] for c in left], owners)
        return pairs, {c for c, inside in zip(left, within, strict=True) if inside}


def _within(places_m: Sequence[Place], when_ns: Sequence[int], tracks: Sequence[Track]) -> list[bool]:
    """Of each place, as of its time, whether it lies in the box of any of the tracks."""
    if not tracks or not places_m:
        return [False] * len(places_m)
    dt = (np.array(when_ns)[:, None] - np.array([t.time_ns for t in tracks])) / NS  # (places, tracks)
    off = np.array(places_m)[:, None] - np.array([t.centre_m for t in tracks])  # (places, tracks, 2)
    off -= dt[..., None] * np.array([t.velocity_mps for t in tracks])
    yaw, size = np.array([t.yaw_rad for t in tracks]), np.array([t.size_m for t in tracks])
    c, s = np.cos(yaw), np.sin(yaw)
    inside = np.abs(c * off[..., 0] + s * off[..., 1]) < size[:, 0] / 2 + INSIDE_M
    inside &= np.abs(c * off[..., 1] - s * off[..., 0]) < size[:, 1] / 2 + INSIDE_M
    return [bool(v) for v in inside.any(axis=1)]
