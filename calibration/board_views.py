"""Pictures and clouds of a board → the views that calibration/lidar_camera.py solves.

    seen, skipped = find_views(moments, board, intrinsics)
    skipped["pose3"]                                  # "no 9×6 chessboard in the picture"

Owns which flat thing in a cloud is the board: one alone cannot tell, but one pose of the lidar has to explain all moments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.board_cloud import CloudBoard, find_boards
from calibration.board_fit import BoardView, board_poses
from calibration.lidar_camera import apart, plane_of, pose_from_planes
from calibration.pose import Floats
from pipeline.errors import ConfigError
from pipeline.intrinsics import Intrinsics
from pipeline.rig import apply

CHOICE_TRIES = 400
FITS_DEG, FITS_M = 10.0, 0.25


@dataclass(frozen=True)
class FlatBoard:
    """columns × rows inner corners, square_m between them; width_m, height_m of the whole board, pattern in its middle."""

    columns: int
    rows: int
    square_m: float
    width_m: float
    height_m: float
    measured: bool = True  # False: the size of the whole board is a guess, so its edges are not used

    @property
    def corners_m(self) -> Floats:
        """(columns·rows, 3), row by row."""
        return np.array([[x, y, 0.0] for y in range(self.rows) for x in range(self.columns)]) * self.square_m

    @property
    def outline_m(self) -> tuple[float, float, float, float] | None:
        """left, top, right, bottom in the frame of corners_m."""
        if not self.measured:
            return None
        aside = (self.width_m - (self.columns - 1) * self.square_m) / 2
        above = (self.height_m - (self.rows - 1) * self.square_m) / 2
        return -aside, -above, self.width_m - aside, self.height_m - above

    def __str__(self) -> str:
        return f"{self.columns}×{self.rows}"


@dataclass(frozen=True, eq=False)
class Moment:
    name: str
    image: np.ndarray  # (h, w, 3) BGR
    points_m: Floats  # (n, 3) in the lidar's or depth camera's frame


def flat_board(pattern: str, square_mm: float, board_mm: str | None) -> FlatBoard:
    """pattern: "9x6" inner corners. board_mm: "1000x700", the whole board along its columns × along its rows."""
    columns, rows = _two(pattern, "--board", "inner corners such as 9x6")
    if not (columns.is_integer() and rows.is_integer() and min(columns, rows) >= 3):
        raise ConfigError(f"--board {pattern}: expected inner corners such as 9x6, at least 3 each way")
    if columns == rows:
        raise ConfigError(f"--board {pattern}: a square pattern has no up: its pose cannot be told. Use one such as 9x6")
    square_m = square_mm / 1000
    if board_mm is None:
        return FlatBoard(int(columns), int(rows), square_m, (columns + 1) * square_m, (rows + 1) * square_m, measured=False)
    width_m, height_m = (side / 1000 for side in _two(board_mm, "--board-size-mm", "width x height such as 1000x700"))
    if width_m < (columns - 1) * square_m or height_m < (rows - 1) * square_m:
        raise ConfigError(
            f"--board-size-mm {board_mm}: smaller than its own pattern of {(columns - 1) * square_mm:.0f}×{(rows - 1) * square_mm:.0f} mm. "
            "Give the whole board, along the columns first"
        )
    return FlatBoard(int(columns), int(rows), square_m, width_m, height_m)


def _two(text: str, option: str, expected: str) -> tuple[float, float]:
    try:
        first, second = map(float, text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected {expected}") from None
    return first, second


def find_corners(image: np.ndarray, board: FlatBoard) -> Floats | None:
    """(n, 2) px in the order of board.corners_m, up to half a turn, which no solution depends on. None: not in the picture."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    size = (board.columns, board.rows)
    flags = cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_EXHAUSTIVE
    found, corners = cv2.findChessboardCornersSB(grey, size, flags=flags)
    if not found:
        found, corners = cv2.findChessboardCorners(grey, size, flags=cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE)
        if found:
            stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3)
            corners = cv2.cornerSubPix(grey, corners, (5, 5), (-1, -1), stop)
    if not found:
        return None
    corners = np.asarray(corners, np.float64).reshape(-1, 2)
    return _right_handed(corners, board)


