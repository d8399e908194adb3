"""Extrinsics from a table of boards whose poses another program measured in both frames, 19 rows per board.

Rows of a board, three numbers each: in the camera's frame its centre (mm), its normal and its four corners (mm); the
same six in the lidar's frame; then sizes and the board's number. Each board alone determines the lidar's pose; they are
averaged, weighted by their scatter, separately for tilts, rotations in the plane, shifts along the normal and across
it: a lidar measures a board's plane far better than its edges, a camera the other way round.

Example:
    boards = read_poses(Path("poses.csv"))
    result = calibrate(boards)
    result.camera_from_lidar, result.verdict
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.lidar_camera.chi_square import CHANCE_1_IN_10000, usual_misfit
from calibration.pose import Floats, fit_points, inverse, moved
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.files import read_text
from pipeline.rig.transforms import apply, cross, rotation_to_vector

MAX_BYTES = 64 << 20  # of a file of poses
ROWS = 19
MIN_BOARDS, GOOD_BOARDS = 4, 8
SIZE_TOLERANCE = 0.15  # relative difference allowed between a side measured by the lidar and by the camera
MAX_REJECTED = 0.4  # of the boards: beyond it one cannot decide which part is right
# Of a twist in the board's frame: tilt, tilt, rotation in the plane; shift across, across, along the normal.
KINDS = (0, 0, 1, 2, 2, 3)
# Prior: the accuracy of a lidar with centimetres of noise, weighted like this many boards. Scatter alone would suffice
# with hundreds of boards; with ten, the kind that happens to agree best would get all the weight.
USUAL_SIGMA, USUAL_BOARDS = np.array([0.02, 0.01, 0.01, 0.01]), 10  # rad, rad, m, m
OPEN_DEG, OPEN_M = 1.0, 0.05


@dataclass(frozen=True, eq=False)
class PosedBoard:
    name: str
    camera_from_board: Floats
    lidar_from_board: Floats
    centre_camera_m: Floats
    centre_lidar_m: Floats


@dataclass(frozen=True, eq=False)
class PosedExtrinsics:
    camera_from_lidar: Floats
    covariance: Floats  # as in rig.Pose
    verdict: Verdict
    used: tuple[str, ...]
    rejected: dict[str, str]
    held_out_m: float  # RMS distance of board centres in boards left out


def read_poses(path: Path) -> list[PosedBoard]:
    text = read_text(path, most=MAX_BYTES)
    try:
        rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as rows of three numbers: {error}") from error
    if rows.shape[1] != 3 or len(rows) % ROWS or not len(rows):
        raise ConfigError(
            f"{path}: {len(rows)} rows of {rows.shape[1]}, expected three numbers a row and {ROWS} rows a board"
        )
    return [_posed(board, path) for board in rows.reshape(-1, ROWS, 3)]


def _posed(rows: Floats, path: Path) -> PosedBoard:
    name = f"{path.stem} {rows[18, 0]:g}"
    camera, lidar = rows[2:6] / 1000, rows[8:12] / 1000
    if not np.isfinite(rows[:12]).all():
        raise ConfigError(f"{path}: board {rows[18, 0]:g} has numbers that are not finite")
    order = _same_corners(camera, lidar, rows[1], rows[7])
    if order is None:
        sides = ", ".join(f"{1000 * s:.0f}" for s in (*_sides(camera)[:2], *_sides(lidar)[:2]))
        raise ConfigError(
            f"{path}: board {rows[18, 0]:g} has sides of {sides} mm in the camera's and the lidar's frame: two boards? "
            "Are rows missing, or are the two frames from different data?"
        )
    board = _board_frame(camera)
    camera_from_board = fit_points(board, camera)
    lidar_from_board = fit_points(board, lidar[order])
    return PosedBoard(name, camera_from_board, lidar_from_board, rows[0] / 1000, rows[6] / 1000)


def _sides(corners: Floats) -> Floats:
    return np.linalg.norm(np.roll(corners, -1, 0) - corners, axis=1)


def _board_frame(corners: Floats) -> Floats:
    """(4, 3) the corners in a frame of their own: x along the first side, z along the normal."""
    centre = corners.mean(0)
    x = corners[1] - corners[0]
    x = x / np.linalg.norm(x)
    z = np.linalg.svd(corners - centre)[2][2]
    if z @ centre < 0:  # away from the camera
        z = -z
    z = z - (z @ x) * x
    z = z / np.linalg.norm(z)
    return (corners - centre) @ np.column_stack([x, np.cross(z, x), z])


def _same_corners(camera: Floats, lidar: Floats, camera_normal: Floats, lidar_normal: Floats) -> list[int] | None:
    """Order of the lidar's corners that fits the camera's: same sense of rotation and long sides. None: two boards.

    A rotation by 180° stays ambiguous; _with_consistent_turns resolves it by comparing boards.
    """
    for first in range(4):
        for step in (1, -1):
            order = [(first + step * i) % 4 for i in range(4)]
            sides = _sides(lidar[order])
            if (np.abs(sides - _sides(camera)) > SIZE_TOLERANCE * _sides(camera)).any():
                continue
            # Both sensors view the same face, so corners have the same sense of rotation about a normal that points at
            # the sensor.
            if _turns(camera, camera_normal) == _turns(lidar[order], lidar_normal):
                return order
    return None


def _turns(corners: Floats, normal: Floats) -> bool:
    towards = normal if normal @ corners.mean(0) < 0 else -normal
    return bool(np.cross(corners[1] - corners[0], corners[2] - corners[1]) @ towards > 0)


def calibrate(boards: Sequence[PosedBoard]) -> PosedExtrinsics:
    if len(boards) < MIN_BOARDS:
        raise ConfigError(
            f"{len(boards)} boards, {MIN_BOARDS} are needed and {GOOD_BOARDS} are good: measure the board in more poses"
        )
    agreeing, rejected = list(_with_consistent_turns(boards)), dict[str, str]()
    least = max(MIN_BOARDS, math.ceil((1 - MAX_REJECTED) * len(agreeing)))
    pose, sigma, misfit = _average(agreeing)
    while len(agreeing) > least:
        usual = usual_misfit(misfit)
        worst = int(np.argmax(misfit))
        if misfit[worst] < CHANCE_1_IN_10000 * usual:
            break
        board = agreeing.pop(worst)
        away_m = _centre_errors(pose, [board])[0]
        rejected[board.name] = (
            f"it contradicts the others: its centres are {1000 * away_m:.0f} mm apart. Did the board move?"
        )
        pose, sigma, misfit = _average(agreeing)
    covariance = _covariance(agreeing, pose, sigma)
    held_out_m = _held_out(agreeing)
    names = tuple(b.name for b in agreeing)
    verdict = judge(_checks(agreeing, rejected, covariance, held_out_m, len(boards)))
    return PosedExtrinsics(pose, covariance, verdict, names, rejected, held_out_m)


def _alone(board: PosedBoard) -> Floats:
    """camera_from_lidar by this board alone."""
    return board.camera_from_board @ inverse(board.lidar_from_board)


def _with_consistent_turns(boards: Sequence[PosedBoard]) -> list[PosedBoard]:
    """Rotates boards by 180° where needed to agree on the lidar's pose: a rectangle looks the same either way."""
    half = np.diag([-1.0, -1.0, 1.0, 1.0])
    centres = fit_points(np.array([b.centre_lidar_m for b in boards]), np.array([b.centre_camera_m for b in boards]))

    def nearer(board: PosedBoard) -> PosedBoard:
        turned = PosedBoard(
            board.name,
            board.camera_from_board,
            board.lidar_from_board @ half,
            board.centre_camera_m,
            board.centre_lidar_m,
        )
        off = [np.linalg.norm(_alone(b)[:3, :3] - centres[:3, :3]) for b in (board, turned)]
        return board if off[0] <= off[1] else turned

    return [nearer(b) for b in boards]


