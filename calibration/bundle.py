"""Least squares over lenses, poses and corners at once, robust, with the covariance of what it finds.

Pure: corners in, numbers out. One camera or several that are fixed to each other; a view is one place of the board.

    solution = solve([lens], [[Sight(points_m, pixels)], …], ["radtan"])
    solution.lenses[0].intrinsics, solution.lenses[0].covariance, solution.rms_px

The residual of a corner is its distance in px; RMS as OpenCV's: the root of the mean squared distance over all corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipeline.intrinsics import MODELS, Intrinsics
from pipeline.rig import rigid, rotation_from_vector

# What may be estimated: the rig's models, and radtan with its higher coefficients held at 0. In order of their freedom.
FREE = {
    "radtan2": ("radtan", ("k1", "k2")),
    "radtan4": ("radtan", ("k1", "k2", "p1", "p2")),
    "fisheye": ("fisheye", MODELS["fisheye"]),
    "radtan": ("radtan", MODELS["radtan"]),
    "rational": ("rational", MODELS["rational"]),
}
HUBER = 2.5  # of the corners' scale: beyond it a residual counts by its length, not its square
STEPS = 40
START_STEPS = 10
STEP_TOLERANCE = 1e-7  # relative change of the cost at which it has converged
# Standard deviation of the prior that keeps coefficients finite when the views say nothing of them; a lens has less.
PRIOR = {"k1": 1.0, "k2": 2.0, "k3": 5.0, "p1": 0.1, "p2": 0.1, "k4": 2.0, "k5": 2.0, "k6": 2.0}


@dataclass(frozen=True)
class Sight:
    """What one camera sees of the board in one view: points_m (n, 3) of the board, pixels (n, 2)."""

    points_m: np.ndarray
    pixels: np.ndarray


View = Sequence[Sight | None]  # one entry a camera


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


def project(
    lens: Intrinsics, points_m: np.ndarray, vector: np.ndarray, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (n, 2), their derivative by the lens' parameters (2n, p) and by the pose (rotation vector, translation) (2n, 6)."""
    shape, distortion = np.ascontiguousarray(points_m, np.float64).reshape(-1, 1, 3), np.array(lens.distortion)
    if lens.model == "fisheye":
        pixels, j = cv2.fisheye.projectPoints(shape, vector, moved, lens.matrix, distortion)
        return pixels.reshape(-1, 2), j[:, :8], j[:, 8:14]
    pixels, j = cv2.projectPoints(shape, vector, moved, lens.matrix, distortion)
    return pixels.reshape(-1, 2), j[:, 6 : 10 + len(distortion)], j[:, :6]


def solve(
    lenses: Sequence[Intrinsics],
    views: Sequence[View],
    models: Sequence[str],
    *,
    camera_from_first: Sequence[np.ndarray] = (),  # of each further camera
    fixed: bool = False,
    steps: int = STEPS,
) -> Solution:
    """From a start of the lenses (and places of further cameras). models: keys of FREE, one a camera. fixed: lenses and
    places stay as they are, only the boards' are found. Raises ValueError without a view.
    """
    if not views:
        raise ValueError("no views")
    state = _State(
        [lens if fixed else _as(lens, model) for lens, model in zip(lenses, models, strict=True)],
        [np.eye(4), *camera_from_first],
        [pose(lenses, [np.eye(4), *camera_from_first], view) for view in views],
        fixed,
    )
    free = [[] if fixed else _free(lens, model) for lens, model in zip(state.lenses, models, strict=True)]
    scale = _scale(_residuals(state, views))
    system = _system(state, views, free, HUBER * scale)
    damping = 1e-4
    for _ in range(steps):
        step = _step(system, damping)
        trial = state.moved(step, free)
        cost = _cost(trial, views, free, HUBER * scale)
        if not cost < system.cost:
            damping *= 8
            if damping > 1e9:
                break
            continue
        settled = system.cost - cost < STEP_TOLERANCE * system.cost
        state, damping = trial, max(damping / 10, 1e-12)
        # The scale belongs to the corners, not to the start: it follows while the fit improves, and then stays.
        scale = scale if settled else _scale(_residuals(state, views))
        system = _system(state, views, free, HUBER * scale)
        if settled:
            break
    return _finish(state, views, free, system)


