"""Where a lidar (or depth camera) stands to a camera: from views of one board, with everything that could be wrong said.

    result = calibrate(views, intrinsics, outline_m=outline_m, start=rig.transform("camera", "lidar"))
    result.verdict, result.camera_from_lidar, result.covariance

`views` come from calibration/lidar_camera/board_views.py. The order of doubt: a view whose picture and cloud do not show the same
board; the intrinsics; directions that the views leave open; a refinement that does worse than its start on views that it
has not seen. The joint least squares itself is calibration/lidar_camera/board_fit.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.lidar_camera.board_fit import BoardView, Fit, board_poses, examine, solve
from calibration.pose import Floats, fit_directions, in_words
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, cross, rigid, rotation_to_vector

MIN_VIEWS = 4
GOOD_VIEWS = 8
# For a start any three views that agree will do: their board is a person's arm away from the others', not these.
START_ANGLE_DEG, START_AWAY_M = 10.0, 0.25
START_TRIES, GOOD_START = 300, 0.75  # all views within a quarter of those limits: no need to look further
# A view is turned down when its own answer is so far off that chance makes one of 10,000 (chi square, 6 degrees of
# freedom), measured against how far views usually are: real boards bend, and lidars have biases.
CHANCE_1_IN_10000 = 27.9
MEDIAN_OF_SIX = 5.35
MAX_REJECTED = 0.4
# What the wrong scale of the picture does to a board's distance is seen by the lidar: 0.3 % is 9 mm at 3 m.
FOCAL_WRONG, FOCAL_SIGMAS, FOCAL_KNOWN = 0.003, 4.0, 0.003
OPEN_M, LOOSE_M = 0.05, 0.015  # standard deviation of a direction that is not observable; of one that is poorly so
OPEN_DEG, LOOSE_DEG = 1.0, 0.3
BAD_REPROJECTION_PX = 1.0
FOLDS = 4


@dataclass(frozen=True, eq=False)
class Extrinsics:
    camera_from_lidar: Floats  # (4, 4) metres
    covariance: Floats  # (6, 6) as rig.Pose has it: rotation vector (rad) and position (m), camera axes
    verdict: Verdict
    used: tuple[str, ...]
    rejected: dict[str, str]  # view → why
    held_out_m: float  # RMS distance between the lidar's and the camera's board, in views the solution had not seen
    fit: Fit | None = None
    refined: bool = True  # False: the start was kept

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
    """start: camera_from_lidar as it is believed to be; without one the boards themselves give it.

    Raises ConfigError below MIN_VIEWS views that have a board in both the picture and the cloud.
    """
    if len(views) < MIN_VIEWS:
        raise ConfigError(
            f"{len(views)} views have the board in both the picture and the cloud, {MIN_VIEWS} are needed and "
            f"{GOOD_VIEWS} are good. Hold the board still 1.5 to 4 m away, at another place and angle in each"
        )
    rejected: dict[str, str] = {}
    kept, begin = _agreeing(views, intrinsics, start, rejected)
    fit = _without_outliers(kept, intrinsics, begin, outline_m, rejected)
    reasons = _about_views(len(views), kept, rejected, fit)
    reasons += _about_intrinsics(kept, intrinsics, fit, outline_m)
    reasons += _about_directions(fit)
    held_out = _held_out(kept, intrinsics, fit, outline_m, start)
    covariance = fit.covariance * _more_than_chance(fit)
    names = tuple(v.name for v in kept)
    if start is None or held_out.misfit < held_out.start_misfit:
        told = f"in unseen views the lidar's board lies {1000 * held_out.apart_m:.1f} mm (RMS) from the camera's"
        reasons.append(Check(Level.PASS, told))
        return Extrinsics(fit.camera_from_lidar, covariance, judge(reasons), names, rejected, held_out.apart_m, fit)
    reasons.append(_about_start(held_out))
    off = pose_error(start, fit.camera_from_lidar)
    covariance = covariance + np.outer(off, off)  # what the start may be wrong by is at least what the refinement says
    return Extrinsics(start, covariance, judge(reasons), names, rejected, held_out.start_apart_m, fit, refined=False)


def pose_error(camera_from_lidar: Floats, truth: Floats) -> Floats:
    """(6,) rotation vector (rad) and position (m) that are missing, in the camera's axes: what a covariance speaks of."""
    turn = rotation_to_vector(truth[:3, :3] @ camera_from_lidar[:3, :3].T)
    return np.concatenate([turn, truth[:3, 3] - camera_from_lidar[:3, 3]])


# --- a start, and whom to believe -------------------------------------------------------------------------------------


