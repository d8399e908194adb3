"""Where the ground is under a cloud, and the height of each of its points above it.

Patchwork++ separates the ground points; a height map through those gives the height of every other point, also between
and beyond them. Works for 16 to 128 beams and for depth cameras. No ground in view is an answer, not an error.

Example:
    finder = GroundFinder(range_m=60.0)
    ground = finder.find(points_m, origin_m=(0.0, 0.0, 1.73))
    ground.height_m                 # (n,) float32 over the ground
    ground.visible, ground.why      # False, "no ground seen: 12 points lie flat below the sensor"
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

Floats = npt.NDArray[np.float32]

FED_POINTS = 32_000  # Patchwork++ takes 0.2 ms per thousand, and more points than these do not change its result
ABOVE_M, ABOVE_PER_M = 0.3, 0.12  # points higher than this above the sensor, more with range, are not ground
ON_GROUND_M = 0.15  # points nearer to the map than this are ground: the noise of points and of the map
MAP_CELLS = 128
UPSAMPLED = 4
MIN_GROUND_POINTS, MIN_GROUND_CELLS = 40, 6
MAX_TILT = 0.36  # tan 20°: a steeper plane is a wall, or the rig lies on its side
HEIGHT_SHARE, HEIGHT_M = 0.3, 0.4  # largest difference between expected and measured ground below the sensor
MIN_HEIGHT_M = 0.05  # of a sensor over the ground
# For an unknown height: side of the cells whose lowest points are used, and the stride through the input points.
LOW_CELL_M, LOW_STEP = 1.0, 3
NEAR_PLANE_M, NEAR_PLANE_PER_M = 0.15, 0.01  # certainly ground; from there it is extended step by step
JOIN_CELLS, JOIN_M, JOIN_ROUNDS = 7, 0.25, 8
# In a cell with points at STANDS_M above the ground, points higher than FOOT_M belong to the object's foot.
FOOT_M, FOOT_WEIGHT, STANDS_M = 0.06, 0.01, (0.3, 2.5)


class Ground(NamedTuple):
    """height_m: (n,) float32 above the ground, of each input point. is_ground: (n,) bool. z_m: of the ground below the
    base frame's origin. visible: False where the ground is only assumed to be flat at z_m; `why` states the reason."""

    height_m: Floats
    is_ground: npt.NDArray[np.bool_]
    z_m: float
    visible: bool
    why: str = ""