def _average(boards: Sequence[PosedBoard]) -> tuple[Floats, Floats, Floats]:
    """(camera_from_lidar, (4,) standard deviations by kind, (boards,) misfits as chi square)."""
    pose = fit_points(np.array([b.centre_lidar_m for b in boards]), np.array([b.centre_camera_m for b in boards]))
    kinds, sigma = np.array(KINDS), USUAL_SIGMA
    for _ in range(30):
        residual, jacobian = _residuals(boards, pose)
        by_unknown = sigma[list(KINDS)]
        distance = np.sqrt(((residual / by_unknown) ** 2).sum(1))
        weight = np.minimum(1.0, 4.0 / np.maximum(distance, 1e-9))
        scaled = jacobian / by_unknown[None, :, None] * np.sqrt(weight)[:, None, None]
        right = residual / by_unknown * np.sqrt(weight)[:, None]
        step = -np.linalg.lstsq(scaled.reshape(-1, 6), right.ravel(), rcond=None)[0]
        pose = moved(pose, step)
        if np.abs(step).max() < 1e-8:
            break
        # A robust scale: boards that moved must not hide the differences between all others.
        scatter = np.array([1.4826 * np.median(np.abs(residual[:, kinds == k])) for k in range(4)])
        sigma = np.sqrt((USUAL_BOARDS * USUAL_SIGMA**2 + len(boards) * scatter**2) / (USUAL_BOARDS + len(boards) - 1))
    residual, _ = _residuals(boards, pose)
    return pose, sigma, ((residual / sigma[list(KINDS)]) ** 2).sum(1)


