"""Least squares over lenses, poses and corners at once, robust, with the covariance of what it finds.

Pure: corners in, numbers out. One camera or several that are fixed to each other; a view is one place of the board.

    solution = solve([lens], [[Observation(points_m, pixels)], …], ["radtan"])
    solution.lenses[0].intrinsics, solution.lenses[0].covariance, solution.rms_px

The residual of a corner is its distance in px; RMS as OpenCV's: the root of the mean squared distance over all corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from calibration.lens.lens_models import LENS_MODELS, as_model, free_parameters, model_family
from calibration.lens.normal_equations import (
    CameraObservations,
    State,
    System,
    all_residuals,
    damped_step,
    information,
    linearise,
    prior_terms,
    robust_scale,
    total_cost,
)
from calibration.lens.observation import Observation, View
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import rigid, rotation_from_vector

HUBER = 2.5  # of the corners' scale: beyond it a residual counts by its length, not its square
STEPS = 40
START_STEPS = 10
STEP_TOLERANCE = 1e-7  # relative change of the cost at which it has converged


@dataclass(frozen=True)
class Solution:
    """lenses: with their covariance. camera_from_first: (4, 4) a camera, the first is 1. camera_from_board: of the first
    camera, one a view. residuals: [view][camera] (n, 2) px, measured − projected, or None. covariance: of all lenses'
    free parameters and, after them, of each further camera's pose (rotation vector rad, metres), as in rig.Pose.
    """

    lenses: tuple[Intrinsics, ...]
    camera_from_first: tuple[np.ndarray, ...]
    camera_from_board: tuple[np.ndarray, ...]
    residuals: tuple[tuple[np.ndarray | None, ...], ...]
    sigma_px: float  # of one coordinate of one corner
    pose_covariance: tuple[np.ndarray, ...] = ()

    @property
    def rms_px(self) -> float:
        return rms([r for view in self.residuals for r in view if r is not None])

    def view_rms_px(self) -> np.ndarray:
        return np.array([rms([r for r in view if r is not None]) for view in self.residuals])


def rms(residuals: Sequence[np.ndarray]) -> float:
    """Root of the mean squared length, NaN of nothing."""
    every = np.concatenate(residuals) if residuals else np.empty((0, 2))
    return float(np.sqrt((every**2).sum() / len(every))) if len(every) else float("nan")


def solve(
    lenses: Sequence[Intrinsics],
    views: Sequence[View],
    models: Sequence[str],
    *,
    camera_from_first: Sequence[np.ndarray] = (),  # of each further camera
    fixed: bool = False,
    steps: int = STEPS,
) -> Solution:
    """From a start of the lenses (and places of further cameras). models: keys of LENS_MODELS, one a camera. fixed: lenses and
    places stay as they are, only the boards' are found. Raises ValueError without a view.
    """
    if not views:
        raise ValueError("no views")
    state = State(
        [lens if fixed else as_model(lens, model) for lens, model in zip(lenses, models, strict=True)],
        np.array([np.eye(4), *camera_from_first]),
        np.array([pose(lenses, [np.eye(4), *camera_from_first], view) for view in views]),
        [[] if fixed else free_parameters(model) for model in models],
        fixed,
    )
    seen = [CameraObservations.of(views, camera) for camera in range(len(lenses))]
    scale = robust_scale(all_residuals(state, seen))
    system = linearise(state, seen, HUBER * scale)
    damping = 1e-4
    for _ in range(steps):
        trial = state.moved(damped_step(system, damping))
        cost = total_cost(trial, seen, HUBER * scale)
        if not cost < system.cost:
            damping *= 8
            if damping > 1e9:
                break
            continue
        settled = system.cost - cost < STEP_TOLERANCE * system.cost
        state, damping = trial, max(damping / 10, 1e-12)
        # The scale belongs to the corners, not to the start: it follows while the fit improves, and then stays.
        scale = scale if settled else robust_scale(all_residuals(state, seen))
        system = linearise(state, seen, HUBER * scale)
        if settled:
            break
    return _finish(state, seen, len(views), system)


def pose(lenses: Sequence[Intrinsics], camera_from_first: Sequence[np.ndarray], view: View) -> np.ndarray:
    """camera_from_board of the first camera, by the camera that sees most of a flat board; refined by solve()."""
    seen = [(len(s.points_m), c) for c, s in enumerate(view) if s is not None]
    _, camera = max(seen)
    observation = view[camera]
    assert observation is not None
    rays = lenses[camera].rays(observation.pixels)
    usable = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 0.05)
    if usable.sum() < 4:
        return rigid(np.eye(3), (0, 0, 1))
    flat = np.ascontiguousarray((rays[usable, :2] / rays[usable, 2:]).reshape(-1, 1, 2))
    points = np.ascontiguousarray(observation.points_m[usable].reshape(-1, 1, 3))
    found, vectors, moves, _ = cv2.solvePnPGeneric(points, flat, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not found:
        return rigid(np.eye(3), (0, 0, 1))
    first_from_camera = np.linalg.inv(camera_from_first[camera])
    return np.array(first_from_camera @ rigid(rotation_from_vector(vectors[0].ravel()), moves[0].ravel()))


def start(views: Sequence[Observation], size: tuple[int, int], model: str) -> Intrinsics:
    """A first lens for solve(), of any angle of view: the focal length whose board poses fit best, from a ladder of them."""
    width_px, height_px = size
    wanted = "fisheye" if LENS_MODELS[model][0] == "fisheye" else "radtan"
    points = [np.ascontiguousarray(s.points_m, np.float32) for s in views]
    pixels = [np.ascontiguousarray(s.pixels, np.float32) for s in views]
    ladder = [width_px * f for f in (0.3, 0.5, 0.8, 1.3, 2.5, 6.0)]
    matrix = cv2.initCameraMatrix2D(points, pixels, size)
    ladder += [matrix[0, 0]] if np.isfinite(matrix).all() and 0.1 * width_px < matrix[0, 0] < 50 * width_px else []
    lenses = [Intrinsics(wanted, *size, f, f, (width_px - 1) / 2, (height_px - 1) / 2) for f in ladder]
    few = [[view] for view in views[:: max(1, len(views) // 6)]]
    by_poses = sorted(lenses, key=lambda lens: solve([lens], few, [model_family(model)], fixed=True, steps=2).rms_px)
    # Poses alone say little about a bent lens: the best rungs climb a few steps on their own before they are compared.
    tried = [solve([lens], few, [model_family(model)], steps=START_STEPS) for lens in by_poses[:3]]
    best = min(tried, key=lambda s: s.rms_px if np.isfinite(s.rms_px) else np.inf)
    return as_model(best.lenses[0], model)


def _finish(state: State, seen: Sequence[CameraObservations], views: int, system: System) -> Solution:
    flat = all_residuals(state, seen)
    residuals: list[list[np.ndarray | None]] = [[None] * len(seen) for _ in range(views)]
    for camera, (observations, all_of_it) in enumerate(zip(seen, flat, strict=True)):
        for view, part in zip(observations.views, np.split(all_of_it, observations.starts[1:]), strict=True):
            residuals[view][camera] = part
    count = sum(2 * len(r) for r in flat)
    freedom = max(1, count - len(system.shared) - 6 * views)
    # Of what the fit leaves, freedom-corrected, with outliers weighed as the fit weighs them.
    sigma_px = float(np.sqrt(max(system.cost - prior_terms(state)[2], 0.0) / freedom))
    size = len(system.shared)
    covariance = sigma_px**2 * np.linalg.pinv(information(system), hermitian=True) if size else np.zeros((0, 0))
    lenses, at = [], 0
    for lens, indices, own in zip(state.lenses, state.free, flat, strict=True):
        full = np.zeros((len(lens.parameters),) * 2)
        full[np.ix_(indices, indices)] = covariance[at : at + len(indices), at : at + len(indices)]
        at += len(indices)
        lenses.append(replace(lens, covariance=full if indices else None, rms_px=rms([own])))
    places = range(at, at + 6 * (len(seen) - 1), 6)
    poses = tuple(covariance[i : i + 6, i : i + 6] for i in places)
    cameras, boards = tuple(state.cameras), tuple(state.boards)
    return Solution(tuple(lenses), cameras, boards, tuple(map(tuple, residuals)), sigma_px, poses)


def view_information(lens: Intrinsics, model: str, points_m: np.ndarray, camera_from_board: np.ndarray) -> np.ndarray:
    """(free, free): what one more view, its pose being unknown, would say of a lens, per px² of noise. For planning."""
    state = State([as_model(lens, model)], np.eye(4)[None], camera_from_board[None], [free_parameters(model)], False)
    seen = CameraObservations.of([[Observation(points_m, np.zeros((len(points_m), 2)))]], 0)
    return information(linearise(state, [seen], 1e9))
