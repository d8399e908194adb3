"""calibrate extrinsics: where a lidar or depth camera stands to a camera, from views of one board.

    python run_pipeline.py calibrate extrinsics capture --rig rig.yaml --board 7x5 --square-mm 100 --board-size-mm 900x700
    python run_pipeline.py calibrate extrinsics session.mcap --rig rig.yaml --sensor depth --board charuco:7x5 --square-mm 60
    python run_pipeline.py calibrate extrinsics poses.csv --out rig.yaml            # boards measured in both frames already

`capture` is a folder with a picture and a cloud (.pcd, .bin, .npy, .csv; or a 16-bit depth PNG) per moment, named alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibration.board.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.lidar_camera import posed_boards
from calibration.lidar_camera.board_fit import BoardView
from calibration.lidar_camera.board_views import FlatBoard, find_views, flat_board, still
from calibration.lidar_camera.extrinsics import Extrinsics, calibrate
from calibration.moments import Moment, moments
from calibration.pose import Floats, in_words
from calibration.report import charts
from calibration.report.overlay import draw_board
from calibration.report.page import Report
from calibration.verdict import Verdict
from pipeline.errors import ConfigError
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import load_rig, save_rig

OVERLAYS = 6  # pictures in the report


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder of pictures and clouds, recording.mcap, or a table poses.csv")
    parser.add_argument(
        "--rig", type=Path, metavar="RIG.yaml", help="has the camera's intrinsics; a pose in it is the start"
    )
    parser.add_argument("--camera", default="camera", help="its name in the rig and in a recording (default: camera)")
    parser.add_argument("--sensor", default="lidar", help="name of the lidar or depth camera (default: lidar)")
    parser.add_argument("--board", metavar="9x6", help=EXPECTED)
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument(
        "--board-size-mm", metavar="1000x700", help="the whole board, along its columns first: then its edges help too"
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="written unless the verdict is FAIL (default: the file of --rig)"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html")


@dataclass
class _Looked:
    """What passed by while the views were found: kept for the report, of a few moments."""

    moments: dict[str, Moment] = field(default_factory=dict)


def run(args: argparse.Namespace) -> Verdict:
    if args.source.suffix == ".csv":
        return _from_table(args)
    if args.rig is None or args.board is None:
        raise ConfigError(
            f"{args.source}: --rig (with the camera's intrinsics) and --board are needed. See: calibrate extrinsics --help"
        )
    rig = load_rig(args.rig)
    lens = rig.camera(args.camera)
    board = flat_board(Board.parse(args.board, square_mm=args.square_mm), args.board_size_mm)
    start = _start(rig, args.camera, args.sensor)
    looked = _Looked()
    views, skipped = find_views(_looked_at(args, rig, board, looked), board, lens, start)
    for name, why in skipped.items():
        print(f"  skipped {name}: {why}")
    result = calibrate(views, lens, outline_m=board.outline_m, start=start)
    for name, why in result.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_pose(result.camera_from_lidar, result.covariance, args.camera, args.sensor)
    if args.report:
        _report(result, views, skipped, looked, rig, args).write(args.report)
        print(f"  report: {args.report}")
    seen = f"{len(result.used)} views of a {board.pattern.words}"
    made = f"{seen}, {1000 * result.held_out_m:.1f} mm in unseen views, {result.verdict.level.name}"
    _write(args, rig, result.camera_from_lidar, result.covariance, result.verdict, made)
    print(result.verdict)
    return result.verdict


def _looked_at(args: argparse.Namespace, rig: Rig, board: FlatBoard, looked: _Looked) -> Iterator[Moment]:
    found = moments(args.source, rig, camera=args.camera, sensor=args.sensor)
    for moment in still(found, board) if args.source.suffix == ".mcap" else found:
        if args.report and len(looked.moments) < 4 * OVERLAYS:
            looked.moments[moment.name] = moment
        yield moment


def _start(rig: Rig, camera: str, sensor: str) -> Floats | None:
    """The pose that the rig has, if any: the start, and what a refinement must beat."""
    try:
        return rig.transform(camera, sensor)
    except ConfigError:
        return None


def _from_table(args: argparse.Namespace) -> Verdict:
    rig = load_rig(args.rig) if args.rig else Rig()
    result = posed_boards.calibrate(posed_boards.read_poses(args.source))
    for name, why in result.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_pose(result.camera_from_lidar, result.covariance, args.camera, args.sensor)
    if args.report:
        report = Report("Extrinsics from posed boards", result.verdict)
        report.section("Pose", f"{args.camera}_from_{args.sensor}; ± is one standard deviation.")
        report.table(*_pose_table(result.camera_from_lidar, result.covariance))
        report.provenance(files=[args.source])
        report.write(args.report)
    made = f"{len(result.used)} posed boards, {1000 * result.held_out_m:.1f} mm in boards left out, {result.verdict.level.name}"
    _write(args, rig, result.camera_from_lidar, result.covariance, result.verdict, made)
    print(result.verdict)
    return result.verdict


def _write(args: argparse.Namespace, rig: Rig, pose: Floats, covariance: Floats, verdict: Verdict, made: str) -> None:
    out = args.out or args.rig
    if out is None:
        return
    if verdict.failed:
        print(f"  {out} was not written")
        return
    if args.out and args.out.exists() and args.out != args.rig:
        rig = load_rig(args.out)
    save_rig(rig.with_pose(Pose(args.camera, args.sensor, pose, covariance), made), out)
    print(f"  rig: {out}")


def _pose_table(pose: Floats, covariance: Floats) -> tuple[list[str], list[list[str]]]:
    """Position of the sensor in the camera's frame, in words that need no knowledge of axes."""
    sigma = np.sqrt(np.diag(covariance))
    rows = []
    for axis in range(3):
        unit = np.eye(3)[axis] * (1 if pose[axis, 3] >= 0 else -1)
        turn = f"± {np.degrees(sigma[axis]):.3f}°"
        rows.append(
            [f"{1000 * abs(pose[axis, 3]):.1f} mm {in_words(unit)}", f"± {1000 * sigma[3 + axis]:.1f} mm", turn]
        )
    return ["the sensor is, of the camera", "known to", "its rotation about that axis to"], rows


