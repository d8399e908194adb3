"""Boards: the text that names them, the printed PDF, the detected corners, and pictures of another board."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.board.board import Board
from calibration.board.detect import LAYOUT_TOLERANCE, Corners, Detector, blur, layout_error, spacing
from calibration.board.pdf import black_rectangles, board_pdf, choose_paper
from calibration.lens import simulate
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, rigid, rotation_from_vector

LENS = Intrinsics("radtan", 480, 360, 400, 401, 242, 178, (-0.2, 0.06, 0.0005, -0.0005, 0.0))
CHARUCO = Board.parse("charuco:8x6", square_mm=30)
CHESS = Board.parse("9x6", square_mm=25)


def place(board: Board, distance_m: float, turn: tuple[float, float, float] = (0.25, -0.3, 0.05)) -> np.ndarray:
    rotation = rotation_from_vector(np.array(turn))
    return rigid(rotation, np.array([0, 0, distance_m]) - rotation @ board.centre_m)


@pytest.fixture(scope="module")
def charuco_pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture, camera_from_board)"""
    renderer, rng = simulate.Renderer(CHARUCO, LENS, samples=3), np.random.default_rng(1)
    poses = [place(CHARUCO, 0.33), place(CHARUCO, 0.45, (-0.5, 0.1, 0.6)), place(CHARUCO, 0.27, (0.1, 0.5, 0.0))]
    return [(renderer.render(pose, rng=rng), pose) for pose in poses]


@pytest.fixture(scope="module")
def chess_picture() -> tuple[np.ndarray, np.ndarray]:
    return simulate.Renderer(CHESS, LENS, samples=3).render(place(CHESS, 0.36)), place(CHESS, 0.36)


