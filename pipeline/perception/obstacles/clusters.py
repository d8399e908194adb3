"""Points above the ground → clusters, one per object, seen from above.

Points in neighbouring cells belong together; with range the cells reach wider, as the beams spread. The result is a
list, nearest first, of plain outlines: the middles of 10 cm cells, which average the noise of their points.

Example:
    clusters = find_clusters(points_m, height_m, seconds, Horizon(points_m, origin_m))
    clusters[0].range_m, clusters[0].places_m      # its nearest point's distance; (k, 2) float32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LINK_M = 0.2  # side of cells; those that touch, also at a corner, are one cluster
FINE_M = 0.1
NEAR_M = 12.0  # in a cloud of at most this range (a depth camera's) the points are so dense that FINE_M links them
AZIMUTHS, BESIDE, BEFORE_M = (
    720,
    2,
    0.3,
)  # directions; how many beside an end are checked; nearer by this is in front of it
HORIZON_POINTS = 16_000  # used to find the directions that a sensor covers
REACH_M = 12.0  # beyond this, cells link across an empty one: surfaces slant, and beams have spread
ALONG_RAY = 0.012  # cells also link along the ray, over this share of the range: a side seen at a slant
MIN_POINTS, MIN_CELLS = 4, 1
# An L is fitted to what may be a vehicle; people and poles have no direction, and walls take that of their longest
# side.
FIT_M, FIT_CELLS, FIT_SAMPLES, FIT_STEP_DEG = (0.7, 20.0), 6, 48, 3.0
ROOF_M, ROOF_GAP_M = 0.3, 3.5  # a strip of roof, as high as the front of the vehicle
TRUSTED_POINTS, WEAK_M = 3, 0.1
HANGS_M, FRAGMENT_M, FRAGMENT_GAP_M, VEHICLE_M = 0.7, 2.5, 1.6, 6.5
WALL_M, APART_M, APART_POINTS = 10.0, 0.8, 20
EDGE_M = 0.06  # a point this near to an edge lies on it


class Cluster(NamedTuple):
    places_m: Floats  # (k, 2): x, y of its fine cells' middles, base frame
    middle_m: tuple[float, float]  # of the upright rectangle around them
    extent_m: tuple[float, float]  # its sides along x and y
    points: int
    seconds: float  # mean time of its points since the sweep's start
    bottom_m: float  # above the ground
    top_m: float
    floor_m: float  # z of the ground under it, base frame
    range_m: float  # horizontal, from the base frame's origin to `nearest_m`
    nearest_m: tuple[float, float]
    # Whether its right and its left end, as its sensor sees them, are occluded by something nearer or lie at the edge
    # of the sensor's view, so that the object may extend beyond them.
    ends_hidden: tuple[bool, bool]
    yaw_rad: float  # of one of its sides, in [0, π/2)
    yaw_sure: bool  # False: too small or round to have a direction


class Horizon:
    """The directions that a sensor covers: those with any return, also from the ground."""

    def __init__(self, points_m: Floats, origin_m: Sequence[float]) -> None:
        """points_m: (n, 3), all of a cloud."""
        self.origin_m = (float(origin_m[0]), float(origin_m[1]))
        self.lit = np.zeros(AZIMUTHS, bool)
        self.lit[self.bins(points_m[:: len(points_m) // HORIZON_POINTS * 2 + 1])] = True

    def bins(self, points_m: Floats) -> npt.NDArray[np.int32]:
        turn = np.arctan2(points_m[:, 1] - np.float32(self.origin_m[1]), points_m[:, 0] - np.float32(self.origin_m[0]))
        return np.asarray((turn * np.float32(AZIMUTHS / (2 * np.pi))).astype(np.int32) % AZIMUTHS, np.int32)

    def ranges(self, places_m: Floats) -> Floats:
        x, y = places_m[:, 0] - np.float32(self.origin_m[0]), places_m[:, 1] - np.float32(self.origin_m[1])
        return np.asarray(np.hypot(x, y), np.float32)


def find_clusters(
    points_m: Floats, height_m: Floats, seconds: Floats, horizon: Horizon, *, range_m: float = 60.0
) -> list[Cluster]:
    """points_m: (n, 3) above the ground, with their height_m and seconds, (n,). horizon: of the whole cloud."""
    away_m = np.maximum(np.abs(points_m[:, 0]), np.abs(points_m[:, 1]))
    inside = np.flatnonzero(away_m < range_m)
    if len(inside) < len(points_m):
        points_m, height_m, seconds = points_m.take(inside, axis=0), height_m.take(inside), seconds.take(inside)
    range_m = min(range_m, float(away_m.max(initial=0)) + 1)
    if not len(points_m):
        return []
    cells = _FineCells(points_m, height_m, seconds, range_m)
    link_m = LINK_M if range_m > NEAR_M else FINE_M
    label = _without_walls(cells, _linked(cells.places_m, range_m, link_m, loose=True), range_m, link_m)
    label = _with_fragments(cells, label)
    order = np.argsort(label, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(label[order]) != 0])
    ends = np.r_[begins[1:], len(order)]
    points = np.add.reduceat(cells.points[order], begins)
    selected = np.flatnonzero((points >= MIN_POINTS) & (ends - begins >= MIN_CELLS))
    places, times = cells.places_m.take(order, axis=0), cells.seconds[order] * cells.points[order]
    low, high = np.minimum.reduceat(cells.bottom_m[order], begins), np.maximum.reduceat(cells.top_m[order], begins)
    seconds_sum, floor = np.add.reduceat(times, begins), np.add.reduceat(cells.floor_m[order], begins) / (ends - begins)
    least, max_m = np.minimum.reduceat(places, begins), np.maximum.reduceat(places, begins)
    middle = [(x, y) for x, y in ((least + max_m) / 2).tolist()]
    extent = [(x, y) for x, y in (max_m - least).tolist()]
    # A cell of one or two points has their noise; the nearest point is taken from fuller cells where there are any.
    most = np.minimum(np.maximum.reduceat(cells.points[order], begins), TRUSTED_POINTS)
    weak = cells.points[order] < np.repeat(most, ends - begins)
    ranges = np.hypot(places[:, 0], places[:, 1])
    trusted_m = np.where(weak, ranges + WEAK_M, ranges)
    best = np.flatnonzero(trusted_m == np.repeat(np.minimum.reduceat(trusted_m, begins), ends - begins))
    nearest = best[np.searchsorted(best, begins)]
    right, left = _ends_hidden(places, horizon, begins, ends, selected)
    yaws = _yaws(places, begins, ends, selected, (max_m - least).max(axis=1)[selected])
    plain = zip(
        *(
            v[selected].tolist()
            for v in (begins, ends, points, seconds_sum / points, low, high, floor, ranges[nearest], places[nearest])
        ),
        right,
        left,
        selected.tolist(),
        strict=True,
    )
    clusters = [
        Cluster(
            places[begin:end],
            middle[k],
            extent[k],
            count,
            second,
            bottom_m,
            top_m,
            floor_m,
            near_m,
            (x, y),
            (at_right, at_left),
            *yaws.get(k, (0.0, False)),
        )
        for begin, end, count, second, bottom_m, top_m, floor_m, near_m, (x, y), at_right, at_left, k in plain
    ]
    return sorted(clusters, key=lambda c: c.range_m)


class _FineCells:
    """Points in cells of 10 cm: i, j count from -range_m; the other values are per cell."""

    def __init__(self, points_m: Floats, height_m: Floats, seconds: Floats, range_m: float) -> None:
        side = round(2 * range_m / FINE_M)
        per_m = np.float32(1 / FINE_M)
        i = np.clip(((points_m[:, 0] + np.float32(range_m)) * per_m).astype(np.int32), 0, side - 1)
        j = np.clip(((points_m[:, 1] + np.float32(range_m)) * per_m).astype(np.int32), 0, side - 1)
        key = i * side + j
        hit = np.zeros(side * side, bool)
        hit[key] = True
        own = np.flatnonzero(hit)
        rank = np.empty(side * side, np.int32)
        rank[own] = np.arange(len(own), dtype=np.int32)
        at = rank[key]
        self.i, self.j = (own // side).astype(np.int32), (own % side).astype(np.int32)
        self.points = np.bincount(at)

        def mean(values: Floats) -> Floats:
            return (np.bincount(at, values) / self.points).astype(np.float32)

        self.places_m = np.column_stack([mean(points_m[:, 0]), mean(points_m[:, 1])])
        self.seconds, self.floor_m = mean(seconds), mean(points_m[:, 2] - height_m)
        self.bottom_m, self.top_m = np.full(len(own), np.inf, np.float32), np.full(len(own), -np.inf, np.float32)
        np.minimum.at(self.bottom_m, at, height_m)
        np.maximum.at(self.top_m, at, height_m)


def _ends_hidden(
    places: Floats,
    horizon: Horizon,
    begins: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    selected: npt.NDArray[np.intp],
) -> tuple[list[bool], list[bool]]:
    """Of each selected cluster, whether its right and its left end are hidden (see Cluster.ends_hidden)."""
    if not len(selected):
        return [], []
    away_m, bins = horizon.ranges(places), horizon.bins(places)
    nearest = np.full(AZIMUTHS, np.inf, np.float32)
    np.minimum.at(nearest, bins, away_m)
    # Bearings relative to each cluster's first place: only a wall all around extends half a turn from there.
    turn = (bins - np.repeat(bins[begins], ends - begins) + AZIMUTHS // 2) % AZIMUTHS - AZIMUTHS // 2
    hidden = []
    for side, reduce in ((-1, np.minimum), (1, np.maximum)):
        end = reduce.reduceat(turn, begins)
        at_end = turn == np.repeat(end, ends - begins)
        end_m = np.minimum.reduceat(np.where(at_end, away_m, np.inf), begins)[selected]
        beside = (end[selected] + bins[begins[selected]])[:, None] + side * np.arange(BESIDE + 1)
        before = nearest[beside % AZIMUTHS].min(axis=1) < end_m - BEFORE_M
        dark = ~horizon.lit[beside[:, 1:] % AZIMUTHS].any(axis=1)
        hidden.append([bool(h) for h in before | dark])
    return hidden[0], hidden[1]


def _linked(places_m: Floats, range_m: float, link_m: float, *, loose: bool) -> npt.NDArray[np.int32]:
    """The number of the cluster each place belongs to. loose: also across the gaps of slanted and far surfaces."""
    side = round(2 * range_m / link_m) + 1
    mask = np.zeros((side, side), np.uint8)
    along_ray = (1.0, 1 - ALONG_RAY, 1 - ALONG_RAY / 2, 1 + ALONG_RAY / 2, 1 + ALONG_RAY)
    for share in along_ray if loose else (1.0, 1 - ALONG_RAY / 2, 1 + ALONG_RAY / 2):
        at = ((places_m * np.float32(share) + np.float32(range_m)) * np.float32(1 / link_m)).astype(np.int32)
        np.clip(at, 0, side - 1, out=at)
        mask[at[:, 0], at[:, 1]] = 1
    if loose:
        near = np.zeros_like(mask)  # unchanged within REACH_M of the base frame's origin
        middle = round(range_m / link_m)
        cv2.circle(near, (middle, middle), round(REACH_M / link_m), 1, thickness=-1)
        mask = np.where(near, mask, cv2.dilate(mask, np.ones((2, 2), np.uint8)))
    _, labels = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    at = ((places_m + np.float32(range_m)) * np.float32(1 / link_m)).astype(np.int32)
    return np.asarray(labels[at[:, 0], at[:, 1]], np.int32)


def _bounds(label: npt.NDArray[np.int32], places_m: Floats) -> npt.NDArray[np.float32]:
    """(4, labels) x from, y from, −x to, −y to: each the least of its places; infinite for an unused number."""
    box = np.full((4, int(label.max()) + 1), np.inf, np.float32)
    for side, values in zip(box, (*places_m.T, *-places_m.T), strict=True):
        np.minimum.at(side, label, values)
    return box


def _without_walls(
    cells: _FineCells, label: npt.NDArray[np.int32], range_m: float, link_m: float
) -> npt.NDArray[np.int32]:
    """Separates vehicles that almost touch a wall: places of large clusters are linked again, more strictly."""
    box = _bounds(label, cells.places_m)
    long = np.flatnonzero((-(box[2:] + box[:2])).max(axis=0)[label] > WALL_M)
    if not len(long):
        return label
    strict = _linked(cells.places_m[long], range_m, link_m, loose=False)
    box = _bounds(strict, cells.places_m[long])
    extent = -(box[2:] + box[:2])
    points = np.bincount(strict, cells.points[long], box.shape[1])
    own = (extent.max(axis=0) < VEHICLE_M) & (extent.min(axis=0) > APART_M) & (points >= APART_POINTS)
    result = label.copy()
    result[long] = np.where(own[strict], strict + int(label.max()) + 1, label[long])
    return result


def _with_fragments(cells: _FineCells, label: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Joins a part in the air with the cluster on the ground close in front of it, if both together are no larger than
    a vehicle: a roof behind a bonnet, a seat behind a window."""
    count = int(label.max()) + 1
    low, high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
    np.minimum.at(low, label, cells.bottom_m)
    np.maximum.at(high, label, cells.top_m)
    box = _bounds(label, cells.places_m)
    extent = -(box[2:] + box[:2])
    hangs = np.flatnonzero((low > HANGS_M) & np.isfinite(low) & (extent.max(axis=0) < FRAGMENT_M))
    stands = np.flatnonzero((low < HANGS_M) & (extent.max(axis=0) < VEHICLE_M))
    if not len(hangs) or not len(stands):
        return label
    joined = np.minimum(box[:, hangs, None], box[:, None, stands])  # (4, hanging, standing)
    gaps = np.maximum(
        0, np.maximum(box[:2, hangs, None] + box[2:, None, stands], box[:2, None, stands] + box[2:, hangs, None])
    )
    gap = np.hypot(*gaps)
    near_m = np.full(count, np.inf, np.float32)
    np.minimum.at(near_m, label, np.hypot(*cells.places_m.T))
    gap[near_m[hangs, None] < near_m[stands]] = np.inf
    # Behind it, not beside it: off the line of sight through its middle by less than half its extent.
    middle, place = (box[:2, stands] - box[2:, stands]) / 2, (box[:2, hangs] - box[2:, hangs]) / 2
    sight = middle / np.maximum(np.hypot(*middle), 1e-6)
    lateral = np.abs(place[0, :, None] * sight[1] - place[1, :, None] * sight[0])
    gap[lateral > np.hypot(*extent[:, stands]) / 2] = np.inf
    gap[(-(joined[2:] + joined[:2])).max(axis=0) > VEHICLE_M] = np.inf
    nearest = gap.argmin(axis=1)
    flat = (high[hangs] - low[hangs] < ROOF_M) & (np.abs(high[hangs] - high[stands[nearest]]) < ROOF_M)
    close = gap[np.arange(len(hangs)), nearest] < np.where(flat, ROOF_GAP_M, FRAGMENT_GAP_M)
    target = np.arange(count, dtype=np.int32)
    target[hangs[close]] = stands[nearest[close]]
    return target[label]


