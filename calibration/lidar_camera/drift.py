"""Detects whether a lidar has moved against its camera: depth edges of the cloud must lie on edges of the picture.

The pose in the rig is compared with rotated ones (after Levinson and Thrun 2013) over many frames; frames that disagree
make the result "unknown". Rotations only: a shift of centimetres moves edges by less than a pixel at 10 m. The result
is never written into a rig; it says when to calibrate again.

Example:
    drift = Drift(intrinsics, camera_from_lidar)
    for image, points in frames: drift.add(image, points)
    answer = drift.answer()
    answer.state                # "aligned", "drifted" or "unknown"
    answer.rotation_deg         # (3,) apparent rotation of the lidar about the camera's right, down and forward axes
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from calibration.pose import Floats, turned
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply

COMPARE_WIDTH_PX = 620  # width at which edges are compared: half of a driving camera's; a pixel is then about 0.15°
SOFT_PX = 3.0  # an edge attracts over this many of those pixels
JUMP_M, JUMP_SHARE = 0.5, 0.08  # a depth edge: the next point of the ring is this much farther away
RING_RAD, NEXT_RAD = 0.0035, 0.012  # elevations this close form a ring, azimuths this close are neighbours
NEAR_M, FAR_M = 2.0, 60.0
MAX_EDGES, MIN_EDGES = 1500, 80
MAX_FRAMES, MIN_FRAMES = 40, 6
REACH_DEG, STEPS_DEG = 2.0, (0.5, 0.25, 0.1)
DRIFT_DEG = 0.5  # smaller rotations are within the error of a calibration
SURE_SIGMAS = 4.0  # of the gain, over frames
CORRELATED = 1.5  # neighbouring frames show the same edges: standard errors are larger by this factor
VAGUE_DEG = 0.25  # a standard deviation above this cannot show whether the lidar moved

State = Literal["aligned", "drifted", "unknown"]


class DriftAnswer(NamedTuple):
    state: State
    rotation_deg: Floats
    sigma_deg: Floats
    frames: int
    reason: str

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}"


@dataclass(frozen=True, eq=False)
class _FrameEdges:
    edges_m: Floats  # (n, 3) lidar points at the near side of depth edges
    weights: Floats
    attraction: np.ndarray  # (h, w) float32, 1 on an edge of the picture


class Drift:
    def __init__(self, intrinsics: Intrinsics, camera_from_lidar: Floats) -> None:
        self._pose, self._lens = camera_from_lidar, intrinsics
        self._scale = min(1.0, COMPARE_WIDTH_PX / intrinsics.width_px)
        self._frames: deque[_FrameEdges] = deque(maxlen=MAX_FRAMES)
        self.poor = 0  # frames with too few depth edges in view

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, image: np.ndarray, points_m: Floats) -> None:
        """image: (h, w, 3) or (h, w) uint8 of the intrinsics' size. points_m: (n, 3)."""
        points, weights = depth_edges(points_m)
        camera = apply(self._pose, points)
        # The same points are scored at every candidate pose.
        in_view = self._lens.project(camera)[1]
        points, weights = points[in_view], weights[in_view]
        if len(points) < MIN_EDGES:
            self.poor += 1
            return
        if len(points) > MAX_EDGES:
            keep = np.argsort(-weights)[:MAX_EDGES]
            points, weights = points[keep], weights[keep]
        self._frames.append(_FrameEdges(points, weights / weights.sum(), attraction(image, self._scale)))

    def answer(self) -> DriftAnswer:
        none = np.full(3, np.nan)
        n = len(self._frames)
        if n < MIN_FRAMES:
            few = f"; {self.poor} more had too few depth edges in the picture" if self.poor else ""
            return DriftAnswer("unknown", none, none, n, f"{n} frames, {MIN_FRAMES} are needed{few}")
        here = self._scores(np.zeros(3))
        best = self._search()
        gain = self._scores(best) - here
        sigmas = float(gain.mean() / (CORRELATED * gain.std(ddof=1) / np.sqrt(n) + 1e-9))
        sigma, sharp = self._sigma(best)
        size = float(np.linalg.norm(best))
        axes = ("pitch", "yaw", "roll")
        angles = ", ".join(f"{a} {v:+.2f} ± {2 * s:.2f}°" for a, v, s in zip(axes, best, sigma, strict=True))
        if not sharp or sigma.max() > 2 * VAGUE_DEG:
            return DriftAnswer("unknown", best, sigma, n, f"the frames do not distinguish between poses ({angles})")
        if size > DRIFT_DEG and sigmas > SURE_SIGMAS and size > 3 * float(np.linalg.norm(sigma)):
            why = f"the lidar seems rotated by {size:.1f}° ({angles}). Calibrate again: {COMMAND} calibrate extrinsics"
            return DriftAnswer("drifted", best, sigma, n, why)
        if size <= DRIFT_DEG and sigma.max() < VAGUE_DEG:
            return DriftAnswer("aligned", best, sigma, n, f"edges fit to {size:.1f}° ({angles})")
        return DriftAnswer("unknown", best, sigma, n, f"perhaps rotated by {size:.1f}° ({angles}), not certain yet")

    def _scores(self, rotation_deg: Floats) -> Floats:
        """(frames,) how well the depth edges lie on the picture's, with the lidar rotated by this much."""
        pose = turned(self._pose, np.radians(rotation_deg))
        scores = np.empty(len(self._frames))
        for i, frame in enumerate(self._frames):
            pixels, _, visible = self._lens.project_from(pose, frame.edges_m)
            at = np.rint(np.nan_to_num(pixels[visible] + 0.5) * self._scale - 0.5).astype(int)
            height, width = frame.attraction.shape
            value = frame.attraction[np.clip(at[:, 1], 0, height - 1), np.clip(at[:, 0], 0, width - 1)]
            weight = frame.weights[visible]
            scores[i] = float(value @ weight / max(weight.sum(), 1e-9))
        return scores

    def _search(self) -> Floats:
        """(3,) degrees of the best rotation within REACH_DEG: one axis after the other, with decreasing steps."""
        best = np.zeros(3)
        for step in STEPS_DEG:
            reach = REACH_DEG if step == STEPS_DEG[0] else 2.5 * step
            for _ in range(2):
                for axis in (1, 0, 2):
                    around = [0.0] if step == STEPS_DEG[0] else [best[axis]]
                    tried = np.unique(np.clip(np.arange(-reach, reach + 1e-9, step) + around[0], -REACH_DEG, REACH_DEG))
                    scores = [self._scores(np.where(np.arange(3) == axis, angle, best)).mean() for angle in tried]
                    best[axis] = tried[int(np.argmax(scores))]
        return best

    def _sigma(self, best: Floats) -> tuple[Floats, bool]:
        """((3,) standard deviations in degrees by bootstrap over frames, whether pitch and yaw have a peak)."""
        draw, n = np.random.default_rng(0), len(self._frames)
        offsets = np.arange(-1.0, 1.01, 0.2)
        sigma, sharp = np.empty(3), True
        for axis in range(3):
            curves = np.array(
                [self._scores(best + np.eye(3)[axis] * offset) for offset in offsets]
            )  # (offsets, frames)
            drawn = draw.integers(0, n, (200, n))
            peaks = offsets[np.argmax(curves[:, drawn].mean(2), axis=0)]
            sigma[axis] = CORRELATED * float(np.sqrt(np.mean(peaks**2) + 0.2**2 / 12))
            drop = curves[len(offsets) // 2] - (curves[0] + curves[-1]) / 2
            # Roll moves edges least; pitch and yaw must be observable for any answer.
            if axis < 2 and drop.mean() < 2 * CORRELATED * drop.std(ddof=1) / np.sqrt(n):
                sharp = False
        return sigma, sharp


def depth_edges(points_m: Floats) -> tuple[Floats, Floats]:
    """((n, 3) points behind which the ring continues farther away, (n,) weights by how much farther)."""
    points = np.asarray(points_m, np.float64)[:, :3]
    distance = np.linalg.norm(points, axis=1)
    keep = np.isfinite(distance) & (distance > NEAR_M) & (distance < 2 * FAR_M)
    points, distance = points[keep], distance[keep]
    elevation = np.floor(np.arcsin(points[:, 2] / distance) / RING_RAD).astype(int)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    order = np.lexsort((azimuth, elevation))
    points, distance, elevation, azimuth = points[order], distance[order], elevation[order], azimuth[order]
    jump = np.diff(distance)
    neighbours = (np.diff(elevation) == 0) & (np.diff(azimuth) < NEXT_RAD)
    large = neighbours & (np.abs(jump) > np.maximum(JUMP_M, JUMP_SHARE * np.minimum(distance[1:], distance[:-1])))
    near = np.where(jump > 0, np.arange(len(jump)), np.arange(1, len(jump) + 1))[large]
    inside = distance[near] < FAR_M
    return points[near][inside], np.sqrt(np.minimum(np.abs(jump[large][inside]), 10.0))


def attraction(image: np.ndarray, scale: float) -> np.ndarray:
    """(h, w) float32 of the smaller picture: 1 on an edge, falling off over SOFT_PX."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    grey = cv2.GaussianBlur(grey, (3, 3), 0)
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength = float(np.percentile(np.hypot(gx, gy), 90))  # relative to each picture: low contrast still has edges
    edges = cv2.Canny(grey, 0.5 * strength, strength, L2gradient=True)
    distance = cv2.distanceTransform(255 - edges, cv2.DIST_L2, 3)
    return np.exp(-distance / SOFT_PX).astype(np.float32)
