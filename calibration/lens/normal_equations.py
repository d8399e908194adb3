"""The normal equations of a bundle adjustment, for solve() in bundle.py: residuals, robust weights, step, information.

One state holds the lenses, the poses of further cameras relative to the first, and the board's pose in every view. Each
view's pose is eliminated (Schur complement), so the cost grows linearly with the number of views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.lens.lens_models import project, with_parameters
from calibration.lens.observation import View
from pipeline.rig.intrinsics import Intrinsics

# Standard deviation of the prior that keeps coefficients finite if the views do not determine them; real lenses have
# less.
PRIOR = {"k1": 1.0, "k2": 2.0, "k3": 5.0, "p1": 0.1, "p2": 0.1, "k4": 2.0, "k5": 2.0, "k6": 2.0}


@dataclass(frozen=True)
class CameraObservations:
    """All corners that one camera observes, concatenated over the views: one call of OpenCV projects them all."""

    points_m: np.ndarray  # (n, 3)
    pixels: np.ndarray  # (n, 2)
    view: np.ndarray  # (n,) which view each corner belongs to
    views: np.ndarray  # (v,) the views that this camera takes part in
    starts: np.ndarray  # (v,) index of the first corner of each

    @classmethod
    def of(cls, views: Sequence[View], camera: int) -> CameraObservations:
        observations = [(i, observation) for i, view in enumerate(views) if (observation := view[camera]) is not None]
        counts = [len(observation.points_m) for _, observation in observations]
        numbers = np.array([i for i, _ in observations], int)
        return cls(
            np.concatenate([s.points_m for _, s in observations] or [np.empty((0, 3))]),
            np.concatenate([s.pixels for _, s in observations] or [np.empty((0, 2))]),
            np.repeat(numbers, counts),
            numbers,
            np.cumsum([0, *counts])[:-1].astype(int),
        )


@dataclass
class State:
    lenses: list[Intrinsics]
    cameras: np.ndarray  # (c, 4, 4) camera_from_first
    boards: np.ndarray  # (v, 4, 4) camera_from_board of the first camera
    free: list[list[int]]
    fixed: bool

    def moved(self, step: np.ndarray) -> State:
        at, lenses = 0, []
        for lens, indices in zip(self.lenses, self.free, strict=True):
            parameters = lens.parameters.copy()
            parameters[indices] += step[at : at + len(indices)]
            at += len(indices)
            parameters[:2] = np.maximum(parameters[:2], 1.0)
            lenses.append(with_parameters(lens, parameters))
        poses = np.concatenate([self.cameras[1:], self.boards])
        for matrix, by in zip(poses, step[at:].reshape(-1, 6), strict=True):
            matrix[:3, :3] = cv2.Rodrigues(by[:3])[0] @ matrix[:3, :3]
            matrix[:3, 3] += by[3:]
        count = len(self.cameras) - 1
        return State(lenses, np.concatenate([self.cameras[:1], poses[:count]]), poses[count:], self.free, self.fixed)


@dataclass
class System:
    shared: np.ndarray  # (s, s): lenses and the poses of further cameras
    coupling: np.ndarray  # (v, s, 6)
    own: np.ndarray  # (v, 6, 6)
    g_shared: np.ndarray
    g_own: np.ndarray
    cost: float


def _in_camera(state: State, camera: int, observed: CameraObservations) -> tuple[np.ndarray, np.ndarray]:
    """The observed corners (n, 3) in the first camera's frame, and in this camera's."""
    boards = state.boards[observed.view]
    first = np.einsum("nij,nj->ni", boards[:, :3, :3], observed.points_m) + boards[:, :3, 3]
    place = state.cameras[camera]
    return first, first @ place[:3, :3].T + place[:3, 3]


def _turning(by_point: np.ndarray, arms: np.ndarray) -> np.ndarray:
    """(2n, 3) derivative by a rotation, from the (2n, 3) derivative by the point and the (n, 3) lever arms.

    j · (r × a) = r · (a × j).
    """
    (ax, ay, az), (jx, jy, jz) = np.repeat(arms, 2, axis=0).T, by_point.T  # np.cross takes four times as long
    return np.column_stack([ay * jz - az * jy, az * jx - ax * jz, ax * jy - ay * jx])


def all_residuals(state: State, observed: Sequence[CameraObservations]) -> list[np.ndarray]:
    """(n, 2) px for each camera, measured − projected."""
    out = []
    for camera, (lens, observations) in enumerate(zip(state.lenses, observed, strict=True)):
        if not len(observations.pixels):
            out.append(np.empty((0, 2)))
            continue
        function = cv2.fisheye.projectPoints if lens.model == "fisheye" else cv2.projectPoints
        points = _in_camera(state, camera, observations)[1].reshape(-1, 1, 3)
        pixels = function(points, np.zeros(3), np.zeros(3), lens.matrix, np.array(lens.distortion))[0]
        out.append(observations.pixels - pixels.reshape(-1, 2))
    return out


def robust_scale(residuals: Sequence[np.ndarray]) -> float:
    """Scale of a corner's distance from the median, so that up to half of the corners may be wrong.

    For Gaussian noise it is σ of one coordinate.
    """
    lengths = np.concatenate([np.hypot(*r.T) for r in residuals])
    return max(float(np.median(lengths)) / 1.1774, 1e-3)


def _weights(residual: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
    """Huber weights (2n,) and the cost of residuals (n, 2), where a corner's residual is its distance."""
    length = np.hypot(*residual.T)
    over = length > limit
    weight = np.where(over, limit / np.maximum(length, 1e-300), 1.0)
    cost = float(np.where(over, 2 * limit * length - limit**2, length**2).sum())
    return np.repeat(weight, 2), cost if np.isfinite(cost) else np.inf


