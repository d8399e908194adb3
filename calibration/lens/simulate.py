"""Boards viewed by a camera with known intrinsics, as noisy corners or as rendered pictures, for benchmarks and tests.

Nothing here is used to calibrate.

Example:
    poses = board_poses(board, lens, 20, rng)
    views = corner_views(board, lens, poses, noise_px=0.2, rng=rng)
    gray = Renderer(board, lens).render(poses[0], blur_px=0.7, noise=2.0, rng=rng)
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from calibration.board.board import Board
from calibration.board.detect import Corners
from calibration.lens.observation import NamedObservation, Observation
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, rigid, rotation_from_vector

SQUARE_PX = 64  # side of a square in the texture: divisible by the cells of 4 × 4 bit markers
MARGIN_SQUARES = 1.0  # white paper around the board


def board_poses(
    board: Board, lens: Intrinsics, count: int, rng: np.random.Generator, *, tilt_deg: float = 40.0, whole: bool = True
) -> list[np.ndarray]:
    """Random camera_from_board, all over the picture, tilted by up to tilt_deg. whole: all corners are visible."""
    poses: list[np.ndarray] = []
    across_m = float(np.ptp(board.points_m[:, 0]))
    while len(poses) < count:
        axis = rng.normal(size=3) * (1, 1, 0.3)
        rotation = rotation_from_vector(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0.2, 1) * tilt_deg))
        ray = lens.rays(rng.uniform((0.1, 0.1), (0.9, 0.9), (1, 2)) * lens.size)[0]
        middle = ray / ray[2] * lens.fx_px * across_m / (rng.uniform(0.25, 0.7) * lens.width_px)
        pose = rigid(rotation, middle - rotation @ board.centre_m)
        _, visible = lens.project(apply(pose, board.points_m))
        if visible.mean() >= (1.0 if whole else 0.5):
            poses.append(pose)
    return poses


def corner_views(
    board: Board, lens: Intrinsics, poses: list[np.ndarray], *, noise_px: float, rng: np.random.Generator
) -> list[NamedObservation]:
    """noise_px: standard deviation of each coordinate."""
    views = []
    for i, pose in enumerate(poses):
        pixels, visible = lens.project(apply(pose, board.points_m))
        noisy = pixels[visible] + rng.normal(size=(int(visible.sum()), 2)) * noise_px
        views.append(NamedObservation(f"view {i:02d}", Observation(board.points_m[visible], noisy)))
    return views


def true_corners(board: Board, lens: Intrinsics, pose: np.ndarray) -> Corners:
    pixels, visible = lens.project(apply(pose, board.points_m))
    return Corners(np.flatnonzero(visible), pixels[visible])


class Renderer:
    """Renders pictures of a board through a lens.

    Every pixel is the mean of samples² samples of a large texture of the board, along the exact rays of the lens, which
    are computed once.
    """

    def __init__(self, board: Board, lens: Intrinsics, *, samples: int = 4, background: int = 110) -> None:
        self.board, self.lens, self.background = board, lens, background
        self._paper = cv2.GaussianBlur(_paper(board), (0, 0), SQUARE_PX * 0.01)
        v, u = np.mgrid[: lens.height_px, : lens.width_px].astype(np.float64)
        offsets = (np.arange(samples) + 0.5) / samples - 0.5
        self._rays = [
            lens.rays(np.column_stack([(u + dx).ravel(), (v + dy).ravel()])).astype(np.float32)
            for dy in offsets
            for dx in offsets
        ]

    def render(
        self,
        camera_from_board: np.ndarray,
        *,
        blur_px: float = 0.6,
        noise: float = 2.0,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """(h, w) uint8. blur_px: σ of a Gaussian. noise: σ in grey values of 255."""
        shape = (self.lens.height_px, self.lens.width_px)
        board_from_camera = np.linalg.inv(camera_from_board).astype(np.float32)
        origin, turn = board_from_camera[:3, 3], board_from_camera[:3, :3]
        scale, first = np.float32(SQUARE_PX / self.board.square_m), np.float32((1 + MARGIN_SQUARES) * SQUARE_PX - 0.5)
        total = np.zeros(shape, np.float32)
        for rays in self._rays:
            turned = rays @ turn.T
            with np.errstate(all="ignore"):
                along = -origin[2] / turned[:, 2]
                x, y = ((origin[:2] + turned[:, :2] * along[:, None]) * scale + first).T
            x, y = (np.where(along > 0, a, np.float32(-1e4)).reshape(shape) for a in (x, y))
            total += cv2.remap(
                self._paper, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=float(self.background)
            )
        image = total / len(self._rays)
        if blur_px > 0:
            image = cv2.GaussianBlur(image, (0, 0), blur_px)
        rng = rng or np.random.default_rng(0)
        image = image * 0.8 + 20 + rng.normal(size=shape).astype(np.float32) * noise
        return np.array(np.clip(np.round(image), 0, 255).astype(np.uint8))


def _paper(board: Board) -> Any:
    margin = round(MARGIN_SQUARES * SQUARE_PX)
    return np.pad(board.image(SQUARE_PX), margin, constant_values=255).astype(np.float32)