def _residuals(boards: Sequence[PosedBoard], pose: Floats) -> tuple[Floats, Floats]:
    """(boards, 6) twists from the camera's board to the lidar's, in the board's frame, and (boards, 6, 6) Jacobians."""
    residual, jacobian = np.empty((len(boards), 6)), np.empty((len(boards), 6, 6))
    for i, board in enumerate(boards):
        off = inverse(board.camera_from_board) @ pose @ board.lidar_from_board
        residual[i] = np.concatenate([rotation_to_vector(off[:3, :3]), off[:3, 3]])
        r, t = board.camera_from_board[:3, :3], board.camera_from_board[:3, 3]
        jacobian[i] = np.zeros((6, 6))
        jacobian[i, :3, :3] = jacobian[i, 3:, 3:] = r.T
        jacobian[i, 3:, :3] = -r.T @ cross(t)  # a rotation about the camera moves the board
    return residual, jacobian


def _covariance(boards: Sequence[PosedBoard], pose: Floats, sigma: Floats) -> Floats:
    """From the scatter of the boards (sandwich estimator, clustered by board), without an assumed noise."""
    residual, jacobian = _residuals(boards, pose)
    weights = 1 / sigma[list(KINDS)] ** 2
    information = np.einsum("bik,i,bil->kl", jacobian, weights, jacobian)
    scores = np.einsum("bik,i,bi->bk", jacobian, weights, residual)
    n = len(boards)
    bread = np.linalg.inv(information)
    clustered = bread @ (scores.T @ scores) @ bread * n / max(n - 2, 1)
    # With few boards their scatter is uncertain: never below the covariance by the pooled noise.
    covariance = clustered if np.trace(clustered) > np.trace(bread) else bread
    to_pose = np.eye(6)
    to_pose[3:, :3] = -cross(pose[:3, 3])
    return to_pose @ covariance @ to_pose.T


def _centre_errors(pose: Floats, boards: Sequence[PosedBoard]) -> Floats:
    lidar = apply(pose, np.array([b.centre_lidar_m for b in boards]))
    return np.linalg.norm(lidar - np.array([b.centre_camera_m for b in boards]), axis=1)


def centre_rms_m(pose: Floats, boards: Sequence[PosedBoard]) -> float:
    """RMS distance between the board centres measured by the two sensors."""
    return float(np.sqrt(np.mean(_centre_errors(pose, boards) ** 2)))


def _held_out(boards: Sequence[PosedBoard]) -> float:
    """RMS distance of each board's centres with the pose of the others."""
    errors = [_centre_errors(_average([b for b in boards if b is not out])[0], [out])[0] for out in boards]
    return float(np.sqrt(np.mean(np.square(errors))))


def _checks(
    agreeing: Sequence[PosedBoard], rejected: dict[str, str], covariance: Floats, held_out_m: float, n: int
) -> list[Check]:
    checks = [Check(Level.PASS, f"centres of boards left out agree to {1000 * held_out_m:.1f} mm (RMS)")]
    if rejected:
        finding = f"{len(rejected)} of {n} boards were rejected"
        checks.append(Check(Level.WARN, finding, "see the reason of each, and measure them again"))
    if len(agreeing) < GOOD_BOARDS:
        checks.append(Check(Level.WARN, f"{len(agreeing)} boards; {GOOD_BOARDS} or more are recommended", "add boards"))
    sigma = np.sqrt(np.diag(covariance))
    if np.degrees(sigma[:3].max()) > OPEN_DEG or sigma[3:].max() > OPEN_M:
        finding = f"the pose is only known to {np.degrees(sigma[:3].max()):.1f}° and {1000 * sigma[3:].max():.0f} mm"
        checks.append(Check(Level.FAIL, finding, "add boards at other angles, places and distances"))
    return checks
