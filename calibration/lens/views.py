"""Detects the board in all pictures of one camera; the other pictures are listed with the reason why they were skipped.

Example:
    detected = detect_views(["left"], Board.parse("9x6"))   # ConfigError if no picture shows the board, or another one
    detected.views, detected.skipped, detected.observations()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibration.board.board import Board
from calibration.board.detect import Corners, Detector, blur
from calibration.lens.guide import Guide
from calibration.lens.observation import NamedObservation, Observation
from calibration.pictures import Picture, is_stream, pictures
from pipeline.errors import ConfigError

MISMATCH_PICTURES = 6  # pictures that are searched for another board
BLURRED_PX = 8.0  # edges this wide move corners by more than the accuracy of their detection
RETAINED_PICTURES = 40  # in memory, for the report: pictures of a stream cannot be read again


@dataclass
class CameraViews:
    """The views of the board in all pictures of one camera. skipped: picture → reason. blurs: width of edges in px."""

    board: Board
    size: tuple[int, int] = (0, 0)
    views: dict[str, Corners] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    grays: dict[str, np.ndarray] = field(default_factory=dict)
    blurs: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def observations(self) -> list[NamedObservation]:
        return [NamedObservation(n, Observation(self.board.points_m[c.ids], c.pixels)) for n, c in self.views.items()]


def detect_views(sources: Sequence[str], board: Board, *, stream: str | None = None) -> CameraViews:
    """Detects the board in every picture. ConfigError if the pictures show another board, or none shows this one."""
    detected, detector = CameraViews(board), Detector(board)
    first: list[np.ndarray] = []
    # From a film or a recording, only the views that a guide would take.
    guide = Guide(board, select_only=True) if any(map(is_stream, sources)) else None
    for picture in pictures(sources, stream=stream):
        problem = _unusable(picture, detected)
        if picture.path is not None:
            detected.files.append(picture.path)
        if picture.gray is None or problem:
            detected.skipped[_unique(picture.name, detected)] = problem
            continue
        if len(first) < MISMATCH_PICTURES:
            first.append(picture.gray)
        corners = detector.find(picture.gray)
        problem = corners if isinstance(corners, str) else _blurred(picture.gray, board, corners)
        if not problem and guide is not None:
            assert isinstance(corners, Corners)
            advice = guide.offer(corners, picture.gray)
            problem = "" if advice.taken else advice.reason
        add(detected, picture.name, picture.gray, corners, problem)
    if (words := detector.mismatch(_for_mismatch(detected, first))) is not None:
        raise ConfigError(f"--board {board}: {words}")
    if not detected.views:
        reasons = "; ".join(dict.fromkeys(detected.skipped.values()))
        raise ConfigError(
            f"{' '.join(sources)}: the {board.description} is in none of {len(detected.skipped)} pictures: {reasons}. "
            "Check --board, the light, and that the whole board with its white rim is in view"
        )
    return detected


def add(detected: CameraViews, name: str, gray: np.ndarray, corners: Corners | str, problem: str = "") -> None:
    name = _unique(name, detected)
    if isinstance(corners, str) or problem:
        detected.skipped[name] = problem or str(corners)
        return
    detected.size = (gray.shape[1], gray.shape[0])
    detected.views[name] = corners
    detected.blurs[name] = blur(gray, detected.board, corners)
    if len(detected.grays) < RETAINED_PICTURES:
        detected.grays[name] = gray


def _unique(name: str, detected: CameraViews) -> str:
    taken, number = {**detected.views, **detected.skipped}, 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    return unique


def _unusable(picture: Picture, detected: CameraViews) -> str:
    if picture.gray is None:
        return picture.problem
    size = (picture.gray.shape[1], picture.gray.shape[0])
    if detected.size != (0, 0) and size != detected.size:
        before = "×".join(map(str, detected.size))
        return f"is {size[0]}×{size[1]}, and the pictures before it are {before}: another camera or mode"
    return ""


def _blurred(gray: np.ndarray, board: Board, corners: Corners) -> str:
    width_px = blur(gray, board, corners)
    return f"too blurred: its edges are {width_px:.0f} px wide" if width_px > BLURRED_PX else ""


def _for_mismatch(detected: CameraViews, first: list[np.ndarray]) -> list[np.ndarray]:
    """Pictures to check for another board; few if most show the board: only a larger one can look like it."""
    return first[:2] if len(detected.views) > len(detected.skipped) else first