class GroundFinder:
    """ground_z_m: the ground's height in the base frame, where it is known; None: estimated from the clouds."""

    def __init__(self, *, range_m: float = 60.0, ground_z_m: float | None = None) -> None:
        self._range_m, self._z_m = range_m, ground_z_m if ground_z_m is not None else 0.0
        self._known = self._fixed = ground_z_m is not None  # whether z_m is more than a guess
        self._estimators: dict[tuple[float, float], Any] = {}

    def find(self, points_m: Floats, origin_m: tuple[float, float, float]) -> Ground:
        """points_m: (n, 3) float32 in the base frame, measured from a sensor at origin_m. Depends on earlier clouds,
        since Patchwork++ adapts its limits to them. Raises ConfigError where it is not installed."""
        x, y = points_m[:, 0] - np.float32(origin_m[0]), points_m[:, 1] - np.float32(origin_m[1])
        ranges_m = np.sqrt(x * x + y * y)  # np.hypot takes eight times as long
        limit_m = origin_m[2] + ABOVE_M + ABOVE_PER_M * ranges_m
        low = np.flatnonzero((points_m[:, 2] < limit_m) & (ranges_m < self._range_m))
        step = (
            len(low) // FED_POINTS * 2 + 1
        )  # odd: no common divisor with the number of beams, so all of them contribute
        fed = points_m.take(low[::step], axis=0) - np.array(origin_m, np.float32)
        expected_m = self._expected_m(fed, origin_m[2])
        if len(fed) < MIN_GROUND_POINTS or expected_m is None:
            return self._not_visible(points_m, "no ground seen: too few points lie below the sensor")
        reach_m = _reach(float(ranges_m[low].max()), self._range_m)
        ground = fed.take(self._flat(fed, expected_m, reach_m), axis=0)
        if len(ground) < MIN_GROUND_POINTS:
            return self._not_visible(points_m, f"no ground seen: {len(ground) * step} points lie flat below the sensor")
        origin = np.array(origin_m, np.float32)
        return self._mapped(points_m, ground + origin, fed + origin, origin_m, expected_m)

    def _expected_m(self, fed: Floats, origin_z_m: float) -> float | None:
        """The sensor's height above the ground."""
        if self._known:
            return max(MIN_HEIGHT_M, origin_z_m - self._z_m)
        lowest_m = _common_low_m(fed[::LOW_STEP])
        return None if lowest_m is None or lowest_m > -MIN_HEIGHT_M else -lowest_m

    def _flat(self, fed: Floats, sensor_height_m: float, reach_m: float) -> npt.NDArray[np.int32]:
        key = (round(sensor_height_m * 4) / 4 or 0.125, reach_m)
        if key not in self._estimators:
            self._estimators[key] = _estimator(sensor_height_m, reach_m)
        self._estimators[key].estimateGround(fed)
        return np.asarray(self._estimators[key].getGroundIndices(), np.int32).ravel()

    def _mapped(
        self, points_m: Floats, ground: Floats, fed: Floats, origin_m: tuple[float, float, float], expected_m: float
    ) -> Ground:
        """A plane through all, then the ground's deviation from it by cell, interpolated where a cell has no points."""
        cell_m = 2 * self._range_m / MAP_CELLS if self._range_m > 20 else 2 * self._range_m / (MAP_CELLS // 2)
        side = round(2 * self._range_m / cell_m)
        where = _cells(ground, origin_m, self._range_m, side)
        count = np.bincount(where, minlength=side * side).astype(np.float32)
        used = np.flatnonzero(count)
        sums = [np.bincount(where, ground[:, k], side * side)[used] / count[used] for k in range(3)]
        # The foot of an object may have been classified as ground: such a cell counts only where no other does.
        top_m = np.full(side * side, -np.inf, np.float32)
        np.maximum.at(top_m, _cells(fed, origin_m, self._range_m, side), fed[:, 2])
        count[used] *= np.where(top_m[used] - sums[2] > STANDS_M[0], FOOT_WEIGHT, 1.0)
        plane, flat = _plane(np.column_stack(sums), np.minimum(count[used], 20.0))
        below_m = origin_m[2] - float(plane @ (origin_m[0], origin_m[1], 1.0))
        tilt = float(np.hypot(plane[0], plane[1]))
        if len(used) < MIN_GROUND_CELLS or tilt > MAX_TILT:
            return self._not_visible(
                points_m,
                f"no ground seen: what lies flat covers {len(used)} cells and tilts by "
                f"{np.degrees(np.arctan(tilt)):.0f}°",
            )
        if abs(below_m - expected_m) > max(HEIGHT_M, HEIGHT_SHARE * expected_m):
            return self._not_visible(
                points_m,
                f"no ground seen: what lies flat is {below_m:.1f} m below the sensor, expected {expected_m:.1f} m",
            )
        off = np.zeros((2, side * side), np.float32)
        off[0, used[flat]] = (sums[2] - np.column_stack([sums[0], sums[1], np.ones(len(used))]) @ plane)[flat]
        off[1, used[flat]] = count[used[flat]]
        deviation_m = _spread(_joined(off.reshape(2, side, side), cell_m))
        fine = cv2.resize(deviation_m, (side * UPSAMPLED, side * UPSAMPLED), interpolation=cv2.INTER_LINEAR).ravel()
        a, b, c = (np.float32(v) for v in plane)
        height_m = points_m[:, 2] - a * points_m[:, 0]
        height_m -= b * points_m[:, 1]
        height_m -= c
        where = _cells(points_m, origin_m, self._range_m, side * UPSAMPLED)
        height_m -= fine[where]
        stands = np.zeros(len(fine), bool)
        stands[where[(height_m > STANDS_M[0]) & (height_m < STANDS_M[1])]] = True
        is_ground = np.abs(height_m) < np.where(stands, np.float32(FOOT_M), np.float32(ON_GROUND_M))[where]
        self._z_m, self._known = (self._z_m if self._fixed else float(plane[2])), True
        return Ground(height_m, is_ground, float(plane[2]), True)

    def _not_visible(self, points_m: Floats, why: str) -> Ground:
        self._known = self._fixed  # perhaps the rig was lifted: estimate the height again from the next cloud
        return Ground(points_m[:, 2] - np.float32(self._z_m), np.zeros(len(points_m), bool), self._z_m, False, why)


def _common_low_m(fed: Floats) -> float | None:
    """The z at which most of the cells have their lowest points. Each cell counts once: a floor covers many cells, and
    walls stand on it too. None without points. fed: relative to the sensor."""
    near = fed[np.hypot(fed[:, 0], fed[:, 1]) < 20]
    if not len(near):
        return None
    keys = (np.floor(near[:, 0] / LOW_CELL_M) * 1000 + np.floor(near[:, 1] / LOW_CELL_M)).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    lowest = np.minimum.reduceat(near[order, 2], first)
    counts, edges = np.histogram(lowest, bins=np.arange(-6.0, 1.6, 0.1))
    broad = np.convolve(counts, (0.5, 1, 1, 1, 0.5), "same")  # ± 0.2 m: a little tilt spreads them
    top = int(np.argmax(broad))
    near_top = np.abs(lowest - (edges[top] + 0.05)) < 0.3
    return float(np.median(lowest[near_top])) if near_top.any() else None


def _reach(farthest_m: float, range_m: float) -> float:
    """The maximum range for Patchwork++, in steps, so that a few estimators serve all clouds: its rings are finer for a
    depth camera than for a lidar."""
    return next((r for r in (6.0, 12.0, 25.0, 50.0) if farthest_m <= r), max(80.0, range_m))


def version() -> str:
    """The version of Patchwork++. Raises ConfigError where it is not installed."""
    try:
        return metadata.version("pypatchworkpp")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "separating ground from obstacles needs Patchwork++. Install it: pip install 'sensorium[lidar]'"
        ) from None


