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

from pipeline.rig.intrinsics import MODELS, Intrinsics
from pipeline.rig.transforms import rigid, rotation_from_vector

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


@dataclass(frozen=True, eq=False)
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
        np.array([np.eye(4), *camera_from_first]),
        np.array([pose(lenses, [np.eye(4), *camera_from_first], view) for view in views]),
        [[] if fixed else free_parameters(model) for model in models],
        fixed,
    )
    seen = [_Seen.of(views, camera) for camera in range(len(lenses))]
    scale = _scale(_residuals(state, seen))
    system = _system(state, seen, HUBER * scale)
    damping = 1e-4
    for _ in range(steps):
        trial = state.moved(_step(system, damping))
        cost = _cost(trial, seen, HUBER * scale)
        if not cost < system.cost:
            damping *= 8
            if damping > 1e9:
                break
            continue
        settled = system.cost - cost < STEP_TOLERANCE * system.cost
        state, damping = trial, max(damping / 10, 1e-12)
        # The scale belongs to the corners, not to the start: it follows while the fit improves, and then stays.
        scale = scale if settled else _scale(_residuals(state, seen))
        system = _system(state, seen, HUBER * scale)
        if settled:
            break
    return _finish(state, seen, len(views), system)


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


@dataclass(frozen=True)
class _Seen:
    """All that one camera sees, view after view: one call of OpenCV projects it all."""

    points_m: np.ndarray  # (n, 3)
    pixels: np.ndarray  # (n, 2)
    view: np.ndarray  # (n,) which view each corner belongs to
    views: np.ndarray  # (v,) those that this camera has
    starts: np.ndarray  # (v,) where each begins

    @classmethod
    def of(cls, views: Sequence[View], camera: int) -> _Seen:
        sights = [(i, sight) for i, view in enumerate(views) if (sight := view[camera]) is not None]
        counts = [len(sight.points_m) for _, sight in sights]
        numbers = np.array([i for i, _ in sights], int)
        return cls(
            np.concatenate([s.points_m for _, s in sights] or [np.empty((0, 3))]),
            np.concatenate([s.pixels for _, s in sights] or [np.empty((0, 2))]),
            np.repeat(numbers, counts),
            numbers,
            np.cumsum([0, *counts])[:-1].astype(int),
        )


@dataclass
class _State:
    lenses: list[Intrinsics]
    cameras: np.ndarray  # (c, 4, 4) from the first
    boards: np.ndarray  # (v, 4, 4) the first camera from each view's board
    free: list[list[int]]
    fixed: bool

    def moved(self, step: np.ndarray) -> _State:
        at, lenses = 0, []
        for lens, indices in zip(self.lenses, self.free, strict=True):
            parameters = lens.parameters.copy()
            parameters[indices] += step[at : at + len(indices)]
            at += len(indices)
            parameters[:2] = np.maximum(parameters[:2], 1.0)
            lenses.append(_with(lens, parameters))
        poses = np.concatenate([self.cameras[1:], self.boards])
        for matrix, by in zip(poses, step[at:].reshape(-1, 6), strict=True):
            matrix[:3, :3] = cv2.Rodrigues(by[:3])[0] @ matrix[:3, :3]
            matrix[:3, 3] += by[3:]
        count = len(self.cameras) - 1
        return _State(lenses, np.concatenate([self.cameras[:1], poses[:count]]), poses[count:], self.free, self.fixed)


@dataclass
class _System:
    shared: np.ndarray  # (s, s): lenses and the cameras' places
    coupling: np.ndarray  # (v, s, 6)
    own: np.ndarray  # (v, 6, 6)
    g_shared: np.ndarray
    g_own: np.ndarray
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


def free_parameters(model: str) -> list[int]:
    """Indices into lens.parameters of what that key of FREE estimates."""
    kind, names = FREE[model]
    return [0, 1, 2, 3, *(4 + i for i, name in enumerate(MODELS[kind]) if name in names)]


