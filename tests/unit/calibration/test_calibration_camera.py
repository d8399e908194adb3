"""Camera intrinsics: real chessboards, simulated truth, stated intervals, and unusable pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import run_pipeline
from calibration.board.board import Board
from calibration.lens import simulate
from calibration.lens.bundle import solve
from calibration.lens.estimate import Estimate, estimate_lens, not_worse_than
from calibration.lens.lens_verdict import check_lens, lens_verdict
from calibration.lens.observation import NamedObservation, Observation
from calibration.lens.stereo import estimate_stereo
from calibration.lens.uncertainty import difference_map, sigma_map
from calibration.lens.views import detect_views
from calibration.verdict import Check, Level, judge
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import load_rig, save_rig

EXAMPLES = Path("/usr/share/doc/opencv-doc/examples/data")
CHESS = Board.parse("9x6", square_mm=25)
LENS = Intrinsics("radtan", 640, 480, 520, 522, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
WIDE = Intrinsics("fisheye", 640, 480, 250, 250, 322, 238, (-0.02, 0.003, -0.001, 0.0002))


@pytest.fixture(scope="module")
def examples() -> Path:
    if not (EXAMPLES / "left01.jpg").exists():
        pytest.skip(f"no pictures in {EXAMPLES}: apt-get install opencv-doc (scripts/setup dev does)")
    return EXAMPLES


@pytest.fixture(scope="module")
def left(examples: Path) -> Estimate:
    detected = detect_views([str(examples / "left[01]*.jpg")], CHESS)
    assert len(detected.views) == 13 and not detected.skipped
    return estimate_lens(detected.observations(), detected.size)


def views(
    lens: Intrinsics = LENS, count: int = 12, *, seed: int = 0, noise_px: float = 0.15, board: Board = CHESS
) -> list[NamedObservation]:
    rng = np.random.default_rng(seed)
    return simulate.corner_views(board, lens, simulate.board_poses(board, lens, count, rng), noise_px=noise_px, rng=rng)


def calibrate(*words: str) -> int:
    args = run_pipeline.parser().parse_args(["calibrate", *words])
    try:
        args.function(args)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# --- real pictures


def test_opencvs_left_pictures(left: Estimate) -> None:
    assert len(left.views) == 13 and not left.rejected and not left.dropped_corners
    assert left.rms_px <= 0.20 and left.holdout_px <= 0.21
    assert lens_verdict(left).level is not Level.FAIL


def test_opencvs_stereo_pictures(examples: Path) -> None:
    detected = [detect_views([str(examples / f"{side}[01]*.jpg")], CHESS) for side in ("left", "right")]
    pair = estimate_stereo(CHESS, *detected, model="radtan4")
    assert len(pair.names) == 13 and not pair.rejected
    assert pair.second.rms_px <= 0.21
    assert pair.solution.rms_px <= 0.22
    assert np.linalg.norm(pair.second_from_first[:3, 3]) == pytest.approx(0.083, abs=0.001)


def test_a_focal_length_wrong_by_one_percent_fails(left: Estimate) -> None:
    wrong = replace(left.lens, fx_px=left.lens.fx_px * 1.01, fy_px=left.lens.fy_px * 1.01)
    verdict, _ = check_lens(wrong, left.views)
    assert (
        verdict.level is Level.FAIL
        and "off by +1.0" in verdict.reason
        and verdict.next_step == "calibrate the camera again"
    )
    right, _ = check_lens(left.lens, left.views)
    assert right.level is Level.PASS


def test_a_fifth_of_the_views_corrupted_are_rejected(left: Estimate) -> None:
    rng = np.random.default_rng(0)
    spoilt = {1: lambda p: p + rng.normal(size=p.shape) * 2, 5: lambda p: p[::-1], 9: lambda p: p * (1.0, 1.05)}
    bad = [
        replace(v, observation=Observation(v.observation.points_m, spoilt.get(i, lambda p: p)(v.observation.pixels)))
        for i, v in enumerate(left.views)
    ]
    estimate = estimate_lens(bad, left.lens.size, model="radtan4")
    # Numbered from the other end is the same board turned: no error. The other two are.
    assert {"left02.jpg", "left11.jpg"} <= set(estimate.rejected) <= {"left02.jpg", "left06.jpg", "left11.jpg"}
    assert all("disagree with the other views" in why for why in estimate.rejected.values())
    assert np.nanmax(difference_map(left.lens, estimate.lens)) < 1.5


# --- known truth


@pytest.mark.parametrize(("truth", "kind"), [(LENS, "radtan"), (WIDE, "fisheye")])
def test_the_distortion_model_is_selected(truth: Intrinsics, kind: str) -> None:
    estimate = estimate_lens(views(truth, 14), truth.size)
    assert estimate.lens.model == kind
    assert estimate.solution.sigma_px == pytest.approx(0.15, rel=0.1)
    assert np.nanmax(difference_map(truth, estimate.lens)) < 5 * np.nanmax(sigma_map(estimate.lens))


def test_rendered_charuco_pictures_give_the_lens_of_the_renderer(tmp_path: Path) -> None:
    board, truth = (
        Board.parse("charuco:9x7", square_mm=25),
        replace(LENS, width_px=480, height_px=360, cx_px=242, cy_px=178, fx_px=400, fy_px=401),
    )
    rng = np.random.default_rng(5)
    renderer = simulate.Renderer(board, truth, samples=2)
    for i, pose in enumerate(simulate.board_poses(board, truth, 14, rng, whole=False)):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), renderer.render(pose, rng=rng))
    detected = detect_views([str(tmp_path)], board)
    estimate = estimate_lens(detected.observations(), detected.size, model="radtan4")
    sigma = estimate.lens.sigma
    assert sigma is not None and len(estimate.views) >= 12
    assert abs(estimate.lens.fx_px - truth.fx_px) <= 3 * sigma[0]
    assert np.nanmax(difference_map(truth, estimate.lens)) <= 0.3


def test_stated_intervals_hold() -> None:
    """The benchmark (python -m benchmarks.calibration) does 200 trials; these are fewer, and the bounds wider."""
    held = []
    for seed in range(16):
        start = replace(LENS, distortion=())
        lens = solve([start], [[v.observation] for v in views(count=8, seed=seed)], ["radtan4"]).lenses[0]
        assert lens.sigma is not None
        held.append(np.abs(lens.parameters - LENS.parameters)[:8] <= 1.96 * lens.sigma[:8])
    assert 0.86 <= np.mean(held) <= 1.0 - 1 / 256


def test_a_corner_that_is_wrong_is_left_out_and_the_view_stays() -> None:
    observed = views()
    pixels = observed[3].observation.pixels.copy()
    pixels[7] += (9.0, -4.0)
    observed[3] = NamedObservation("view 03", Observation(observed[3].observation.points_m, pixels))
    estimate = estimate_lens(observed, LENS.size, model="radtan4")
    assert estimate.dropped_corners == {"view 03": 1} and not estimate.rejected


def test_a_refinement_that_predicts_worse_than_its_start_is_not_taken() -> None:
    estimate = estimate_lens(views(count=5, noise_px=0.4), LENS.size, model="rational")  # 12 parameters, few views
    retained = not_worse_than(estimate, LENS)
    assert retained.start_retained and retained.lens == LENS and retained.start_holdout_px is not None
    assert lens_verdict(retained).level is not Level.PASS and "therefore stays" in lens_verdict(retained).reason
    worse = replace(LENS, fx_px=400.0)
    assert not not_worse_than(estimate, worse).start_retained


# --- views that are no good


def test_views_that_are_all_alike_do_not_pass() -> None:
    rng = np.random.default_rng(2)
    pose = simulate.board_poses(CHESS, LENS, 1, rng)[0]
    pose[:3, :3] = np.eye(3)
    pose[:3, 3] = (-0.1, -0.06, 0.45)
    alike = simulate.corner_views(CHESS, LENS, [pose] * 10, noise_px=0.15, rng=rng)
    verdict = lens_verdict(estimate_lens(alike, LENS.size))
    assert verdict.level is Level.FAIL
    assert any("tilt" in check.next_step for check in verdict.checks)


def test_most_views_contradicting_each_other_fails() -> None:
    observed = views(count=9)
    rng = np.random.default_rng(0)
    observed[:5] = [
        replace(
            v,
            observation=Observation(
                v.observation.points_m, v.observation.pixels + rng.normal(size=v.observation.pixels.shape) * s
            ),
        )
        for v, s in zip(observed[:5], (4, 6, 9, 13, 20), strict=True)
    ]
    verdict = lens_verdict(estimate_lens(observed, LENS.size, model="radtan4"))
    assert verdict.level is Level.FAIL


def test_two_views_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 views, and at least 3 are needed"):
        estimate_lens(views(count=2), LENS.size)


def test_a_verdict_is_its_worst_check() -> None:
    verdict = judge(
        [Check(Level.PASS, "fine"), Check(Level.WARN, "thin", "take more"), Check(Level.WARN, "dim", "more light")]
    )
    assert str(verdict) == "WARN: thin; dim. Next: take more; more light."


# --- the command


@pytest.fixture
def folder_of(examples: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(*numbers: int) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for n in numbers:
            shutil.copy(examples / f"left{n:02d}.jpg", folder)
        return folder

    return make


def test_the_command_writes_rig_and_report_and_ends_with_the_verdict(
    folder_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = folder_of(1, 2, 3, 4, 5, 6, 7, 8)
    (pictures / "broken.jpg").write_bytes((pictures / "left01.jpg").read_bytes()[:2000])
    cv2.imwrite(str(pictures / "empty.png"), np.full((480, 640), 90, np.uint8))
    cv2.imwrite(str(pictures / "small.png"), cv2.resize(cv2.imread(str(pictures / "left01.jpg")), (320, 240)))
    rig, report = tmp_path / "rig.yaml", tmp_path / "report.html"
    code = calibrate(
        "camera", str(pictures), "--board", "9x6", "--model", "radtan4", "--out", str(rig), "--report", str(report)
    )
    printed = capsys.readouterr().out
    assert code == 0
    last = printed.strip().splitlines()[-1]
    assert last.startswith("RMS 0.1") and ("PASS" in last or "WARN" in last)
    assert "skipped broken.jpg: cannot be decoded" in printed
    assert "skipped empty.png: the picture shows next to nothing" in printed
    assert "skipped small.png: is 320×240, and the pictures before it are 640×480" in printed
    lens = load_rig(rig).camera("camera")
    assert lens.covariance is not None and 525 < lens.fx_px < 545
    page = report.read_text()
    assert page.count("data:image/jpeg;base64,") >= 6 and page.count("<svg") >= 4
    assert "http://" not in page and "https://" not in page and "<script" not in page  # nothing is loaded from anywhere
    for words in ("Provenance", "SHA-256", "left03.jpg", "broken.jpg", "Coverage"):
        assert words in page


def test_another_board_in_the_pictures_is_an_error(folder_of: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="the pictures show a chessboard of 9×6 inner corners.*write --board 9x6"):
        calibrate("camera", str(folder_of(1, 2, 3)), "--board", "8x6")


def test_one_view_fails_with_a_next_step(
    folder_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig, report = tmp_path / "rig.yaml", tmp_path / "report.html"
    assert calibrate("camera", str(folder_of(1)), "--board", "9x6", "--out", str(rig), "--report", str(report)) == 2
    assert "FAIL: 1 views, and at least 3 are needed" in capsys.readouterr().out
    assert not rig.exists() and "FAIL" in report.read_text()


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"no pictures in this folder. It holds: .txt"):
        calibrate("camera", str(tmp_path), "--board", "9x6")
    with pytest.raises(ConfigError, match="there is no such folder or file"):
        calibrate("camera", str(tmp_path / "nowhere"), "--board", "9x6")


def test_pictures_without_a_board_are_an_error_with_the_reasons(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((240, 320), 120, np.uint8))
    with pytest.raises(ConfigError, match="is in none of 1 pictures: the picture shows next to nothing"):
        calibrate("camera", str(tmp_path), "--board", "9x6")


def test_a_rig_is_held_against_pictures(folder_of: Callable[..., Path], left: Estimate, tmp_path: Path) -> None:
    wrong = replace(left.lens, fx_px=left.lens.fx_px * 1.01, fy_px=left.lens.fy_px * 1.01)
    save_rig(Rig({"camera": wrong}), tmp_path / "rig.yaml")
    pictures = folder_of(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)
    assert calibrate("camera", str(pictures), "--board", "9x6", "--against", str(tmp_path / "rig.yaml")) == 2


def test_a_recording_is_calibrated_from(tmp_path: Path) -> None:
    recording = pytest.importorskip("pipeline.recording.writer", reason="no recordings in this build")
    from pipeline.frame import Frame, StreamInfo

    board, rng = CHESS, np.random.default_rng(0)
    small = replace(LENS, width_px=320, height_px=240, fx_px=260, fy_px=260, cx_px=160, cy_px=120)
    renderer = simulate.Renderer(board, small, samples=2)
    poses = simulate.board_poses(board, small, 4, rng, tilt_deg=25)
    with recording.Writer(tmp_path / "board.mcap", about={}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 3.0))
        for i, pose in enumerate([poses[0], *poses]):  # the first is seen twice
            gray = renderer.render(pose, rng=rng)
            time_ns = (i + 1) * 300_000_000
            writer.write(
                "camera",
                Frame("camera", i, time_ns, "bgr8", cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), publish_ns=time_ns),
            )
    detected = detect_views([str(tmp_path / "board.mcap")], board)
    assert len(detected.views) == 4 and [*detected.skipped.values()] == ["the same as view 1: move or tilt the board"]
    with pytest.raises(ConfigError, match="'camra' has no pictures.*Did you mean 'camera'"):
        detect_views([str(tmp_path / "board.mcap")], board, stream="camra")
