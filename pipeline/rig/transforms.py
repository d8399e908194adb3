"""Rigid motions as matrices, vectors and quaternions. Pure; everything is float64, angles in radians, lengths in
metres.

Example:
    camera_from_lidar = rigid(rotation_from_vector([0, 0, 0.1]), [0.2, 0, 0])     # (4, 4)
    points_camera = apply(camera_from_lidar, points_lidar)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def rigid(rotation: np.ndarray, translation_m: Iterable[float]) -> np.ndarray:
    """(3, 3) and (3,) → (4, 4) float64."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, np.asarray(translation_m, np.float64).reshape(3)
    return matrix


def cross(v: np.ndarray) -> np.ndarray:
    """[v]×: cross(v) @ w = v × w."""
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]], np.float64)


def rotation_from_vector(vector_rad: np.ndarray) -> np.ndarray:
    """exp([v]×), (3, 3): Rodrigues' formula."""
    angle = float(np.linalg.norm(vector_rad))
    k = cross(vector_rad)
    sine, cosine = (1.0, 0.5) if angle < 1e-8 else (np.sin(angle) / angle, (1 - np.cos(angle)) / angle**2)
    rotation: np.ndarray = np.eye(3) + sine * k + cosine * (k @ k)
    return rotation


def rotation_to_vector(rotation: np.ndarray) -> np.ndarray:
    """The inverse, (3,) radians, |v| ≤ π. Via the quaternion, which is well conditioned at every angle."""
    x, y, z, w = rotation_to_quaternion(rotation)
    sine = float(np.sqrt(x * x + y * y + z * z))
    if sine < 1e-12:
        return np.array([2 * x, 2 * y, 2 * z])
    return np.array([x, y, z], np.float64) * float(2.0 * np.arctan2(sine, w) / sine)


def rotation_from_quaternion(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Of any length but 0. Raises ValueError for 0."""
    n = np.array([x, y, z, w], np.float64)
    length = float(np.linalg.norm(n))
    if not length > 0:
        raise ValueError("a quaternion of length 0 is no rotation")
    k, w = cross(n[:3] / length), float(n[3] / length)
    rotation: np.ndarray = np.eye(3) + 2 * w * k + 2 * k @ k
    return rotation


def rotation_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """(x, y, z, w), w ≥ 0: the largest eigenvector of Bar-Itzhack's matrix, so the nearest rotation."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, np.float64)
    k = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion: np.ndarray = np.linalg.eigh(k)[1][:, -1]
    return quaternion if quaternion[3] >= 0 else np.negative(quaternion)


def apply(target_from_source: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """Points (n, 3) of the source → of the target, float64."""
    # A slice of a (4, 4) would keep numpy from calling BLAS, which is five times as fast.
    turned: np.ndarray = np.asarray(points_m, np.float64) @ np.ascontiguousarray(
        target_from_source[:3, :3].T, np.float64
    )
    turned += target_from_source[:3, 3]
    return turned
