"""calibrate extrinsics: the pose of a lidar or depth camera relative to a camera, from views of one board.

`capture` is a folder with a picture and a cloud (.pcd, .bin, .npy, .csv; or a 16-bit depth PNG) per moment, with equal
names. poses.csv holds boards that another program measured in both frames.

Example:
    python run_pipeline.py calibrate extrinsics capture --rig rig.yaml --board 7x5 --square-mm 100
    python run_pipeline.py calibrate extrinsics session.mcap --rig rig.yaml --sensor depth --board charuco:7x5
    python run_pipeline.py calibrate extrinsics poses.csv --out rig.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from calibration.board.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.lidar_camera import posed_boards
from calibration.lidar_camera.board_fit import BoardView
from calibration.lidar_camera.board_views import FlatBoard, find_views, flat_board, still
from calibration.lidar_camera.extrinsics import Extrinsics, calibrate
from calibration.moments import Moment, moments
from calibration.pose import Floats, direction_text
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
        "--rig", type=Path, metavar="RIG.yaml", help="contains the camera's intrinsics; a pose in it is the start"
    )
    parser.add_argument(
        "--camera", default="camera", help="name of the camera in the rig and in a recording (default: camera)"
    )
    parser.add_argument("--sensor", default="lidar", help="name of the lidar or depth camera (default: lidar)")
    parser.add_argument("--board", metavar="9x6", help=EXPECTED)
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument(
        "--board-size-mm",
        metavar="1000x700",
        help="size of the whole board, along its columns first: its edges are then used too",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="written unless the verdict is FAIL (default: the file of --rig)"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html", help="HTML page with all figures and overlays")


def run(args: argparse.Namespace) -> Verdict:
    if args.source.suffix == ".csv":
        return _from_table(args)
    if args.rig is None or args.board is None:
        raise ConfigError(
            f"{args.source}: set --rig (with the camera's intrinsics) and --board. See: calibrate extrinsics --help"
        )
    rig = load_rig(args.rig)
    lens = rig.camera(args.camera)
    board = flat_board(Board.parse(args.board, square_mm=args.square_mm), args.board_size_mm)
    start = _start(rig, args.camera, args.sensor)
    retained: dict[str, Moment] = {}  # for the report
    views, skipped = find_views(_candidates(args, rig, board, retained), board, lens, start)
    for name, why in skipped.items():
        print(f"  skipped {name}: {why}")
    result = calibrate(views, lens, outline_m=board.outline_m, start=start)
    for name, why in result.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_pose(result.camera_from_lidar, result.covariance, args.camera, args.sensor)
    if args.report:
        _report(result, views, skipped, retained, rig, args).write(args.report)
        print(f"  report: {args.report}")
    used = f"{len(result.used)} views of a {board.pattern.description}"
    provenance = f"{used}, {1000 * result.held_out_m:.1f} mm in held-out views, {result.verdict.level.name}"
    _write(args, rig, result.camera_from_lidar, result.covariance, result.verdict, provenance)
    print(result.verdict)
    return result.verdict


def _candidates(args: argparse.Namespace, rig: Rig, board: FlatBoard, retained: dict[str, Moment]) -> Iterator[Moment]:
    """Moments at which the board may be visible. The first ones are added to `retained` if a report is written."""
    every = moments(args.source, rig, camera=args.camera, sensor=args.sensor)
    for moment in still(every, board) if args.source.suffix == ".mcap" else every:
        if args.report and len(retained) < 4 * OVERLAYS:
            retained[moment.name] = moment
        yield moment


def _start(rig: Rig, camera: str, sensor: str) -> Floats | None:
    """The pose in the rig, if any: the start, which a refinement must improve on."""
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
    errors = f"{1000 * result.held_out_m:.1f} mm in held-out boards"
    provenance = f"{len(result.used)} posed boards, {errors}, {result.verdict.level.name}"
    _write(args, rig, result.camera_from_lidar, result.covariance, result.verdict, provenance)
    print(result.verdict)
    return result.verdict


def _write(
    args: argparse.Namespace, rig: Rig, pose: Floats, covariance: Floats, verdict: Verdict, provenance: str
) -> None:
    out = args.out or args.rig
    if out is None:
        return
    if verdict.failed:
        print(f"  {out} was not written")
        return
    if args.out and args.out.exists() and args.out != args.rig:
        rig = load_rig(args.out)
    save_rig(rig.with_pose(Pose(args.camera, args.sensor, pose, covariance), provenance), out)
    print(f"  rig: {out}")


def _pose_table(pose: Floats, covariance: Floats) -> tuple[list[str], list[list[str]]]:
    """Position of the sensor in the camera's frame, with named directions instead of axes."""
    sigma = np.sqrt(np.diag(covariance))
    rows = []
    for axis in range(3):
        unit = np.eye(3)[axis] * (1 if pose[axis, 3] >= 0 else -1)
        turn = f"± {np.degrees(sigma[axis]):.3f}°"
        rows.append(
            [f"{1000 * abs(pose[axis, 3]):.1f} mm {direction_text(unit)}", f"± {1000 * sigma[3 + axis]:.1f} mm", turn]
        )
    return ["position relative to the camera", "known to", "rotation about that axis known to"], rows


def _print_pose(pose: Floats, covariance: Floats, camera: str, sensor: str) -> None:
    where = "; ".join(f"{row[0]} ({row[1]})" for row in _pose_table(pose, covariance)[1])
    sigma_deg = np.degrees(np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1]))
    print(f"  {sensor} relative to {camera}: {where}; rotation known to {sigma_deg:.3f}° (1 σ)")


def _report(
    result: Extrinsics,
    views: Sequence[BoardView],
    skipped: dict[str, str],
    retained: dict[str, Moment],
    rig: Rig,
    args: argparse.Namespace,
) -> Report:
    report = Report(f"{args.sensor} to {args.camera}", result.verdict)
    report.section("Pose", f"{args.camera}_from_{args.sensor}; ± is one standard deviation.")
    report.table(*_pose_table(result.camera_from_lidar, result.covariance))
    if result.fit is not None:
        report.section("Views", "Distance between the lidar's board and the camera's, over the board.")
        apart_mm = [1000 * float(m) for m in result.fit.apart_m]
        report.chart(charts.bars(result.used, apart_mm, unit="mm"), "RMS distance of the two planes, without noise")
        noise = f"Corners: {result.fit.sigma_px:.2f} px; the lidar's ranges: {1000 * result.fit.sigma_range_m:.1f} mm."
        report.text(f"Noise estimated from the views (1 σ). {noise}")
    dropped = [*result.rejected.items(), *skipped.items()]
    if dropped:
        report.table(["view not used", "why"], dropped)
    report.section(
        "Overlays",
        "The lidar's points in the picture, red near and blue far. They must end at the board's edges.",
    )
    shown = [v for v in views if v.name in retained][:OVERLAYS]
    for view in shown:
        moment = retained[view.name]
        drawn = draw_board(
            moment.image, moment.points_m, rig.camera(args.camera), result.camera_from_lidar, view.corners_px
        )
        report.picture(drawn, view.name)
    report.provenance(files=[args.rig, *([args.source] if args.source.is_file() else sorted(args.source.rglob("*.*")))])
    return report