def _in_camera(state: _State, camera: int, seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) of the first camera's frame, and of this one's."""
    boards = state.boards[seen.view]
    first = np.einsum("nij,nj->ni", boards[:, :3, :3], seen.points_m) + boards[:, :3, 3]
    place = state.cameras[camera]
    return first, first @ place[:3, :3].T + place[:3, 3]


def _turning(by_point: np.ndarray, arms: np.ndarray) -> np.ndarray:
    """(2n, 3) derivative by a rotation, of (2n, 3) by the point and the (n, 3) arms it turns on: j · (r × a) = r · (a × j)."""
    (ax, ay, az), (jx, jy, jz) = np.repeat(arms, 2, axis=0).T, by_point.T  # np.cross takes four times as long
    return np.column_stack([ay * jz - az * jy, az * jx - ax * jz, ax * jy - ay * jx])


def _residuals(state: _State, seen: Sequence[_Seen]) -> list[np.ndarray]:
    """(n, 2) a camera."""
    out = []
    for camera, (lens, sights) in enumerate(zip(state.lenses, seen, strict=True)):
        if not len(sights.pixels):
            out.append(np.empty((0, 2)))
            continue
        function = cv2.fisheye.projectPoints if lens.model == "fisheye" else cv2.projectPoints
        points = _in_camera(state, camera, sights)[1].reshape(-1, 1, 3)
        pixels = function(points, np.zeros(3), np.zeros(3), lens.matrix, np.array(lens.distortion))[0]
        out.append(sights.pixels - pixels.reshape(-1, 2))
    return out


def _scale(residuals: Sequence[np.ndarray]) -> float:
    """Of one corner's distance, by the median: half of the corners may be wrong. For Gaussian noise it is σ of a coordinate."""
    lengths = np.concatenate([np.hypot(*r.T) for r in residuals])
    return max(float(np.median(lengths)) / 1.1774, 1e-3)


