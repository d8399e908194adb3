"""Joint least squares over camera corners and lidar points of one board, the solver behind extrinsics.py.

Unknown are camera_from_lidar and the board's pose in every view. A picture's corners determine the board's pose; each
lidar point must lie on the board's plane, with the noise of its range along its own ray; each ray that just misses or
just hits the board must pass its outline. Each view's pose is eliminated (Schur complement), so a view costs two 6×6
solves. Which views are used and what is good enough is decided elsewhere.

Example:
    fit = solve(views, intrinsics, start, outline_m=(-0.08, -0.08, 0.72, 0.48))
    fit.camera_from_lidar, fit.covariance          # (6, 6) of rotation vector (rad) and position (m), camera axes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from calibration.pose import Floats, moved
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, cross, rigid, rotation_from_vector

STEPS = 12
CONVERGED = 1e-6  # rad and m: a hundredth of the accuracy of any view
HUBER = 2.5  # standard deviations up to which a residual has full weight
STEEPEST = 0.25  # lower limit of the cosine of incidence: at grazing incidence a range says little about the plane
FIRST_NOISE = (0.3, 0.02)  # px, m: initial values; then estimated from the residuals
MIN_NOISE = (0.02, 0.001)  # px, m: perfect (rendered) data must not make the weights infinite


@dataclass(frozen=True, eq=False)
class BoardView:
    """One picture and one cloud of the same moment.

    Attributes:
        corners_px: (n, 2) corners in the picture.
        corners_m: (n, 3) the same corners in the board's frame, z = 0.
        points_m: (m, 3) points on the board, in the lidar's frame.
        edge_rays: (e, 3) unit vectors in the lidar's frame towards the board's outline.
        edge_sigma_rad: Standard deviation of each of these rays.
        centre_m: (3,) of the whole board in its own frame; None: the centre of these corners.
    """

    name: str
    corners_px: Floats
    corners_m: Floats
    points_m: Floats
    edge_rays: Floats = field(default_factory=lambda: np.empty((0, 3)))
    edge_sigma_rad: float = 0.002
    centre_m: Floats | None = None

    @property
    def middle_m(self) -> Floats:
        """(1, 3)."""
        return (self.corners_m.mean(0) if self.centre_m is None else self.centre_m)[None]


@dataclass(frozen=True, eq=False)
class Fit:
    camera_from_lidar: Floats
    boards: tuple[Floats, ...]  # camera_from_board of every view
    covariance: Floats  # (6, 6) rotation vector (rad) and position (m) of camera_from_lidar, camera axes
    information: Floats  # (6, 6) of the twist: singular if the views do not determine a direction
    sigma_px: float
    sigma_range_m: float
    focal_scale: float = 1.0  # factor for the focal lengths, if it was estimated (focal_free)
    focal_sigma: float = 0.0
    view_misfit: Floats = field(
        default_factory=lambda: np.empty(0)
    )  # (views,) chi square with 6 degrees of freedom: how much each view disagrees
    reprojection_px: Floats = field(default_factory=lambda: np.empty(0))  # (views,) RMS of a view's corners
    apart_m: Floats = field(
        default_factory=lambda: np.empty(0)
    )  # (views,) RMS distance between the two planes, without noise


def board_poses(views: Sequence[BoardView], intrinsics: Intrinsics) -> tuple[Floats, ...]:
    """camera_from_board of every view from its corners alone. The z axis points away from the camera."""
    poses = []
    for view in views:
        rays = intrinsics.rays(view.corners_px)
        flat = np.ascontiguousarray((rays[:, :2] / rays[:, 2:])[:, None])
        _, turn, at = cv2.solvePnP(np.ascontiguousarray(view.corners_m), flat, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
        poses.append(rigid(rotation_from_vector(turn.ravel()), at.ravel()))
    return tuple(poses)


@dataclass
class _System:
    """Normal equations of one linearisation. 7 global unknowns: the twist of camera_from_lidar, and log focal scale."""

    gg: Floats  # (views, 7, 7)
    gb: Floats  # (views, 7, 6)
    bb: Floats  # (views, 6, 6)
    g: Floats  # (views, 7) gradient
    b: Floats  # (views, 6)


class _Problem:
    def __init__(self, views: Sequence[BoardView], intrinsics: Intrinsics, outline_m: Sequence[float] | None) -> None:
        self.views, self.intrinsics = views, intrinsics
        # Outward normals and offsets of the outline's four sides, in the board's frame.
        left, top, right, bottom = outline_m or (0.0, 0.0, 0.0, 0.0)
        self.sides = np.array([[-1.0, 0, 0], [0, -1, 0], [1, 0, 0], [0, 1, 0]]), np.array([-left, -top, right, bottom])
        self.has_edges = outline_m is not None and any(len(v.edge_rays) for v in views)
        self.counts = np.cumsum([0, *(len(v.corners_px) for v in views)])

    def corners(self, boards: Sequence[Floats], scale: float) -> tuple[Floats, Floats]:
        """Residuals (n, 2) px and Jacobians (n, 2, 7): the board's twist, then log focal scale.

        For all views at once.
        """
        points = np.concatenate([apply(b, v.corners_m) for b, v in zip(boards, self.views, strict=True)])
        # NaN: points that the model cannot project, with a start far off. Such corners get no weight until they can be
        # projected.
        px, _ = self.intrinsics.project(points)
        h = 1e-6
        d = np.stack([(self.intrinsics.project(points + h * e)[0] - px) / h for e in np.eye(3)], axis=2)  # (n, 2, 3)
        centre = np.array([self.intrinsics.cx_px, self.intrinsics.cy_px])
        from_centre = (px - centre) * scale
        d = d * scale
        jacobian = np.empty((len(points), 2, 7))
        jacobian[:, :, :3] = np.cross(points[:, None], d)  # d · (ω × p) = ω · (p × d)
        jacobian[:, :, 3:6] = d
        jacobian[:, :, 6] = from_centre
        residual = from_centre + centre - np.concatenate([v.corners_px for v in self.views])
        unusable = ~np.isfinite(jacobian).all(axis=(1, 2))
        residual[unusable], jacobian[unusable] = 0.0, 0.0
        return residual, jacobian

    def lidar(self, view: BoardView, board: Floats, ext: Floats) -> tuple[Floats, Floats, Floats]:
        """(residual m, its Jacobian by the lidar's twist (m, 6), |cosine of incidence|) of the points of one view."""
        n = board[:3, 2]
        q = apply(ext, view.points_m)
        ray = q - ext[:3, 3]
        cosine = np.abs(ray @ n) / np.linalg.norm(ray, axis=1)
        jacobian = np.hstack([np.cross(q, n), np.broadcast_to(n, q.shape)])
        return (q - board[:3, 3]) @ n, jacobian, np.maximum(cosine, STEEPEST)

    def edges(self, view: BoardView, board: Floats, ext: Floats) -> tuple[Floats, Floats, Floats]:
        """(residual m, Jacobian, standard deviation m) of the rays along the outline."""
        n, v = board[:3, 2], view.edge_rays @ ext[:3, :3].T
        towards = v @ n
        along = (board[:3, 3] - ext[:3, 3]) @ n / towards
        hit = ext[:3, 3] + along[:, None] * v
        normals, offsets = self.sides
        distance = (hit - board[:3, 3]) @ board[:3, :3] @ normals.T - offsets  # (e, 4)
        side = np.argmin(np.abs(distance), axis=1)
        m = normals[side] @ board[:3, :3].T
        w = m - n * ((m * v).sum(1) / towards)[:, None]
        sigma = np.abs(along) * view.edge_sigma_rad * np.linalg.norm(w, axis=1)
        return distance[np.arange(len(side)), side], np.hstack([np.cross(hit, w), w]), sigma

    def linearise(self, ext: Floats, boards: Sequence[Floats], scale: float, noise: tuple[float, float]) -> _System:
        n = len(self.views)
        system = _System(
            np.zeros((n, 7, 7)), np.zeros((n, 7, 6)), np.zeros((n, 6, 6)), np.zeros((n, 7)), np.zeros((n, 6))
        )
        residual, jacobian = self.corners(boards, scale)
        r, j = residual / noise[0], jacobian / noise[0]
        weight = _huber(np.linalg.norm(r, axis=1))[:, None, None]
        for i, view in enumerate(self.views):
            part = slice(self.counts[i], self.counts[i + 1])
            ji = (j[part] * np.sqrt(weight[part])).reshape(-1, 7)
            ri = (r[part] * np.sqrt(weight[part, :, 0])).ravel()
            jb, jf = ji[:, :6], ji[:, 6]
            system.bb[i] += jb.T @ jb
            system.b[i] += jb.T @ ri
            system.gb[i, 6] += jf @ jb
            system.gg[i, 6, 6] += jf @ jf
            system.g[i, 6] += jf @ ri
            terms = [self.lidar(view, boards[i], ext)]
            terms[0] = (terms[0][0], terms[0][1], noise[1] * terms[0][2])
            if self.has_edges and len(view.edge_rays):
                terms.append(self.edges(view, boards[i], ext))
            for distance, jl, sigma in terms:
                weights = _huber(np.abs(distance) / sigma) / sigma**2
                weighted = jl * weights[:, None]
                h, gradient = jl.T @ weighted, weighted.T @ distance
                system.gg[i, :6, :6] += h  # moving the lidar equals moving the board in the opposite direction
                system.gb[i, :6] -= h
                system.bb[i] += h
                system.g[i, :6] += gradient
                system.b[i] -= gradient
        return system

    def noise(self, ext: Floats, boards: Sequence[Floats], scale: float) -> tuple[float, float]:
        """Robust standard deviations of the residuals: px, and range in metres."""
        residual, _ = self.corners(boards, scale)
        freedom = 1 - 6 * len(self.views) / residual.size
        px = _spread(residual.ravel()) / np.sqrt(max(freedom, 0.2))
        ranges = []
        for view, board in zip(self.views, boards, strict=True):
            distance, _, cosine = self.lidar(view, board, ext)
            ranges.append(distance / cosine)
        return max(px, MIN_NOISE[0]), max(_spread(np.concatenate(ranges)), MIN_NOISE[1])


def solve(
    views: Sequence[BoardView],
    intrinsics: Intrinsics,
    start: Floats,
    *,
    outline_m: Sequence[float] | None = None,
    focal_free: bool = False,
    boards: Sequence[Floats] | None = None,
    noise: tuple[float, float] | None = None,
) -> Fit:
    """From a start within some 10° and 20 cm. outline_m: left, top, right, bottom of the board in its own frame.

    boards, noise: from an earlier solution with these views, which saves most of the work.
    """
    problem = _Problem(views, intrinsics, outline_m)
    ext, poses, scale = start, list(boards or board_poses(views, intrinsics)), 1.0
    free, rounds = 7 if focal_free else 6, 1 if noise else 2
    noise = noise or FIRST_NOISE
    for _ in range(rounds):  # the noise estimated in the first round weights the second one
        for _ in range(STEPS):
            system = problem.linearise(ext, poses, scale, noise)
            reduced, gradient = _reduced(system)
            step = np.zeros(7)
            step[:free] = -np.linalg.lstsq(reduced.sum(0)[:free, :free], gradient.sum(0)[:free], rcond=1e-12)[0]
            back = -np.linalg.solve(system.bb, (system.b + np.einsum("vgb,g->vb", system.gb, step))[:, :, None])[
                :, :, 0
            ]
            ext, scale = moved(ext, step[:6]), scale * float(np.exp(step[6]))
            poses = [moved(pose, twist) for pose, twist in zip(poses, back, strict=True)]
            if np.abs(step).max() < CONVERGED:
                break
        noise = problem.noise(ext, poses, scale)
    return _described(problem, ext, poses, scale, noise, free)


def _described(
    problem: _Problem, ext: Floats, poses: Sequence[Floats], scale: float, noise: tuple[float, float], free: int
) -> Fit:
    system = problem.linearise(ext, poses, scale, noise)
    reduced, gradient = _reduced(system)
    total = reduced.sum(0)[:free, :free]
    spread = np.linalg.pinv(total, rcond=1e-10)
    to_pose = np.eye(6)
    to_pose[3:, :3] = -cross(ext[:3, 3])  # a twist rotates about the camera, which moves the lidar's position too
    residual, _ = problem.corners(poses, scale)
    reprojection = [
        float(np.sqrt((residual[a:b] ** 2).sum(1).mean()))
        for a, b in zip(problem.counts, problem.counts[1:], strict=False)
    ]
    apart = [_plane_part(problem.lidar(v, b, ext)[0], v.points_m) for v, b in zip(problem.views, poses, strict=True)]
    return Fit(
        ext,
        tuple(poses),
        to_pose @ spread[:6, :6] @ to_pose.T,
        total[:6, :6],
        *noise,
        focal_scale=scale,
        focal_sigma=float(np.sqrt(max(spread[6, 6], 0.0))) if free == 7 else 0.0,
        view_misfit=misfits(reduced[:, :6, :6], gradient[:, :6]),
        reprojection_px=np.array(reprojection),
        apart_m=np.array(apart),
    )


def examine(
    views: Sequence[BoardView], intrinsics: Intrinsics, fit: Fit, *, outline_m: Sequence[float] | None = None
) -> Fit:
    """`fit` evaluated on views it was not fitted to; their boards' poses come from their corners."""
    problem = _Problem(views, intrinsics, outline_m)
    poses = board_poses(views, intrinsics)
    described = _described(problem, fit.camera_from_lidar, poses, 1.0, (fit.sigma_px, fit.sigma_range_m), 6)
    return replace(described, covariance=fit.covariance, information=fit.information)


def _plane_part(distance_m: Floats, points_m: Floats) -> float:
    """RMS of the part of the distances that a shift and a tilt of the plane explain, without noise."""
    # Directions instead of points: a point's coordinates contain its own range noise, which would explain itself.
    rays = points_m / np.linalg.norm(points_m, axis=1, keepdims=True)
    across = (rays - rays.mean(0)) @ np.linalg.svd(rays - rays.mean(0), full_matrices=False)[2][:2].T
    basis = np.column_stack([np.ones(len(rays)), across])
    fitted = basis @ np.linalg.lstsq(basis, distance_m, rcond=1e-9)[0]
    return float(np.sqrt(np.mean(fitted**2)))


def misfits(information: Floats, gradient: Floats) -> Floats:
    """(views,) squared step by which each view alone would move the pose, in units of its own uncertainty."""
    return np.array(
        [g @ np.linalg.pinv(h, rcond=1e-8, hermitian=True) @ g for h, g in zip(information, gradient, strict=True)]
    )


def _reduced(system: _System) -> tuple[Floats, Floats]:
    """Normal equations of the global unknowns after eliminating every board's pose: (views, 7, 7) and (views, 7)."""
    solved = np.linalg.solve(system.bb, np.concatenate([system.gb.transpose(0, 2, 1), system.b[:, :, None]], axis=2))
    return system.gg - system.gb @ solved[:, :, :7], system.g - (system.gb @ solved[:, :, 7:])[:, :, 0]


def _huber(sigmas: Floats) -> Floats:
    return np.minimum(1.0, HUBER / np.maximum(sigmas, 1e-12))


def _spread(values: Floats) -> float:
    """Standard deviation of the bulk (median absolute deviation from zero: the fit's residuals are centred)."""
    return float(1.4826 * np.median(np.abs(values)))
