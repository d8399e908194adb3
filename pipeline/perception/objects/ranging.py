"""The range of the objects in boxes, by the points that project into the boxes. Pure functions.

The points in a box are of the object, of the ground in front of it, of the background and of what hides a part of it.
Points that are connected in space form a body, whether in a box or not; a box then gets the body that fills it and does
not extend far beyond it. Ranges are along the ground, from the camera to the nearest surface.

Example:
    ranged = range_boxes(boxes_px, pixels, points_base, camera_m=view.camera_m)
    ranged[0].range_m, ranged[0].position_m, ranged[0].points, ranged[0].reason       # 9.31, (…), 412, ""
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

MIN_POINTS = 3
# Bodies are separated on a grid around the camera, of bearing and the logarithm of the range, since the distance
# between a lidar's points is proportional to their range. An empty cell separates two bodies.
CELL_RAD = np.radians(0.7)
CELL_SHARE = 0.03
NEAREST_M = 0.3  # nearer points are the rig's own, or noise
# The nearest surface is not the nearest point, which may be an outlier: it is the second, or the nearest 2 % further.
STRAY_SHARE = 0.02
SURFACE_M, SURFACE_SHARE = 0.2, 0.01  # points at most this far behind the nearest surface lie on it
# A body with a lower fit is the background around an object that returns no points.
MIN_FIT = 0.03

GROUND_M = 0.25  # lower points are ground: kerbs, and the deviation of a real road from a plane
GROUND_FIT_M, GROUND_LOOK_M, GROUND_SAMPLE = 0.2, 40.0, 4000
STEEPEST = 0.3  # a plane that rises more in a metre is a wall
MAX_LOPSIDED = 1e6  # points on a line define no plane


@dataclass(frozen=True)
class Ranged:
    """range_m: along the ground, from the camera to the nearest surface; None: unknown, and `reason` states why.
    position_m: of that surface, in the base frame. points: how many of the body are in the box. spread_m: between the
    quartiles of their ranges: small for a face turned towards the camera. fit: share of the box the body fills, times
    the share of the body that is in the box."""

    range_m: float | None = None
    position_m: tuple[float, float, float] | None = None
    points: int = 0
    spread_m: float = 0.0
    fit: float = 0.0
    reason: str = ""


def range_boxes(
    boxes_px: npt.NDArray[np.floating],
    pixels: Floats,
    points_base: Floats,
    *,
    camera_m: Sequence[float] = (0.0, 0.0, 0.0),
    ground: Bools | None = None,
) -> list[Ranged]:
    """boxes_px: (m, 4) left, top, width, height. pixels: (n, 2), of the points that the camera sees. points_base: (n,
    3), the same points, metres in the base frame. camera_m: (3,) where the camera stands in it. ground: (n,) which
    points are ground; None: determined here by a plane. Points that are not finite are ignored.
    """
    boxes = np.asarray(boxes_px, np.float64).reshape(-1, 4)
    if not len(boxes):
        return []
    points = np.asarray(points_base, np.float64).reshape(-1, 3)
    u, v = np.ascontiguousarray(pixels[:, 0], np.float64), np.ascontiguousarray(pixels[:, 1], np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        ahead, left = points[:, 0] - camera_m[0], points[:, 1] - camera_m[1]
        reach_m = np.sqrt(ahead * ahead + left * left)
        usable = np.isfinite(reach_m + points[:, 2] + u + v) & (reach_m > NEAREST_M)
    if ground is None:
        ground = ground_plane(points[usable]).holds(points)
    standing = usable & ~ground
    body = np.full(len(points), -1)
    body[standing] = _bodies(ahead[standing], left[standing], reach_m[standing])
    counts = np.bincount(body[standing], minlength=1)
    results = []
    for x, y, width, height in boxes:
        inside = (u >= x) & (u < x + width) & (v >= y) & (v < y + height)
        at = np.flatnonzero(inside & standing)
        if len(at) < MIN_POINTS:
            results.append(Ranged(points=len(at), reason=_too_few(len(at), int(np.count_nonzero(inside & usable)))))
            continue
        chosen, fit = _fullest(body[at], u[at], v[at], counts, width * height)
        if fit < MIN_FIT:
            results.append(Ranged(points=len(chosen), fit=fit, reason="the points in it belong to the background"))
            continue
        results.append(_nearest_surface(at[chosen], reach_m, points, camera_m, fit))
    return results


def _too_few(standing: int, all_in_box: int) -> str:
    if not all_in_box:
        return "there is no point in it"
    points = "point" if standing == 1 else "points"
    return f"{standing} {points} above the ground in it, {MIN_POINTS} are needed"


def _bodies(ahead: Floats, left: Floats, reach_m: Floats) -> Whole:
    """(n,) which body each point belongs to, from 0 on."""
    if not len(reach_m):
        return np.empty(0, np.int64)
    # Relative to the middle of the points, so that the angles wrap around behind the camera.
    middle_rad = np.arctan2(np.median(left / reach_m), np.median(ahead / reach_m))
    cos, sin = np.cos(middle_rad), np.sin(middle_rad)
    bearing_rad = np.arctan2(left * cos - ahead * sin, ahead * cos + left * sin)
    column = ((bearing_rad - bearing_rad.min()) / CELL_RAD).astype(np.int64)
    row = (np.log(reach_m / reach_m.min()) / CELL_SHARE).astype(np.int64)
    grid = np.zeros((int(row.max()) + 1, int(column.max()) + 1), np.uint8)
    grid[row, column] = 1
    _, labels = cv2.connectedComponents(grid, connectivity=8)
    return np.asarray(labels[row, column], np.int64) - 1


def _fullest(body: Whole, u: Floats, v: Floats, counts: Whole, area_px: float) -> tuple[Whole, float]:
    """The points (indices into `body`) of the body that a box contains, and its fit."""
    best, best_fit = np.empty(0, np.int64), 0.0
    inside = np.bincount(body)
    share = inside / counts[: len(inside)].clip(1)
    for one in np.argsort(-share, kind="stable"):
        if share[one] <= best_fit:
            break  # no body fits better than its share in the box
        if inside[one] < MIN_POINTS:
            continue
        at = np.flatnonzero(body == one)
        # A pole is a line of points: it fills at least one pixel.
        fills = max(float(np.ptp(u[at])), 1.0) * max(float(np.ptp(v[at])), 1.0) / max(area_px, 1.0)
        fit = min(fills, 1.0) * float(share[one])
        if fit > best_fit:
            best, best_fit = at, fit
    return best, best_fit


def _nearest_surface(at: Whole, reach_m: Floats, points: Floats, camera_m: Sequence[float], fit: float) -> Ranged:
    ranges = np.sort(reach_m[at])
    range_m = float(ranges[min(len(ranges) - 1, 1 + int(STRAY_SHARE * len(ranges)))])
    surface = points[at[reach_m[at] <= range_m + SURFACE_M + SURFACE_SHARE * range_m]]
    middle = np.median(surface, axis=0)
    aside = middle[:2] - camera_m[:2]
    x, y = np.asarray(camera_m[:2]) + aside * (range_m / max(float(np.hypot(*aside)), 1e-9))
    low, high = ranges[len(ranges) // 4], ranges[3 * len(ranges) // 4]  # sorted already
    return Ranged(range_m, (float(x), float(y), float(middle[2])), len(at), float(high - low), fit)


# ---- the ground, where no better estimate is passed


@dataclass(frozen=True)
class Plane:
    """z = rise[0]·x + rise[1]·y + height_m; height_m NaN: there is none, and nothing is ground. Neither is anything
    beyond GROUND_LOOK_M: real roads deviate from a plane, and far ground returns few points of a lidar."""

    rise: tuple[float, float] = (0.0, 0.0)
    height_m: float = float("nan")

    def holds(self, points_base: Floats) -> Bools:
        """(n,) which points lie on it or below it."""
        with np.errstate(invalid="ignore"):
            above = (
                points_base[:, 2] - points_base[:, 0] * self.rise[0] - points_base[:, 1] * self.rise[1] - self.height_m
            )
            near = points_base[:, 0] ** 2 + points_base[:, 1] ** 2 < GROUND_LOOK_M**2
            below: Bools = (above < GROUND_M) & near
        return below


def ground_plane(points_base: Floats) -> Plane:
    """Through the lowest points: seeds per ring of range, then least squares on what lies near (Zermas et al. 2017)."""
    some = points_base[:: max(1, len(points_base) // GROUND_SAMPLE)]
    reach_m = np.sqrt(some[:, 0] ** 2 + some[:, 1] ** 2)
    some, reach_m = some[reach_m < GROUND_LOOK_M], reach_m[reach_m < GROUND_LOOK_M]
    if len(some) < 20:
        return Plane()
    ring = (reach_m / 5.0).astype(int)
    near = np.zeros(len(some), bool)
    for one in np.unique(ring):
        at = np.flatnonzero(ring == one)
        z = some[at, 2]
        near[at] = z < np.partition(z, len(z) // 10)[len(z) // 10] + GROUND_FIT_M
    plane = Plane()
    for _ in range(4):
        if np.count_nonzero(near) < 20:
            return Plane()
        # By covariances, in a tenth of the time of a general least squares.
        middle = some[near].mean(axis=0)
        off = some[near] - middle
        spread = off.T @ off
        if np.linalg.cond(spread[:2, :2]) > MAX_LOPSIDED:
            return Plane()
        rise_x, rise_y = np.linalg.solve(spread[:2, :2], spread[:2, 2])
        if np.hypot(rise_x, rise_y) > STEEPEST:
            return Plane()
        height_m = middle[2] - rise_x * middle[0] - rise_y * middle[1]
        plane = Plane((float(rise_x), float(rise_y)), float(height_m))
        near = np.abs(some[:, 2] - some[:, :2] @ np.array(plane.rise) - height_m) < GROUND_FIT_M
    return plane
