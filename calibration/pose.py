"""Rigid motions for estimators: small steps, distances, closed-form fits, names of directions.

The motions themselves are in pipeline/rig/transforms.py. A "twist" is (6,): a rotation vector in radians, then metres,
applied on the left, in the axes of the target.

Example:
    camera_from_lidar = moved(camera_from_lidar, twist)
    angle_deg, distance_m = difference(a, b)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline.rig.transforms import rigid, rotation_from_vector, rotation_to_vector

Floats = npt.NDArray[np.float64]


def inverse(target_from_source: Floats) -> Floats:
    r, t = target_from_source[:3, :3], target_from_source[:3, 3]
    return rigid(r.T, -r.T @ t)


def moved(target_from_source: Floats, twist: Floats) -> Floats:
    return rigid(rotation_from_vector(twist[:3]), twist[3:]) @ target_from_source


def turned(target_from_source: Floats, vector_rad: Floats) -> Floats:
    """Rotated about the source's own origin, in the target's axes: the translation stays."""
    r, t = target_from_source[:3, :3], target_from_source[:3, 3]
    return rigid(rotation_from_vector(vector_rad) @ r, t)


def difference(a: Floats, b: Floats) -> tuple[float, float]:
    """(degrees, metres) between two transforms of the same pair of frames."""
    turn = rotation_to_vector(a[:3, :3] @ b[:3, :3].T)
    return math.degrees(float(np.linalg.norm(turn))), float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def fit_points(source_m: Floats, target_m: Floats) -> Floats:
    """(4, 4) target_from_source with the least squared distances between paired points (Kabsch 1976)."""
    source_centre, target_centre = source_m.mean(0), target_m.mean(0)
    r = fit_directions(source_m - source_centre, target_m - target_centre)
    return rigid(r, target_centre - r @ source_centre)


def fit_directions(source: Floats, target: Floats) -> Floats:
    """(3, 3) rotation that aligns paired vectors (Wahba 1965)."""
    u, _, vt = np.linalg.svd(source.T @ target)
    r: Floats = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    return r


# A camera's axes as OpenCV has them: x to the right of the picture, y down, z forward.
AXES = (("right", "left"), ("down", "up"), ("forward", "backward"))


def direction_text(direction: Floats) -> str:
    """A direction in a camera's frame as text, such as "forward and down"."""
    unit = np.asarray(direction) / np.linalg.norm(direction)
    order = np.argsort(-np.abs(unit))
    names = [AXES[i][0 if unit[i] > 0 else 1] for i in order]
    return names[0] if abs(unit[order[1]]) < 0.35 else f"{names[0]} and {names[1]}"
