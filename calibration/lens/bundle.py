"""Bundle adjustment: robust least squares over lenses, poses and corners at once, with the covariance of the result.

Pure: corners in, numbers out. One camera, or several that are fixed to each other; a view is one pose of the board. The
residual of a corner is its distance in px; RMS as in OpenCV: the root of the mean squared distance over all corners.

Example:
    solution = solve([lens], [[Observation(points_m, pixels)], …], ["radtan"])
    solution.lenses[0], solution.lenses[0].covariance, solution.rms_px
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

HUBER = 2.5  # times the corners' scale: beyond it a residual counts by its length, not its square
STEPS = 40
START_STEPS = 10
STEP_TOLERANCE = 1e-7  # relative change of the cost below which it has converged


@dataclass(frozen=True)
class Solution:
    """The result of solve().

    Attributes:
        lenses: With their covariance.
        camera_from_first: (4, 4) for each camera, the identity for the first.
        camera_from_board: (4, 4) for each view, of the first camera.
        residuals: [view][camera] (n, 2) px, measured − projected, or None.
        sigma_px: Noise of one coordinate of one corner.
        pose_covariance: (6, 6) for each further camera's pose (rotation vector rad, metres), as in rig.Pose.
    """

    lenses: tuple[Intrinsics, ...]
    camera_from_first: tuple[np.ndarray, ...]
    camera_from_board: tuple[np.ndarray, ...]
    residuals: tuple[tuple[np.ndarray | None, ...], ...]
    sigma_px: float
    pose_covariance: tuple[np.ndarray, ...] = ()

    @property
    def rms_px(self) -> float:
        return rms([r for view in self.residuals for r in view if r is not None])

    def view_rms_px(self) -> np.ndarray:
        return np.array([rms([r for r in view if r is not None]) for view in self.residuals])


def rms(residuals: Sequence[np.ndarray]) -> float:
    """Root of the mean squared length; NaN without residuals."""
    every = np.concatenate(residuals) if residuals else np.empty((0, 2))
    return float(np.sqrt((every**2).sum() / len(every))) if len(every) else float("nan")


def solve(
    lenses: Sequence[Intrinsics],
    views: Sequence[View],
    models: Sequence[str],
    *,
    camera_from_first: Sequence[np.ndarray] = (),
    fixed: bool = False,
    steps: int = STEPS,
) -> Solution:
    """Refines lenses, poses of further cameras and boards from a start.

    Args:
        lenses: The start, one per camera.
        views: What each camera observes of the board in each view. ValueError if empty.
        models: One key of LENS_MODELS per camera.
        camera_from_first: The start of each further camera's pose.
        fixed: Lenses and cameras stay as they are; only the boards' poses are estimated.
        steps: Maximum number of iterations.
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
    observed = [CameraObservations.of(views, camera) for camera in range(len(lenses))]
    scale = robust_scale(all_residuals(state, observed))
    system = linearise(state, observed, HUBER * scale)
    damping = 1e-4
    for _ in range(steps):
        trial = state.moved(damped_step(system, damping))
        cost = total_cost(trial, observed, HUBER * scale)
        if not cost < system.cost:
            damping *= 8
            if damping > 1e9:
                break
            continue
        settled = system.cost - cost < STEP_TOLERANCE * system.cost
        state, damping = trial, max(damping / 10, 1e-12)
        # The scale depends on the corners, not on the start: it is updated while the fit improves, and then fixed.
        scale = scale if settled else robust_scale(all_residuals(state, observed))
        system = linearise(state, observed, HUBER * scale)
        if settled:
            break
    return _finish(state, observed, len(views), system)


