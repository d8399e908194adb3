"""Two cameras that are fixed to each other: both lenses and the pose between them, estimated from pairs of pictures.

Pictures belong together by the last number in their names (left03.jpg, right03.jpg), or else by their order.

Example:
    estimate = estimate_stereo(board, left, right)         # left, right: CameraViews of detect_views()
    estimate.second_from_first, estimate.holdout_px, stereo_verdict(estimate)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.board.board import Board
from calibration.lens.bundle import Solution, rms, solve
from calibration.lens.estimate import FOLDS, MIN_VIEWS, VIEW_LIMIT, Estimate, estimate_lens
from calibration.lens.lens_verdict import BAD_RMS, GOOD_RMS, judged
from calibration.lens.observation import Observation
from calibration.lens.views import Seen
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.rig.transforms import rotation_to_vector

GOOD_PAIRS = 8
BASELINE_SIGMA = 0.01  # of the baseline: range is known no better than the baseline is


@dataclass(frozen=True)
class StereoEstimate:
    """first, second: each camera alone. solution: both at once. names: of the pairs. holdout_px: as for one camera, over pairs
    whose cameras and places were fitted to other pairs.
    """

    first: Estimate
    second: Estimate
    solution: Solution
    names: tuple[str, ...]
    views: tuple[tuple[Observation, Observation], ...]
    rejected: dict[str, str]
    holdout_px: float
    start_holdout_px: float | None = None

    @property
    def second_from_first(self) -> np.ndarray:
        return self.solution.camera_from_first[1]


def pairs(left: Seen, right: Seen) -> list[tuple[str, str]]:
    """Names that belong together. ConfigError where nobody can tell."""
    numbers = [{_number(n): n for n in seen.views} for seen in (left, right)]
    if all(None not in n and len(n) == len(s.views) for n, s in zip(numbers, (left, right), strict=True)):
        return [(numbers[0][k], numbers[1][k]) for k in numbers[0] if k in numbers[1]]
    everything = [[*seen.views, *seen.skipped] for seen in (left, right)]
    if len(everything[0]) != len(everything[1]):
        raise ConfigError(
            f"{len(everything[0])} pictures on the left, {len(everything[1])} on the right, and no numbers in their names that say "
            "which belong together. Name them left01 … and right01 …"
        )
    return [(a, b) for a, b in zip(*map(sorted, everything), strict=True) if a in left.views and b in right.views]


def _number(name: str) -> int | None:
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def estimate_stereo(board: Board, left: Seen, right: Seen, *, model: str = "auto") -> StereoEstimate:
    """Raises ValueError with fewer than MIN_VIEWS pairs, of which both cameras alone approve."""
    first, second = (estimate_lens(seen.observations(), seen.size, model=model) for seen in (left, right))
    alone = [{v.name: v.observation for v in e.views} for e in (first, second)]
    rejected = {**first.rejected, **second.rejected}
    names = [(a, b) for a, b in pairs(left, right) if a in alone[0] and b in alone[1]]
    if len(names) < MIN_VIEWS:
        raise ValueError(f"the board is in both pictures of {len(names)} pairs, and {MIN_VIEWS} are the fewest")
    views = [(alone[0][a], alone[1][b]) for a, b in names]
    lenses, models = (first.lens, second.lens), (first.model, second.model)
    between = [_between(board, lenses, view) for view in views]
    views = [view for view, _ in between]
    places = [place for _, place in between]
    start = _middle(places)
    solution = solve(lenses, views, models, camera_from_first=[start])
    for _ in range(5):
        each = solution.view_rms_px()
        limit = VIEW_LIMIT * float(np.percentile(each, 40))
        bad = each > limit
        if not bad.any() or (~bad).sum() < MIN_VIEWS:
            break
        for (a, b), own, out in zip(list(names), each, bad, strict=True):
            if out:
                rejected[f"{a}, {b}"] = (
                    f"the two do not fit together by {own:.2f} px (limit {limit:.2f} px): not taken at the same moment?"
                )
        names = [n for n, out in zip(names, bad, strict=True) if not out]
        views = [v for v, out in zip(views, bad, strict=True) if not out]
        solution = solve(solution.lenses, views, models, camera_from_first=[start])
    held = _holdout(solution, views, models)
    return StereoEstimate(first, second, solution, tuple(a for a, _ in names), tuple(views), rejected, held)


def _between(
    board: Board, lenses: Sequence[Intrinsics], view: tuple[Observation, Observation]
) -> tuple[tuple[Observation, Observation], np.ndarray]:
    """(the view, second_from_first by it alone). A board that looks the same turned by 180° is numbered as the less turned."""
    boards = [
        solve([lens], [[observation]], [lens.model], fixed=True).camera_from_board[0]
        for lens, observation in zip(lenses, view, strict=True)
    ]
    place = boards[1] @ np.linalg.inv(boards[0])
    if board.turns_alike:
        turned = Observation(view[1].points_m[::-1], view[1].pixels)
        other = solve([lenses[1]], [[turned]], [lenses[1].model], fixed=True).camera_from_board[0] @ np.linalg.inv(
            boards[0]
        )
        if _angle(other) < _angle(place):
            return (view[0], turned), other
    return view, place


def _angle(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(rotation_to_vector(matrix[:3, :3])))


def _middle(places: Sequence[np.ndarray]) -> np.ndarray:
    """The place that is nearest to all others: one bad pair does not move it."""

    def off(a: np.ndarray, b: np.ndarray) -> float:
        scale = max(float(np.linalg.norm(a[:3, 3])), 1e-6)
        return _angle(a @ np.linalg.inv(b)) + float(np.linalg.norm(a[:3, 3] - b[:3, 3])) / scale

    return min(places, key=lambda a: float(np.median([off(a, b) for b in places])))


def _holdout(solution: Solution, views: Sequence[tuple[Observation, Observation]], models: Sequence[str]) -> float:
    folds = min(FOLDS, len(views))
    if len(views) < MIN_VIEWS + 1:
        return float("nan")
    residuals = []
    for fold in range(folds):
        others = [v for i, v in enumerate(views) if i % folds != fold]
        fitted = solve(solution.lenses, others, models, camera_from_first=solution.camera_from_first[1:])
        residuals += _held_out(fitted.lenses, fitted.camera_from_first[1], views[fold::folds])
    return rms(residuals)


def _held_out(
    lenses: Sequence[Intrinsics], place: np.ndarray, views: Sequence[tuple[Observation, Observation]]
) -> list[np.ndarray]:
    solved = solve(lenses, views, [lens.model for lens in lenses], camera_from_first=[place], fixed=True)
    return [r for row in solved.residuals for r in row if r is not None]


def of_start(rig: Rig, names: Sequence[str], estimate: StereoEstimate) -> float | None:
    """Hold-out RMS of the pair that is in the rig already, which has seen none of these views; None where there is none."""
    if not all(n in rig.intrinsics for n in names) or not any({p.target, p.source} == set(names) for p in rig.poses):
        return None
    lenses = [rig.intrinsics[n] for n in names]
    if any(a.size != b.size for a, b in zip(lenses, estimate.solution.lenses, strict=True)):
        return None
    return rms(_held_out(lenses, rig.transform(names[1], names[0]), estimate.views))


def worse(estimate: StereoEstimate) -> bool:
    return estimate.start_holdout_px is not None and not estimate.holdout_px < estimate.start_holdout_px


def stereo_verdict(estimate: StereoEstimate) -> Verdict:
    solution, width_px = estimate.solution, estimate.solution.lenses[0].width_px
    grown = float(np.sqrt(max(width_px / 640, 1)))
    checks = [
        replace(check, found=f"{side} camera: {check.found}")
        for side, alone in (("left", estimate.first), ("right", estimate.second))
        for check in judged(alone).checks
        if check.level is not Level.PASS
    ]
    count = len(estimate.names)
    few = f"take {GOOD_PAIRS} or more"
    checks.append(
        Check(
            Level.PASS if count >= GOOD_PAIRS else Level.WARN, f"{count} pairs used", "" if count >= GOOD_PAIRS else few
        )
    )
    level = (
        Level.PASS
        if solution.rms_px <= GOOD_RMS * grown
        else Level.WARN
        if solution.rms_px <= BAD_RMS * grown
        else Level.FAIL
    )
    step = (
        ""
        if level is Level.PASS
        else "check that both cameras take their pictures at the same moment, and hold the board still"
    )
    checks.append(Check(level, f"both cameras and the corners agree to {solution.rms_px:.2f} px RMS", step))
    baseline_m = float(np.linalg.norm(estimate.second_from_first[:3, 3]))
    direction = estimate.second_from_first[:3, 3] / max(baseline_m, 1e-9)
    sigma_m = float(np.sqrt(direction @ solution.pose_covariance[0][3:, 3:] @ direction))
    loose = sigma_m > BASELINE_SIGMA * baseline_m
    told = f"the cameras are {1000 * baseline_m:.1f} ± {1000 * sigma_m:.1f} mm apart"
    checks.append(Check(Level.WARN if loose else Level.PASS, told, "take more pairs, near and tilted" if loose else ""))
    if worse(estimate):
        checks.append(
            Check(
                Level.WARN,
                f"the refinement predicts pairs it was not fitted to no better ({estimate.holdout_px:.2f} px) than the rig it would "
                f"replace ({estimate.start_holdout_px:.2f} px), which therefore stays",
                "take more and sharper pairs if you want to improve on it",
            )
        )
    return judge(checks, then="use the rig, and keep the report")