def _right_handed(corners: Floats, board: FlatBoard) -> Floats:
    """Detectors may count a board from its mirror side: its x × y must point away from the camera, into the picture."""
    grid = corners.reshape(board.rows, board.columns, 2)
    x, y = grid[0, -1] - grid[0, 0], grid[-1, 0] - grid[0, 0]
    return corners if x[0] * y[1] - x[1] * y[0] > 0 else grid[:, ::-1].reshape(-1, 2)


def find_views(
    moments: Iterable[Moment], board: FlatBoard, intrinsics: Intrinsics, start: Floats | None = None
) -> tuple[list[BoardView], dict[str, str]]:
    """(views, name → why a moment gave none). start: camera_from_lidar, where something is known of it."""
    skipped: dict[str, str] = {}
    names, corners, candidates = [], [], []
    for moment in moments:
        if moment.image.shape[1::-1] != intrinsics.size:
            found = "×".join(map(str, moment.image.shape[1::-1]))
            wanted = "×".join(map(str, intrinsics.size))
            raise ConfigError(f"{moment.name}: a picture of {found}, but the camera's intrinsics are of {wanted}. Is it this camera's?")
        px = find_corners(moment.image, board)
        if px is None:
            skipped[moment.name] = f"no {board} chessboard in the picture"
            continue
        flat = find_boards(moment.points_m, width_m=board.width_m, height_m=board.height_m)
        if not flat:
            skipped[moment.name] = (
                f"nothing flat of {1000 * board.width_m:.0f}×{1000 * board.height_m:.0f} mm stands free in the cloud"
                f"{'' if board.measured else ' (is the whole board larger than its squares? then give --board-size-mm)'}"
            )
            continue
        names.append(moment.name)
        corners.append(px)
        candidates.append(flat)
    if not names:
        return [], skipped
    seen = [BoardView(n, px, board.corners_m, c[0].points_m) for n, px, c in zip(names, corners, candidates, strict=True)]
    chosen = _choose(seen, candidates, intrinsics, start)
    return [
        BoardView(v.name, v.corners_px, v.corners_m, c.points_m, c.edge_rays, c.edge_sigma_rad)
        for v, c in zip(seen, chosen, strict=True)
    ], skipped


def _choose(
    views: Sequence[BoardView], candidates: Sequence[Sequence[CloudBoard]], intrinsics: Intrinsics, start: Floats | None
) -> list[CloudBoard]:
    """Of each moment's flat things the one that fits the pose of the lidar which explains most moments."""
    camera = [(b[:3, 2], apply(b, v.corners_m.mean(0)[None])[0]) for b, v in zip(board_poses(views, intrinsics), views, strict=True)]
    planes = [[plane_of(c.points_m) for c in of_view] for of_view in candidates]
    draw = np.random.default_rng(0)
    guesses = [start] if start is not None else []
    if len(views) >= 3:
        for _ in range(CHOICE_TRIES):
            which = [int(i) for i in draw.choice(len(views), 3, replace=False)]
            picked = {i: planes[i][int(draw.integers(len(planes[i])))] for i in which}
            guesses.append(pose_from_planes(camera, picked, which))
    best, best_score = [of_view[0] for of_view in candidates], -1.0
    for guess in guesses:
        score, chosen = 0.0, []
        for seen, of_view, boards in zip(camera, planes, candidates, strict=True):
            costs = [_cost(*apart(guess, seen, plane)) for plane in of_view]
            score += max(0.0, 1 - min(costs))
            chosen.append(boards[int(np.argmin(costs))])
        if score > best_score:
            best, best_score = chosen, score
    return best


def _cost(angle_deg: float, away_m: float) -> float:
    return math.hypot(angle_deg / FITS_DEG, away_m / FITS_M)


def still(moments: Iterable[tuple[Moment, Floats | None]], *, still_px: float = 1.5, apart_px: float = 25.0) -> list[Moment]:
    """Of a recording, the moments at which the board stood still (its corners as in the picture before), each pose once."""
    kept: list[tuple[Moment, Floats]] = []
    for (_, before), (moment, now) in itertools.pairwise(moments):
        if before is None or now is None or np.abs(now - before).max() > still_px:
            continue
        if all(np.abs(now - corners).mean() > apart_px for _, corners in kept):
            kept.append((moment, now))
    return [moment for moment, _ in kept]
