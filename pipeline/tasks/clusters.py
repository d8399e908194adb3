"""Points that stand above the ground → the things they belong to, seen from above.

Points in neighbouring cells belong together; the farther off, the wider the cells reach, as the beams spread. What is
found is a list, nearest first, of plain outlines: the middles of 10 cm cells, which average the noise of their points.

    things = find_clusters(points_m, height_m, seconds)
    things[0].range_m, things[0].places_m      # its nearest point's distance; (k, 2) float32
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

LINK_M = 0.2  # cells that touch, also by a corner, are one thing
FINE_M = 0.1
REACH_M = (12.0, 25.0)  # beyond these a cell links to those 1, then 2, cells away: beams spread, surfaces slant
MIN_POINTS, MIN_CELLS = 4, 1
# An L is fitted to what may be a vehicle; people and poles have no direction, and walls are told by their longest side.
FIT_M, FIT_CELLS, FIT_SAMPLES, FIT_STEP_DEG = (0.7, 20.0), 6, 48, 3.0
EDGE_M = 0.06  # a point this near to an edge lies on it


class Cluster(NamedTuple):
    places_m: Floats  # (k, 2): x, y of its fine cells' middles, base frame
    points: int
    seconds: float  # mean time of its points since the sweep's start
    bottom_m: float  # over the ground
    top_m: float
    range_m: float  # horizontal, from the base frame's origin to `nearest_m`
    nearest_m: tuple[float, float]
    yaw_rad: float  # of one of its sides, in [0, π/2)
    yaw_sure: bool  # False: too small or round to tell


def find_clusters(points_m: Floats, height_m: Floats, seconds: Floats, *, range_m: float = 60.0) -> list[Cluster]:
    """points_m: (n, 3) that stand above the ground, height_m and seconds: (n,) theirs."""
    inside = (np.abs(points_m[:, 0]) < range_m) & (np.abs(points_m[:, 1]) < range_m)
    points_m, height_m, seconds = points_m[inside], height_m[inside], seconds[inside]
    if not len(points_m):
        return []
    cells = _FineCells(points_m, height_m, seconds, range_m)
    label = _linked(cells.i // 2, cells.j // 2, range_m)
    order = np.argsort(label, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(label[order]) != 0])
    ends = np.r_[begins[1:], len(order)]
    points = np.add.reduceat(cells.points[order], begins)
    wanted = np.flatnonzero((points >= MIN_POINTS) & (ends - begins >= MIN_CELLS))
    places, times = cells.places_m[order], cells.seconds[order] * cells.points[order]
    low, high = np.minimum.reduceat(cells.bottom_m[order], begins), np.maximum.reduceat(cells.top_m[order], begins)
    seconds_sum = np.add.reduceat(times, begins)
    ranges = np.hypot(places[:, 0], places[:, 1])
    yaws = _yaws(places, begins, ends, wanted)
    found = []
    for k in wanted:
        own = slice(begins[k], ends[k])
        at = begins[k] + int(np.argmin(ranges[own]))
        yaw_rad, sure = yaws.get(int(k), (0.0, False))
        found.append(Cluster(
            places[own], int(points[k]), float(seconds_sum[k] / points[k]), float(low[k]), float(high[k]), float(ranges[at]),
            (float(places[at, 0]), float(places[at, 1])), yaw_rad, sure,
        ))  # fmt: skip
    return sorted(found, key=lambda c: c.range_m)


class _FineCells:
    """Points of the same 10 cm, taken together: i, j from -range_m on; the rest by cell."""

    def __init__(self, points_m: Floats, height_m: Floats, seconds: Floats, range_m: float) -> None:
        side = round(2 * range_m / FINE_M)
        per_m = np.float32(1 / FINE_M)
        i = np.clip(((points_m[:, 0] + np.float32(range_m)) * per_m).astype(np.int32), 0, side - 1)
        j = np.clip(((points_m[:, 1] + np.float32(range_m)) * per_m).astype(np.int32), 0, side - 1)
        key = i * side + j
        met = np.zeros(side * side, bool)
        met[key] = True
        own = np.flatnonzero(met)
        rank = np.empty(side * side, np.int32)
        rank[own] = np.arange(len(own), dtype=np.int32)
        at = rank[key]
        self.i, self.j = (own // side).astype(np.int32), (own % side).astype(np.int32)
        self.points = np.bincount(at)

        def mean(values: Floats) -> Floats:
            return (np.bincount(at, values) / self.points).astype(np.float32)

        self.places_m = np.column_stack([mean(points_m[:, 0]), mean(points_m[:, 1])])
        self.seconds = mean(seconds)
        self.bottom_m, self.top_m = np.full(len(own), np.inf, np.float32), np.full(len(own), -np.inf, np.float32)
        np.minimum.at(self.bottom_m, at, height_m)
        np.maximum.at(self.top_m, at, height_m)


def _linked(i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], range_m: float) -> npt.NDArray[np.int32]:
    """The number of the thing each cell of LINK_M belongs to."""
    side = round(2 * range_m / LINK_M) + 1
    mask = np.zeros((side, side), np.uint8)
    mask[i, j] = 1
    along_m = (np.arange(side) + 0.5) * LINK_M - range_m
    range2 = along_m[:, None] ** 2 + along_m**2
    wide = mask
    for reach, beyond_m in enumerate(REACH_M, start=1):
        size = reach + 1  # two cells dilated by r link over a gap of r
        grown = cv2.dilate(mask, np.ones((size, size), np.uint8))
        wide = np.where(range2 > beyond_m**2, grown, wide)
    _, labels = cv2.connectedComponents(wide, connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(labels[i, j], np.int32)


def _yaws(
    places: Floats, begins: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], wanted: npt.NDArray[np.intp]
) -> dict[int, tuple[float, bool]]:
    """The direction whose two edges lie nearest to the points (Zhang et al. 2017, closeness), for all things at once: the
    smallest rectangle cannot tell an L's legs from its hypotenuse."""
    counts = ends - begins
    size = np.array([np.ptp(places[begins[k] : ends[k]], axis=0).max() for k in wanted])
    fit = wanted[(counts[wanted] >= FIT_CELLS) & (size > FIT_M[0]) & (size < FIT_M[1])] if len(wanted) else wanted
    yaws: dict[int, tuple[float, bool]] = {}
    if len(fit):
        pick = begins[fit][:, None] + (np.arange(FIT_SAMPLES) * counts[fit][:, None]) // FIT_SAMPLES
        x, y = places[pick, 0][..., None], places[pick, 1][..., None]  # (things, samples, 1)
        turn = np.radians(np.arange(0, 90, FIT_STEP_DEG), dtype=np.float32)
        cos, sin = np.cos(turn), np.sin(turn)
        from_edge = np.full((len(fit), FIT_SAMPLES, len(turn)), np.inf, np.float32)
        for along in (x * cos + y * sin, y * cos - x * sin):
            top, bottom = along.max(axis=1, keepdims=True), along.min(axis=1, keepdims=True)
            np.minimum(from_edge, np.minimum(top - along, along - bottom), out=from_edge)
        score = (1 / np.maximum(from_edge, np.float32(EDGE_M))).sum(axis=1)  # (things, angles)
        best = score.argmax(axis=1)
        sure = score.max(axis=1) > 1.15 * np.median(score, axis=1)
        yaws = {int(k): (float(turn[b]), bool(s)) for k, b, s in zip(fit, best, sure, strict=True)}
    for k in wanted[size >= FIT_M[1]] if len(wanted) else ():
        _, sides, turned_deg = cv2.minAreaRect(places[begins[k] : ends[k]])
        yaws[int(k)] = (float(np.radians(turned_deg % 90)), max(sides) > 2 * min(sides))
    return yaws