def _estimator(sensor_height_m: float, reach_m: float) -> Any:
    version()
    import pypatchworkpp

    settings = pypatchworkpp.Parameters()
    settings.sensor_height = sensor_height_m
    settings.max_range = reach_m
    settings.min_range = float(np.clip(sensor_height_m, 0.2, 2.7))
    settings.enable_RNR = False  # needs reflectances on its authors' scale
    settings.verbose = False
    with _quiet_stdout():
        return pypatchworkpp.patchworkpp(settings)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """The constructor of Patchwork++ prints a line from C++, which must not appear among predictions on stdout."""
    try:
        saved, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no stdout
        yield
        return
    os.dup2(devnull, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(devnull)


def _cells(points_m: Floats, origin_m: tuple[float, float, float], range_m: float, side: int) -> npt.NDArray[np.int32]:
    """(n,) index of each point's cell on a square map about the sensor; those outside belong to its border."""
    per_m = np.float32(side / (2 * range_m))
    i = ((points_m[:, 0] + np.float32(range_m - origin_m[0])) * per_m).astype(np.int32)
    j = ((points_m[:, 1] + np.float32(range_m - origin_m[1])) * per_m).astype(np.int32)
    np.clip(i, 0, side - 1, out=i)
    np.clip(j, 0, side - 1, out=j)
    i *= side
    i += j
    return i


def _plane(
    places_m: npt.NDArray[Any], weights: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """z = a·x + b·y + c as (a, b, c), by least squares without outliers; and which cells may shape the map."""
    design = np.column_stack([places_m[:, 0], places_m[:, 1], np.ones(len(places_m))]).astype(np.float64)
    keep = np.ones(len(places_m), bool)
    plane = np.zeros(3)
    for limit_m in (1.0, 0.5, 0.5):
        root = np.sqrt(weights[keep])[:, None]
        plane = np.linalg.lstsq(design[keep] * root, places_m[keep, 2] * root[:, 0], rcond=None)[0]
        off = np.abs(places_m[:, 2] - design @ plane)
        near = off < limit_m + 0.02 * np.hypot(places_m[:, 0], places_m[:, 1])
        if near.sum() < 3:
            break
        keep = near
    return plane, keep


def _joined(off: Floats, cell_m: float) -> Floats:
    """off: (2, side, side) deviation from the plane and count by cell. Cells that continue the ground near the plane
    without a step are ground too; a distant wall that one beam hits is flat but isolated. Returns (2, side, side) sum
    and count."""
    deviation_m, count = off
    along_m = (np.arange(len(count)) + 0.5) * cell_m - len(count) * cell_m / 2
    range_m = np.sqrt(along_m[:, None] ** 2 + along_m**2)
    joined = (count > 0) & (np.abs(deviation_m) < NEAR_PLANE_M + NEAR_PLANE_PER_M * range_m)
    for _ in range(JOIN_ROUNDS):
        weight = np.where(joined, np.minimum(count, 20), 0).astype(np.float32)
        nearby = cv2.blur(weight, (JOIN_CELLS, JOIN_CELLS), borderType=cv2.BORDER_CONSTANT)
        mean_m = cv2.blur(weight * deviation_m, (JOIN_CELLS, JOIN_CELLS), borderType=cv2.BORDER_CONSTANT) / np.maximum(
            nearby, 1e-6
        )
        more = (count > 0) & (nearby > 0) & (np.abs(deviation_m - mean_m) < JOIN_M)
        if not (more & ~joined).any():
            break
        joined |= more
    counts = np.where(joined, count, 0).astype(np.float32)
    return np.stack([deviation_m * counts, counts])


def _spread(off: Floats) -> Floats:
    """off: (2, side, side) sum and count by cell. Returns the mean by cell, (side, side) float32, from increasingly
    large neighbourhoods where a cell has few points of its own; 0 far from all points."""
    result = np.zeros_like(off[0])
    for blur in (25, 9, 3, 1):
        total, count = (
            off if blur == 1 else (cv2.blur(layer, (blur, blur), borderType=cv2.BORDER_CONSTANT) for layer in off)
        )
        trust = count / (count + np.float32(2.0 / blur**2))
        result += trust * (total / np.maximum(count, 1e-6) - result)
    return np.asarray(result, np.float32)