def total_cost(state: State, observed: Sequence[CameraObservations], limit: float) -> float:
    return prior_terms(state)[2] + sum(_weights(residual, limit)[1] for residual in all_residuals(state, observed))


def prior_terms(state: State) -> tuple[np.ndarray, np.ndarray, float]:
    """Diagonal, gradient and cost, for all free parameters of all lenses."""
    weight, value = [], []
    for lens, indices in zip(state.lenses, state.free, strict=True):
        for i in indices:
            sigma = PRIOR.get(lens.names[i], np.inf)
            weight.append(1e-4 / sigma**2)  # in px²: noise of a hundredth of a pixel outweighs it
            value.append(lens.parameters[i] if np.isfinite(sigma) else 0.0)
    w, v = np.array(weight), np.array(value)
    return w, -w * v, float((w * v * v).sum())


def linearise(state: State, observed: Sequence[CameraObservations], limit: float) -> System:
    """Normal equations. Poses move as in rig.Pose: R → exp([r]×)·R, t → t + d."""
    offsets = np.cumsum([0, *(len(f) for f in state.free)])
    count, views = int(offsets[-1]) + 6 * (len(state.cameras) - 1), len(state.boards)
    shared, g_shared = np.zeros((count, count)), np.zeros(count)
    coupling, own, g_own = np.zeros((views, count, 6)), np.zeros((views, 6, 6)), np.zeros((views, 6))
    diagonal, gradient, cost = prior_terms(state)
    shared[range(len(diagonal)), range(len(diagonal))] += diagonal
    g_shared[: len(gradient)] += gradient
    for camera, (lens, observations) in enumerate(zip(state.lenses, observed, strict=True)):
        if not len(observations.pixels):
            continue
        first, there = _in_camera(state, camera, observations)
        pixels, by_lens, by_pose = project(lens, there, np.zeros(3), np.zeros(3))
        residual, rotation = observations.pixels - pixels, state.cameras[camera][:3, :3]
        weight, more = _weights(residual, limit)
        cost += more
        by_first = by_pose[:, 3:] @ rotation  # derivative by the point in the first camera's frame
        by_board = np.hstack([_turning(by_first, first - state.boards[observations.view][:, :3, 3]), by_first])
        columns, parts = list(range(offsets[camera], offsets[camera + 1])), [by_lens[:, state.free[camera]]]
        if camera > 0:
            columns += range(int(offsets[-1]) + 6 * (camera - 1), int(offsets[-1]) + 6 * camera)
            by_place = np.hstack([_turning(by_pose[:, 3:], first @ rotation.T), by_pose[:, 3:]])
            parts.append(by_place * (0.0 if state.fixed else 1.0))
        j, r = np.hstack(parts), residual.ravel()
        jw, bw, rows = j * weight[:, None], by_board * weight[:, None], 2 * observations.starts
        shared[np.ix_(columns, columns)] += jw.T @ j
        g_shared[columns] += jw.T @ r
        # Sums over the rows of each view.
        coupling[np.ix_(observations.views, np.array(columns, int))] += np.add.reduceat(
            jw[:, :, None] * by_board[:, None, :], rows, axis=0
        )
        own[observations.views] += np.add.reduceat(bw[:, :, None] * by_board[:, None, :], rows, axis=0)
        g_own[observations.views] += np.add.reduceat(bw * r[:, None], rows, axis=0)
    return System(shared, coupling, own, g_shared, g_own, cost)


def damped_step(system: System, damping: float) -> np.ndarray:
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


def information(system: System) -> np.ndarray:
    """(s, s): about lenses and cameras, after marginalising out the views' poses, per px² of noise."""
    inverse = np.linalg.pinv(system.own, hermitian=True)
    return np.array(system.shared - np.einsum("vsi,vij,vtj->st", system.coupling, inverse, system.coupling))
