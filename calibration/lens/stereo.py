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
from calibration.lens.estimate import MIN_VIEWS, Estimate, estimate_lens, holdout_rms, view_limit_px
from calibration.lens.lens_verdict import BAD_RMS, GOOD_RMS, lens_verdict, level_of
from calibration.lens.observation import Observation
from calibration.lens.views import CameraViews
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.rig.transforms import rotation_to_vector

GOOD_PAIRS = 8
BASELINE_SIGMA = 0.01  # of the baseline: the relative error of range is at least that of the baseline


Pair = tuple[Observation, Observation]


@dataclass(frozen=True)
class StereoEstimate:
    """The result of estimate_stereo().

    Attributes:
        first: The left camera alone.
        second: The right camera alone.
        solution: Both cameras refined together.
        names: Names of the left pictures of the pairs used.
        views: The pairs used.
        rejected: Picture, or "left, right" of a pair → reason.
        holdout_px: RMS over held-out pairs.
        start_holdout_px: RMS of the pair in the rig over these pairs, if there was one.
    """

    first: Estimate
    second: Estimate
    solution: Solution
    names: tuple[str, ...]
    views: tuple[Pair, ...]
    rejected: dict[str, str]
    holdout_px: float
    start_holdout_px: float | None = None

    @property
    def second_from_first(self) -> np.ndarray:
        return self.solution.camera_from_first[1]


def pairs(left: CameraViews, right: CameraViews) -> list[tuple[str, str]]:
    """Names of the pictures that belong together. ConfigError if it cannot be decided."""
    numbers = [{_number(n): n for n in side.views} for side in (left, right)]
    if all(None not in n and len(n) == len(s.views) for n, s in zip(numbers, (left, right), strict=True)):
        return [(numbers[0][k], numbers[1][k]) for k in numbers[0] if k in numbers[1]]
    everything = [[*side.views, *side.skipped] for side in (left, right)]
    if len(everything[0]) != len(everything[1]):
        raise ConfigError(
            f"{len(everything[0])} pictures on the left, {len(everything[1])} on the right, and no numbers in their "
            "names that say which belong together. Name them left01 … and right01 …"
        )
    return [(a, b) for a, b in zip(*map(sorted, everything), strict=True) if a in left.views and b in right.views]


def _number(name: str) -> int | None:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def estimate_stereo(board: Board, left: CameraViews, right: CameraViews, *, model: str = "auto") -> StereoEstimate:
    """Each camera alone, then both together. ValueError with fewer than MIN_VIEWS pairs that both accept alone."""
    first, second = (estimate_lens(side.observations(), side.size, model=model) for side in (left, right))
    alone = [{v.name: v.observation for v in e.views} for e in (first, second)]
    rejected = {**first.rejected, **second.rejected}
    names = [(a, b) for a, b in pairs(left, right) if a in alone[0] and b in alone[1]]
    if len(names) < MIN_VIEWS:
        raise ValueError(f"the board is in both pictures of {len(names)} pairs, and at least {MIN_VIEWS} are needed")
    views = [(alone[0][a], alone[1][b]) for a, b in names]
    lenses, models = (first.lens, second.lens), (first.model, second.model)
    by_view = [_second_from_first(board, lenses, view) for view in views]
    views = [view for view, _ in by_view]
    start = _medoid([pose for _, pose in by_view])
    solution = solve(lenses, views, models, camera_from_first=[start])
    for _ in range(5):
        rms_px = solution.view_rms_px()
        limit_px = view_limit_px(rms_px)
        bad = rms_px > limit_px
        if not bad.any() or (~bad).sum() < MIN_VIEWS:
            break
        rejected |= {
            f"{a}, {b}": f"the pictures disagree by {own:.2f} px (limit {limit_px:.2f} px). Taken at different moments?"
            for (a, b), own, out in zip(names, rms_px, bad, strict=True)
            if out
        }
        names = [n for n, out in zip(names, bad, strict=True) if not out]
        views = [v for v, out in zip(views, bad, strict=True) if not out]
        solution = solve(solution.lenses, views, models, camera_from_first=[start])
    holdout_px = holdout_rms(
        views,
        fit=lambda others: solve(solution.lenses, others, models, camera_from_first=solution.camera_from_first[1:]),
        residuals=lambda fitted, held_out: _residuals_with(fitted.lenses, fitted.camera_from_first[1], held_out),
    )
    return StereoEstimate(first, second, solution, tuple(a for a, _ in names), tuple(views), rejected, holdout_px)


