"""Which tracked obstacle each object in the picture is.

Example:
    labels, unmatched = match_subjects(prediction.subjects, model.obstacles(at_ns))     # labels[7] == ("car", 0.9)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.frame import Subject
from pipeline.scene_state import Obstacle

SAME_PLACE_M, SAME_PLACE_SHARE = 0.5, 0.02  # a subject at most this far outside an obstacle's box is still on it


def match_subjects(
    subjects: Sequence[Subject], obstacles: Sequence[Obstacle]
) -> tuple[dict[int, tuple[str, float]], list[Subject]]:
    """(labels, unmatched): obstacle id → label and score of the surest subject whose surface lies on it; and the
    subjects with a position on no obstacle."""
    labels: dict[int, tuple[str, float]] = {}
    others = []
    for subject in sorted(subjects, key=lambda one: one.score):  # the surest overwrites the others
        if not subject.position_m:
            continue
        off_m = [_outside_m(obstacle, subject.position_m) for obstacle in obstacles]
        nearest = int(np.argmin(off_m)) if off_m else -1
        if off_m and off_m[nearest] <= SAME_PLACE_M + SAME_PLACE_SHARE * (subject.range_m or 0.0):
            labels[obstacles[nearest].id] = (subject.label, subject.score)
        else:
            others.append(subject)
    return labels, others


def _outside_m(obstacle: Obstacle, position_m: Sequence[float]) -> float:
    """How far a position lies outside an obstacle's box, along the ground; 0 inside."""
    x, y = position_m[0] - obstacle.centre_m[0], position_m[1] - obstacle.centre_m[1]
    cos, sin = np.cos(obstacle.yaw_rad), np.sin(obstacle.yaw_rad)
    along, across = abs(x * cos + y * sin) - obstacle.size_m[0] / 2, abs(y * cos - x * sin) - obstacle.size_m[1] / 2
    return float(np.hypot(max(along, 0.0), max(across, 0.0)))
