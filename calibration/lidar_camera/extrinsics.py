"""Estimates the pose of a lidar or depth camera relative to a camera, from views of one board, and judges it.

`views` come from calibration/lidar_camera/board_views.py. Checked in this order: views whose picture and cloud do not
show the same board; the intrinsics; directions that the views do not determine; a result that is worse than its start
on held-out views. The joint least squares is calibration/lidar_camera/board_fit.py.

Example:
    result = calibrate(views, intrinsics, outline_m=outline_m, start=rig.transform("camera", "lidar"))
    result.verdict, result.camera_from_lidar, result.covariance
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.lidar_camera.board_fit import BoardView, Fit, board_poses, examine, solve
from calibration.lidar_camera.chi_square import CHANCE_1_IN_10000, usual_misfit
from calibration.pose import Floats, direction_text, fit_directions
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, cross, rigid, rotation_to_vector

MIN_VIEWS = 4
GOOD_VIEWS = 8
# The start only has to separate views of one pose from wrong ones, whose boards are an arm's length away.
START_ANGLE_DEG, START_AWAY_M = 10.0, 0.25
START_TRIES, GOOD_START = 300, 0.75  # all views within a quarter of those limits: stop searching
MAX_REJECTED = 0.4  # of the views: beyond it one cannot decide which part is right
# The lidar measures the error in distance that a wrong focal length causes: 0.3 % is 9 mm at 3 m.
FOCAL_WRONG, FOCAL_SIGMAS, FOCAL_KNOWN = 0.003, 4.0, 0.003
OPEN_M, LOOSE_M = 0.05, 0.015  # standard deviation of a direction that is not observable, or poorly observable
OPEN_DEG, LOOSE_DEG = 1.0, 0.3
BAD_REPROJECTION_PX = 1.0
FOLDS = 4


@dataclass(frozen=True, eq=False)
class Extrinsics:
    camera_from_lidar: Floats  # (4, 4) metres
    covariance: Floats  # (6, 6) as in rig.Pose: rotation vector (rad) and position (m), camera axes
    verdict: Verdict
    used: tuple[str, ...]
    rejected: dict[str, str]  # view → reason
    held_out_m: float  # RMS distance between the lidar's and the camera's board, in held-out views
    fit: Fit | None = None
    refined: bool = True  # False: the start is returned

    @property
    def sigma_deg(self) -> Floats:
        return np.degrees(np.sqrt(np.diag(self.covariance)[:3]))

    @property
    def sigma_m(self) -> Floats:
        return np.sqrt(np.diag(self.covariance)[3:])


def calibrate(
    views: Sequence[BoardView],
    intrinsics: Intrinsics,
    *,
    outline_m: Sequence[float] | None = None,
    start: Floats | None = None,
) -> Extrinsics:
    """start: the assumed camera_from_lidar; without one it is estimated from the boards.

    Raises ConfigError below MIN_VIEWS views that have a board in both the picture and the cloud.
    """
    if len(views) < MIN_VIEWS:
        raise ConfigError(
            f"{len(views)} views have the board in both the picture and the cloud, {MIN_VIEWS} are needed and "
            f"{GOOD_VIEWS} are good. Hold the board still 1.5 to 4 m away, at a different place and angle in each"
        )
    rejected: dict[str, str] = {}
    agreeing, begin = _agreeing_views(views, intrinsics, start, rejected)
    fit = _solve_without_outliers(agreeing, intrinsics, begin, outline_m, rejected)
    reasons = _about_views(len(views), agreeing, rejected, fit)
    reasons += _about_intrinsics(agreeing, intrinsics, fit, outline_m)
    reasons += _about_directions(fit)
    held_out = _held_out(agreeing, intrinsics, fit, outline_m, start)
    covariance = fit.covariance * _overdispersion(fit)
    names = tuple(v.name for v in agreeing)
    if start is None or held_out.misfit < held_out.start_misfit:
        finding = f"in held-out views the lidar's board lies {1000 * held_out.apart_m:.1f} mm (RMS) from the camera's"
        reasons.append(Check(Level.PASS, finding))
        return Extrinsics(fit.camera_from_lidar, covariance, judge(reasons), names, rejected, held_out.apart_m, fit)
    reasons.append(_about_start(held_out))
    off = pose_error(start, fit.camera_from_lidar)
    covariance = covariance + np.outer(off, off)  # the start's error is at least its distance from the refinement
    return Extrinsics(start, covariance, judge(reasons), names, rejected, held_out.start_apart_m, fit, refined=False)


def pose_error(camera_from_lidar: Floats, truth: Floats) -> Floats:
    """(6,) rotation vector (rad) and position (m) from the estimate to the truth, in the camera's axes, as a
    covariance describes it.
    """
    turn = rotation_to_vector(truth[:3, :3] @ camera_from_lidar[:3, :3].T)
    return np.concatenate([turn, truth[:3, 3] - camera_from_lidar[:3, 3]])


# --- a start, and which views agree ---------------------------------------------------------------------------------


def _agreeing_views(
    views: Sequence[BoardView], intrinsics: Intrinsics, start: Floats | None, rejected: dict[str, str]
) -> tuple[list[BoardView], Floats]:
    """The largest set of views that one pose of the lidar explains roughly, and that pose. Others → `rejected`."""
    boards = board_poses(views, intrinsics)
    camera = [(b[:3, 2], apply(b, v.middle_m)[0]) for b, v in zip(boards, views, strict=True)]
    lidar = [plane_of(v.points_m) for v in views]
    # The start is only a first candidate here, never a reason to reject views: it may be what is wrong.
    draw, n = np.random.default_rng(0), len(views)
    best, best_score = start if start is not None else np.eye(4), -1.0
    for attempt in range(START_TRIES):
        if attempt == 0 and start is None:
            continue
        guess = best if attempt == 0 else pose_from_planes(camera, lidar, draw.choice(n, 3, replace=False))
        off = [apart(guess, c, p) for c, p in zip(camera, lidar, strict=True)]
        score = sum(max(0.0, 1 - a / START_ANGLE_DEG) + max(0.0, 1 - m / START_AWAY_M) for a, m in off if _fits(a, m))
        if score > best_score:
            best, best_score = guess, score
        if best_score > GOOD_START * 2 * n:
            break
    off = [apart(best, c, p) for c, p in zip(camera, lidar, strict=True)]
    inside = [i for i, (a, m) in enumerate(off) if _fits(a, m)]
    if len(inside) < max(MIN_VIEWS, math.ceil((1 - MAX_REJECTED) * n)):
        raise ConfigError(
            f"only {len(inside)} of {n} views agree on the lidar's pose. Does each picture belong to its cloud, and "
            "are the intrinsics and the size of the squares those of this camera and this board?"
        )
    best = pose_from_planes(camera, lidar, inside)
    for i, (angle_deg, away_m) in enumerate(off):
        if not _fits(angle_deg, away_m):
            rejected[views[i].name] = (
                f"picture and cloud do not show the same board: {angle_deg:.0f}° and {100 * away_m:.0f} cm apart. "
                "Did the board move between the two?"
            )
    return [views[i] for i in inside], best


def _fits(angle_deg: float, away_m: float) -> bool:
    return angle_deg < START_ANGLE_DEG and away_m < START_AWAY_M


def apart(
    camera_from_lidar: Floats, camera: tuple[Floats, Floats], lidar: tuple[Floats, Floats]
) -> tuple[float, float]:
    """(degrees, metres) between the board in the picture and in the cloud."""
    normal, centre = camera_from_lidar[:3, :3] @ lidar[0], apply(camera_from_lidar, lidar[1][None])[0]
    cosine = abs(float(normal @ camera[0]))
    return math.degrees(math.acos(min(1.0, cosine))), float(np.linalg.norm(centre - camera[1]))


def plane_of(points_m: Floats) -> tuple[Floats, Floats]:
    """(unit normal away from the sensor, centre) of points on a plane."""
    centre = points_m.mean(0)
    normal = np.linalg.svd(points_m - centre, full_matrices=False)[2][2]
    return (normal if normal @ centre > 0 else -normal), centre


def pose_from_planes(
    camera: Sequence[tuple[Floats, Floats]],
    lidar: Sequence[tuple[Floats, Floats]] | dict[int, tuple[Floats, Floats]],
    which: Iterable[int],
) -> Floats:
    """Normals and the directions between centres give the rotation, then the centres the position. Closed form."""
    c, p = zip(*((camera[i], lidar[i]) for i in which), strict=True)
    cc, pc = np.array([x[1] for x in c]), np.array([x[1] for x in p])
    # A centre's noise is centimetres on differences of about a metre, a normal's a degree: equal weights.
    source = np.vstack([[x[0] for x in p], pc - pc.mean(0)])
    target = np.vstack([[x[0] for x in c], cc - cc.mean(0)])
    r = fit_directions(source, target)
    return rigid(r, cc.mean(0) - r @ pc.mean(0))


def _solve_without_outliers(
    agreeing: list[BoardView],
    intrinsics: Intrinsics,
    begin: Floats,
    outline_m: Sequence[float] | None,
    rejected: dict[str, str],
) -> Fit:
    """Solves; while a view is an outlier, rejects the worst and solves again. Modifies `agreeing` and `rejected`."""
    least = max(MIN_VIEWS, math.ceil((1 - MAX_REJECTED) * (len(agreeing) + len(rejected))))
    fit = solve(agreeing, intrinsics, begin, outline_m=outline_m)
    while len(agreeing) > least:
        usual = usual_misfit(fit.view_misfit)
        usual_px = float(np.median(fit.reprojection_px))
        excess = fit.view_misfit / (CHANCE_1_IN_10000 * usual)
        blurred = fit.reprojection_px / max(3 * usual_px, 0.3)
        worst_view = int(np.argmax(np.maximum(excess, blurred)))
        if max(excess[worst_view], blurred[worst_view]) < 1:
            return fit
        apart_mm = 1000 * examine(agreeing, intrinsics, fit, outline_m=outline_m).apart_m
        view = agreeing.pop(worst_view)
        usual_mm = float(np.median(apart_mm))
        if blurred[worst_view] > excess[worst_view]:
            why = (
                f"its corners only fit the board to {fit.reprojection_px[worst_view]:.2f} px, "
                f"those of the others to {usual_px:.2f} px"
            )
        elif apart_mm[worst_view] > 2 * usual_mm:
            why = (
                f"it contradicts the others: the lidar's board lies {apart_mm[worst_view]:.0f} mm from the camera's, "
                f"in the others {usual_mm:.0f} mm. Did the board move?"
            )
        else:
            why = (
                "it contradicts the others: the board's outline lies elsewhere in the cloud. "
                "Was a hand or a stand at its edge?"
            )
        rejected[view.name] = why
        fit = solve(agreeing, intrinsics, fit.camera_from_lidar, outline_m=outline_m)
    return fit


# --- checks ---------------------------------------------------------------------------------------------------------


def _about_views(n: int, agreeing: Sequence[BoardView], rejected: dict[str, str], fit: Fit) -> list[Check]:
    reasons = []
    if rejected:
        finding = f"{len(rejected)} of {n} views were rejected"
        reasons.append(Check(Level.WARN, finding, "see the reason of each, and take them again"))
    if len(agreeing) < GOOD_VIEWS:
        reasons.append(Check(Level.WARN, f"{len(agreeing)} views; {GOOD_VIEWS} or more are recommended", "add views"))
    usual_px = float(np.median(fit.reprojection_px))
    if usual_px > BAD_REPROJECTION_PX:
        reasons.append(
            Check(
                Level.FAIL,
                f"the corners only fit the board to {usual_px:.2f} px: the intrinsics are not this camera's, "
                "or the squares not this board's",
                f"calibrate the camera first: {COMMAND} calibrate camera",
            )
        )
    return reasons


def _about_intrinsics(
    agreeing: Sequence[BoardView], intrinsics: Intrinsics, fit: Fit, outline_m: Sequence[float] | None
) -> list[Check]:
    """The lidar's metres check the focal length: estimated as well, its factor must be 1."""
    noise = fit.sigma_px, fit.sigma_range_m
    free = solve(
        agreeing,
        intrinsics,
        fit.camera_from_lidar,
        outline_m=outline_m,
        focal_free=True,
        boards=fit.boards,
        noise=noise,
    )
    off, sigma = free.focal_scale - 1, free.focal_sigma * math.sqrt(_overdispersion(free))
    if abs(off) > FOCAL_WRONG and abs(off) > FOCAL_SIGMAS * sigma:
        return [
            Check(
                Level.FAIL,
                f"by the lidar's distances the focal length is {abs(100 * off):.1f} ± {200 * sigma:.1f} % "
                f"{'larger' if off > 0 else 'smaller'} than in the intrinsics, or the board's squares are that much "
                f"{'larger' if off > 0 else 'smaller'} than stated",
                f"measure a square; if its size is right, calibrate the camera again: {COMMAND} calibrate camera",
            )
        ]
    if sigma > FOCAL_KNOWN:
        return [
            Check(
                Level.WARN,
                f"the views cannot check the focal length (only to {200 * sigma:.1f} %): "
                "all boards are at about the same distance",
                "add views at 1.5 m and at 4 m",
            )
        ]
    return [Check(Level.PASS, f"the lidar agrees with the focal length to {200 * sigma:.2f} %")]


