"""The uncertainty of a lens in pixels, all over the picture, and the difference between two lenses.

A lens whose centre is off by 3 px, rotated by 3 px in the opposite direction, projects almost identically. All figures
here are therefore after the rotation of the camera that compensates most (as in Kogan's mrcal).

Example:
    sigma_px = sigma_map(lens)                 # (rows, columns) px: root of the expected squared distance
    off_px = difference_map(lens, other)       # (rows, columns) px
"""

from __future__ import annotations

import numpy as np

from calibration.lens.lens_models import project
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import rotation_from_vector

COLUMNS, ROWS = 12, 9
TURN_STEPS = 6  # Gauss–Newton steps for one small rotation; it has converged after three


def grid_pixels(lens: Intrinsics, columns: int = COLUMNS, rows: int = ROWS) -> np.ndarray:
    """(rows · columns, 2): the centres of equal cells of the picture, row by row."""
    x = (np.arange(columns) + 0.5) / columns * lens.width_px - 0.5
    y = (np.arange(rows) + 0.5) / rows * lens.height_px - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def sensitivity(lens: Intrinsics, columns: int = COLUMNS, rows: int = ROWS) -> np.ndarray:
    """(2n, parameters): derivative of pixels of fixed directions by the parameters, after the compensating rotation.

    0 for directions outside the lens' field of view.
    """
    rays = lens.rays(grid_pixels(lens, columns, rows))
    reached = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 1e-3)
    _, by_lens, by_pose = project(lens, np.where(reached[:, None], rays, (0.0, 0.0, 1.0)), np.zeros(3), np.zeros(3))
    mask = np.repeat(reached, 2)[:, None]
    by_lens, by_turn = by_lens * mask, by_pose[:, :3] * mask
    undone = np.linalg.lstsq(by_turn, by_lens, rcond=None)[0]
    return np.array(by_lens - by_turn @ undone)


def sigma_map(lens: Intrinsics, columns: int = COLUMNS, rows: int = ROWS) -> np.ndarray:
    """(rows, columns) px. Raises ValueError for a lens without covariance."""
    if lens.covariance is None:
        raise ValueError("this lens has no covariance")
    moved = sensitivity(lens, columns, rows)
    variance = np.einsum("ij,jk,ik->i", moved, lens.covariance, moved)
    return np.array(np.sqrt(np.maximum(variance.reshape(-1, 2).sum(axis=1), 0)).reshape(rows, columns))


def difference_map(lens: Intrinsics, other: Intrinsics, columns: int = COLUMNS, rows: int = ROWS) -> np.ndarray:
    """(rows, columns) px: distance between each pixel of `lens` and the same direction in `other`, optimally rotated.

    NaN outside the field of view.
    """
    pixels = grid_pixels(lens, columns, rows)
    rays = lens.rays(pixels)
    usable = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 1e-3)
    turn = np.eye(3)
    for _ in range(TURN_STEPS):
        turned = rays[usable] @ turn.T
        projected, _, by_pose = project(other, turned, np.zeros(3), np.zeros(3))
        step = np.linalg.lstsq(by_pose[:, :3], (pixels[usable] - projected).ravel(), rcond=None)[0]
        turn = rotation_from_vector(step) @ turn
    distance = np.full(len(pixels), np.nan)
    projected, _, _ = project(other, rays[usable] @ turn.T, np.zeros(3), np.zeros(3))
    distance[usable] = np.hypot(*(projected - pixels[usable]).T)
    return distance.reshape(rows, columns)
