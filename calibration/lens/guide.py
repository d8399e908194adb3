"""Chooses which view of the board to take next, whether the current one is worth taking, and when there are enough.

Capture ends when the uncertainty of projection, predicted from the views so far, falls below a limit at the worst place
of the picture. The hint is the pose, out of about a hundred candidates, that lowers it most. Pure: no camera, no
screen.

Example:
    guide = Guide(board, until_px=0.3)
    advice = guide.offer(detector.find(gray), gray)      # Advice: taken? why not? what next? done?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.board.board import Board
from calibration.board.detect import Corners, blur
from calibration.lens.bundle import solve, start, view_information
from calibration.lens.coverage import CELLS, cells
from calibration.lens.estimate import GOOD_VIEWS
from calibration.lens.lens_models import free_parameters
from calibration.lens.observation import NamedObservation, Observation
from calibration.lens.uncertainty import sensitivity, sigma_map
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import rigid, rotation_from_vector

MODEL = "radtan4"  # for planning; richer models need the same views
FIRST_FIT = 4
BLUR_PX, BLUR_GROWTH = 3.5, 1.8  # an edge this wide, and this much wider than the sharpest so far
MOVED_SHARE = 0.015  # of the picture's width between two pictures; a hand at rest moves less
SAME_SHARE = 0.035  # of the picture's width: corners this close to those of a taken view add nothing
HINT_AWAY = 1.5  # times that, for hints: a person follows them only roughly
POINTS_SAME = 6
NOISE_PX = 0.15  # of a coordinate, until it can be estimated from the views
# Prior before the first view, as standard deviations: fx, fy, cx, cy as shares of the width, then k1 k2 p1 p2.
BEFORE = (0.3, 0.3, 0.1, 0.1, 0.3, 0.3, 0.01, 0.01)
PLACES = {
    "in the upper left": (0.22, 0.25),
    "at the top": (0.5, 0.22),
    "in the upper right": (0.78, 0.25),
    "at the left": (0.2, 0.5),
    "in the middle": (0.5, 0.5),
    "at the right": (0.8, 0.5),
    "in the lower left": (0.22, 0.75),
    "at the bottom": (0.5, 0.78),
    "in the lower right": (0.78, 0.75),
}
SIZES = {"far away, as wide as a third of the picture": 0.33, "near, as wide as two thirds of the picture": 0.62}
TILT = float(np.radians(35))
TILTS = {
    "facing the camera": (0.0, 0.0),
    "its left side tilted away": (0.0, TILT),
    "its right side tilted away": (0.0, -TILT),
    "its lower side tilted away": (TILT, 0.0),
    "its upper side tilted away": (-TILT, 0.0),
}
INSIDE = {"chessboard": 1.0, "charuco": 0.6}  # share of the corners that must be in the picture


@dataclass(frozen=True)
class Advice:
    """What to do after one picture.

    Attributes:
        taken: This view is used; otherwise `reason` says why not.
        hint: What to do next.
        views: Number of views taken.
        sigma_px: Uncertainty of projection at the worst place of the picture; NaN until it can be estimated.
        until_px: Capture is done below this uncertainty.
        covered: (6, 8) bool, cells of the picture with corners.
        outline: (4, 2) px, where the board should be next, or None.
        done: There are enough views.
    """

    taken: bool
    reason: str
    hint: str
    views: int
    sigma_px: float
    until_px: float
    covered: np.ndarray
    outline: np.ndarray | None
    done: bool

    @property
    def line(self) -> str:
        known = (
            f"known to ±{self.sigma_px:.2f} px, goal ±{self.until_px:g}"
            if np.isfinite(self.sigma_px)
            else "not known yet"
        )
        outcome = "taken" if self.taken else self.reason
        count = f"{self.views} view{'s' * (self.views != 1)}"
        return (
            f"{count}, {np.mean(self.covered):.0%} covered, {known}. {outcome}. {'Done.' if self.done else self.hint}"
        )


class Guide:
    """Guides one capture; it keeps the views taken so far.

    Args:
        board: The board to capture.
        until_px: Goal for the uncertainty of projection at the worst place of the picture (px, 1 σ, > 0).
        select_only: Views come from a recording: select those worth using, and compute no hints.
    """

    def __init__(self, board: Board, *, until_px: float = 0.3, select_only: bool = False) -> None:
        self.board, self.until_px, self._select_only = board, until_px, select_only
        self.views: list[NamedObservation] = []
        self.size = (0, 0)
        self.lens: Intrinsics | None = None
        self._ids: list[Corners] = []
        self._last: Corners | None = None
        self._sharpest_px = np.inf
        self._sigma_px = float("nan")
        self._noise_px = NOISE_PX
        self._hint, self._outline = "", None  # type: tuple[str, np.ndarray | None]

    def offer(self, corners: Corners | str, gray: np.ndarray) -> Advice:
        """corners: the result of Detector.find() for this picture, (h, w) uint8."""
        size = (gray.shape[1], gray.shape[0])
        if self.size == (0, 0):
            self.size = size
            self._plan()
        if size != self.size:
            return self._advice(f"the picture is {size[0]}×{size[1]} now, and was {self.size[0]}×{self.size[1]}")
        if isinstance(corners, str):
            self._last = None
            return self._advice(corners)
        reason = self._unfit(corners, gray)
        self._last = corners
        if reason:
            return self._advice(reason)
        self._ids.append(corners)
        self.views.append(
            NamedObservation(
                f"view {len(self.views) + 1:02d}", Observation(self.board.points_m[corners.ids], corners.pixels)
            )
        )
        if not self._select_only:
            self._fit()
            self._plan()
        return self._advice("")

    @property
    def done(self) -> bool:
        return len(self.views) >= GOOD_VIEWS and self._sigma_px <= self.until_px

    def _unfit(self, corners: Corners, gray: np.ndarray) -> str:
        edge_px = blur(gray, self.board, corners)
        self._sharpest_px = min(self._sharpest_px, edge_px)
        if edge_px > BLUR_PX and edge_px > BLUR_GROWTH * self._sharpest_px:
            return f"blurred (edges {edge_px:.1f} px wide): hold the board still, or add light"
        if not self._select_only and (
            self._last is None or self._distance(corners, self._last) > MOVED_SHARE * self.size[0]
        ):
            return "hold still"
        for number, taken in enumerate(self._ids, 1):
            if self._distance(corners, taken) < SAME_SHARE * self.size[0]:
                return f"the same as view {number}: move or tilt the board"
        return ""

    def _distance(self, one: Corners, other: Corners) -> float:
        """Mean distance in px of the corners that both have; infinite with too few of them."""
        _, at, there = np.intersect1d(one.ids, other.ids, return_indices=True)
        if len(at) < POINTS_SAME:
            return float("inf")
        return float(np.hypot(*(one.pixels[at] - other.pixels[there]).T).mean())

    def _fit(self) -> None:
        if len(self.views) < FIRST_FIT:
            return
        observations = [v.observation for v in self.views]
        lens = self.lens if self.lens is not None and len(self.views) % 5 else start(observations, self.size, MODEL)
        solution = solve([lens], [[s] for s in observations], [MODEL])
        self.lens = solution.lenses[0]
        self._noise_px = max(solution.sigma_px, 0.02)
        self._sigma_px = float(np.nanmax(sigma_map(self.lens)))

    def _plan(self) -> None:
        """Sets the hint to the candidate that minimises the variance of projection over the picture."""
        if self._select_only:
            return
        width_px, height_px = self.size
        lens = self.lens or Intrinsics(
            "radtan", width_px, height_px, width_px, width_px, (width_px - 1) / 2, (height_px - 1) / 2
        )
        free = free_parameters(MODEL)
        known = np.diag(1 / (np.array(BEFORE) * np.array([width_px] * 4 + [1.0] * 4)) ** 2)
        if self.lens is not None and self.lens.covariance is not None:
            known = known + np.linalg.pinv(self.lens.covariance[np.ix_(free, free)], hermitian=True)
        elif self.views:  # too few to fit: their information about the assumed lens
            for view in self.views:
                posed = solve([lens], [[view.observation]], [MODEL], fixed=True).camera_from_board[0]
                known = known + view_information(lens, MODEL, view.observation.points_m, posed) / self._noise_px**2
        moved = sensitivity(lens)[:, free]
        smallest = np.inf
        for words, pose, pixels in self._candidates(lens):
            inside = (pixels >= 0).all(axis=1) & (pixels < (width_px, height_px)).all(axis=1)
            if inside.mean() < INSIDE[self.board.kind]:
                continue
            planned = Corners(np.flatnonzero(inside), pixels[inside])
            if any(self._distance(planned, taken) < HINT_AWAY * SAME_SHARE * width_px for taken in self._ids):
                continue  # it would not be taken
            more = view_information(lens, MODEL, self.board.points_m[inside], pose) / self._noise_px**2
            covariance = np.linalg.inv(known + more)
            remaining = float(np.einsum("ij,jk,ik->", moved, covariance, moved))
            if remaining < smallest:
                smallest, self._hint, self._outline = remaining, words, self._outer(lens, pose)

    def _candidates(self, lens: Intrinsics) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(hint, camera_from_board, pixels of all corners) of each candidate pose."""
        out = []
        across_m, centre = float(np.ptp(self.board.points_m[:, 0])), self.board.centre_m
        for place, share in PLACES.items():
            ray = lens.rays(np.array([share]) * self.size)[0]
            if not np.isfinite(ray).all() or ray[2] <= 0.1:
                continue
            for how_far, part in SIZES.items():
                middle = ray / ray[2] * lens.fx_px * across_m / (part * self.size[0])
                for tilt, (about_x, about_y) in TILTS.items():
                    rotation = rotation_from_vector(np.array([about_x, about_y, 0.0]))
                    pose = rigid(rotation, middle - rotation @ centre)
                    pixels, _ = lens.project(self.board.points_m @ rotation.T + pose[:3, 3])
                    out.append(
                        (
                            f"Next: the board {place} of the picture, {tilt}, {how_far}",
                            pose,
                            np.nan_to_num(pixels, nan=-1e9),
                        )
                    )
        return out

    def _outer(self, lens: Intrinsics, pose: np.ndarray) -> np.ndarray:
        """(4, 2) px: the board's outer corners."""
        width_m, height_m = self.board.size_m
        s = self.board.square_m
        outer = np.array([(0, 0, 0), (width_m, 0, 0), (width_m, height_m, 0), (0, height_m, 0)]) - (s, s, 0)
        return lens.project(outer @ pose[:3, :3].T + pose[:3, 3])[0]

    def _advice(self, reason: str) -> Advice:
        covered = cells(self.views, self.size) > 0 if self.views else np.zeros((CELLS[1], CELLS[0]), bool)
        hint = "" if self.done else self._hint
        outline = None if self.done else self._outline
        return Advice(
            not reason, reason, hint, len(self.views), self._sigma_px, self.until_px, covered, outline, self.done
        )