def _print_pose(pose: Floats, covariance: Floats, camera: str, sensor: str) -> None:
    where = "; ".join(f"{row[0]} ({row[1]})" for row in _pose_table(pose, covariance)[1])
    sigma_deg = np.degrees(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
    print(f"  {sensor}, as {camera} sees it: {where}; rotation known to {sigma_deg:.3f}° (1 σ)")


def _report(
    result: Extrinsics,
    views: Sequence[BoardView],
    skipped: dict[str, str],
    looked: _Looked,
    rig: Rig,
    args: argparse.Namespace,
) -> Report:
    report = Report(f"{args.sensor} to {args.camera}", result.verdict)
    report.section("Pose", f"{args.camera}_from_{args.sensor}; ± is one standard deviation.")
    report.table(*_pose_table(result.camera_from_lidar, result.covariance))
    if result.fit is not None:
        report.section(
            "Views", "How far the board that the lidar saw lies from the one that the camera saw, over the board."
        )
        apart_mm = [1000 * float(m) for m in result.fit.apart_m]
        report.chart(charts.bars(result.used, apart_mm, unit="mm"), "RMS distance of the two planes, noise left out")
        told = f"Corners: {result.fit.sigma_px:.2f} px; the lidar's ranges: {1000 * result.fit.sigma_range_m:.1f} mm."
        report.text(f"Noise found in the views themselves (1 σ). {told}")
    dropped = [*result.rejected.items(), *skipped.items()]
    if dropped:
        report.table(["view not used", "why"], dropped)
    report.section(
        "Overlays",
        "The lidar's points in the picture, red near and blue far. On the board they must end where it ends.",
    )
    shown = [v for v in views if v.name in looked.moments][:OVERLAYS]
    for view in shown:
        moment = looked.moments[view.name]
        drawn = draw_board(
            moment.image, moment.points_m, rig.camera(args.camera), result.camera_from_lidar, view.corners_px
        )
        report.picture(drawn, view.name)
    report.provenance(files=[args.rig, *([args.source] if args.source.is_file() else sorted(args.source.rglob("*.*")))])
    return report
