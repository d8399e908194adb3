"""Detects the board in a lidar's cloud: a flat patch of the right size, its points and the rays past its edges.

Large planes (floor, walls) are removed; the rest is segmented where the range jumps along a ring or between rings. Each
segment is searched for planes (RANSAC). A plane is a board if a rectangle of the board's size fits its points and no
points of the same plane lie around it. Which of several candidates is the calibration board is decided over all views
(calibration/lidar_camera/board_views.py).

Example:
    boards = find_boards(points_m, width_m=0.8, height_m=0.6)        # best first; [] if there is none
    boards[0].points_m, boards[0].edge_rays
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calibration.pose import Floats

NEAREST_M, FARTHEST_M = 0.6, 12.0
# Within a board ranges change by its tilt: 60° at 3 m and 0.4° a step is 4 cm; noise adds a few. A person behind it is
# 20 cm away. Between rings of 2° a tilt of 45° makes 10 cm at 3 m.
JUMP_ALONG_M, JUMP_BETWEEN = 0.12, 0.06  # metres; share of the range
GAP_STEPS = 3.5  # points of one ring farther apart than this many steps are not neighbours
RINGS_APART_RAD = 0.006  # elevations closer than this are one ring
FLAT_M = 0.05  # largest distance from a plane for its points: 2.5 standard deviations of a common lidar
MIN_POINTS, MIN_RINGS = 40, 3
TRIES = 80
PLANES_PER_SEGMENT, LARGE_PLANES = 3, 6
LARGE = 2.0  # planes that extend over this many diagonals of the board are floor or wall
FILLED = 0.7  # share of each side that the points must cover, not counting one ring spacing
AROUND_M, AROUND_SHARE = (0.06, 0.3), 0.15  # points of the same plane next to it: a board has free space around it
TRIES_LARGE_POINTS = 3000
MAX_BOARDS = 3


@dataclass(frozen=True, eq=False)
class CloudBoard:
    points_m: Floats  # (m, 3) on the plane
    edge_rays: Floats  # (e, 3) unit vectors past its edges
    edge_sigma_rad: float
    misfit: float  # 0: exactly the requested size


class _Ring(NamedTuple):
    """Points of one beam, sorted by azimuth."""

    members: np.ndarray  # indices into the cloud
    azimuth: Floats
    step_rad: float


def find_boards(points_m: Floats, *, width_m: float, height_m: float) -> list[CloudBoard]:
    """points_m: (n, 3) in the lidar's frame, z up. width_m, height_m: of the whole board, in either orientation."""
    points = np.asarray(points_m, np.float64)[:, :3]
    distance = np.linalg.norm(points, axis=1)
    points = points[np.isfinite(distance) & (distance > NEAREST_M) & (distance < FARTHEST_M)]
    if len(points) < MIN_POINTS:
        return []
    rings = _rings(points)
    left = _without_large_planes(points, LARGE * math.hypot(width_m, height_m))
    segment = _segments(points, rings, left)
    boards = []
    for number in np.flatnonzero(np.bincount(segment[left]) >= MIN_POINTS):
        members = np.flatnonzero(left & (segment == number))
        for _ in range(PLANES_PER_SEGMENT):
            if len(members) < MIN_POINTS:
                break
            flat = _largest_plane(points[members])
            board = _board(points, members[flat], rings, width_m, height_m)
            if board is not None:
                boards.append(board)
            members = members[~flat]
    return sorted(boards, key=lambda b: b.misfit)[:MAX_BOARDS]


def _without_large_planes(points: Floats, large_m: float) -> np.ndarray:
    """(n,) bool: points that do not belong to a plane that extends over large_m in both directions."""
    left = np.ones(len(points), bool)
    draw = np.random.default_rng(0)
    for _ in range(LARGE_PLANES):
        members = np.flatnonzero(left)
        if len(members) < MIN_POINTS:
            break
        some = points[draw.choice(members, min(TRIES_LARGE_POINTS, len(members)), replace=False)]
        flat = some[_largest_plane(some)]
        centre = flat.mean(0)
        axes = np.linalg.svd(flat - centre, full_matrices=False)[2]
        if len(flat) < MIN_POINTS or min(_extent((flat - centre) @ axis) for axis in axes[:2]) < large_m:
            break
        left &= np.abs((points - centre) @ axes[2]) > FLAT_M
    return left