def _agreeing(
    views: Sequence[BoardView], intrinsics: Intrinsics, start: Floats | None, rejected: dict[str, str]
) -> tuple[list[BoardView], Floats]:
    """The largest set of views that one pose of the lidar explains roughly, and that pose. Others → `rejected`."""
    boards = board_poses(views, intrinsics)
    camera = [(b[:3, 2], apply(b, v.middle_m)[0]) for b, v in zip(boards, views, strict=True)]
    lidar = [plane_of(v.points_m) for v in views]
    # A start is only a first guess here, never a reason to turn views down: it may be the very thing that is wrong.
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
            f"only {len(inside)} of {n} views agree on where the lidar is. Does each picture belong to its cloud, and are "
            "the intrinsics and the size of the squares those of this camera and this board?"
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
    # A centre's noise is centimetres on differences of a metre or so; a normal's a degree: alike.
    source = np.vstack([[x[0] for x in p], pc - pc.mean(0)])
    target = np.vstack([[x[0] for x in c], cc - cc.mean(0)])
    r = fit_directions(source, target)
    return rigid(r, cc.mean(0) - r @ pc.mean(0))


def _without_outliers(
    kept: list[BoardView],
    intrinsics: Intrinsics,
    begin: Floats,
    outline_m: Sequence[float] | None,
    rejected: dict[str, str],
) -> Fit:
    """Solve; while a view stands out, turn the worst down and solve again. Changes `kept` and `rejected`."""
    least = max(MIN_VIEWS, math.ceil((1 - MAX_REJECTED) * (len(kept) + len(rejected))))
    fit = solve(kept, intrinsics, begin, outline_m=outline_m)
    while len(kept) > least:
        usual = max(1.0, float(np.median(fit.view_misfit)) / MEDIAN_OF_SIX)
        usual_px = float(np.median(fit.reprojection_px))
        excess = fit.view_misfit / (CHANCE_1_IN_10000 * usual)
        blurred = fit.reprojection_px / max(3 * usual_px, 0.3)
        worst_view = int(np.argmax(np.maximum(excess, blurred)))
        if max(excess[worst_view], blurred[worst_view]) < 1:
            return fit
        apart_mm = 1000 * examine(kept, intrinsics, fit, outline_m=outline_m).apart_m
        view = kept.pop(worst_view)
        usual_mm = float(np.median(apart_mm))
        if blurred[worst_view] > excess[worst_view]:
            why = f"its corners fit the board to {fit.reprojection_px[worst_view]:.2f} px only, the others' to {usual_px:.2f} px"
        elif apart_mm[worst_view] > 2 * usual_mm:
            why = f"it contradicts the others: the lidar has the board {apart_mm[worst_view]:.0f} mm beside the camera's, "
            why += f"in the others {usual_mm:.0f} mm. Did the board move?"
        else:
            why = "it contradicts the others: the board's outline lies elsewhere in the cloud. Did a hand or a stand touch its edge?"
        rejected[view.name] = why
        fit = solve(kept, intrinsics, fit.camera_from_lidar, outline_m=outline_m)
    return fit


# --- what is to be said -----------------------------------------------------------------------------------------------


def _about_views(n: int, kept: Sequence[BoardView], rejected: dict[str, str], fit: Fit) -> list[Check]:
    reasons = []
    if rejected:
        told = f"{len(rejected)} of {n} views were turned down"
        reasons.append(Check(Level.WARN, told, "see the reason beside each, and take them again"))
    if len(kept) < GOOD_VIEWS:
        reasons.append(Check(Level.WARN, f"{len(kept)} views; {GOOD_VIEWS} or more make it trustworthy", "add views"))
    usual_px = float(np.median(fit.reprojection_px))
    if usual_px > BAD_REPROJECTION_PX:
        reasons.append(
            Check(
                Level.FAIL,
                f"the corners fit the board to {usual_px:.2f} px only: these are not this camera's intrinsics, or not this board's squares",
                f"calibrate the camera first: {COMMAND} calibrate camera",
            )
        )
    return reasons


