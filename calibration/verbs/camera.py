"""calibrate camera: a lens from pictures of a board, with everything that says how far to trust it.

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
from calibration.lens.lens_verdict import against, judged
from calibration.lens.uncertainty import difference_map
from calibration.lens.views import Seen, look
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
    parser.add_argument("--name", default="camera", help="what the rig calls this camera (default: camera)")
    parser.add_argument("--stream", help="of a recording with several cameras")
    parser.add_argument(
        "--against", type=Path, metavar="RIG.yaml", help="judge the lens in this rig by the pictures; estimates nothing"
    )
    parser.add_argument("--page", type=int, metavar="PORT", help="live: show the guide on a page of this machine too")
    parser.add_argument(
        "--until-px", type=float, default=0.3, help="live: stop when projection is known to this (1 σ, worst place)"
    )


def common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", required=True, help=EXPECTED)
    parser.add_argument("--square-mm", type=float, default=DEFAULT_SQUARE_MM, help="side of one square (default: 25)")
    parser.add_argument(
        "--model",
        default="auto",
        choices=("auto", *LENS_MODELS),
        help="of distortion (default: the simplest that predicts best)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="written unless the verdict is FAIL; other things in it stay"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html")


def run(args: argparse.Namespace) -> Verdict:
    board = Board.parse(args.board, square_mm=args.square_mm)
    if args.source[0] == "live":
        from calibration.verbs.camera_live import capture

        seen = capture(board, args)
    else:
        seen = look(args.source, board, stream=args.stream)
    return conclude(seen, args)


# --- conclusion -------------------------------------------------------------------------------------------------------


def conclude(seen: Seen, args: argparse.Namespace) -> Verdict:
    """Estimate, judge, write, print: the last line is the RMS and the verdict."""
    for name, why in seen.skipped.items():
        print(f"  skipped {name}: {why}")
    if args.against:
        return _conclude_against(seen, args)
    rig = load_rig(args.out) if args.out and args.out.exists() else Rig()
    first = rig.intrinsics.get(args.name)
    if first is not None and first.size != seen.size:
        print(
            f"  {args.out}: its '{args.name}' is {first.width_px}×{first.height_px}, the pictures {seen.size[0]}×{seen.size[1]}: anew"
        )
        first = None
    try:
        estimate = estimate_lens(seen.observations(), seen.size, model=args.model, first=first)
    except ValueError as error:
        verdict = judge(
            [Check(Level.FAIL, str(error), "take 8 or more: tilted, near and far, and in all corners of the picture")]
        )
        if args.report:
            camera_report.failure(seen, verdict).write(args.report)
        print(f"RMS: none. {verdict}")
        return verdict
    verdict = judged(estimate)
    for name, why in estimate.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_lens(estimate)
    if args.report:
        camera_report.report(seen, estimate, verdict).write(args.report)
        print(f"  report: {args.report}")
    if args.out and not verdict.failed:
        made = f"{len(estimate.views)} views of a {seen.board.words}, {estimate.model}, RMS {estimate.rms_px:.3f} px, {verdict.level.name}"
        if not estimate.start_retained:
            save_rig(rig.with_intrinsics(args.name, estimate.lens, made), args.out)
        print(f"  rig: {args.out}")
    elif args.out:
        print(f"  {args.out} was not written")
    print(f"RMS {estimate.rms_px:.3f} px, hold-out {_px(estimate.holdout_px)}. {verdict}")
    return verdict


def _conclude_against(seen: Seen, args: argparse.Namespace) -> Verdict:
    lens = load_rig(args.against).camera(args.name)
    if lens.size != seen.size:
        raise ConfigError(
            f"{args.against}: intrinsics.{args.name} is of {lens.width_px}×{lens.height_px}, the pictures are {seen.size[0]}×{seen.size[1]}"
        )
    try:
        verdict, estimate = against(lens, seen.observations())
    except ValueError as error:
        raise ConfigError(f"{' '.join(args.source)}: {error}. Take more") from error
    if args.report:
        page = camera_report.report(seen, estimate, verdict)
        page.section("The lens in the rig", "How far it is from the one these views ask for, in px.")
        off = difference_map(estimate.lens, lens)
        page.chart(
            charts.heat(off, unit="px", size=lens.size),
            "Difference of the two lenses, less what a turn of the camera undoes.",
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