def pose(lenses: Sequence[Intrinsics], camera_from_first: Sequence[np.ndarray], view: View) -> np.ndarray:
    """camera_from_board of the first camera, by the camera that sees most of a flat board; refined by solve()."""
    seen = [(len(s.points_m), c) for c, s in enumerate(view) if s is not None]
    _, camera = max(seen)
    sight = view[camera]
    assert sight is not None
    rays = lenses[camera].rays(sight.pixels)
    usable = np.isfinite(rays).all(axis=1) & (rays[:, 2] > 0.05)
    if usable.sum() < 4:
        return rigid(np.eye(3), (0, 0, 1))
    flat = np.ascontiguousarray((rays[usable, :2] / rays[usable, 2:]).reshape(-1, 1, 2))
    points = np.ascontiguousarray(sight.points_m[usable].reshape(-1, 1, 3))
    found, vectors, moves, _ = cv2.solvePnPGeneric(points, flat, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not found:
        return rigid(np.eye(3), (0, 0, 1))
    first_from_camera = np.linalg.inv(camera_from_first[camera])
    return np.array(first_from_camera @ rigid(rotation_from_vector(vectors[0].ravel()), moves[0].ravel()))


def start(views: Sequence[Sight], size: tuple[int, int], model: str) -> Intrinsics:
    """A first lens for solve(), of any angle of view: the focal length whose board poses fit best, from a ladder of them."""
    width_px, height_px = size
    wanted = "fisheye" if FREE[model][0] == "fisheye" else "radtan"
    points = [np.ascontiguousarray(s.points_m, np.float32) for s in views]
    pixels = [np.ascontiguousarray(s.pixels, np.float32) for s in views]
    ladder = [width_px * f for f in (0.3, 0.5, 0.8, 1.3, 2.5, 6.0)]
    matrix = cv2.initCameraMatrix2D(points, pixels, size)
    ladder += [matrix[0, 0]] if np.isfinite(matrix).all() and 0.1 * width_px < matrix[0, 0] < 50 * width_px else []
    lenses = [Intrinsics(wanted, *size, f, f, (width_px - 1) / 2, (height_px - 1) / 2) for f in ladder]
    few = [[view] for view in views[:: max(1, len(views) // 6)]]
    by_poses = sorted(lenses, key=lambda lens: solve([lens], few, [_family(model)], fixed=True, steps=2).rms_px)
    # Poses alone say little about a bent lens: the best rungs climb a few steps on their own before they are compared.
    tried = [solve([lens], few, [_family(model)], steps=START_STEPS) for lens in by_poses[:3]]
    best = min(tried, key=lambda s: s.rms_px if np.isfinite(s.rms_px) else np.inf)
    return _as(best.lenses[0], model)


# --- inside -----------------------------------------------------------------------------------------------------------


@dataclass
class _State:
    lenses: list[Intrinsics]
    cameras: list[np.ndarray]
    boards: list[np.ndarray]
    fixed: bool = False

    def moved(self, step: np.ndarray, free: list[list[int]]) -> _State:
        at, lenses = 0, []
        for lens, indices in zip(self.lenses, free, strict=True):
            parameters = lens.parameters.copy()
            parameters[indices] += step[at : at + len(indices)]
            at += len(indices)
            parameters[:2] = np.maximum(parameters[:2], 1.0)
            lenses.append(_with(lens, parameters))
        poses = [*self.cameras[1:], *self.boards]
        shifted = [_nudged(p, step[at + 6 * i : at + 6 * i + 6]) for i, p in enumerate(poses)]
        count = len(self.cameras) - 1
        return _State(lenses, [self.cameras[0], *shifted[:count]], shifted[count:], self.fixed)


@dataclass
class _System:
    shared: np.ndarray  # (s, s): lenses and the cameras' places
    coupling: list[np.ndarray]  # (s, 6) a view
    own: list[np.ndarray]  # (6, 6) a view
    g_shared: np.ndarray
    g_own: list[np.ndarray]
    cost: float


def _as(lens: Intrinsics, model: str) -> Intrinsics:
    """The nearest lens of that key of FREE: what it does not free is 0."""
    kind, names = FREE[model]
    known = dict(zip(MODELS[lens.model], lens.distortion, strict=True))
    if "fisheye" in (kind, lens.model) and kind != lens.model:
        known = {}  # the same letters, another meaning
    coefficients = tuple(known.get(name, 0.0) if name in names else 0.0 for name in MODELS[kind])
    return Intrinsics(kind, *lens.size, lens.fx_px, lens.fy_px, lens.cx_px, lens.cy_px, coefficients)


def _with(lens: Intrinsics, parameters: np.ndarray) -> Intrinsics:
    fx_px, fy_px, cx_px, cy_px, *distortion = map(float, parameters)
    return Intrinsics(lens.model, lens.width_px, lens.height_px, fx_px, fy_px, cx_px, cy_px, tuple(distortion))


def _family(model: str) -> str:
    return "fisheye" if FREE[model][0] == "fisheye" else "radtan2"


def _free(lens: Intrinsics, model: str) -> list[int]:
    names = FREE[model][1]
    return [0, 1, 2, 3, *(4 + i for i, name in enumerate(MODELS[lens.model]) if name in names)]


def _nudged(matrix: np.ndarray, step: np.ndarray) -> np.ndarray:
    return rigid(cv2.Rodrigues(step[:3])[0] @ matrix[:3, :3], matrix[:3, 3] + step[3:])


def _linearised(
    state: _State, camera: int, board: int, sight: Sight
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Residuals (2n,), derivatives of the projection by lens (2n, p), camera's pose and board's pose (2n, 6).

    Poses move as in rig.Pose: R → exp([r]×)·R, t → t + d.
    """
    matrix = state.cameras[camera] @ state.boards[board]
    vector = cv2.Rodrigues(matrix[:3, :3])[0]
    pixels, by_lens, by_pose = project(state.lenses[camera], sight.points_m, vector, matrix[:3, 3])
    by_moved = by_pose[:, 3:]  # by the translation, which is by the point in the camera's frame
    turned = sight.points_m @ matrix[:3, :3].T
    # Turning the whole pose by r moves a point by r × (R·p); d(pixel)/dr = d(pixel)/dx · −[R·p]×.
    by_turn = _turning(by_moved, turned)
    residual = (sight.pixels - pixels).ravel()
    if camera == 0:
        return residual, by_lens, np.zeros((len(residual), 0)), np.hstack([by_turn, by_moved])
    first = state.boards[board]
    rotation = state.cameras[camera][:3, :3]
    in_first = sight.points_m @ first[:3, :3].T + first[:3, 3]
    by_camera = np.hstack([_turning(by_moved, in_first @ rotation.T), by_moved]) * (0.0 if state.fixed else 1.0)
    by_moved_first = by_moved @ rotation
    by_board = np.hstack([_turning(by_moved_first, sight.points_m @ first[:3, :3].T), by_moved_first])
    return residual, by_lens, by_camera, by_board


def _turning(by_point: np.ndarray, arms: np.ndarray) -> np.ndarray:
    """(2n, 3) derivative by a rotation, of (2n, 3) by the point and the (n, 3) arms it turns on: j · (r × a) = r · (a × j)."""
    (ax, ay, az), (jx, jy, jz) = np.repeat(arms, 2, axis=0).T, by_point.T  # np.cross takes four times as long
    return np.column_stack([ay * jz - az * jy, az * jx - ax * jz, ax * jy - ay * jx])


def _residuals(state: _State, views: Sequence[View]) -> list[list[np.ndarray | None]]:
    out: list[list[np.ndarray | None]] = []
    for board, view in enumerate(views):
        row: list[np.ndarray | None] = []
        for camera, sight in enumerate(view):
            if sight is None:
                row.append(None)
                continue
            matrix = state.cameras[camera] @ state.boards[board]
            row.append(sight.pixels - _pixels(state.lenses[camera], sight.points_m, matrix))
        out.append(row)
    return out


def _pixels(lens: Intrinsics, points_m: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    vector, shape = cv2.Rodrigues(matrix[:3, :3])[0], np.ascontiguousarray(points_m).reshape(-1, 1, 3)
    function = cv2.fisheye.projectPoints if lens.model == "fisheye" else cv2.projectPoints
    return np.array(function(shape, vector, matrix[:3, 3], lens.matrix, np.array(lens.distortion))[0].reshape(-1, 2))


def _scale(residuals: list[list[np.ndarray | None]]) -> float:
    """Of one corner's distance, by the median: half of the corners may be wrong. For Gaussian noise it is σ of a coordinate."""
    lengths = np.concatenate([np.hypot(*r.T) for row in residuals for r in row if r is not None])
    return max(float(np.median(lengths)) / 1.1774, 1e-3)


def _weights(residual: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
    """Huber's: (2n,) weights and the cost, with a corner's distance as the residual."""
    length = np.hypot(residual[::2], residual[1::2])
    over = length > limit
    weight = np.where(over, limit / np.maximum(length, 1e-300), 1.0)
    cost = float(np.where(over, 2 * limit * length - limit**2, length**2).sum())
    return np.repeat(weight, 2), cost


def _cost(state: _State, views: Sequence[View], free: list[list[int]], limit: float) -> float:
    cost = _prior(state, free)[2]
    for row in _residuals(state, views):
        for residual in row:
            if residual is not None:
                cost += _weights(residual.ravel(), limit)[1] if np.isfinite(residual).all() else np.inf
    return float(cost)


def _prior(state: _State, free: list[list[int]]) -> tuple[np.ndarray, np.ndarray, float]:
    """Diagonal, gradient and cost, for all free parameters of all lenses."""
    weight, value = [], []
    for lens, indices in zip(state.lenses, free, strict=True):
        for i in indices:
            sigma = PRIOR.get(lens.names[i], np.inf)
            weight.append(1e-4 / sigma**2)  # in px²: a hundredth of a pixel of noise would overrule it
            value.append(lens.parameters[i] if np.isfinite(sigma) else 0.0)
    w, v = np.array(weight), np.array(value)
    return w, -w * v, float((w * v * v).sum())


def _system(state: _State, views: Sequence[View], free: list[list[int]], limit: float) -> _System:
    offsets = np.cumsum([0, *(len(f) for f in free)])
    count = int(offsets[-1]) + 6 * (len(state.cameras) - 1)
    shared, g_shared = np.zeros((count, count)), np.zeros(count)
    diagonal, gradient, cost = _prior(state, free)
    shared[range(len(diagonal)), range(len(diagonal))] += diagonal
    g_shared[: len(gradient)] += gradient
    coupling, own, g_own = [], [], []
    for board, view in enumerate(views):
        w_block, o_block, g_block = np.zeros((count, 6)), np.zeros((6, 6)), np.zeros(6)
        for camera, sight in enumerate(view):
            if sight is None:
                continue
            residual, by_lens, by_camera, by_board = _linearised(state, camera, board, sight)
            weight, more = _weights(residual, limit)
            cost += more
            columns = list(range(offsets[camera], offsets[camera + 1]))
            if camera > 0:
                columns += range(int(offsets[-1]) + 6 * (camera - 1), int(offsets[-1]) + 6 * camera)
            j = np.hstack([by_lens[:, free[camera]], by_camera])
            jw = j.T * weight
            shared[np.ix_(columns, columns)] += jw @ j
            g_shared[columns] += jw @ residual
            w_block[columns] += jw @ by_board
            o_block += (by_board.T * weight) @ by_board
            g_block += (by_board.T * weight) @ residual
        coupling.append(w_block)
        own.append(o_block)
        g_own.append(g_block)
    return _System(shared, coupling, own, g_shared, g_own, cost)


def _step(system: _System, damping: float) -> np.ndarray:
    """Levenberg–Marquardt with Marquardt's scaling; the views' poses are eliminated first (Schur complement)."""

    def damped(block: np.ndarray) -> np.ndarray:
        return np.array(block + np.diag(damping * np.diag(block) + 1e-12))

    reduced, gradient = damped(system.shared), system.g_shared.copy()
    inverses = [np.linalg.inv(damped(block)) for block in system.own]
    for w, inverse, g in zip(system.coupling, inverses, system.g_own, strict=True):
        reduced -= w @ inverse @ w.T
        gradient -= w @ inverse @ g
    first = np.linalg.lstsq(reduced, gradient, rcond=None)[0] if len(reduced) else np.zeros(0)
    rest = [inv @ (g - w.T @ first) for w, inv, g in zip(system.coupling, inverses, system.g_own, strict=True)]
    return np.concatenate([first, *rest])


def information(system: _System) -> np.ndarray:
    """(s, s): of lenses and cameras, after the views' poses are marginalised out, per px² of noise."""
    reduced = system.shared.copy()
    for w, own in zip(system.coupling, system.own, strict=True):
        reduced -= w @ np.linalg.pinv(own, hermitian=True) @ w.T
    return reduced


def _finish(state: _State, views: Sequence[View], free: list[list[int]], system: _System) -> Solution:
    residuals = _residuals(state, views)
    count = sum(2 * len(r) for row in residuals for r in row if r is not None)
    freedom = max(1, count - len(system.shared) - 6 * len(views))
    # Of what the fit leaves, freedom-corrected, with outliers weighed as the fit weighs them.
    sigma_px = float(np.sqrt(max(system.cost - _prior(state, free)[2], 0.0) / freedom))
    covariance = (
        sigma_px**2 * np.linalg.pinv(information(system), hermitian=True) if len(system.shared) else np.zeros((0, 0))
    )
    lenses, at = [], 0
    for camera, (lens, indices) in enumerate(zip(state.lenses, free, strict=True)):
        full = np.zeros((len(lens.parameters),) * 2)
        full[np.ix_(indices, indices)] = covariance[at : at + len(indices), at : at + len(indices)]
        at += len(indices)
        own = rms([row[camera] for row in residuals if row[camera] is not None])  # type: ignore[misc]
        lenses.append(replace(lens, covariance=full if indices else None, rms_px=own))
    poses = tuple(
        covariance[at + 6 * i : at + 6 * i + 6, at + 6 * i : at + 6 * i + 6] for i in range(len(state.cameras) - 1)
    )
    return Solution(
        tuple(lenses), tuple(state.cameras), tuple(state.boards), tuple(map(tuple, residuals)), sigma_px, poses
    )


def view_information(lens: Intrinsics, model: str, points_m: np.ndarray, camera_from_board: np.ndarray) -> np.ndarray:
    """(free, free): what one more view, its pose being unknown, would say of a lens, per px² of noise. For planning."""
    state = _State([_as(lens, model)], [np.eye(4)], [camera_from_board])
    sight = Sight(points_m, _pixels(state.lenses[0], points_m, camera_from_board))
    return information(_system(state, [[sight]], [_free(state.lenses[0], model)], 1e6))


def free_parameters(lens: Intrinsics, model: str) -> list[int]:
    """Indices into lens.parameters of what `model` estimates."""
    return _free(_as(lens, model), model)