def _about_directions(fit: Fit) -> list[Check]:
    """Directions in which the views do not determine the lidar's pose, and the pose of the board that would."""
    values, vectors = np.linalg.eigh(fit.information)
    sigmas = 1 / np.sqrt(np.maximum(values, 1e-12))
    spread = (vectors * sigmas**2) @ vectors.T  # of the twist
    shift_from_twist = np.hstack([-cross(fit.camera_from_lidar[:3, 3]), np.eye(3)])
    reasons = []
    for kind, covariance, loose, limit in (
        ("position", shift_from_twist @ spread @ shift_from_twist.T, LOOSE_M, OPEN_M),
        ("rotation", spread[:3, :3], math.radians(LOOSE_DEG), math.radians(OPEN_DEG)),
    ):
        variance, axes = np.linalg.eigh(covariance)
        for v, axis in zip(variance[::-1], axes.T[::-1], strict=True):
            sigma = math.sqrt(max(v, 0.0))
            if sigma < loose:
                continue
            how = "is not observable" if sigma > limit else "is poorly known"
            number = f"± {1000 * sigma:.0f} mm" if kind == "position" else f"± {math.degrees(sigma):.1f}°"
            number = "" if sigma > 10 * limit else f" ({number})"
            what = "along" if kind == "position" else "about"
            level = Level.FAIL if sigma > limit else Level.WARN
            finding = f"the lidar's {kind} {what} the camera's {direction_text(axis)} axis {how}{number}"
            reasons.append(Check(level, finding, _add_pose(kind, axis)))
    return reasons


