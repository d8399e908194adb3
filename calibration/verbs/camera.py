"""calibrate camera: a lens from pictures of a board, with the figures that say how far to trust it.

Example:
    python run_pipeline.py calibrate camera left --board 9x6 --square-mm 25 --out rig.yaml --report report.html
    python run_pipeline.py calibrate camera clip.mp4 --board charuco:7x5 --out rig.yaml
    python run_pipeline.py calibrate camera left --board 9x6 --against rig.yaml      # is the lens in a rig still right?
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from calibration.board.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.lens.estimate import Estimate, estimate_lens
from calibration.lens.lens_models import LENS_MODELS
from calibration.lens.lens_verdict import check_lens, lens_verdict
from calibration.lens.uncertainty import difference_map
from calibration.lens.views import CameraViews, detect_views
from calibration.report import camera_report, charts
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import load_rig, save_rig


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="+", help="folder, pictures ('left*.jpg'), media file, recording.mcap, or: live [DEVICE]"
    )
    common_arguments(parser)
    parser.add_argument("--name", default="camera", help="name of this camera in the rig (default: camera)")
    parser.add_argument("--stream", help="stream of a recording with several cameras")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RIG.yaml",
        help="check the lens in this rig with the pictures, estimate nothing",
    )
    parser.add_argument(
        "--page", type=int, metavar="PORT", help="live: also show the guide on a page at http://127.0.0.1:PORT"
    )
    parser.add_argument(
        "--until-px",
        type=float,
        default=0.3,
        help="live: stop when projection is known to this (1 σ, worst place; default: 0.3)",
    )


def common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", required=True, help=EXPECTED)
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument(
        "--model",
        default="auto",
        choices=("auto", *LENS_MODELS),
        help="distortion model (default: the simplest that predicts held-out views best)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="written unless the verdict is FAIL; the rest of the file stays"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html", help="HTML page with all figures and pictures")


def run(args: argparse.Namespace) -> Verdict:
    board = Board.parse(args.board, square_mm=args.square_mm)
    if args.source[0] == "live":
        from calibration.verbs.camera_live import capture

        detected = capture(board, args)
    else:
        detected = detect_views(args.source, board, stream=args.stream)
    return conclude(detected, args)


# --- the result -----------------------------------------------------------------------------------------------------


def conclude(detected: CameraViews, args: argparse.Namespace) -> Verdict:
    """Estimates, judges, writes and prints: the last line is the RMS and the verdict."""
    for name, why in detected.skipped.items():
        print(f"  skipped {name}: {why}")
    if args.against:
        return _conclude_against(detected, args)
    rig = load_rig(args.out) if args.out and args.out.exists() else Rig()
    first = rig.intrinsics.get(args.name)
    if first is not None and first.size != detected.size:
        sizes = f"for {'×'.join(map(str, first.size))}, the pictures are {'×'.join(map(str, detected.size))}"
        print(f"  {args.out}: the lens of '{args.name}' is {sizes}: not used as a start")
        first = None
    try:
        estimate = estimate_lens(detected.observations(), detected.size, model=args.model, first=first)
    except ValueError as error:
        verdict = judge(
            [Check(Level.FAIL, str(error), "take 8 or more: tilted, near and far, and in all corners of the picture")]
        )
        if args.report:
            camera_report.failure(detected, verdict).write(args.report)
        print(f"RMS: none. {verdict}")
        return verdict
    verdict = lens_verdict(estimate)
    for name, why in estimate.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_lens(estimate)
    if args.report:
        camera_report.report(detected, estimate, verdict).write(args.report)
        print(f"  report: {args.report}")
    if args.out and not verdict.failed:
        fit = f"{estimate.model}, RMS {estimate.rms_px:.3f} px, {verdict.level.name}"
        provenance = f"{len(estimate.views)} views of a {detected.board.description}, {fit}"
        if not estimate.start_retained:
            save_rig(rig.with_intrinsics(args.name, estimate.lens, provenance), args.out)
        print(f"  rig: {args.out}")
    elif args.out:
        print(f"  {args.out} was not written")
    print(f"RMS {estimate.rms_px:.3f} px, hold-out {_px(estimate.holdout_px)}. {verdict}")
    return verdict


def _conclude_against(detected: CameraViews, args: argparse.Namespace) -> Verdict:
    lens = load_rig(args.against).camera(args.name)
    if lens.size != detected.size:
        raise ConfigError(
            f"{args.against}: intrinsics.{args.name}: for {'×'.join(map(str, lens.size))}, but the pictures are "
            f"{'×'.join(map(str, detected.size))}. Take pictures in the mode the lens was calibrated in"
        )
    try:
        verdict, estimate = check_lens(lens, detected.observations())
    except ValueError as error:
        raise ConfigError(f"{' '.join(args.source)}: {error}. Take more pictures") from error
    if args.report:
        page = camera_report.report(detected, estimate, verdict)
        page.section("The lens in the rig", "Its distance from the lens estimated from these views, in px.")
        off = difference_map(estimate.lens, lens)
        page.chart(
            charts.heat(off, unit="px", size=lens.size),
            "Difference of the two lenses, after the best rotation of the camera.",
        )
        page.write(args.report)
    print(f"RMS {estimate.rms_px:.3f} px. {verdict}")
    return verdict


def _px(value: float) -> str:
    return f"{value:.3f} px" if np.isfinite(value) else "unknown"


def _print_lens(estimate: Estimate) -> None:
    sigma = estimate.lens.sigma
    tried = ", ".join(f"{name} {px:.3f}" for name, px in estimate.tried.items())
    print(f"  model {estimate.model}; hold-out RMS of each tried, px: {tried}")
    for i, name in enumerate(estimate.lens.names):
        value = estimate.lens.parameters[i]
        if value or (sigma is not None and sigma[i]):
            print(f"  {name:<6} {value:12.5f}" + (f" ± {sigma[i]:.5f}" if sigma is not None else ""))
