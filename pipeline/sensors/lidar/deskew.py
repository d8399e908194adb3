"""A sweep as if its sensor had stood still: every point moved to its position seen from one pose.

Example:
    motion = from_rates(times_ns, angular_velocity_rps, velocity_mps)      # of the sensor, in its own frame
    static = deskew(points, capture_ns, motion)                            # seen from the pose at capture_ns

Pure: no stream, no clock. A sensor that turns at 30 °/s and drives at 15 m/s smears a sweep of 0.1 s by 3° and 1.5 m.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS

Floats = npt.NDArray[np.float64]
# Between two knots a point's motion is linear: at 3 rad/s, 0.1 s over 128 knots, 100 m away, the error is 0.07 mm.
KNOTS = 128


class Motion(NamedTuple):
    """Poses of the sensor: at times_ns[k], world_from_sensor is (rotations[k], positions_m[k]). The world's origin is
    free."""

    times_ns: npt.NDArray[np.int64]  # (m,) rising
    rotations: Floats  # (m, 3, 3)
    positions_m: Floats  # (m, 3)

    @property
    def span_ns(self) -> tuple[int, int]:
        return int(self.times_ns[0]), int(self.times_ns[-1])


def from_rates(
    times_ns: npt.ArrayLike, angular_velocity_rps: npt.ArrayLike, velocity_mps: npt.ArrayLike | None = None
) -> Motion:
    """Integrate rates of the sensor in its own frame; between two samples they change linearly.

    times_ns: (m,) rising. angular_velocity_rps: (m, 3), a gyroscope's. velocity_mps: (m, 3), odometry's; None: no
    translation. Raises ValueError where the shapes do not fit, or time does not rise.
    """
    at_ns = np.asarray(times_ns, np.int64)
    turning = np.asarray(angular_velocity_rps, np.float64)
    moving = np.zeros_like(turning) if velocity_mps is None else np.asarray(velocity_mps, np.float64)
    if at_ns.ndim != 1 or turning.shape != (len(at_ns), 3) or moving.shape != turning.shape:
        shapes = f"times {at_ns.shape}, angular velocities {turning.shape}, velocities {moving.shape}"
        raise ValueError(f"{shapes}: expected (m,), (m, 3), (m, 3)")
    if len(at_ns) < 1 or (np.diff(at_ns) <= 0).any():
        raise ValueError("times must be at least one, and rising")
    took_s = np.diff(at_ns) / NS
    turns = rotation(0.5 * (turning[:-1] + turning[1:]) * took_s[:, None])
    halves = rotation(0.25 * (turning[:-1] + turning[1:]) * took_s[:, None])
    steps_m = 0.5 * (moving[:-1] + moving[1:]) * took_s[:, None]
    rotations, positions_m = np.empty((len(at_ns), 3, 3)), np.zeros((len(at_ns), 3))
    rotations[0] = np.eye(3)
    for k in range(len(at_ns) - 1):
        rotations[k + 1] = rotations[k] @ turns[k]
        positions_m[k + 1] = positions_m[k] + rotations[k] @ halves[k] @ steps_m[k]
    return Motion(at_ns, rotations, positions_m)


def deskew(
    points: npt.NDArray[np.float32], capture_ns: int, motion: Motion, *, at_ns: int | None = None
) -> npt.NDArray[np.float32]:
    """points: (n, 5) x y z reflectance seconds. Returns (n, 4) float32, x y z reflectance, seen from the sensor's pose
    at `at_ns` (None: capture_ns). Beyond its ends the motion is extrapolated.

    Raises ValueError for points without times.
    """
    if points.ndim != 2 or points.shape[1] != 5:
        raise ValueError(f"points {points.shape}: expected (n, 5), with the time of each")
    still = np.ascontiguousarray(points[:, :4])
    if not len(points):
        return still
    seconds = points[:, 4]
    first_s, last_s = float(seconds.min()), float(seconds.max())
    knots_s = np.linspace(first_s, max(last_s, first_s + 1e-6), KNOTS)
    rotations, positions_m = _poses(motion, capture_ns + np.round(knots_s * NS).astype(np.int64))
    [home], [home_m] = _poses(motion, np.array([capture_ns if at_ns is None else at_ns], np.int64))
    turns = (home.T @ rotations).astype(np.float32)  # home_from_sensor at each knot
    shifts = ((positions_m - home_m) @ home).astype(np.float32)
    place = (seconds - np.float32(first_s)) * np.float32((KNOTS - 1) / (knots_s[-1] - first_s))
    before = np.minimum(place.astype(np.intp), KNOTS - 2)
    share = (place - before)[:, None]
    xyz = points[:, :3]
    here = _moved(turns, shifts, before, xyz)
    still[:, :3] = here + share * (_moved(turns, shifts, before + 1, xyz) - here)
    return still


def rotation(vector: npt.ArrayLike) -> Floats:
    """(…, 3) axis times angle in radians → (…, 3, 3) (Rodrigues)."""
    turned = np.asarray(vector, np.float64)
    angle = np.linalg.norm(turned, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(turned, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*turned.shape[:-1], 3, 3)
    # sin a / a and (1 - cos a) / a², also at 0.
    sine, cosine = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.asarray(np.eye(3) + sine * cross + cosine * (cross @ cross))


def turned_by(rotations: Floats) -> Floats:
    """(…, 3, 3) of less than half a turn → (…, 3) axis times angle."""
    cosine = np.clip((np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2, -1.0, 1.0)
    angle = np.arccos(cosine)
    off = np.stack(
        [
            rotations[..., 2, 1] - rotations[..., 1, 2],
            rotations[..., 0, 2] - rotations[..., 2, 0],
            rotations[..., 1, 0] - rotations[..., 0, 1],
        ],
        axis=-1,
    )
    return np.asarray(off / (2 * np.sinc(angle / np.pi))[..., None])


def _poses(motion: Motion, times_ns: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    if len(motion.times_ns) == 1:
        return np.repeat(motion.rotations, len(times_ns), axis=0), np.repeat(motion.positions_m, len(times_ns), axis=0)
    before = np.clip(np.searchsorted(motion.times_ns, times_ns, side="right") - 1, 0, len(motion.times_ns) - 2)
    took_ns = motion.times_ns[before + 1] - motion.times_ns[before]
    share = ((times_ns - motion.times_ns[before]) / took_ns)[:, None]
    first, second = motion.rotations[before], motion.rotations[before + 1]
    turns = turned_by(np.swapaxes(first, -1, -2) @ second)
    positions_m = motion.positions_m[before] + share * (motion.positions_m[before + 1] - motion.positions_m[before])
    return first @ rotation(share * turns), positions_m


def _moved(
    turns: npt.NDArray[np.float32],
    shifts: npt.NDArray[np.float32],
    knots: npt.NDArray[np.intp],
    xyz: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    return np.asarray(np.einsum("nij,nj->ni", turns[knots], xyz) + shifts[knots])