def _add_pose(kind: str, axis: Floats) -> str:
    """The view that determines this direction: a plane fixes the position along its normal and both tilts."""
    x, y, z = np.abs(axis)
    if kind == "rotation":
        if z >= max(x, y):
            return "add views with the board turned left and right, and tipped up and down, by 30° or more"
        return (
            "add views with the board near the left and right, top and bottom edges of the picture, "
            "and rotated differently"
        )
    if x >= max(y, z):
        return "add views with the board turned about its upright axis by 30° or more, to the left and to the right"
    if y >= z:
        return "add views with the board tipped back and forward by 30° or more"
    return "add views with the board facing the camera"


def _overdispersion(fit: Fit) -> float:
    """Factor for the covariance if views differ by more than their noise, else 1: boards bend, lidars have biases.

    The sum of the views' misfits is chi-square distributed with 6 degrees each, less the 6 of the result; only values
    that chance exceeds in fewer than one of 100 cases count.
    """
    degrees = 6 * len(fit.view_misfit) - 6
    ratio = float(fit.view_misfit.sum()) / degrees
    limit = (1 - 2 / (9 * degrees) + 2.326 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson and Hilferty 1931
    return ratio if ratio > limit else 1.0


@dataclass(frozen=True)
class _HeldOut:
    """Errors of the solution and of the start over held-out views."""

    misfit: float
    apart_m: float
    start_misfit: float = math.inf
    start_apart_m: float = math.inf


def _held_out(
    agreeing: Sequence[BoardView],
    intrinsics: Intrinsics,
    fit: Fit,
    outline_m: Sequence[float] | None,
    start: Floats | None,
) -> _HeldOut:
    """Each fold is evaluated with the solution of the others."""
    mine, theirs, noise = [], [], (fit.sigma_px, fit.sigma_range_m)
    folds = min(FOLDS, len(agreeing))
    for fold in range(folds):
        others = [v for i, v in enumerate(agreeing) if i % folds != fold]
        held_out = [v for i, v in enumerate(agreeing) if i % folds == fold]
        boards = [b for i, b in enumerate(fit.boards) if i % folds != fold]
        part = solve(others, intrinsics, fit.camera_from_lidar, outline_m=outline_m, boards=boards, noise=noise)
        mine.append(examine(held_out, intrinsics, part, outline_m=outline_m))
        if start is not None:
            theirs.append(examine(held_out, intrinsics, replace(fit, camera_from_lidar=start), outline_m=outline_m))
    if start is None:
        return _HeldOut(*_pooled(mine))
    return _HeldOut(*_pooled(mine), *_pooled(theirs))


def _pooled(judged: Sequence[Fit]) -> tuple[float, float]:
    apart_m = np.concatenate([fit.apart_m for fit in judged])
    return float(np.concatenate([fit.view_misfit for fit in judged]).sum()), float(np.sqrt(np.mean(apart_m**2)))


def _about_start(held_out: _HeldOut) -> Check:
    distances = f"{1000 * held_out.apart_m:.1f} mm, with the start {1000 * held_out.start_apart_m:.1f} mm"
    if held_out.misfit < 1.5 * held_out.start_misfit:
        return Check(
            Level.PASS,
            f"in held-out views the lidar's board lies {distances} from the camera's: the start is right, and stays",
        )
    return Check(
        Level.WARN,
        f"in held-out views the lidar's board lies {distances} from the camera's: worse than the start, which stays",
        "take more views, at more angles",
    )