def _second_from_first(board: Board, lenses: Sequence[Intrinsics], view: Pair) -> tuple[Pair, np.ndarray]:
    """(the view, second_from_first from this view alone).

    The corners of a board that looks the same rotated by 180° are renumbered in the second picture, if that gives the
    smaller rotation between the cameras.
    """

    def board_pose(lens: Intrinsics, observation: Observation) -> np.ndarray:
        return solve([lens], [[observation]], [lens.model], fixed=True).camera_from_board[0]

    first_from_board, second_from_board = (board_pose(lens, o) for lens, o in zip(lenses, view, strict=True))
    pose = second_from_board @ np.linalg.inv(first_from_board)
    if board.turns_alike:
        rotated = Observation(view[1].points_m[::-1], view[1].pixels)
        other = board_pose(lenses[1], rotated) @ np.linalg.inv(first_from_board)
        if _angle(other) < _angle(pose):
            return (view[0], rotated), other
    return view, pose


def _angle(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(rotation_to_vector(matrix[:3, :3])))


def _medoid(poses: Sequence[np.ndarray]) -> np.ndarray:
    """The pose that is nearest to all others: unlike a mean, one bad pair does not move it."""

    def off(a: np.ndarray, b: np.ndarray) -> float:
        scale = max(float(np.linalg.norm(a[:3, 3])), 1e-6)
        return _angle(a @ np.linalg.inv(b)) + float(np.linalg.norm(a[:3, 3] - b[:3, 3])) / scale

    return min(poses, key=lambda a: float(np.median([off(a, b) for b in poses])))


def _residuals_with(
    lenses: Sequence[Intrinsics], second_from_first: np.ndarray, views: Sequence[Pair]
) -> list[np.ndarray]:
    models = [lens.model for lens in lenses]
    solution = solve(lenses, views, models, camera_from_first=[second_from_first], fixed=True)
    return [r for row in solution.residuals for r in row if r is not None]


def start_holdout_px_of(rig: Rig, names: Sequence[str], estimate: StereoEstimate) -> float | None:
    """RMS of the pair in the rig over the estimate's views, all held out for it; None if the rig has no such pair."""
    if not all(n in rig.intrinsics for n in names) or not any({p.target, p.source} == set(names) for p in rig.poses):
        return None
    lenses = [rig.intrinsics[n] for n in names]
    if any(a.size != b.size for a, b in zip(lenses, estimate.solution.lenses, strict=True)):
        return None
    return rms(_residuals_with(lenses, rig.transform(names[1], names[0]), estimate.views))


def is_worse_than_rig(estimate: StereoEstimate) -> bool:
    return estimate.start_holdout_px is not None and not estimate.holdout_px < estimate.start_holdout_px


def stereo_verdict(estimate: StereoEstimate) -> Verdict:
    solution, width_px = estimate.solution, estimate.solution.lenses[0].width_px
    width_factor = float(np.sqrt(max(width_px / 640, 1)))
    checks = [
        replace(check, finding=f"{side} camera: {check.finding}")
        for side, alone in (("left", estimate.first), ("right", estimate.second))
        for check in lens_verdict(alone).checks
        if check.level is not Level.PASS
    ]
    count = len(estimate.names)
    few = count < GOOD_PAIRS
    step = f"take {GOOD_PAIRS} or more" if few else ""
    checks.append(Check(Level.WARN if few else Level.PASS, f"{count} pairs used", step))
    level = level_of(solution.rms_px, GOOD_RMS * width_factor, BAD_RMS * width_factor)
    step = "check that both cameras take their pictures at the same moment, and hold the board still"
    finding = f"both cameras and the corners agree to {solution.rms_px:.2f} px RMS"
    checks.append(Check(level, finding, "" if level is Level.PASS else step))
    baseline_m = float(np.linalg.norm(estimate.second_from_first[:3, 3]))
    direction = estimate.second_from_first[:3, 3] / max(baseline_m, 1e-9)
    sigma_m = float(np.sqrt(direction @ solution.pose_covariance[0][3:, 3:] @ direction))
    loose = sigma_m > BASELINE_SIGMA * baseline_m
    finding = f"the cameras are {1000 * baseline_m:.1f} ± {1000 * sigma_m:.1f} mm apart"
    checks.append(
        Check(Level.WARN if loose else Level.PASS, finding, "take more pairs, near and tilted" if loose else "")
    )
    if is_worse_than_rig(estimate):
        checks.append(
            Check(
                Level.WARN,
                f"the estimate predicts held-out pairs no better ({estimate.holdout_px:.2f} px) than the pair "
                f"in the rig does ({estimate.start_holdout_px:.2f} px), which therefore stays",
                "take more and sharper pairs to improve on it",
            )
        )
    return judge(checks, then="use the rig, and keep the report")
