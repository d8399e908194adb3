"""Draws a board as a one-page PDF in its true size, with a ruler and the options for `calibrate camera` at its foot.

Squares are vector graphics, not an image: they are as sharp as the printer.

Example:
    paper, page_mm = choose_paper(board)              # ("a4", (297.0, 210.0))
    Path("board.pdf").write_bytes(board_pdf(board, page_mm))
"""

from __future__ import annotations

import cv2
import numpy as np

from calibration.board.board import DICTIONARIES, Board
from pipeline.errors import ConfigError

PAPERS_MM = {"a4": (210.0, 297.0), "a3": (297.0, 420.0), "a2": (420.0, 594.0), "a1": (594.0, 841.0)}
AUTOMATIC = ("a4", "a3")  # what most printers take
MARGIN_MM = 10.0  # printers leave about 5
FOOT_MM = 16.0  # for the text and the ruler
POINTS_PER_MM = 72 / 25.4
RULER_MM = 100.0

Rectangle = tuple[float, float, float, float]  # left, top, width, height


def choose_paper(board: Board, paper: str = "auto") -> tuple[str, tuple[float, float]]:
    """(name, (width, height) in mm): the first paper, portrait or landscape, that holds the board.

    ConfigError if none does.
    """
    width_mm, height_mm = (1000 * side for side in board.size_m)
    tried = AUTOMATIC if paper == "auto" else (paper,)
    for name in tried:
        short, long = PAPERS_MM[name]
        for page in ((short, long), (long, short)):
            if width_mm <= page[0] - 2 * MARGIN_MM and height_mm <= page[1] - 2 * MARGIN_MM - FOOT_MM:
                return name, page
    short, long = PAPERS_MM[tried[-1]]
    columns, rows = board.squares_wide
    largest = max(
        min((w - 2 * MARGIN_MM) / columns, (h - 2 * MARGIN_MM - FOOT_MM) / rows)
        for w, h in ((short, long), (long, short))
    )
    raise ConfigError(
        f"--square-mm {1000 * board.square_m:g}: the board is {width_mm:.0f} × {height_mm:.0f} mm and does not fit on "
        f"{tried[-1].upper()}. At most --square-mm {np.floor(largest * 2) / 2:g}, "
        f"or a larger --paper: {', '.join(PAPERS_MM)}"
    )


def black_rectangles(board: Board) -> list[Rectangle]:
    """All black areas, in units of a square's side from the upper left; white areas on black are left out."""
    columns, rows = board.squares_wide
    if board.kind == "chessboard":
        return [(x, y, 1.0, 1.0) for y in range(rows) for x in range(columns) if (x + y) % 2 == 0]
    layout = board.charuco()
    corners = {
        int(i): np.asarray(p)[0, :2] for i, p in zip(layout.getIds().ravel(), layout.getObjPoints(), strict=True)
    }
    with_marker = {(int(p[0]), int(p[1])) for p in corners.values()}
    out = [(float(x), float(y), 1.0, 1.0) for y in range(rows) for x in range(columns) if (x, y) not in with_marker]
    dictionary = cv2.aruco.getPredefinedDictionary(DICTIONARIES[board.dictionary])
    cells = dictionary.markerSize + 2
    side = board.marker_share / cells
    for number, (left, top) in corners.items():
        bits = cv2.aruco.generateImageMarker(dictionary, number, cells)
        for y, row in enumerate(bits):  # runs of black, so that no white hairline appears between two cells
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row == 0, [0]])))
            out += [
                (float(left + a * side), float(top + y * side), float((b - a) * side), side)
                for a, b in edges.reshape(-1, 2)
            ]
    return out


def board_pdf(board: Board, page_mm: tuple[float, float]) -> bytes:
    """A PDF of one page."""
    square = 1000 * board.square_m
    width_mm, height_mm = (1000 * side for side in board.size_m)
    left, top = (page_mm[0] - width_mm) / 2, (page_mm[1] - FOOT_MM - height_mm) / 2

    def rectangle(x: float, y: float, w: float, h: float) -> str:
        return f"{x:.4f} {page_mm[1] - y - h:.4f} {w:.4f} {h:.4f} re"

    def text(x: float, y: float, size_mm: float, words: str) -> str:
        escaped = words.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        return f"BT /F1 {size_mm:.2f} Tf {x:.3f} {page_mm[1] - y:.3f} Td ({escaped}) Tj ET"

    foot = page_mm[1] - MARGIN_MM
    # Everything below is in millimetres.
    content = [f"{POINTS_PER_MM:.8f} 0 0 {POINTS_PER_MM:.8f} 0 0 cm 0 g"]
    content += [
        rectangle(left + x * square, top + y * square, w * square, h * square) for x, y, w, h in black_rectangles(board)
    ]
    content += ["f"]
    content += [rectangle(MARGIN_MM, foot - 2, RULER_MM, 0.3)]
    content += [rectangle(MARGIN_MM + at, foot - (4 if at % 50 == 0 else 3), 0.2, 2) for at in range(0, 101, 10)] + [
        "f"
    ]
    content += [text(MARGIN_MM + RULER_MM + 3, foot - 1, 3, "must be 100 mm long: print at 100 %, without scaling")]
    content += [text(MARGIN_MM, foot - 7, 3.2, f"--board {board} --square-mm {square:g}    {board.description}")]
    stream = "\n".join(content).encode("cp1252", "replace")
    size = " ".join(f"{side * POINTS_PER_MM:.4f}" for side in page_mm)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size}] /Contents 4 0 R ".encode()
        + b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        count,
        table,
        count,
        len(out),
    )