def _rings(points: Floats) -> list[_Ring]:
    """Groups points by elevation: those of one beam lie on a cone. Dense scanners are cut into thin slices instead."""
    elevation = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    order = np.argsort(elevation, kind="stable")
    cuts = np.flatnonzero(np.diff(elevation[order]) > RINGS_APART_RAD) + 1
    groups = np.split(order, cuts)
    if len(groups) < 2 * MIN_RINGS:  # no gaps between elevations: slices as fine as the rows of a depth camera
        slices = np.floor(elevation / RINGS_APART_RAD).astype(int)
        groups = [np.flatnonzero(slices == s) for s in np.unique(slices)]
    rings = []
    for group in groups:
        along = group[np.argsort(azimuth[group], kind="stable")]
        steps = np.diff(azimuth[along])
        if len(along) >= 2:
            rings.append(
                _Ring(along, azimuth[along], float(np.median(steps[steps > 1e-6])) if (steps > 1e-6).any() else 1e-3)
            )
    return rings


def _segments(points: Floats, rings: list[_Ring], left: np.ndarray) -> np.ndarray:
    """(n,) segment of each point: stretches of a ring without a jump, joined with touching ones of the next ring."""
    parent: list[int] = []

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    distance = np.linalg.norm(points, axis=1)
    stretch = np.zeros(len(points), int)
    for ring in rings:
        r = distance[ring.members]
        touching = (np.diff(ring.azimuth) < GAP_STEPS * ring.step_rad) & (np.abs(np.diff(r)) < JUMP_ALONG_M)
        touching &= left[ring.members[:-1]] & left[ring.members[1:]]
        first = len(parent)
        numbers = first + np.concatenate([[0], np.cumsum(~touching)])
        parent.extend(range(first, int(numbers[-1]) + 1))
        stretch[ring.members] = numbers
    for lower, upper in itertools.pairwise(rings):
        at = np.clip(np.searchsorted(upper.azimuth, lower.azimuth), 0, len(upper.azimuth) - 1)
        near = np.abs(upper.azimuth[at] - lower.azimuth) < GAP_STEPS * max(upper.step_rad, lower.step_rad)
        a, b = lower.members, upper.members[at]
        near &= left[a] & left[b]
        near &= np.abs(distance[a] - distance[b]) < np.maximum(JUMP_BETWEEN * distance[a], JUMP_ALONG_M)
        for i, j in {(int(i), int(j)) for i, j in zip(stretch[a[near]], stretch[b[near]], strict=True)}:
            parent[find(i)] = find(j)
    return np.unique([find(i) for i in range(len(parent))], return_inverse=True)[1][stretch]


def _board(points: Floats, on: np.ndarray, rings: list[_Ring], width_m: float, height_m: float) -> CloudBoard | None:
    """on: indices of the points of one plane."""
    if len(on) < MIN_POINTS:
        return None
    centre = points[on].mean(0)
    axes = np.linalg.svd(points[on] - centre, full_matrices=False)[2]
    flat = (points[on] - centre) @ axes[:2].T
    angle, middle, size = _rectangle(flat, width_m, height_m)
    across = np.array(_axes(angle)) @ axes[:2]  # the rectangle's two axes in space
    aside = np.abs((points - centre) @ across.T - middle) - size / 2
    same_plane = np.abs((points - centre) @ axes[2]) < FLAT_M
    inside = same_plane & (aside < 0.02).all(1)
    beside = same_plane & (aside.max(1) > AROUND_M[0]) & (aside.max(1) < AROUND_M[1])
    if inside.sum() < MIN_POINTS or beside.sum() > AROUND_SHARE * inside.sum():
        return None
    ring_m = _ring_gap(rings) * float(np.linalg.norm(centre))
    filled = [
        (_extent((points[inside] - centre) @ u) + 0.5 * ring_m) / side for u, side in zip(across, size, strict=True)
    ]
    if min(filled) < FILLED or len(np.unique(_ring_of(rings, len(points))[inside])) < MIN_RINGS:
        return None
    rays, step_rad = _edges(points, inside, rings)
    misfit = 1 - min(1.0, min(filled)) + float(beside.sum() / inside.sum())
    return CloudBoard(points[inside], rays, step_rad / math.sqrt(12), misfit)


def _ring_of(rings: list[_Ring], n: int) -> np.ndarray:
    of = np.zeros(n, int)
    for number, ring in enumerate(rings):
        of[ring.members] = number
    return of