def _yaws(
    places: Floats,
    begins: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    selected: npt.NDArray[np.intp],
    size: Floats,
) -> dict[int, tuple[float, bool]]:
    """The direction whose two edges lie nearest to the points (Zhang et al. 2017, closeness), for all clusters at
    once: the smallest rectangle may follow an L's hypotenuse instead of its legs."""
    counts = ends - begins
    fit = selected[(counts[selected] >= FIT_CELLS) & (size > FIT_M[0]) & (size < FIT_M[1])]
    yaws: dict[int, tuple[float, bool]] = {}
    if len(fit):
        sample = begins[fit][:, None] + (np.arange(FIT_SAMPLES) * counts[fit][:, None]) // FIT_SAMPLES
        x, y = places[sample, 0][..., None], places[sample, 1][..., None]  # (clusters, samples, 1)
        turn = np.radians(np.arange(0, 90, FIT_STEP_DEG), dtype=np.float32)
        cos, sin = np.cos(turn), np.sin(turn)
        from_edge = np.full((len(fit), FIT_SAMPLES, len(turn)), np.inf, np.float32)
        for along in (x * cos + y * sin, y * cos - x * sin):
            top, bottom = along.max(axis=1, keepdims=True), along.min(axis=1, keepdims=True)
            np.minimum(from_edge, np.minimum(top - along, along - bottom), out=from_edge)
        score = (1 / np.maximum(from_edge, np.float32(EDGE_M))).sum(axis=1)  # (clusters, angles)
        best = score.argmax(axis=1)
        sure = score.max(axis=1) > 1.15 * np.median(score, axis=1)
        yaws = {int(k): (float(turn[b]), bool(s)) for k, b, s in zip(fit, best, sure, strict=True)}
    for k in selected[size >= FIT_M[1]]:
        _, sides, turned_deg = cv2.minAreaRect(places[begins[k] : ends[k]])
        yaws[int(k)] = (float(np.radians(turned_deg % 90)), max(sides) > 2 * min(sides))
    return yaws
