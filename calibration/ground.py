"""The ground plane in a cloud, and the base frame it defines: z up, x forward, origin on the ground below the sensor.

RANSAC, then iterated least squares, with the uncertainty of the normal and of the height. A plane that is not the
ground (a wall, a ceiling, a table above the floor) raises ConfigError.

Example:
    plane = find_ground(points_m)                # the sensor stands roughly upright
    base_from_lidar, covariance = base_from_ground(plane)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.pose import Floats
from pipeline.errors import ConfigError
from pipeline.rig.transforms import rigid

TRIES = 200
SOME_POINTS = 4000
FLAT_M = 0.08  # points farther from the plane do not belong to it; kerbs, grass and noise are closer
STEEPEST_DEG = 25.0  # between the ground's normal and the sensor's own up axis
MIN_SHARE, MIN_POINTS = 0.05, 200
NEAR_M, FAR_M = 1.0, 30.0
UP = {"z": (0.0, 0.0, 1.0), "-z": (0.0, 0.0, -1.0), "y": (0.0, 1.0, 0.0), "-y": (0.0, -1.0, 0.0)}
CELL_M = 2.0  # a road is uneven over metres: there are as many independent observations as cells, not points


@dataclass(frozen=True, eq=False)
class GroundPlane:
    """normal · p + height = 0 in the sensor's frame."""

    normal: Floats  # (3,) unit, up
    height_m: float  # of the sensor above it
    covariance: Floats  # (3, 3) of two tilts of the normal (rad: about the base's x and y) and of the height (m)
    points: int
    rms_m: float

    @property
    def sigma_deg(self) -> float:
        return math.degrees(math.sqrt(float(np.linalg.eigvalsh(self.covariance[:2, :2])[-1])))

    @property
    def sigma_m(self) -> float:
        return math.sqrt(float(self.covariance[2, 2]))


def find_ground(points_m: Floats, *, up: Sequence[float] = (0.0, 0.0, 1.0)) -> GroundPlane:
    """points_m: (n, 3). up: the rough up direction in the sensor's frame, (0, -1, 0) for a camera.

    ConfigError if there is no ground.
    """
    points = np.asarray(points_m, np.float64)[:, :3]
    upward = np.asarray(up, np.float64) / np.linalg.norm(up)
    distance = np.linalg.norm(points, axis=1)
    points = points[np.isfinite(distance) & (distance > NEAR_M) & (distance < FAR_M)]
    below = points[points @ upward < 0]
    if len(below) < MIN_POINTS:
        raise ConfigError(
            f"{len(below)} points lie below the sensor, and {MIN_POINTS} are needed to find the ground. "
            "Does --up name the sensor's axis that points up?"
        )
    plane = _ransac(below, upward)
    if plane is None:
        raise ConfigError(
            f"no plane within {STEEPEST_DEG:.0f}° of level lies below the sensor. Is the ground in its field of view?"
        )
    for _ in range(5):
        normal, height_m = plane
        off = below @ normal + height_m
        on = np.abs(off) < FLAT_M
        centre, axes = below[on].mean(0), np.linalg.svd(below[on] - below[on].mean(0), full_matrices=False)[2]
        normal = axes[2] if axes[2] @ upward > 0 else -axes[2]
        plane = normal, -float(normal @ centre)
    normal, height_m = plane
    ground = below[np.abs(below @ normal + height_m) < FLAT_M]
    share = len(ground) / len(below)
    lower = float(np.mean(below @ normal + height_m < -2 * FLAT_M))
    if share < MIN_SHARE or lower > 0.3:
        raise ConfigError(
            f"the largest level plane has {100 * share:.0f} % of the points below the sensor, "
            f"and {100 * lower:.0f} % lie below it: it is not the ground. Take the capture on open, level ground"
        )
    return _described(ground, normal, height_m)


def _ransac(points: Floats, upward: Floats) -> tuple[Floats, float] | None:
    draw = np.random.default_rng(0)
    some = points[draw.choice(len(points), min(SOME_POINTS, len(points)), replace=False)]
    best, most = None, 0
    for _ in range(TRIES):
        a, b, c = some[draw.choice(len(some), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length < 1e-6:
            continue
        normal = normal / length * np.sign(normal @ upward)
        if normal @ upward < math.cos(math.radians(STEEPEST_DEG)):
            continue
        count = int((np.abs((some - a) @ normal) < FLAT_M).sum())
        if count > most:
            best, most = (normal, -float(normal @ a)), count
    return best


def _described(ground: Floats, normal: Floats, height_m: float) -> GroundPlane:
    """With the uncertainty that the ground's unevenness leaves; one cell of CELL_M counts as one observation."""
    x, y = _level_axes(normal)
    at = np.column_stack([ground @ x, ground @ y])
    off = ground @ normal + height_m
    cell = np.unique(np.floor(at / CELL_M).astype(int), axis=0, return_inverse=True)[1].ravel()
    count = np.bincount(cell)
    mean_off = np.bincount(cell, off) / count
    middle = np.column_stack([np.bincount(cell, at[:, i]) / count for i in (0, 1)])
    design = np.column_stack(
        [middle[:, 1], -middle[:, 0], np.ones(len(middle))]
    )  # tilt about x lifts what lies along y
    variance = float(np.sum(mean_off**2)) / max(len(middle) - 3, 1)
    covariance = np.linalg.pinv(design.T @ design) * variance
    return GroundPlane(normal, height_m, covariance, len(ground), float(np.sqrt(np.mean(off**2))))


def _level_axes(normal: Floats) -> tuple[Floats, Floats]:
    """(x, y) of the base in the sensor's frame: x is the sensor's own forward axis, levelled."""
    forward = np.array([1.0, 0, 0]) if abs(normal[0]) < 0.8 else np.array([0.0, 0, 1.0])
    if abs(normal[1]) > 0.7:  # a camera: y is down, z forward
        forward = np.array([0.0, 0, 1.0])
    x = forward - (forward @ normal) * normal
    x = x / np.linalg.norm(x)
    return x, np.cross(normal, x)


def base_from_ground(plane: GroundPlane) -> tuple[Floats, Floats]:
    """(base_from_sensor (4, 4), (6, 6) covariance as in rig.Pose). Heading and horizontal position are definitions,
    known exactly.
    """
    x, y = _level_axes(plane.normal)
    covariance = np.zeros((6, 6))
    known = [0, 1, 5]
    covariance[np.ix_(known, known)] = plane.covariance
    return rigid(np.array([x, y, plane.normal]), (0.0, 0.0, plane.height_m)), covariance
