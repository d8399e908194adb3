"""Calibration boards: the text that names one, its layout, and where its corners are.

Example:
    board = Board.parse("9x6", square_mm=25)                     # 9 × 6 INNER corners, as OpenCV counts chessboards
    board = Board.parse("charuco:7x5:5x5_100", square_mm=40)     # 7 × 5 squares, as OpenCV counts ChArUco boards
    board.points_m                                               # (n, 3) float64, z = 0: x along columns, y down rows
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from pipeline.errors import ConfigError, nearest

EXPECTED = "9x6 (inner corners of a chessboard) or charuco:7x5 (squares), charuco:7x5:5x5_100, charuco:7x5:0.8:legacy"
DICTIONARIES = {
    name.removeprefix("DICT_").lower(): getattr(cv2.aruco, name) for name in dir(cv2.aruco) if name.startswith("DICT_")
}
DEFAULT_DICTIONARY = "4x4_50"
DEFAULT_MARKER_SHARE = 0.75  # of the square's side: leaves a white rim that corner refinement needs
DEFAULT_SQUARE_MM = 25.0


@dataclass(frozen=True)
class Board:
    """columns, rows: inner corners for a chessboard, squares for ChArUco. marker_share: marker's side / square's side.

    legacy: ChArUco boards made with OpenCV before 4.6 begin with a white square where their number of rows is even.
    """

    kind: str  # "chessboard" or "charuco"
    columns: int
    rows: int
    square_m: float = DEFAULT_SQUARE_MM / 1000
    dictionary: str = DEFAULT_DICTIONARY
    marker_share: float = DEFAULT_MARKER_SHARE
    legacy: bool = False

    @classmethod
    def parse(cls, text: str, *, square_mm: float = DEFAULT_SQUARE_MM) -> Board:
        """Raises ConfigError for text that is not a board."""
        if not 0.1 <= square_mm <= 10_000:
            raise ConfigError(f"--square-mm {square_mm:g}: expected the side of one square in millimetres, such as 25")
        kind, *options = text.lower().split(":")
        if kind not in ("charuco", "chessboard"):
            kind, options = "chessboard", [kind, *options]
        size = re.fullmatch(r"(\d+)[x×](\d+)", options[0]) if options else None
        if not size:
            raise ConfigError(f"--board {text}: expected {EXPECTED}")
        board = cls(kind, int(size[1]), int(size[2]), square_mm / 1000)
        if not (3 <= board.columns <= 60 and 3 <= board.rows <= 60):
            raise ConfigError(f"--board {text}: a board has 3 to 60 corners or squares a side. Expected {EXPECTED}")
        for option in options[1:]:
            board = board._with(option, text)
        if kind == "charuco" and (needed := board.columns * board.rows // 2) > (available := board._dictionary_size()):
            raise ConfigError(
                f"--board {text}: {needed} markers are needed and {board.dictionary} has {available}. "
                f"Take a larger one, such as charuco:{size[0]}:4x4_250"
            )
        return board

    def _with(self, option: str, text: str) -> Board:
        if self.kind == "chessboard":
            raise ConfigError(f"--board {text}: a chessboard has no option '{option}'. Expected {EXPECTED}")
        name = option.removeprefix("dict_")
        if option == "legacy":
            return replace(self, legacy=True)
        if name in DICTIONARIES:
            return replace(self, dictionary=name)
        try:
            share = float(option)
        except ValueError:
            raise ConfigError(
                f"--board {text}: '{option}' is not a dictionary, a marker size or 'legacy'."
                f"{nearest(name, DICTIONARIES)}"
            ) from None
        if not 0.3 <= share <= 0.95:
            raise ConfigError(f"--board {text}: {option}: a marker's side is 0.3 to 0.95 of a square's")
        return replace(self, marker_share=share)

    def _dictionary_size(self) -> int:
        return len(cv2.aruco.getPredefinedDictionary(DICTIONARIES[self.dictionary]).bytesList)

    def __str__(self) -> str:
        if self.kind == "chessboard":
            return f"{self.columns}x{self.rows}"
        legacy = ":legacy" if self.legacy else ""
        share = f":{self.marker_share:g}" if self.marker_share != DEFAULT_MARKER_SHARE else ""
        return f"charuco:{self.columns}x{self.rows}:{self.dictionary}{share}{legacy}"

    @property
    def description(self) -> str:
        if self.kind == "chessboard":
            return f"chessboard of {self.columns}×{self.rows} inner corners"
        legacy = ", legacy layout" if self.legacy else ""
        return f"ChArUco board of {self.columns}×{self.rows} squares, {self.dictionary}{legacy}"

    @property
    def corners_wide(self) -> tuple[int, int]:
        """Inner corners (columns, rows)."""
        return (self.columns, self.rows) if self.kind == "chessboard" else (self.columns - 1, self.rows - 1)

    @property
    def squares_wide(self) -> tuple[int, int]:
        columns, rows = self.corners_wide
        return columns + 1, rows + 1

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of all squares."""
        columns, rows = self.squares_wide
        return columns * self.square_m, rows * self.square_m

    @cached_property
    def points_m(self) -> np.ndarray:
        """(n, 3) float64: the inner corners, row by row, the first at the origin; by id for ChArUco."""
        columns, rows = self.corners_wide
        grid = np.mgrid[:columns, :rows].T.reshape(-1, 2) * self.square_m
        return np.column_stack([grid, np.zeros(len(grid))])

    @property
    def centre_m(self) -> np.ndarray:
        """(3,) the centre of the corners."""
        return np.array(self.points_m.mean(axis=0))

    @property
    def turns_alike(self) -> bool:
        """Whether the board looks the same turned by 180°, so that two cameras may number its corners differently."""
        return self.kind == "chessboard" and sum(self.corners_wide) % 2 == 0

    def charuco(self) -> Any:
        """OpenCV's board of this layout, in units of one square."""
        assert self.kind == "charuco"
        size, dictionary = (self.columns, self.rows), cv2.aruco.getPredefinedDictionary(DICTIONARIES[self.dictionary])
        board = cv2.aruco.CharucoBoard(size, 1.0, self.marker_share, dictionary)
        board.setLegacyPattern(self.legacy)
        return board

    def image(self, square_px: int) -> np.ndarray:
        """The board as it is printed, (rows, columns) × square_px uint8, without a margin."""
        columns, rows = self.squares_wide
        if self.kind == "charuco":
            return np.array(self.charuco().generateImage((columns * square_px, rows * square_px), marginSize=0))
        y, x = np.mgrid[: rows * square_px, : columns * square_px] // square_px
        return np.where((x + y) % 2 == 0, 0, 255).astype(np.uint8)
