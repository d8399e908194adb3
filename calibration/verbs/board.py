"""calibrate board: a board to print, as PDF in its true size, with the options for `calibrate camera` printed on it.

Print without scaling ("actual size"), glue it on something flat and stiff, and measure the ruler: if it is not 100 mm
long, pass the measured side of a square as --square-mm.

Example:
    python run_pipeline.py calibrate board 9x6 --square-mm 25 --out board.pdf
    python run_pipeline.py calibrate board charuco:7x5 --square-mm 35 --paper a3 --out board.pdf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from calibration.board.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.board.pdf import PAPERS_MM, board_pdf, choose_paper
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", help=EXPECTED)
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument(
        "--paper",
        choices=("auto", *PAPERS_MM),
        default="auto",
        help="auto: the smaller of A4 and A3 that holds the board",
    )
    parser.add_argument("--out", type=Path, default=Path("board.pdf"), metavar="BOARD.pdf", help="default: board.pdf")


def run(args: argparse.Namespace) -> None:
    board = Board.parse(args.board, square_mm=args.square_mm)
    paper, page_mm = choose_paper(board, args.paper)
    try:
        args.out.write_bytes(board_pdf(board, page_mm))
    except OSError as error:
        raise ConfigError(
            f"--out {args.out}: cannot be written: {error.strerror}. Use a path you can write to"
        ) from error
    print(f"  {args.out}: {board.description}, squares of {args.square_mm:g} mm, on {paper.upper()}")
    print(
        '  Print it at 100 % ("actual size"), glue it on something flat and stiff, '
        "and check that its ruler is 100 mm long."
    )
    print(f"  Then: {COMMAND} calibrate camera live --board {board} --square-mm {args.square_mm:g} --out rig.yaml")
