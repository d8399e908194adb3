"""calibrate check: whether a rig is still right, compared with new pictures and clouds, with overlays to look at.

With a board in view it measures the distance between the lidar's board and the camera's. Without one it compares depth
edges with the picture's (calibration/lidar_camera/drift.py), which needs some frames with objects in view and can
result in "unknown", a WARN.

Example:
    python run_pipeline.py calibrate check rig.yaml capture --overlays overlays
    python run_pipeline.py calibrate check rig.yaml capture --board 7x5 --square-mm 100 --board-size-mm 900x700
    python run_pipeline.py calibrate check rig.yaml drive.mcap --report check.html
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from calibration.board.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.lidar_camera.board_fit import BoardView, examine, solve
from calibration.lidar_camera.board_views import find_views, flat_board
from calibration.lidar_camera.drift import Drift
from calibration.moments import Moment, moments
from calibration.report.overlay import draw_points
from calibration.report.page import Report
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import load_rig

OVERLAYS = 6
GOOD_M, BAD_M = 0.02, 0.05  # between the lidar's board and the camera's
GOOD_PX, BAD_PX = 0.7, 1.5  # RMS of corners: above, the lens is not the one in the rig
RANGE_NOISE_M = 0.02
AGAIN = f"calibrate it again: {COMMAND} calibrate extrinsics"
MAX_MOMENTS = 60


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rig", type=Path, metavar="RIG.yaml", help="the rig to check: intrinsics and the pose of the sensor"
    )
    parser.add_argument("source", type=Path, help="folder of pictures and clouds, or recording.mcap")
    parser.add_argument(
        "--camera", default="camera", help="name of the camera in the rig and in a recording (default: camera)"
    )
    parser.add_argument("--sensor", default="lidar", help="name of the lidar or depth camera (default: lidar)")
    parser.add_argument("--board", metavar="9x6", help=f"the board in view, if there is one: {EXPECTED}")
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument("--board-size-mm", metavar="1000x700", help="size of the whole board, along its columns first")
    parser.add_argument(
        "--overlays", type=Path, metavar="FOLDER", help="write pictures with the cloud drawn in, red near and blue far"
    )
    parser.add_argument(
        "--report", type=Path, metavar="REPORT.html", help="HTML page with the verdict and the overlays"
    )


def run(args: argparse.Namespace) -> Verdict:
    rig = load_rig(args.rig)
    pose = rig.transform(args.camera, args.sensor)
    lens = rig.camera(args.camera)
    drift, drawn = Drift(lens, pose), dict[str, np.ndarray]()
    usable = _usable_moments(args, rig, drift, drawn)
    if args.board:
        board = flat_board(Board.parse(args.board, square_mm=args.square_mm), args.board_size_mm)
        views, skipped = find_views(usable, board, lens, pose)
        for name, why in skipped.items():
            print(f"  skipped {name}: {why}")
        checks = by_board(views, rig, args.camera, args.sensor, board.outline_m)
    else:
        for _ in usable:
            pass
        checks = [by_edges(drift)]
    verdict = judge(checks)
    _show(args, verdict, drawn)
    print(verdict)
    return verdict


def _usable_moments(args: argparse.Namespace, rig: Rig, drift: Drift, drawn: dict[str, np.ndarray]) -> Iterator[Moment]:
    """The moments; each is also added to the drift detector if there is no board, and some are drawn."""
    lens, pose = rig.camera(args.camera), rig.transform(args.camera, args.sensor)
    for number, moment in enumerate(moments(args.source, rig, camera=args.camera, sensor=args.sensor)):
        if number == MAX_MOMENTS:
            print(f"  used the first {MAX_MOMENTS} moments, which are enough")
            return
        if moment.image.shape[1::-1] != lens.size:
            size = "×".join(map(str, moment.image.shape[1::-1]))
            raise ConfigError(
                f"{moment.name}: a picture of {size}, but the lens of '{args.camera}' in {args.rig} is for "
                f"{'×'.join(map(str, lens.size))}. Record in the mode the lens was calibrated in"
            )
        if not args.board:
            drift.add(moment.image, moment.points_m)
        if len(drawn) < OVERLAYS and (args.overlays or args.report):
            drawn[moment.name] = draw_points(moment.image, moment.points_m, lens, pose)
        yield moment


def by_board(
    views: list[BoardView], rig: Rig, camera: str, sensor: str, outline_m: tuple[float, float, float, float] | None
) -> list[Check]:
    """Distance between the lidar's board and the camera's, with the rig's intrinsics and pose."""
    if not views:
        return [
            Check(
                Level.FAIL,
                "no moment has the board in both the picture and the cloud",
                "hold it in view of both sensors, 1.5 to 4 m away",
            )
        ]
    lens, pose = rig.camera(camera), rig.transform(camera, sensor)
    noise = solve(views, lens, pose, outline_m=outline_m)
    judged = examine(
        views, lens, replace(noise, camera_from_lidar=pose, sigma_range_m=RANGE_NOISE_M), outline_m=outline_m
    )
    apart_m, px = float(np.median(judged.apart_m)), float(np.median(judged.reprojection_px))
    finding = f"in {len(views)} views the {sensor}'s board lies {1000 * apart_m:.0f} mm from the {camera}'s (median)"
    level = Level.PASS if apart_m < GOOD_M else Level.WARN if apart_m < BAD_M else Level.FAIL
    checks = [Check(level, finding, "" if level is Level.PASS else AGAIN)]
    if px > GOOD_PX:
        lens_level = Level.WARN if px < BAD_PX else Level.FAIL
        again = f"calibrate the camera again: {COMMAND} calibrate camera"
        checks.append(Check(lens_level, f"corners lie {px:.1f} px from where the lens in the rig projects them", again))
    return checks


def by_edges(drift: Drift) -> Check:
    answer = drift.answer()
    if answer.state == "aligned":
        return Check(Level.PASS, answer.reason)
    if answer.state == "drifted":
        return Check(Level.FAIL, answer.reason.partition(". Calibrate")[0], AGAIN)
    more = "record more frames, with posts, trees or cars in view; or use a board (--board)"
    return Check(Level.WARN, f"whether the lidar has moved is unknown: {answer.reason}", more)


def _show(args: argparse.Namespace, verdict: Verdict, drawn: dict[str, np.ndarray]) -> None:
    if args.overlays:
        try:
            args.overlays.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--overlays {args.overlays}: cannot be created: {error.strerror}. Use a folder you can write to"
            ) from error
        for name, image in drawn.items():
            cv2.imwrite(str(args.overlays / f"{name.replace('/', '-')}.jpg"), image)
        print(f"  overlays: {args.overlays}, {len(drawn)} pictures: depth edges must run along edges of the picture")
    if args.report:
        report = Report(f"Check of {args.rig.name}", verdict)
        report.section(
            "Overlays", "The cloud in the picture, red near and blue far. Its edges must run along those of objects."
        )
        for name, image in drawn.items():
            report.picture(image, name)
        report.provenance(files=[args.rig])
        report.write(args.report)
        print(f"  report: {args.report}")
