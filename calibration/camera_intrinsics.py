"""calibrate camera: a lens from pictures of a board, with everything that says how far to trust it.

python run_pipeline.py calibrate camera left --board 9x6 --square-mm 25 --out rig.yaml --report report.html
python run_pipeline.py calibrate camera clip.mp4 --board charuco:7x5 --out rig.yaml
python run_pipeline.py calibrate camera left --board 9x6 --against rig.yaml      # is the lens in a rig still right?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import charts
from calibration.board import DEFAULT_SQUARE_MM, EXPECTED, Board
from calibration.bundle import FREE, Sight
from calibration.detect import Corners, Detector, blur
from calibration.estimate import Estimate, NamedSight, against, cells, estimate_lens, judged, tilts_deg
from calibration.pictures import Picture, is_stream, pictures
from calibration.report import Report
from calibration.uncertainty import difference_map, sigma_map
from calibration.verdict import Check, Level, Verdict, judge
from pipeline import rig as rigs
from pipeline.errors import ConfigError

LOOKED_AT = 6  # pictures in which another board is looked for
OVERLAYS = 6  # pictures in the report
BLURRED_PX = 8.0  # an edge this wide moves corners by more than they are known to
KEPT_PICTURES = 40  # in memory, of a stream: their files cannot be read again


@dataclass
class Seen:
    """What was found in all pictures of one camera. skipped: name → why."""

    board: Board
    size: tuple[int, int] = (0, 0)
    views: dict[str, Corners] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    grays: dict[str, np.ndarray] = field(default_factory=dict)
    blurs: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def sights(self) -> list[NamedSight]:
        return [NamedSight(n, Sight(self.board.points_m[c.ids], c.pixels)) for n, c in self.views.items()]


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
        choices=("auto", *FREE),
        help="of distortion (default: the simplest that predicts best)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="written unless the verdict is FAIL; other things in it stay"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html")


def run(args: argparse.Namespace) -> Verdict:
    board = Board.parse(args.board, square_mm=args.square_mm)
    if args.source[0] == "live":
        from calibration.live import capture

        seen = capture(board, args)
    else:
        seen = look(args.source, board, stream=args.stream)
    return conclude(seen, args)


def look(sources: Sequence[str], board: Board, *, stream: str | None = None) -> Seen:
    """Finds the board in every picture. ConfigError where the pictures show another board, or none does."""
    seen, detector = Seen(board), Detector(board)
    first: list[np.ndarray] = []
    taken = _of_streams(sources, board) if any(map(is_stream, sources)) else None
    for picture in pictures(sources, stream=stream):
        problem = _unusable(picture, seen)
        if picture.path is not None:
            seen.files.append(picture.path)
        if picture.gray is None or problem:
            seen.skipped[_unique(picture.name, seen)] = problem
            continue
        if len(first) < LOOKED_AT:
            first.append(picture.gray)
        found = detector.find(picture.gray)
        problem = found if isinstance(found, str) else _blurred(picture.gray, board, found)
        if not problem and taken is not None:
            assert isinstance(found, Corners)
            advice = taken.offer(found, picture.gray)
            problem = "" if advice.taken else advice.reason
        add(seen, picture.name, picture.gray, found, problem)
    if (words := detector.mismatch(_worth_a_look(seen, first))) is not None:
        raise ConfigError(f"--board {board}: {words}")
    if not seen.views:
        reasons = "; ".join(dict.fromkeys(seen.skipped.values()))
        raise ConfigError(
            f"{' '.join(sources)}: the {board.words} is in none of {len(seen.skipped)} pictures: {reasons}. "
            "Check --board, the light, and that the whole board with its white rim is in view"
        )
    return seen


def add(seen: Seen, name: str, gray: np.ndarray, found: Corners | str, problem: str = "") -> None:
    name = _unique(name, seen)
    if isinstance(found, str) or problem:
        seen.skipped[name] = problem or str(found)
        return
    seen.size = (gray.shape[1], gray.shape[0])
    seen.views[name] = found
    seen.blurs[name] = blur(gray, seen.board, found)
    if len(seen.grays) < KEPT_PICTURES:
        seen.grays[name] = gray


def _of_streams(sources: Sequence[str], board: Board) -> Any:
    from calibration.guide import Guide

    return Guide(board, pick_only=True)


def _unique(name: str, seen: Seen) -> str:
    taken, number = {**seen.views, **seen.skipped}, 2
    unique = name
    while unique in taken:
        unique, number = f"{name} ({number})", number + 1
    return unique


def _unusable(picture: Picture, seen: Seen) -> str:
    if picture.gray is None:
        return picture.problem
    size = (picture.gray.shape[1], picture.gray.shape[0])
    if seen.size != (0, 0) and size != seen.size:
        return f"is {size[0]}×{size[1]}, and the pictures before it are {seen.size[0]}×{seen.size[1]}: another camera or mode"
    return ""


def _blurred(gray: np.ndarray, board: Board, found: Corners) -> str:
    width_px = blur(gray, board, found)
    return f"too blurred: its edges are {width_px:.0f} px wide" if width_px > BLURRED_PX else ""


def _worth_a_look(seen: Seen, first: list[np.ndarray]) -> list[np.ndarray]:
    """A board that is found whole in nearly every picture is the one asked for, unless it is a part of a larger one."""
    return first[:2] if len(seen.views) > len(seen.skipped) else first


# --- conclusion -------------------------------------------------------------------------------------------------------


def conclude(seen: Seen, args: argparse.Namespace) -> Verdict:
    """Estimate, judge, write, print: the last line is the RMS and the verdict."""
    for name, why in seen.skipped.items():
        print(f"  skipped {name}: {why}")
    if args.against:
        return _conclude_against(seen, args)
    rig = rigs.load(args.out) if args.out and args.out.exists() else rigs.Rig()
    first = rig.intrinsics.get(args.name)
    if first is not None and first.size != seen.size:
        print(
            f"  {args.out}: its '{args.name}' is {first.width_px}×{first.height_px}, the pictures {seen.size[0]}×{seen.size[1]}: anew"
        )
        first = None
    try:
        estimate = estimate_lens(seen.sights(), seen.size, model=args.model, first=first)
    except ValueError as error:
        verdict = judge(
            [Check(Level.FAIL, str(error), "take 8 or more: tilted, near and far, and in all corners of the picture")]
        )
        if args.report:
            _report_failure(seen, verdict).write(args.report)
        print(f"RMS: none. {verdict}")
        return verdict
    verdict = judged(estimate)
    for name, why in estimate.rejected.items():
        print(f"  rejected {name}: {why}")
    _print_lens(estimate)
    if args.report:
        report(seen, estimate, verdict).write(args.report)
        print(f"  report: {args.report}")
    if args.out and not verdict.failed:
        made = f"{len(estimate.views)} views of a {seen.board.words}, {estimate.model}, RMS {estimate.rms_px:.3f} px, {verdict.level.name}"
        if not estimate.kept_start:
            rigs.save(rig.with_intrinsics(args.name, estimate.lens, made), args.out)
        print(f"  rig: {args.out}")
    elif args.out:
        print(f"  {args.out} was not written")
    print(f"RMS {estimate.rms_px:.3f} px, hold-out {_px(estimate.holdout_px)}. {verdict}")
    return verdict


def _conclude_against(seen: Seen, args: argparse.Namespace) -> Verdict:
    lens = rigs.load(args.against).camera(args.name)
    if lens.size != seen.size:
        raise ConfigError(
            f"{args.against}: intrinsics.{args.name} is of {lens.width_px}×{lens.height_px}, the pictures are {seen.size[0]}×{seen.size[1]}"
        )
    try:
        verdict, estimate = against(lens, seen.sights())
    except ValueError as error:
        raise ConfigError(f"{' '.join(args.source)}: {error}. Take more") from error
    if args.report:
        page = report(seen, estimate, verdict)
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


# --- report -----------------------------------------------------------------------------------------------------------


def report(seen: Seen, estimate: Estimate, verdict: Verdict, title: str = "Camera intrinsics") -> Report:
    lens, page = estimate.lens, Report(title, verdict)
    page.table(
        ("", "px"),
        [
            ("RMS over all corners", f"{estimate.rms_px:.3f}"),
            ("RMS over views the lens was not fitted to", f"{estimate.holdout_px:.3f}"),
            ("noise of one coordinate of one corner", f"{estimate.solution.sigma_px:.3f}"),
            ("worst difference between the lenses of two halves of the views", f"{estimate.halves_px:.2f}"),
        ],
    )
    page.section(
        "Lens",
        f"{seen.size[0]}×{seen.size[1]} pictures, distortion model {estimate.model}: the simplest that predicts as well as any.",
    )
    sigma = lens.sigma
    page.table(
        ("parameter", "value", "σ"),
        [
            (n, f"{v:.6g}", "unknown" if sigma is None else f"± {sigma[i]:.2g}" if sigma[i] else "held at 0")
            for i, (n, v) in enumerate(zip(lens.names, lens.parameters, strict=True))
        ],
    )
    page.table(("distortion model tried", "hold-out RMS, px"), [(n, f"{px:.4f}") for n, px in estimate.tried.items()])
    page.section(
        "How well a direction's pixel is known",
        "What noise in the corners leaves open, all over the picture, in px (1 σ), less what a turn of the camera undoes.",
    )
    if lens.covariance is not None:
        page.chart(charts.heat(sigma_map(lens), unit="px", size=lens.size), "Expected error of projection.")
    marks = np.concatenate([v.sight.pixels for v in estimate.views])
    page.chart(
        charts.heat(cells(estimate.views, lens.size), unit="corners", size=lens.size, marks=marks),
        "Coverage: corners in each part of the picture.",
    )
    page.section(
        "Residuals", "Where the model and the corners disagree. They should lie about the origin without a direction."
    )
    residuals = [r for row in estimate.solution.residuals for r in row if r is not None]
    every = np.concatenate(residuals)
    group = np.concatenate([np.full(len(r), i) for i, r in enumerate(residuals)])
    reach = float(max(np.percentile(np.hypot(*every.T), 99), 1e-3))
    page.chart(
        charts.scatter(every[:, 0], every[:, 1], unit="px", reach=round(reach, 2) or reach, group=group),
        "Every corner, a colour a view.",
    )
    each = estimate.solution.view_rms_px()
    page.chart(charts.bars([v.name for v in estimate.views], list(each), unit="px"), "RMS of each view.")
    page.section("Views")
    tilts = tilts_deg(estimate.solution)
    distances = [
        float(np.linalg.norm((m @ (*seen.board.centre_m, 1))[:3])) for m in estimate.solution.camera_from_board
    ]
    page.table(
        ("view", "corners", "RMS, px", "tilt, °", "distance, m", "edge width, px", "left out"),
        [
            (v.name, len(v.sight.pixels), f"{px:.3f}", f"{t:.0f}", f"{d:.2f}", f"{seen.blurs.get(v.name, float('nan')):.1f}",
             str(estimate.dropped_corners.get(v.name, 0)))
            for v, px, t, d in zip(estimate.views, each, tilts, distances, strict=True)
        ],
    )  # fmt: skip
    _overlays(page, seen, estimate)
    if estimate.rejected or seen.skipped:
        page.section("Not used")
        page.table(("picture", "why"), [*estimate.rejected.items(), *seen.skipped.items()])
    page.provenance(files=seen.files, notes=[("board", f"{seen.board}, squares of {1000 * seen.board.square_m:g} mm")])
    return page


def _overlays(page: Report, seen: Seen, estimate: Estimate) -> None:
    """The worst views first: that is where something is to be seen."""
    page.section(
        "Overlay",
        "Circles: corners that were found. Lines: to where the model puts them, 20 times as long as they are.",
    )
    order = np.argsort(-estimate.solution.view_rms_px())
    shown = [i for i in order if estimate.views[i].name in seen.grays][:OVERLAYS]
    for i in shown:
        view, residual = estimate.views[i], estimate.solution.residuals[i][0]
        assert residual is not None
        page.picture(overlay(seen.grays[view.name], view.sight.pixels, residual), f"{view.name}")
    for name in [n for n in estimate.rejected if n in seen.grays][:OVERLAYS]:
        page.picture(overlay(seen.grays[name], seen.views[name].pixels, None), f"{name}: rejected")


def overlay(gray: np.ndarray, pixels: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    image = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    thick = max(1, image.shape[1] // 640)
    for i, (u, v) in enumerate(pixels):
        centre = (round(u), round(v))
        cv2.circle(
            image, centre, 4 * thick, (60, 200, 60) if residual is not None else (60, 60, 230), thick, cv2.LINE_AA
        )
        if residual is not None:
            end = (round(u - 20 * residual[i, 0]), round(v - 20 * residual[i, 1]))
            cv2.line(image, centre, end, (40, 60, 255), thick, cv2.LINE_AA)
    return image


def _report_failure(seen: Seen, verdict: Verdict) -> Report:
    page = Report("Camera intrinsics", verdict)
    page.section("Pictures")
    rows = [*((n, f"{len(c)} corners") for n, c in seen.views.items()), *seen.skipped.items()]
    page.table(("picture", "what was found"), rows)
    page.provenance(files=seen.files)
    return page
