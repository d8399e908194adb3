"""calibrate stereo: two cameras that are fixed to each other, from pictures taken at the same moments.

Pictures belong together by the number in their names (left03.jpg, right03.jpg), or else by their order.

Example:
    python run_pipeline.py calibrate stereo left right --board 9x6 --square-mm 25 --out rig.yaml --report report.html
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from calibration.board.board import Board
from calibration.lens.stereo import GOOD_PAIRS, estimate_stereo, is_worse_than_rig, start_holdout_px_of, stereo_verdict
from calibration.lens.views import detect_views
from calibration.report import stereo_report
from calibration.verbs.camera import common_arguments
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import load_rig, save_rig


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("left", help="folder or pictures ('data/left*.jpg')")
    parser.add_argument("right", help="the same for the other camera")
    common_arguments(parser)
    parser.add_argument(
        "--names",
        nargs=2,
        default=("left", "right"),
        metavar=("LEFT", "RIGHT"),
        help="names of the cameras in the rig (default: left right)",
    )


def run(args: argparse.Namespace) -> Verdict:
    board = Board.parse(args.board, square_mm=args.square_mm)
    left, right = detect_views([args.left], board), detect_views([args.right], board)
    for side in (left, right):
        for name, why in side.skipped.items():
            print(f"  skipped {name}: {why}")
    rig = load_rig(args.out) if args.out and args.out.exists() else Rig()
    try:
        estimate = estimate_stereo(board, left, right, model=args.model)
    except ValueError as error:
        step = f"take {GOOD_PAIRS} pairs or more, with the whole board in both pictures"
        verdict = judge([Check(Level.FAIL, str(error), step)])
        print(f"RMS: none. {verdict}")
        return verdict
    estimate = replace(estimate, start_holdout_px=start_holdout_px_of(rig, args.names, estimate))
    verdict = stereo_verdict(estimate)
    for name, why in estimate.rejected.items():
        print(f"  rejected {name}: {why}")
    pose = Pose(args.names[1], args.names[0], estimate.second_from_first, estimate.solution.pose_covariance[0])
    print(f"  {stereo_report.pose_text(pose)}")
    if args.report:
        stereo_report.report(left, right, estimate, verdict, pose).write(args.report)
        print(f"  report: {args.report}")
    if args.out and not verdict.failed and not is_worse_than_rig(estimate):
        fit = f"RMS {estimate.solution.rms_px:.3f} px, {verdict.level.name}"
        provenance = f"{len(estimate.names)} pairs of a {board.description}, {fit}"
        for name, lens in zip(args.names, estimate.solution.lenses, strict=True):
            rig = rig.with_intrinsics(name, lens, provenance)
        save_rig(rig.with_pose(pose, provenance), args.out)
        print(f"  rig: {args.out}")
    elif args.out:
        print(f"  {args.out} was not written")
    print(f"RMS {estimate.solution.rms_px:.3f} px, hold-out {estimate.holdout_px:.3f} px. {verdict}")
    return verdict
