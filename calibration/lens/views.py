"""What was found in all pictures of one camera: views of the board, and why the other pictures are none.

seen = look(["left"], Board.parse("9x6"))       # ConfigError where the pictures show another board, or none does
seen.views, seen.skipped, seen.observations()
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

LOOKED_AT = 6  # pictures in which another board is looked for
BLURRED_PX = 8.0  # an edge this wide moves corners by more than they are known to
KEPT_PICTURES = 40  # in memory, for the report: those of a stream cannot be read again


@dataclass
class Seen:
    """What was found in all pictures of one camera. skipped: name → why."""

    board: Board
    size: tuple[int, int] = (0, 0)
    views: dict[str, Corners] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    grays: dict[str, np.ndarray] = field(default_factory=dict)
    blurs: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def observations(self) -> list[NamedObservation]:
        return [NamedObservation(n, Observation(self.board.points_m[c.ids], c.pixels)) for n, c in self.views.items()]


def look(sources: Sequence[str], board: Board, *, stream: str | None = None) -> Seen:
    """Finds the board in every picture. ConfigError where the pictures show another board, or none does."""
    seen, detector = Seen(board), Detector(board)
    first: list[np.ndarray] = []
    # Of a film or a recording only what a guide would take.
    taken = Guide(board, pick_only=True) if any(map(is_stream, sources)) else None
    for picture in pictures(sources, stream=stream):
        problem = _unusable(picture, seen)
        if picture.path is not None:
            seen.files.append(picture.path)
        if picture.gray is None or problem:
            seen.skipped[_unique(picture.name, seen)] = problem
            continue
        if len(first) < LOOKED_AT:
            first.append(picture.gray)
        found = detector.find(picture.gray)
        problem = found if isinstance(found, str) else _blurred(picture.gray, board, found)
        if not problem and taken is not None:
            assert isinstance(found, Corners)
            advice = taken.offer(found, picture.gray)
            problem = "" if advice.taken else advice.reason
        add(seen, picture.name, picture.gray, found, problem)
    if (words := detector.mismatch(_worth_a_look(seen, first))) is not None:
        raise ConfigError(f"--board {board}: {words}")
    if not seen.views:
        reasons = "; ".join(dict.fromkeys(seen.skipped.values()))
        raise ConfigError(
            f"{' '.join(sources)}: the {board.words} is in none of {len(seen.skipped)} pictures: {reasons}. "
            "Check --board, the light, and that the whole board with its white rim is in view"
        )
    return seen


def add(seen: Seen, name: str, gray: np.ndarray, found: Corners | str, problem: str = "") -> None:
    name = _unique(name, seen)
    if isinstance(found, str) or problem:
        seen.skipped[name] = problem or str(found)
        return
    seen.size = (gray.shape[1], gray.shape[0])
    seen.views[name] = found
    seen.blurs[name] = blur(gray, seen.board, found)
    if len(seen.grays) < KEPT_PICTURES:
        seen.grays[name] = gray


def _unique(name: str, seen: Seen) -> str:
    taken, number = {**seen.views, **seen.skipped}, 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    return unique


def _unusable(picture: Picture, seen: Seen) -> str:
    if picture.gray is None:
        return picture.problem
    size = (picture.gray.shape[1], picture.gray.shape[0])
    if seen.size != (0, 0) and size != seen.size:
        return f"is {size[0]}×{size[1]}, and the pictures before it are {seen.size[0]}×{seen.size[1]}: another camera or mode"
    return ""


def _blurred(gray: np.ndarray, board: Board, found: Corners) -> str:
    width_px = blur(gray, board, found)
    return f"too blurred: its edges are {width_px:.0f} px wide" if width_px > BLURRED_PX else ""


def _worth_a_look(seen: Seen, first: list[np.ndarray]) -> list[np.ndarray]:
    """A board that is found whole in nearly every picture is the one asked for, unless it is a part of a larger one."""
    return first[:2] if len(seen.views) > len(seen.skipped) else first