def _about_intrinsics(
    kept: Sequence[BoardView], intrinsics: Intrinsics, fit: Fit, outline_m: Sequence[float] | None
) -> list[Check]:
    """The lidar's metres check the camera's scale: set free, it must come out as 1."""
    noise = fit.sigma_px, fit.sigma_range_m
    free = solve(
        kept, intrinsics, fit.camera_from_lidar, outline_m=outline_m, focal_free=True, boards=fit.boards, noise=noise
    )
    off, sigma = free.focal_scale - 1, free.focal_sigma * math.sqrt(_more_than_chance(free))
    if abs(off) > FOCAL_WRONG and abs(off) > FOCAL_SIGMAS * sigma:
        return [
            Check(
                Level.FAIL,
                f"the lidar's distances say that the focal length is {abs(100 * off):.1f} ± {200 * sigma:.1f} % "
                f"{'larger' if off > 0 else 'smaller'} than in the intrinsics, or the board's squares are that much "
                f"{'larger' if off > 0 else 'smaller'} than stated",
                f"measure a square; if it is right, calibrate the camera again: {COMMAND} calibrate camera",
            )
        ]
    if sigma > FOCAL_KNOWN:
        return [
            Check(
                Level.WARN,
                f"the views cannot check the focal length (only to {200 * sigma:.1f} %): the boards are all about as far away",
                "add views at 1.5 m and at 4 m",
            )
        ]
    return [Check(Level.PASS, f"the lidar agrees with the focal length to {200 * sigma:.2f} %")]


def _about_directions(fit: Fit) -> list[Check]:
    """Directions in which the views do not hold the lidar, and the pose of the board that would."""
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
            told = f"the lidar's {kind} {what} the camera's {in_words(axis)} axis {how}{number}"
            reasons.append(Check(level, told, _add_pose(kind, axis)))
    return reasons


def _add_pose(kind: str, axis: Floats) -> str:
    """What to show so that this direction is held: a board's plane holds positions along its normal and turns across it."""
    x, y, z = np.abs(axis)
    if kind == "rotation":
        if z >= max(x, y):
            return "add views with the board turned left and right, and tipped up and down, by 30° or more"
        return "add views with the board near the left and right, top and bottom edges of the picture, and turned differently"
    if x >= max(y, z):
        return "add views with the board turned about its upright axis by 30° or more, to the left and to the right"
    if y >= z:
        return "add views with the board tipped back and forward by 30° or more"
    return "add views with the board facing the camera"


def _more_than_chance(fit: Fit) -> float:
    """By how much views differ from each other beyond their own noise (1: not at all): real boards bend, lidars have biases.

    The sum of the views' misfits is chi-square distributed with 6 degrees each, less the 6 of the answer; only what chance
    makes in fewer than one of 100 counts.
    """
    degrees = 6 * len(fit.view_misfit) - 6
    ratio = float(fit.view_misfit.sum()) / degrees
    limit = (1 - 2 / (9 * degrees) + 2.326 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson and Hilferty 1931
    return ratio if ratio > limit else 1.0


@dataclass(frozen=True)
class _HeldOut:
    """Of the solution and of the start, over views that the solution had not seen."""

    misfit: float
    apart_m: float
    start_misfit: float = math.inf
    start_apart_m: float = math.inf


def _held_out(
    kept: Sequence[BoardView],
    intrinsics: Intrinsics,
    fit: Fit,
    outline_m: Sequence[float] | None,
    start: Floats | None,
) -> _HeldOut:
    """Folds, each judged by a solution made without it."""
    mine, theirs, noise = [], [], (fit.sigma_px, fit.sigma_range_m)
    folds = min(FOLDS, len(kept))
    for fold in range(folds):
        seen = [v for i, v in enumerate(kept) if i % folds != fold]
        unseen = [v for i, v in enumerate(kept) if i % folds == fold]
        boards = [b for i, b in enumerate(fit.boards) if i % folds != fold]
        part = solve(seen, intrinsics, fit.camera_from_lidar, outline_m=outline_m, boards=boards, noise=noise)
        mine.append(examine(unseen, intrinsics, part, outline_m=outline_m))
        if start is not None:
            theirs.append(examine(unseen, intrinsics, replace(fit, camera_from_lidar=start), outline_m=outline_m))
    if start is None:
        return _HeldOut(*_pooled(mine))
    return _HeldOut(*_pooled(mine), *_pooled(theirs))


def _pooled(judged: Sequence[Fit]) -> tuple[float, float]:
    apart_m = np.concatenate([fit.apart_m for fit in judged])
    return float(np.concatenate([fit.view_misfit for fit in judged]).sum()), float(np.sqrt(np.mean(apart_m**2)))


def _about_start(held_out: _HeldOut) -> Check:
    told = f"{1000 * held_out.apart_m:.1f} mm, with the start {1000 * held_out.start_apart_m:.1f} mm"
    if held_out.misfit < 1.5 * held_out.start_misfit:
        return Check(
            Level.PASS,
            f"in unseen views the lidar's board lies {told} from the camera's: the start was right, and is kept",
        )
    return Check(
        Level.WARN,
        f"in unseen views the lidar's board lies {told} from the camera's: the refinement is worse, the start is kept",
        "take more views, at more angles",
    )