def pose(lenses: Sequence[Intrinsics], camera_from_first: Sequence[np.ndarray], view: View) -> np.ndarray:
    """camera_from_board of the first camera, from the camera that observes most corners; a start for solve()."""
    corner_counts = [(len(s.points_m), c) for c, s in enumerate(view) if s is not None]
    _, camera = max(corner_counts)
    observation = view[camera]
    assert observation is not None
    rays = lenses[camera].rays(observation.pixels)
    usable = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 0.05)
    if usable.sum() < 4:
        return rigid(np.eye(3), (0, 0, 1))
    flat = np.ascontiguousarray((rays[usable, :2] / rays[usable, 2:]).reshape(-1, 1, 2))
    points = np.ascontiguousarray(observation.points_m[usable].reshape(-1, 1, 3))
    solved, vectors, moves, _ = cv2.solvePnPGeneric(points, flat, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not solved:
        return rigid(np.eye(3), (0, 0, 1))
    first_from_camera = np.linalg.inv(camera_from_first[camera])
    return np.array(first_from_camera @ rigid(rotation_from_vector(vectors[0].ravel()), moves[0].ravel()))


def start(views: Sequence[Observation], size: tuple[int, int], model: str) -> Intrinsics:
    """A first lens for solve(), for any angle of view: the best of several focal lengths, by the boards' poses."""
    width_px, height_px = size
    kind = "fisheye" if LENS_MODELS[model][0] == "fisheye" else "radtan"
    points = [np.ascontiguousarray(s.points_m, np.float32) for s in views]
    pixels = [np.ascontiguousarray(s.pixels, np.float32) for s in views]
    candidates_px = [width_px * f for f in (0.3, 0.5, 0.8, 1.3, 2.5, 6.0)]
    matrix = cv2.initCameraMatrix2D(points, pixels, size)
    candidates_px += (
        [matrix[0, 0]] if np.isfinite(matrix).all() and 0.1 * width_px < matrix[0, 0] < 50 * width_px else []
    )
    lenses = [Intrinsics(kind, *size, f, f, (width_px - 1) / 2, (height_px - 1) / 2) for f in candidates_px]
    few = [[view] for view in views[:: max(1, len(views) // 6)]]
    by_poses = sorted(lenses, key=lambda lens: solve([lens], few, [model_family(model)], fixed=True, steps=2).rms_px)
    # Poses alone hardly distinguish strongly distorting lenses: the best candidates are refined before they are
    # compared.
    tried = [solve([lens], few, [model_family(model)], steps=START_STEPS) for lens in by_poses[:3]]
    best = min(tried, key=lambda s: s.rms_px if np.isfinite(s.rms_px) else np.inf)
    return as_model(best.lenses[0], model)


def _finish(state: State, observed: Sequence[CameraObservations], views: int, system: System) -> Solution:
    flat = all_residuals(state, observed)
    residuals: list[list[np.ndarray | None]] = [[None] * len(observed) for _ in range(views)]
    for camera, (observations, all_of_it) in enumerate(zip(observed, flat, strict=True)):
        for view, part in zip(observations.views, np.split(all_of_it, observations.starts[1:]), strict=True):
            residuals[view][camera] = part
    count = sum(2 * len(r) for r in flat)
    freedom = max(1, count - len(system.shared) - 6 * views)
    # From the residuals, corrected for the degrees of freedom, with outliers weighted as in the fit.
    sigma_px = float(np.sqrt(max(system.cost - prior_terms(state)[2], 0.0) / freedom))
    size = len(system.shared)
    covariance = sigma_px**2 * np.linalg.pinv(information(system), hermitian=True) if size else np.zeros((0, 0))
    lenses, at = [], 0
    for lens, indices, own in zip(state.lenses, state.free, flat, strict=True):
        full = np.zeros((len(lens.parameters),) * 2)
        full[np.ix_(indices, indices)] = covariance[at : at + len(indices), at : at + len(indices)]
        at += len(indices)
        lenses.append(replace(lens, covariance=full if indices else None, rms_px=rms([own])))
    places = range(at, at + 6 * (len(observed) - 1), 6)
    poses = tuple(covariance[i : i + 6, i : i + 6] for i in places)
    cameras, boards = tuple(state.cameras), tuple(state.boards)
    return Solution(tuple(lenses), cameras, boards, tuple(map(tuple, residuals)), sigma_px, poses)


def view_information(lens: Intrinsics, model: str, points_m: np.ndarray, camera_from_board: np.ndarray) -> np.ndarray:
    """(free, free): information about a lens that one more view of unknown pose would add, per px² of noise."""
    state = State([as_model(lens, model)], np.eye(4)[None], camera_from_board[None], [free_parameters(model)], False)
    observed = CameraObservations.of([[Observation(points_m, np.zeros((len(points_m), 2)))]], 0)
    return information(linearise(state, [observed], 1e9))
