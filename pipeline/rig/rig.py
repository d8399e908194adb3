"""The rig: intrinsics, poses and time offsets of the sensors, each with its uncertainty. Projects; estimates nothing.

Frames are named after their sensors. The base frame is x forward, y left, z up; a camera's is x right, y down, z
forward. Poses form a tree of `target_from_source`, (4, 4) float64 in metres, so that chains cancel by eye.
`calibration/` writes rig files, rig_file.py reads them.

Example:
    rig = load_rig("rig.yaml")                               # pipeline.rig.rig_file
    camera_from_lidar = rig.transform("camera", "lidar")
    pixels, depth_m, visible = rig.project(points_m, source="lidar", camera="camera")
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, cross, rigid

BASE = "base"
ROTATION_TOLERANCE = 1e-4  # R·Rᵀ − 1: what rounding to four digits in a hand-written file leaves


@dataclass(frozen=True, eq=False)
class Pose:
    """target_from_source: (4, 4) float64, rigid, metres; brings points of the source's frame into the target's.

    covariance: (6, 6) of (rx, ry, rz in radians, tx, ty, tz in metres), or None where unknown. These errors are
    in the target's frame: R_true = exp([r]×)·R, t_true = t + (tx, ty, tz).
    """

    target: str
    source: str
    target_from_source: np.ndarray
    covariance: np.ndarray | None = None

    def __post_init__(self) -> None:
        matrix = np.asarray(self.target_from_source, np.float64)
        object.__setattr__(self, "target_from_source", matrix)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError(f"a pose is a 4 × 4 matrix of finite numbers, found shape {matrix.shape}")
        rotation = matrix[:3, :3]
        off = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
        if off > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0 or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError(
                f"not a rigid motion: its rotation is off by {off:.2g}, its last row is {matrix[3].tolist()}"
            )
        if self.covariance is not None and np.shape(self.covariance) != (6, 6):
            raise ValueError(f"a pose's covariance is 6 × 6, found shape {np.shape(self.covariance)}")

    @property
    def sigma(self) -> np.ndarray | None:
        """(6,) standard deviations: three rotations in radians, three translations in metres."""
        return None if self.covariance is None else np.sqrt(np.maximum(np.diag(self.covariance), 0))

    def inverse(self) -> Pose:
        rotation, translation = self.target_from_source[:3, :3].T, self.target_from_source[:3, 3]
        matrix = rigid(rotation, -rotation @ translation)
        if self.covariance is None:
            return Pose(self.source, self.target, matrix)
        # R⁻¹ turns by −Rᵀr; −Rᵀt moves by −Rᵀ(d − r × t).
        by = np.zeros((6, 6))
        by[:3, :3] = by[3:, 3:] = -rotation
        by[3:, :3] = -rotation @ cross(translation)
        return Pose(self.source, self.target, matrix, by @ self.covariance @ by.T)

    def then(self, inner: Pose) -> Pose:
        """a_from_b.then(b_from_c) = a_from_c. Their errors are assumed independent; unknown if either is."""
        assert self.source == inner.target, (
            f"{self.target}_from_{self.source} does not fit {inner.target}_from_{inner.source}"
        )
        matrix = self.target_from_source @ inner.target_from_source
        if self.covariance is None or inner.covariance is None:
            return Pose(self.target, inner.source, matrix)
        rotation, arm = (
            self.target_from_source[:3, :3],
            self.target_from_source[:3, :3] @ inner.target_from_source[:3, 3],
        )
        by_outer, by_inner = np.eye(6), np.zeros((6, 6))
        by_outer[3:, :3] = -cross(arm)  # r × arm
        by_inner[:3, :3] = by_inner[3:, 3:] = rotation
        covariance = by_outer @ self.covariance @ by_outer.T + by_inner @ inner.covariance @ by_inner.T
        return Pose(self.target, inner.source, matrix, covariance)


@dataclass(frozen=True)
class TimeOffset:
    """offset_ms is ADDED to a stream's capture times to align them with the reference's.

    A microphone whose timestamps are 20 ms late against the camera has −20. sigma_ms: standard deviation, None where
    unknown.
    """

    sensor: str
    reference: str
    offset_ms: float
    sigma_ms: float | None = None


@dataclass(frozen=True, eq=False)
class Rig:
    """What is known of a sensor set-up.

    intrinsics: by camera. poses: a tree over frames. time_offsets: by sensor. provenance: for each estimate, one line
        on where it comes from. Raises ConfigError where the poses are not a tree.
    """

    intrinsics: dict[str, Intrinsics] = field(default_factory=dict)
    poses: tuple[Pose, ...] = ()
    time_offsets: dict[str, TimeOffset] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    base: str = BASE
    where: str = "rig"  # the file it came from, named in errors

    def __post_init__(self) -> None:
        root: dict[str, str] = {}

        def find(name: str) -> str:
            while root.setdefault(name, name) != name:
                name = root[name]
            return name

        for i, pose in enumerate(self.poses):
            a, b = find(pose.target), find(pose.source)
            if a == b:
                raise ConfigError(
                    f"{self.where}: poses[{i}]: {pose.target}_from_{pose.source} closes a loop: the poses before "
                    "it already connect the two. Poses are a tree; leave one of them out"
                )
            root[a] = b

    @property
    def frames(self) -> tuple[str, ...]:
        """Every name that has a pose, intrinsics or a time offset."""
        posed = (name for pose in self.poses for name in (pose.target, pose.source))
        return tuple(dict.fromkeys([*self.intrinsics, *posed, *self.time_offsets]))

    def camera(self, name: str) -> Intrinsics:
        if name not in self.intrinsics:
            raise ConfigError(
                f"{self.where}: intrinsics: no camera called '{name}'. "
                f"Cameras here: {', '.join(self.intrinsics) or 'none'}.{nearest(name, self.intrinsics)}"
            )
        return self.intrinsics[name]

    def pose(self, target: str, source: str) -> Pose:
        """target_from_source along the tree, with its covariance.

        ConfigError where no chain of poses connects the two.
        """
        for name in (target, source):
            if name not in self.frames and name != self.base:
                raise ConfigError(
                    f"{self.where}: poses: no frame called '{name}'. Frames here: {', '.join(self.frames) or 'none'}."
                    f"{nearest(name, self.frames)}"
                )
        poses = {target: Pose(target, target, np.eye(4), np.zeros((6, 6)))}
        open_ends = [target]
        while open_ends and source not in poses:
            end = open_ends.pop()
            for pose in self.poses:
                step = pose if pose.target == end else pose.inverse() if pose.source == end else None
                if step is not None and step.source not in poses:
                    poses[step.source] = poses[end].then(step)
                    open_ends.append(step.source)
        if source not in poses:
            reached = ", ".join(n for n in poses if n != target) or "nothing"
            raise ConfigError(
                f"{self.where}: poses: no chain connects '{target}' and '{source}'. "
                f"Reachable from '{target}': {reached}. Estimate it with: {COMMAND} calibrate extrinsics"
            )
        return poses[source]

    def transform(self, target: str, source: str) -> np.ndarray:
        """target_from_source, (4, 4) float64."""
        return self.pose(target, source).target_from_source

    def project(self, points_m: np.ndarray, *, source: str, camera: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (n, 3) of a sensor's frame → (pixels (n, 2), depth_m (n,), visible (n,) bool) of a camera."""
        return self.camera(camera).project_from(self.transform(camera, source), points_m)

    def unproject(self, pixels: np.ndarray, depth_m: np.ndarray, *, camera: str, target: str) -> np.ndarray:
        """Pixels (n, 2) with depth along the optical axis (n,) → points (n, 3) of another frame."""
        return apply(self.transform(target, camera), self.camera(camera).unproject(pixels, depth_m))

    def offset_ms(self, sensor: str, reference: str) -> TimeOffset:
        """The offset to add to a sensor's capture times to align them with the reference's, through at most one common
        reference.
        """
        if sensor == reference:
            return TimeOffset(sensor, reference, 0.0, 0.0)
        mine, theirs = self.time_offsets.get(sensor), self.time_offsets.get(reference)
        if mine and mine.reference == reference:
            return mine
        if theirs and theirs.reference == sensor:
            return TimeOffset(sensor, reference, -theirs.offset_ms, theirs.sigma_ms)
        if mine and theirs and mine.reference == theirs.reference:
            known = mine.sigma_ms is not None and theirs.sigma_ms is not None
            sigma_ms = float(np.hypot(mine.sigma_ms, theirs.sigma_ms)) if known else None  # type: ignore[arg-type]
            return TimeOffset(sensor, reference, mine.offset_ms - theirs.offset_ms, sigma_ms)
        known_here = ", ".join(f"{o.sensor} to {o.reference}" for o in self.time_offsets.values()) or "none"
        raise ConfigError(
            f"{self.where}: time_offsets: none between '{sensor}' and '{reference}'. Offsets here: {known_here}. "
            f"Measure it with: {COMMAND} calibrate time"
        )

    # Each returns a new rig; an estimate replaces the one before it.

    def with_intrinsics(self, camera: str, intrinsics: Intrinsics, provenance: str = "") -> Rig:
        return dataclasses.replace(
            self,
            intrinsics={**self.intrinsics, camera: intrinsics},
            provenance=self._provenance_with(f"intrinsics {camera}", provenance),
        )

    def with_pose(self, pose: Pose, provenance: str = "") -> Rig:
        """Replaces the pose between the same two frames. ConfigError if it closes a loop with others."""
        pair = {pose.target, pose.source}
        others = [p for p in self.poses if {p.target, p.source} != pair]
        lines = self._provenance_with(f"pose {pose.target}_from_{pose.source}", provenance)
        return dataclasses.replace(self, poses=(*others, pose), provenance=lines)

    def with_time_offset(self, offset: TimeOffset, provenance: str = "") -> Rig:
        offsets = {**self.time_offsets, offset.sensor: offset}
        return dataclasses.replace(
            self, time_offsets=offsets, provenance=self._provenance_with(f"time {offset.sensor}", provenance)
        )

    def _provenance_with(self, estimate: str, line: str) -> dict[str, str]:
        return {**self.provenance, estimate: line} if line else self.provenance