def _rectangle(flat: Floats, width_m: float, height_m: float) -> tuple[float, Floats, Floats]:
    """(angle, (2,) centre along its own axes, (2,) sides) of the board-sized rectangle that contains most points.

    Among rectangles with the same points, the one whose sides the points match best.
    """
    best: tuple[float, float, Floats, Floats] = (-math.inf, 0.0, np.zeros(2), np.zeros(2))
    for degrees in range(0, 180, 3):
        angle = math.radians(degrees)
        along = flat @ np.array(_axes(angle)).T
        u, v = _window(along[:, 0], width_m), _window(along[:, 1], height_m)
        held = (np.abs(along[:, 0] - u) < width_m / 2) & (np.abs(along[:, 1] - v) < height_m / 2)
        u, v = (
            _window(along[held, 0], width_m) if held.any() else u,
            _window(along[held, 1], height_m) if held.any() else v,
        )
        held = (np.abs(along[:, 0] - u) < width_m / 2 + 0.02) & (np.abs(along[:, 1] - v) < height_m / 2 + 0.02)
        # An almost square board fits at many angles; at the right one the points reach exactly to its sides.
        sides = zip((width_m, height_m), along[held].T, strict=True)
        mismatch = sum(abs(side - _extent(a)) / side for side, a in sides) if held.sum() > 3 else 2.0
        score = held.sum() / len(flat) - 0.1 * mismatch
        if score > best[0]:
            best = (score, angle, np.array([u, v]), np.array([width_m, height_m]))
    return best[1], best[2], best[3]


def _window(values: Floats, length: float) -> float:
    """Centre of the interval of this length that contains most values, centred on these values."""
    values = np.sort(values)
    ends = np.searchsorted(values, values + length, side="right")
    counts = ends - np.arange(len(values))
    first = int(np.argmax(counts))
    held = values[first : int(ends[first])]
    return float((held[0] + held[-1]) / 2)


def _largest_plane(points: Floats) -> np.ndarray:
    """(n,) bool: points of the largest plane, by RANSAC and two least squares refinements."""
    draw, best = np.random.default_rng(0), np.zeros(len(points), bool)
    for _ in range(TRIES):
        a, b, c = points[draw.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length < 1e-3:  # three points of one ring
            continue
        on = np.abs((points - a) @ normal) < FLAT_M * length
        if on.sum() > best.sum():
            best = on
    for _ in range(2):
        if best.sum() < 3:
            return best
        centre = points[best].mean(0)
        normal = np.linalg.svd(points[best] - centre, full_matrices=False)[2][2]
        best = np.abs((points - centre) @ normal) < FLAT_M
    return best


def _axes(angle: float) -> tuple[Floats, Floats]:
    return np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])


def _extent(along: Floats) -> float:
    low, high = np.percentile(along, (1, 99))
    return float(high - low)


def _ring_gap(rings: list[_Ring]) -> float:
    """Typical angle (rad) between neighbouring beams: the resolution at which a board's height is known."""
    return 2 * math.pi / 180 if len(rings) <= 32 else 0.7 * math.pi / 180


def _edges(points: Floats, inside: np.ndarray, rings: list[_Ring]) -> tuple[Floats, float]:
    """(rays past the edges, step between points in rad).

    A ray is halfway between the first or last point of a ring on the board and its neighbour behind the board.
    """
    rays, steps = [], [0.002]
    for ring in rings:
        (there,) = np.nonzero(inside[ring.members])
        if len(there) < 3:
            continue
        steps.append(ring.step_rad)
        for last, off in ((there[0], there[0] - 1), (there[-1], there[-1] + 1)):
            if not 0 <= off < len(ring.members) or abs(ring.azimuth[off] - ring.azimuth[last]) > 1.5 * ring.step_rad:
                continue
            on, beside = points[ring.members[last]], points[ring.members[off]]
            on_m, beside_m = float(np.linalg.norm(on)), float(np.linalg.norm(beside))
            # Not the board's edge if the neighbour is in front (occlusion) or at the same range (a hand, a stand).
            if beside_m > on_m + JUMP_ALONG_M:
                middle = on / on_m + beside / beside_m
                rays.append(middle / np.linalg.norm(middle))
    return np.array(rays).reshape(-1, 3), float(np.median(steps[1:])) if len(steps) > 1 else steps[0]