@pytest.mark.parametrize("text", ["9x6", "charuco:7x5:4x4_50", "charuco:8x6:5x5_100:0.8:legacy"])
def test_a_board_is_written_as_it_is_read(text: str) -> None:
    assert str(Board.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "square_mm", "message"),
    [
        ("9", 25, "expected 9x6"),
        ("9x", 25, "expected 9x6"),
        ("charuco", 25, "expected 9x6"),
        ("2x6", 25, "3 to 60"),
        ("9x6", 0, "--square-mm 0"),
        ("9x6", float("nan"), "--square-mm nan"),
        ("9x6:legacy", 25, "a chessboard has no option 'legacy'"),
        ("charuco:7x5:4x4_51", 25, "Did you mean '4x4_50'?"),
        ("charuco:7x5:0.99", 25, "0.3 to 0.95"),
        ("charuco:20x10", 25, "100 markers are needed and 4x4_50 has 50"),
    ],
)
def test_text_that_is_not_a_board_is_an_error(text: str, square_mm: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Board.parse(text, square_mm=square_mm)
    assert message in str(caught.value)


def test_charuco_corners_are_detected_to_a_twentieth_of_a_pixel(
    charuco_pictures: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    errors = []
    for gray, pose in charuco_pictures:
        corners, true = Detector(CHARUCO).find(gray), simulate.true_corners(CHARUCO, LENS, pose)
        assert isinstance(corners, Corners)
        _, at, there = np.intersect1d(corners.ids, true.ids, return_indices=True)
        errors.append(corners.pixels[at] - true.pixels[there])
    every = np.concatenate(errors)
    assert len(every) > 80
    assert (every.std(axis=0) <= 0.05).all() and (np.abs(every.mean(axis=0)) < 0.02).all()


def test_chessboard_corners_are_numbered_from_the_black_square(
    chess_picture: tuple[np.ndarray, np.ndarray],
) -> None:
    gray, pose = chess_picture
    true = simulate.true_corners(CHESS, LENS, pose).pixels
    for image, expected in ((gray, true), (gray[::-1, ::-1], np.array([479, 359]) - true)):  # held upside down
        corners = Detector(CHESS).find(np.ascontiguousarray(image))
        assert isinstance(corners, Corners)
        np.testing.assert_allclose(corners.pixels, expected, atol=0.15)


def test_blur_is_measured(chess_picture: tuple[np.ndarray, np.ndarray]) -> None:
    gray, pose = chess_picture
    corners = simulate.true_corners(CHESS, LENS, pose)
    sharp_px, soft_px = blur(gray, CHESS, corners), blur(cv2.GaussianBlur(gray, (0, 0), 2.0), CHESS, corners)
    assert sharp_px == pytest.approx(2.56 * 0.66, abs=0.6)  # pixels of 0.29 px σ and a blur of 0.6
    assert soft_px == pytest.approx(2.56 * 2.1, abs=0.8)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("charuco:6x8", "charuco:8x6:4x4_50"),
        ("charuco:8x6:legacy", "charuco:8x6:4x4_50"),
        ("charuco:8x6:5x5_100", "charuco:8x6:4x4_50"),
        ("charuco:7x5", "charuco:8x6:4x4_50"),
    ],
)
def test_another_charuco_board_is_named(
    asked: str, shown: str, charuco_pictures: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    detector = Detector(Board.parse(asked))
    assert all(isinstance(detector.find(gray), str) for gray, _ in charuco_pictures)
    words = detector.mismatch([gray for gray, _ in charuco_pictures])
    assert words is not None and words.endswith(f"write --board {shown}")


@pytest.mark.parametrize("asked", ["8x6", "7x5", "10x7"])
def test_another_chessboard_is_named(asked: str, chess_picture: tuple[np.ndarray, np.ndarray]) -> None:
    words = Detector(Board.parse(asked)).mismatch([chess_picture[0]])
    assert words is not None and words.endswith("write --board 9x6")


def test_a_charuco_board_in_place_of_a_chessboard_is_named(
    charuco_pictures: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    words = Detector(CHESS).mismatch([gray for gray, _ in charuco_pictures])
    assert words is not None and "show a ChArUco board of 8×6 squares" in words


def test_a_board_cut_off_by_the_edge_is_not_taken_for_a_smaller_one(
    chess_picture: tuple[np.ndarray, np.ndarray],
) -> None:
    cut = chess_picture[0].copy()
    cut[:, : int(simulate.true_corners(CHESS, LENS, chess_picture[1]).pixels[:, 0].min()) + 12] = 110
    assert Detector(CHESS).mismatch([cut, chess_picture[0], cut]) is None


def test_a_wide_lens_does_not_make_a_charuco_board_another_one() -> None:
    wide = Intrinsics("fisheye", 640, 480, 190, 190, 320, 240, (-0.02, 0.003, -0.001, 0.0002))
    layout, pose = CHARUCO.charuco(), place(CHARUCO, 0.11)  # it spans 100° of the picture
    on_board = np.array(layout.getObjPoints()) * CHARUCO.square_m - (CHARUCO.square_m, CHARUCO.square_m, 0)
    pixels, visible = wide.project(apply(pose, on_board.reshape(-1, 3)))
    whole = visible.reshape(-1, 4).all(axis=1)
    assert whole.sum() > 12
    off = layout_error(CHARUCO, layout.getIds().ravel()[whole], pixels.reshape(-1, 4, 2)[whole])
    assert off is not None and off < LAYOUT_TOLERANCE


def test_the_right_board_is_not_taken_for_another(
    chess_picture: tuple[np.ndarray, np.ndarray], charuco_pictures: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    assert Detector(CHESS).mismatch([chess_picture[0]]) is None
    assert Detector(CHARUCO).mismatch([gray for gray, _ in charuco_pictures]) is None


@pytest.mark.parametrize(("value", "reason"), [(3, "too dark"), (128, "next to nothing")])
def test_a_picture_without_light_or_contrast_says_so(value: int, reason: str) -> None:
    result = Detector(CHESS).find(np.full((360, 480), value, np.uint8))
    assert isinstance(result, str) and reason in result


def test_a_board_that_is_too_far_says_so() -> None:
    far = np.full((360, 480), 200, np.uint8)
    small = cv2.resize(CHESS.image(40), (40, 28), interpolation=cv2.INTER_AREA)
    far[100:128, 100:140] = small
    assert isinstance(Detector(CHESS).find(far), str)
    assert spacing(CHESS, Corners(np.arange(54), CHESS.points_m[:, :2] * 160)) == pytest.approx(4.0)


# --- printed


@pytest.mark.parametrize("text", ["9x6", "charuco:7x5", "charuco:8x6:legacy", "charuco:5x7:5x5_100:0.7"])
def test_what_is_printed_is_what_opencv_draws(text: str) -> None:
    board, square_px = Board.parse(text), 240
    drawn = np.full((board.squares_wide[1] * square_px, board.squares_wide[0] * square_px), 255, np.uint8)
    for x, y, w, h in black_rectangles(board):
        drawn[round(y * square_px) : round((y + h) * square_px), round(x * square_px) : round((x + w) * square_px)] = 0
    assert (drawn != board.image(square_px)).mean() < 1e-3


def test_a_board_is_printed_in_true_size_with_what_to_write() -> None:
    text = board_pdf(Board.parse("9x6", square_mm=25), (297.0, 210.0)).decode("cp1252")
    assert text.startswith("%PDF-1.4") and "/MediaBox [0 0 841.8898 595.2756]" in text
    assert f"{72 / 25.4:.8f} 0 0 {72 / 25.4:.8f} 0 0 cm" in text  # one unit is one millimetre
    squares = [line.split() for line in text.splitlines() if line.endswith(" 25.0000 25.0000 re")]
    assert len(squares) == 35
    assert "--board 9x6 --square-mm 25" in text and "/PrintScaling /None" in text
    offset = int(text.rpartition("startxref\n")[2].split()[0])
    assert board_pdf(Board.parse("9x6", square_mm=25), (297.0, 210.0))[offset:].startswith(b"xref\n0 6\n")


def test_the_paper_is_the_smallest_that_holds_the_board() -> None:
    assert choose_paper(Board.parse("9x6", square_mm=20))[0] == "a4"
    assert choose_paper(Board.parse("9x6", square_mm=30))[0] == "a3"
    with pytest.raises(ConfigError, match="does not fit on A3. At most --square-mm 37, or a larger --paper"):
        choose_paper(Board.parse("9x6", square_mm=60))


def test_the_board_is_written_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import run_pipeline

    args = run_pipeline.parser().parse_args(
        ["calibrate", "board", "charuco:7x5", "--square-mm", "30", "--out", str(tmp_path / "b.pdf")]
    )
    args.function(args)
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    assert "calibrate camera live --board charuco:7x5:4x4_50 --square-mm 30" in capsys.readouterr().out


def test_nine_corners_in_a_street_are_not_a_board() -> None:
    picture = np.full((480, 640), 255, np.uint8)
    picture[60:220, 100:260] = np.kron(np.indices((4, 4)).sum(0) % 2 * 255, np.ones((40, 40))).astype(np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.2)
    assert Detector(Board.parse("9x6")).mismatch([picture, picture]) is None
