"""What cameras see of a board: the input of every lens estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Observation:
    """What one camera observes of the board in one view: points_m (n, 3) in the board's frame, pixels (n, 2)."""

    points_m: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class NamedObservation:
    """name: of the picture, for reports."""

    name: str
    observation: Observation


View = Sequence[Observation | None]  # one entry per camera
