"""Which parts of the picture and which tilts of the board a set of views covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.lens.bundle import Solution
from calibration.lens.observation import NamedObservation

CELLS = (8, 6)  # columns, rows


def cells(views: Sequence[NamedObservation], size: tuple[int, int]) -> np.ndarray:
    """(6, 8): number of corners in each cell of the picture."""
    pixels = np.concatenate([v.observation.pixels for v in views])
    bounds = [[-0.5, size[1] - 0.5], [-0.5, size[0] - 0.5]]
    return np.array(np.histogram2d(pixels[:, 1], pixels[:, 0], bins=(CELLS[1], CELLS[0]), range=bounds)[0])


def tilts_deg(solution: Solution) -> np.ndarray:
    """(views,) angle between the board's normal and the optical axis."""
    return np.array([np.degrees(np.arccos(np.clip(abs(m[2, 2]), 0, 1))) for m in solution.camera_from_board])


def empty_side(filled: np.ndarray) -> str:
    """The side of the picture with the fewest covered cells, as text."""
    rows, columns = filled.shape
    sides = {
        "at the left edge": filled[:, : columns // 4],
        "at the right edge": filled[:, -(columns // 4) :],
        "at the top edge": filled[: rows // 3],
        "at the bottom edge": filled[-(rows // 3) :],
    }
    return min(sides, key=lambda side: sides[side].mean())
