"""Detects a board's corners in a picture to a fraction of a pixel, or says why not; recognises other boards.

Pure: a picture in, corners or a reason out.

Example:
    corners = Detector(board).find(gray)             # Corners, or a str: "no chessboard of 9×6 inner corners found"
    mismatch = Detector(board).mismatch(pictures)    # "the pictures show a chessboard of 8×6 …, not …", or None
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from calibration.board.board import DICTIONARIES, Board

MIN_CHARUCO_CORNERS = 6  # some of which must span two directions; fewer determine no useful pose
MIN_SPACING_PX = 5.0  # corners closer than this blur into each other
CLASSIC = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
MAX_CLASSIC_PX = 1600  # the classic detector's time grows fast; larger pictures are scaled down for it
# Half the side of the window that refines a corner, as a share of the spacing of corners. Large windows include
# neighbours and the curvature of distorted lines (the usual 11 px gives twice the error on OpenCV's own pictures),
# small ones noise.
WINDOW_SHARE, WINDOW_MIN_PX, WINDOW_MAX_PX = 0.2, 2, 9
RIM_SHARE = 0.8  # of the white rim around a ChArUco board's markers: edges beyond it would bias the corner
# Of a marker's side: how far markers may lie from the positions their neighbours predict before the layout is another
# one.
LAYOUT_TOLERANCE = 0.25
MIN_MARKERS, NEIGHBOURS = 4, 4
COMMON = (
    "4x4_50",
    "4x4_250",
    "4x4_1000",
    "5x5_100",
    "5x5_250",
    "5x5_1000",
    "6x6_250",
    "6x6_1000",
    "7x7_250",
    "aruco_original",
    "apriltag_36h11",
)
DARK, FLAT = 25.0, 8.0  # mean and standard deviation of a picture's grey values: below, it is night, fog or a lens cap


@dataclass(frozen=True)
class Corners:
    """ids: (n,) int, indices into board.points_m. pixels: (n, 2) float64."""

    ids: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Detector:
    def __init__(self, board: Board) -> None:
        self.board = board

    def find(self, gray: np.ndarray, *, thorough: bool = True) -> Corners | str:
        """Corners, or the reason why there are none. gray: (h, w) uint8. thorough: also search slowly, not for live
        use.
        """
        corners = self._find_charuco(gray) if self.board.kind == "charuco" else self._find_chessboard(gray, thorough)
        if isinstance(corners, str):
            return _light(gray) or corners
        spacing_px = spacing(self.board, corners)
        if spacing_px < MIN_SPACING_PX:
            return (
                f"the board is too small: its corners are {spacing_px:.1f} px apart, "
                f"expected {MIN_SPACING_PX:g} or more"
            )
        share = WINDOW_SHARE if self.board.kind == "chessboard" else RIM_SHARE * (1 - self.board.marker_share) / 2
        return Corners(corners.ids, refine(gray, corners.pixels, share * spacing_px))

    # --- chessboards

    def _find_chessboard(self, gray: np.ndarray, thorough: bool = True) -> Corners | str:
        size = self.board.corners_wide
        scale = min(1.0, MAX_CLASSIC_PX / max(gray.shape))
        small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
        flags = CLASSIC if thorough else CLASSIC | cv2.CALIB_CB_FAST_CHECK
        detected, corners = cv2.findChessboardCorners(small, size, flags=flags)
        if not detected and thorough:  # slower, and detects boards in bad light and with strong distortion
            detected, corners = cv2.findChessboardCornersSB(small, size, flags=cv2.CALIB_CB_NORMALIZE_IMAGE)
        if not detected:
            return f"no {self.board.description} found"
        pixels = (corners.reshape(-1, 2).astype(np.float64) + 0.5) / scale - 0.5
        return Corners(np.arange(len(pixels)), self._in_order(gray, pixels))

    def _in_order(self, gray: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Numbers corners independently of the board's orientation if its colours allow: the first inner square is
        black.
        """
        columns, rows = self.board.corners_wide
        grid = pixels.reshape(rows, columns, 2)
        across, down = grid[0, -1] - grid[0, 0], grid[-1, 0] - grid[0, 0]
        if across[0] * down[1] - across[1] * down[0] < 0:
            grid = grid[::-1]  # a board is always viewed from its front: a mirrored numbering comes from the detector
        if self.board.turns_alike:
            forwards = grid[0, -1] - grid[0, 0]
            turn = forwards[0] < 0 if abs(forwards[0]) > abs(forwards[1]) else forwards[1] < 0
        else:
            centres = (grid[:-1, :-1] + grid[1:, 1:] + grid[:-1, 1:] + grid[1:, :-1]) / 4
            values = sample(gray, centres.reshape(-1, 2)).reshape(rows - 1, columns - 1)
            y, x = np.mgrid[: rows - 1, : columns - 1]
            even = (x + y) % 2 == 0
            turn = bool(values[even].mean() > values[~even].mean())
        return (grid[::-1, ::-1] if turn else grid).reshape(-1, 2)

    # --- ChArUco

    @cached_property
    def _charuco(self) -> Any:
        return cv2.aruco.CharucoDetector(self.board.charuco())

    def _markers(self, gray: np.ndarray, dictionary: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ids and (n, 4, 2) corners."""
        name = DICTIONARIES[dictionary or self.board.dictionary]
        detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(name))
        corners, ids, _ = detector.detectMarkers(gray)
        if ids is None:
            return np.empty(0, int), np.empty((0, 4, 2))
        return ids.ravel(), np.array(corners).reshape(-1, 4, 2)

    def _find_charuco(self, gray: np.ndarray) -> Corners | str:
        pixels, ids, marker_corners, marker_ids = self._charuco.detectBoard(gray)
        if marker_ids is None or len(marker_ids) == 0:
            return f"no {self.board.description} found: none of its markers"
        off = layout_error(self.board, marker_ids.ravel(), np.array(marker_corners).reshape(-1, 4, 2))
        if off is not None and off > LAYOUT_TOLERANCE:
            return f"the markers are not laid out as on a {self.board.description} (off by {off:.1f} marker widths)"
        if ids is None or len(ids) < MIN_CHARUCO_CORNERS:
            count = 0 if ids is None else len(ids)
            return f"only {count} of the board's corners are visible, expected {MIN_CHARUCO_CORNERS} or more"
        corners = Corners(ids.ravel().astype(int), pixels.reshape(-1, 2).astype(np.float64))
        if np.linalg.matrix_rank(np.diff(self.board.points_m[corners.ids][:, :2], axis=0)) < 2:
            return "all visible corners lie on one line"
        return corners

    # --- another board

    def mismatch(self, pictures: Iterable[np.ndarray]) -> str | None:
        """Which other board these pictures show, with the fix; None if they show the requested one, or none."""
        pictures, others = list(pictures), Counter[Board]()
        highest = (
            max((int(i) for gray in pictures for i in self._markers(gray)[0]), default=-1) if self._is_charuco else -1
        )
        for gray in pictures:
            other = self._other_charuco(gray, highest) if self._is_charuco else self._other_chessboard(gray)
            if other is None:
                continue
            if self._is_charuco or not self._holds(other):
                return self._instead(other)
            others[other] += 1
        # A smaller one may be the board itself, cut off by the picture's edge, unless the whole board is visible
        # somewhere.
        if others and not any(isinstance(self._find_chessboard(gray), Corners) for gray in pictures):
            other, count = others.most_common(1)[0]
            return self._instead(other) if count > 1 or len(pictures) == 1 else None
        return None

    @property
    def _is_charuco(self) -> bool:
        return self.board.kind == "charuco"

    def _holds(self, other: Board) -> bool:
        """Whether a chessboard could be a part of this one."""
        mine, its = sorted(self.board.corners_wide), sorted(other.corners_wide)
        return other.kind == "chessboard" and its[0] <= mine[0] and its[1] <= mine[1]

    def _instead(self, other: Board) -> str:
        return (
            f"the pictures show a {other.description}, not the {self.board.description} of the option --board: "
            f"write --board {other}"
        )

    def _other_chessboard(self, gray: np.ndarray) -> Board | None:
        """A chessboard of another size, or a ChArUco board.

        Without this check, part of a larger board would be accepted as the board, a different part in each picture.
        """
        scale = min(1.0, MAX_CLASSIC_PX / max(gray.shape))
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
        # If the board is absent, look for the markers of a ChArUco board: a few of its squares also match a small
        # chessboard.
        names = COMMON if isinstance(self._find_chessboard(gray), str) else ()
        for name in names:
            ids, _ = self._markers(gray, name)
            if len(ids) >= MIN_MARKERS and len(set(ids)) == len(ids):
                guess = Board("charuco", 3, 3, self.board.square_m, name)
                return Detector(guess)._other_charuco(gray, int(ids.max())) or guess
        flags = cv2.CALIB_CB_LARGER | cv2.CALIB_CB_NORMALIZE_IMAGE | cv2.CALIB_CB_EXHAUSTIVE
        detected, _, meta = cv2.findChessboardCornersSBWithMeta(gray, (3, 3), flags)
        # Three by three corners, the minimum of this search, occur in ordinary street scenes and are too few to
        # calibrate with.
        if not detected or meta is None or min(meta.shape[:2]) < 3 or max(meta.shape[:2]) < 4:
            return None
        rows, columns = meta.shape[:2]
        other = Board("chessboard", max(rows, columns), min(rows, columns), self.board.square_m)
        return other if set(other.corners_wide) != set(self.board.corners_wide) else None

    def _other_charuco(self, gray: np.ndarray, highest: int) -> Board | None:
        """highest: the highest marker id in any of the pictures."""
        ids, corners = self._markers(gray)
        if len(ids) < MIN_MARKERS:
            for name in COMMON:
                more, _ = self._markers(gray, name)
                if len(more) >= max(MIN_MARKERS, 2 * len(ids)) and len(set(more)) == len(more):
                    return replace(self.board, dictionary=name)
            return None
        asked = layout_error(self.board, ids, corners)
        if asked is not None and asked <= LAYOUT_TOLERANCE:
            return None
        turned = replace(self.board, columns=self.board.rows, rows=self.board.columns)
        others = [
            turned,
            replace(self.board, legacy=not self.board.legacy),
            replace(turned, legacy=not self.board.legacy),
        ]
        # Boards of one width have the same first rows: take the one with the fewest rows that has all detected markers.
        others = [board for board in others if board.columns * (board.rows - 2) // 2 <= highest]
        sizes = ((c, r) for c in range(3, 21) for r in range(3, 21) if c * r // 2 > highest)
        others += [replace(self.board, columns=c, rows=r) for c, r in sizes]
        for other in others:
            off = layout_error(other, ids, corners)
            if off is not None and off <= LAYOUT_TOLERANCE / 2:
                return other
        return None


def layout_error(board: Board, ids: np.ndarray, corners: np.ndarray) -> float | None:
    """How far detected markers lie from the board's layout, as a share of a marker's side, for the median marker.

    Each marker is compared with the plane of its nearest neighbours: a lens bends a whole board, but hardly so small a
    part of it. None with fewer than MIN_MARKERS markers; infinite if the board does not have these ids.
    """
    layout = board.charuco()
    known = {int(i): np.asarray(p)[:, :2] for i, p in zip(layout.getIds().ravel(), layout.getObjPoints(), strict=True)}
    if len(ids) < MIN_MARKERS:
        return None
    if not set(map(int, ids)) <= set(known):
        return float("inf")
    on_board = np.array([known[int(i)] for i in ids], np.float64)  # (n, 4, 2)
    observed = corners.reshape(-1, 4, 2).astype(np.float64)
    centres = observed.mean(axis=1)
    off = []
    for i, centre in enumerate(centres):
        near = np.argsort(np.hypot(*(centres - centre).T))[1 : NEIGHBOURS + 1]
        mapping, _ = cv2.findHomography(observed[near].reshape(-1, 2), on_board[near].reshape(-1, 2), 0)
        if mapping is None:
            off.append(float("inf"))
            continue
        mapped = cv2.perspectiveTransform(observed[i].reshape(-1, 1, 2), mapping).reshape(-1, 2)
        off.append(float(np.hypot(*(mapped - on_board[i]).T).max()))
    # The median: one misread marker does not change the result.
    return float(np.median(off) / board.marker_share)


# --- quality of corners ---------------------------------------------------------------------------------------------


def refine(gray: np.ndarray, pixels: np.ndarray, within_px: float) -> np.ndarray:
    """Corners moved to the saddle point beside them, in a window of about within_px to each side."""
    half = int(np.clip(round(within_px), WINDOW_MIN_PX, WINDOW_MAX_PX))
    start = np.ascontiguousarray(pixels, np.float32).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 60, 1e-4)
    moved = cv2.cornerSubPix(gray, start.copy(), (half, half), (-1, -1), criteria).reshape(-1, 2).astype(np.float64)
    # A corner that moved further has converged to another one: the detector's own result is better.
    wandered = np.hypot(*(moved - pixels).T) > half
    return np.where(wandered[:, None], pixels, moved)


def edges(board: Board, corners: Corners) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (m, 2) at both ends of every edge between neighbouring corners that are both visible."""
    columns, rows = board.corners_wide
    at = np.full((rows * columns, 2), np.nan)
    at[corners.ids] = corners.pixels
    grid = at.reshape(rows, columns, 2)
    first = np.concatenate([grid[:, :-1].reshape(-1, 2), grid[:-1].reshape(-1, 2)])
    second = np.concatenate([grid[:, 1:].reshape(-1, 2), grid[1:].reshape(-1, 2)])
    both = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    return first[both], second[both]


def spacing(board: Board, corners: Corners) -> float:
    """The smaller side of the board's squares in px; 0 if no two neighbouring corners are visible.

    A low percentile of the edges' lengths, so that one bad corner does not decide.
    """
    first, second = edges(board, corners)
    return float(np.percentile(np.hypot(*(second - first).T), 10)) if len(first) else 0.0


def blur(gray: np.ndarray, board: Board, corners: Corners) -> float:
    """Width of the edges between black and white in px, from 10 to 90 % of the step; about 1–2 in a sharp picture.

    NaN if no edge can be measured.
    """
    first, second = edges(board, corners)
    if not len(first):
        return float("nan")
    along = second - first
    length = np.hypot(*along.T)
    across = np.column_stack([-along[:, 1], along[:, 0]]) / length[:, None]
    # Within the white rim around a marker, or less than half a square: beyond it lie other edges.
    share = 0.4 if board.kind == "chessboard" else RIM_SHARE * (1 - board.marker_share) / 2
    reach = np.clip(share * length, 3.0, 15.0)
    steps = np.linspace(-1, 1, 61)
    places = (first + second)[:, None] / 2 + across[:, None] * (steps[None, :, None] * reach[:, None, None])
    profiles = sample(gray, places.reshape(-1, 2)).reshape(len(first), -1)
    rise = np.gradient(profiles, axis=1)
    low, high = profiles.min(axis=1), profiles.max(axis=1)
    steep = np.abs(rise).max(axis=1) / (2 * reach / 60)
    clear = (high - low) > 25
    # A step's width from its height and its steepest slope. For a Gaussian blur 10–90 % is 2.563 σ and height / slope
    # 2.507 σ.
    widths = 1.022 * (high - low)[clear] / np.maximum(steep[clear], 1e-6)
    return float(np.median(widths)) if clear.any() else float("nan")


def sample(gray: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Grey values at (n, 2) pixels, bilinear, (n,) float32."""
    columns = np.ascontiguousarray(pixels[:, 0], np.float32).reshape(-1, 1)
    rows = np.ascontiguousarray(pixels[:, 1], np.float32).reshape(-1, 1)
    out = [
        cv2.remap(gray, columns[i : i + 30000], rows[i : i + 30000], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for i in range(0, len(columns), 30000)  # remap's sides are 16-bit
    ]
    return np.concatenate(out).ravel().astype(np.float32)


def _light(gray: np.ndarray) -> str:
    mean, spread = float(gray.mean()), float(gray.std())
    if mean < DARK:
        return f"the picture is too dark (mean {mean:.0f} of 255)"
    return f"the picture shows next to nothing (contrast {spread:.0f} of 255)" if spread < FLAT else ""