def _weights(residual: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
    """Huber's: (2n,) weights and the cost of (n, 2), with a corner's distance as the residual."""
    length = np.hypot(*residual.T)
    over = length > limit
    weight = np.where(over, limit / np.maximum(length, 1e-300), 1.0)
    cost = float(np.where(over, 2 * limit * length - limit**2, length**2).sum())
    return np.repeat(weight, 2), cost if np.isfinite(cost) else np.inf


def _cost(state: _State, seen: Sequence[_Seen], limit: float) -> float:
    return _prior(state)[2] + sum(_weights(residual, limit)[1] for residual in _residuals(state, seen))


def _prior(state: _State) -> tuple[np.ndarray, np.ndarray, float]:
    """Diagonal, gradient and cost, for all free parameters of all lenses."""
    weight, value = [], []
    for lens, indices in zip(state.lenses, state.free, strict=True):
        for i in indices:
            sigma = PRIOR.get(lens.names[i], np.inf)
            weight.append(1e-4 / sigma**2)  # in px²: a hundredth of a pixel of noise would overrule it
            value.append(lens.parameters[i] if np.isfinite(sigma) else 0.0)
    w, v = np.array(weight), np.array(value)
    return w, -w * v, float((w * v * v).sum())


def _system(state: _State, seen: Sequence[_Seen], limit: float) -> _System:
    """Normal equations. Poses move as in rig.Pose: R → exp([r]×)·R, t → t + d."""
    offsets = np.cumsum([0, *(len(f) for f in state.free)])
    count, views = int(offsets[-1]) + 6 * (len(state.cameras) - 1), len(state.boards)
    shared, g_shared = np.zeros((count, count)), np.zeros(count)
    coupling, own, g_own = np.zeros((views, count, 6)), np.zeros((views, 6, 6)), np.zeros((views, 6))
    diagonal, gradient, cost = _prior(state)
    shared[range(len(diagonal)), range(len(diagonal))] += diagonal
    g_shared[: len(gradient)] += gradient
    for camera, (lens, sights) in enumerate(zip(state.lenses, seen, strict=True)):
        if not len(sights.pixels):
            continue
        first, there = _in_camera(state, camera, sights)
        pixels, by_lens, by_pose = project(lens, there, np.zeros(3), np.zeros(3))
        residual, rotation = sights.pixels - pixels, state.cameras[camera][:3, :3]
        weight, more = _weights(residual, limit)
        cost += more
        by_first = by_pose[:, 3:] @ rotation  # by the point in the first camera's frame
        by_board = np.hstack([_turning(by_first, first - state.boards[sights.view][:, :3, 3]), by_first])
        columns, parts = list(range(offsets[camera], offsets[camera + 1])), [by_lens[:, state.free[camera]]]
        if camera > 0:
            columns += range(int(offsets[-1]) + 6 * (camera - 1), int(offsets[-1]) + 6 * camera)
            by_place = np.hstack([_turning(by_pose[:, 3:], first @ rotation.T), by_pose[:, 3:]])
            parts.append(by_place * (0.0 if state.fixed else 1.0))
        j, r = np.hstack(parts), residual.ravel()
        jw, bw, rows = j * weight[:, None], by_board * weight[:, None], 2 * sights.starts
        shared[np.ix_(columns, columns)] += jw.T @ j
        g_shared[columns] += jw.T @ r
        # Sums over each view's rows.
        coupling[np.ix_(sights.views, np.array(columns, int))] += np.add.reduceat(
            jw[:, :, None] * by_board[:, None, :], rows, axis=0
        )
        own[sights.views] += np.add.reduceat(bw[:, :, None] * by_board[:, None, :], rows, axis=0)
        g_own[sights.views] += np.add.reduceat(bw * r[:, None], rows, axis=0)
    return _System(shared, coupling, own, g_shared, g_own, cost)


def _step(system: _System, damping: float) -> np.ndarray:
    """Levenberg–Marquardt with Marquardt's scaling; the views' poses are eliminated first (Schur complement)."""
    index = np.arange(6)
    own = system.own.copy()
    own[:, index, index] *= 1 + damping
    own[:, index, index] += 1e-12
    inverse = np.linalg.inv(own)
    reduced = system.shared + np.diag(damping * np.diag(system.shared) + 1e-12)
    eliminated = system.coupling @ inverse  # (v, s, 6)
    reduced -= np.einsum("vsi,vti->st", eliminated, system.coupling)
    gradient = system.g_shared - np.einsum("vsi,vi->s", eliminated, system.g_own)
    first = np.linalg.lstsq(reduced, gradient, rcond=None)[0] if len(reduced) else np.zeros(0)
    rest = np.einsum("vij,vj->vi", inverse, system.g_own - np.einsum("vsi,s->vi", system.coupling, first))
    return np.concatenate([first, rest.ravel()])


def information(system: _System) -> np.ndarray:
    """(s, s): of lenses and cameras, after the views' poses are marginalised out, per px² of noise."""
    inverse = np.linalg.pinv(system.own, hermitian=True)
    return np.array(system.shared - np.einsum("vsi,vij,vtj->st", system.coupling, inverse, system.coupling))


def _finish(state: _State, seen: Sequence[_Seen], views: int, system: _System) -> Solution:
    flat = _residuals(state, seen)
    residuals: list[list[np.ndarray | None]] = [[None] * len(seen) for _ in range(views)]
    for camera, (sights, all_of_it) in enumerate(zip(seen, flat, strict=True)):
        for view, part in zip(sights.views, np.split(all_of_it, sights.starts[1:]), strict=True):
            residuals[view][camera] = part
    count = sum(2 * len(r) for r in flat)
    freedom = max(1, count - len(system.shared) - 6 * views)
    # Of what the fit leaves, freedom-corrected, with outliers weighed as the fit weighs them.
    sigma_px = float(np.sqrt(max(system.cost - _prior(state)[2], 0.0) / freedom))
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
    state = _State([_as(lens, model)], np.eye(4)[None], camera_from_board[None], [free_parameters(model)], False)
    seen = _Seen.of([[Sight(points_m, np.zeros((len(points_m), 2)))]], 0)
    return information(_system(state, [seen], 1e9))
