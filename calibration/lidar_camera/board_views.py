"""Builds the views that calibration/lidar_camera/extrinsics.py solves, from pictures and clouds of a board.

It decides which flat patch in each cloud is the board: a single cloud can be ambiguous, but one pose of the lidar has
to explain all moments.

Example:
    views, skipped = find_views(moments, board, intrinsics)
    skipped["pose3"]                                  # "no chessboard of 9×6 inner corners found"
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from calibration.board.board import Board
from calibration.board.detect import Detector
from calibration.lidar_camera.board_cloud import CloudBoard, find_boards
from calibration.lidar_camera.board_fit import BoardView, board_poses
from calibration.lidar_camera.extrinsics import apart, plane_of, pose_from_planes
from calibration.moments import Moment
from calibration.pose import Floats
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply

CHOICE_TRIES = 400
FITS_DEG, FITS_M = 10.0, 0.25
# Rotates a camera's frame to x forward and z up, so that rows of a depth picture are rings as in a lidar's cloud.
UPRIGHT = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


@dataclass(frozen=True)
class FlatBoard:
    """The pattern, and width_m × height_m of the whole board with the pattern in its middle."""

    pattern: Board
    width_m: float
    height_m: float
    measured: bool = True  # False: the size of the whole board is assumed, so its edges are not used

    @property
    def centre_m(self) -> Floats:
        """(3,) in the frame of the pattern's corners."""
        columns, rows = self.pattern.corners_wide
        return np.array([columns - 1, rows - 1, 0.0]) * self.pattern.square_m / 2

    @property
    def outline_m(self) -> tuple[float, float, float, float] | None:
        """left, top, right, bottom in that frame."""
        if not self.measured:
            return None
        x, y, _ = self.centre_m
        return x - self.width_m / 2, y - self.height_m / 2, x + self.width_m / 2, y + self.height_m / 2


def flat_board(pattern: Board, board_mm: str | None) -> FlatBoard:
    """board_mm: "1000x700", the whole board along its columns × along its rows; None: its squares and no margin."""
    width_m, height_m = pattern.size_m
    if board_mm is None:
        return FlatBoard(pattern, width_m, height_m, measured=False)
    try:
        wide_mm, high_mm = map(float, board_mm.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ConfigError(
            f"--board-size-mm {board_mm}: expected width x height of the whole board, such as 1000x700"
        ) from None
    columns, rows = pattern.corners_wide
    if wide_mm < 1000 * (columns - 1) * pattern.square_m or high_mm < 1000 * (rows - 1) * pattern.square_m:
        raise ConfigError(
            f"--board-size-mm {board_mm}: smaller than its squares, {1000 * width_m:.0f}×{1000 * height_m:.0f} mm. "
            "State the size of the whole board, along its columns first"
        )
    return FlatBoard(pattern, wide_mm / 1000, high_mm / 1000)


def find_views(
    moments: Iterable[Moment], board: FlatBoard, intrinsics: Intrinsics, start: Floats | None = None
) -> tuple[list[BoardView], dict[str, str]]:
    """(views, moment → the reason why it has none). start: camera_from_lidar, if roughly known."""
    skipped: dict[str, str] = {}
    detector = Detector(board.pattern)
    names, corners, candidates = [], [], []
    for moment in moments:
        if moment.image.shape[1::-1] != intrinsics.size:
            size = "×".join(map(str, moment.image.shape[1::-1]))
            expected = "×".join(map(str, intrinsics.size))
            raise ConfigError(
                f"{moment.name}: a picture of {size}, but the camera's intrinsics are for {expected}. "
                "Is this the right camera, in the mode it was calibrated in?"
            )
        detected = detector.find(cv2.cvtColor(moment.image, cv2.COLOR_BGR2GRAY))
        if isinstance(detected, str):
            skipped[moment.name] = detected
            continue
        upright = moment.points_m @ UPRIGHT.T if moment.optical else moment.points_m
        flat = find_boards(upright, width_m=board.width_m, height_m=board.height_m)
        if moment.optical:
            flat = [replace(f, points_m=f.points_m @ UPRIGHT, edge_rays=f.edge_rays @ UPRIGHT) for f in flat]
        if not flat:
            skipped[moment.name] = (
                f"no free-standing plane of {1000 * board.width_m:.0f}×{1000 * board.height_m:.0f} mm in the cloud"
                f"{'' if board.measured else ' (larger than its squares? set --board-size-mm)'}"
            )
            continue
        names.append(moment.name)
        corners.append(detected)
        candidates.append(flat)
    if not names:
        return [], skipped
    points_m = board.pattern.points_m
    views = [
        BoardView(n, c.pixels, points_m[c.ids], f[0].points_m, centre_m=board.centre_m)
        for n, c, f in zip(names, corners, candidates, strict=True)
    ]
    chosen = _choose(views, candidates, intrinsics, start)
    return [
        replace(v, points_m=c.points_m, edge_rays=c.edge_rays, edge_sigma_rad=c.edge_sigma_rad)
        for v, c in zip(views, chosen, strict=True)
    ], skipped


def _choose(
    views: Sequence[BoardView], candidates: Sequence[Sequence[CloudBoard]], intrinsics: Intrinsics, start: Floats | None
) -> list[CloudBoard]:
    """For each moment the candidate that fits the pose of the lidar which explains most moments."""
    camera = [(b[:3, 2], apply(b, v.middle_m)[0]) for b, v in zip(board_poses(views, intrinsics), views, strict=True)]
    planes = [[plane_of(c.points_m) for c in of_view] for of_view in candidates]
    draw = np.random.default_rng(0)
    guesses = [start] if start is not None else []
    if len(views) >= 3:
        for _ in range(CHOICE_TRIES):
            which = [int(i) for i in draw.choice(len(views), 3, replace=False)]
            selected = {i: planes[i][int(draw.integers(len(planes[i])))] for i in which}
            guesses.append(pose_from_planes(camera, selected, which))
    best, best_score = [of_view[0] for of_view in candidates], -1.0
    for guess in guesses:
        score, chosen = 0.0, []
        for board, of_view, boards in zip(camera, planes, candidates, strict=True):
            costs = [_cost(*apart(guess, board, plane)) for plane in of_view]
            score += max(0.0, 1 - min(costs))
            chosen.append(boards[int(np.argmin(costs))])
        if score > best_score:
            best, best_score = chosen, score
    return best


def _cost(angle_deg: float, away_m: float) -> float:
    return math.hypot(angle_deg / FITS_DEG, away_m / FITS_M)


def still(
    moments: Iterable[Moment], board: FlatBoard, *, still_px: float = 1.5, apart_px: float = 25.0
) -> Iterator[Moment]:
    """The moments of a recording at which the board was still, compared with the previous picture; each pose once."""
    detector, poses, before = Detector(board.pattern), list[Floats](), None
    for moment in moments:
        detected = detector.find(cv2.cvtColor(moment.image, cv2.COLOR_BGR2GRAY))
        now = None if isinstance(detected, str) else detected.pixels
        if (
            now is not None
            and before is not None
            and now.shape == before.shape
            and np.abs(now - before).max() < still_px
        ):
            if all(now.shape != k.shape or np.abs(now - k).mean() > apart_px for k in poses):
                poses.append(now)
                yield moment
        before = now
