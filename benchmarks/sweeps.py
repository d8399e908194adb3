"""Lidar sweeps of a made-up world with exact truth, for obstacle figures and tests: a ground, boxes, walls (thin
boxes), noise.

Example:
    world = World(boxes=(Box(10, 0, 4, 1.8, 1.5, velocity_mps=(-5, 0)),), slope=(0.03, 0.0), bump_m=0.05)
    sweep = cast(HDL64, world, at_s=0.2, seed=3) # .points_m (n, 3) in the base frame, .hit: GROUND or the box's index
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GROUND = -1
ROUNDS = 12  # of the secant steps to a bumpy ground: below a millimetre from the third or fourth on


@dataclass(frozen=True)
class Lidar:
    """The rays of one turn; or a depth camera's field, where the azimuths do not cover a full turn."""

    elevations_deg: tuple[float, ...]
    azimuths: int
    height_m: float = 1.73
    noise_m: float = 0.02
    range_m: float = 100.0
    field_deg: float = 360.0
    turn_s: float = 0.1  # 0: everything at once
    pitch_deg: float = 0.0  # down positive


HDL64 = Lidar(tuple(np.r_[np.linspace(-24.8, -8.9, 32), np.linspace(-8.5, 2.0, 32)]), 1875)  # 120 000 rays
VLP16 = Lidar(tuple(np.arange(-15.0, 16.0, 2.0)), 1800)
DEPTH = Lidar(
    tuple(np.linspace(-29.0, 29.0, 120)),
    212,
    height_m=0.6,
    noise_m=0.01,
    range_m=6.0,
    field_deg=87.0,
    turn_s=0.0,
    pitch_deg=15.0,
)


@dataclass(frozen=True)
class Box:
    """x_m, y_m: its middle at 0 s. It stands on the ground, raised by bottom_m."""

    x_m: float
    y_m: float
    length_m: float
    width_m: float
    height_m: float
    yaw_rad: float = 0.0
    velocity_mps: tuple[float, float] = (0.0, 0.0)
    bottom_m: float = 0.0

    def centre_m(self, at_s: float) -> np.ndarray:
        return np.array([self.x_m + self.velocity_mps[0] * at_s, self.y_m + self.velocity_mps[1] * at_s])

    def corners_m(self, at_s: float) -> np.ndarray:
        """(4, 2), seen from above."""
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (self.length_m / 2, self.width_m / 2)
        corners: np.ndarray = half @ np.array([[c, s], [-s, c]]) + self.centre_m(at_s)
        return corners

    def nearest_m(self, at_s: float, origin_m: tuple[float, float] = (0.0, 0.0)) -> float:
        """From the origin to the nearest point of its outline."""
        a = self.corners_m(at_s) - np.array(origin_m)
        edge = np.roll(a, -1, axis=0) - a
        t = np.clip(-(a * edge).sum(1) / (edge**2).sum(1), 0, 1)
        return float(np.linalg.norm(a + t[:, None] * edge, axis=1).min())


@dataclass(frozen=True)
class World:
    boxes: tuple[Box, ...] = ()
    slope: tuple[float, float] = (0.0, 0.0)  # rise by x and by y
    bump_m: float = 0.0  # amplitude
    bump_every_m: float = 9.0
    ground: bool = True  # False: a hole all around
    ground_z_m: float = 0.0  # in the base frame, under its origin

    def height_m(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        turn = 2 * np.pi / self.bump_every_m
        waves = self.bump_m * np.sin(turn * x) * np.cos(turn * y) if self.bump_m else 0.0
        height: np.ndarray = self.ground_z_m + self.slope[0] * x + self.slope[1] * y + waves
        return height


def street(rig_mps: float = 0.0, *, slope: tuple[float, float] = (0.02, 0.0), bump_m: float = 0.04) -> World:
    """Two cars and a pedestrian in motion, parked cars, a pillar, house fronts; all relative to a rig that drives
    straight on at rig_mps. Nothing comes nearer than 2 m within 2 s at up to 5 m/s."""

    def box(
        x_m: float,
        y_m: float,
        length_m: float,
        width_m: float,
        height_m: float,
        yaw_rad: float = 0.0,
        speed_mps: float = 0.0,
        heading_rad: float | None = None,
    ) -> Box:
        heading = yaw_rad if heading_rad is None else heading_rad
        velocity = (speed_mps * np.cos(heading) - rig_mps, speed_mps * np.sin(heading))
        return Box(x_m, y_m, length_m, width_m, height_m, yaw_rad, velocity)

    car = (4.2, 1.8, 1.5)
    return World(
        (
            box(18, 0, *car, speed_mps=2.0),  # ahead, the same way
            box(38, 4.5, *car, speed_mps=-10.0),  # oncoming
            box(20, -13, 4.5, 1.8, 1.6, 0.6, 6.0),  # from a side street
            box(14, -5, 0.5, 0.5, 1.7, speed_mps=1.4, heading_rad=np.pi / 2),  # a pedestrian who crosses
            box(-18, 4.0, 4.5, 1.8, 1.5, speed_mps=4.0),  # from behind
            box(26, -4.2, *car),
            box(32.5, -4.2, *car),
            box(12, 8.5, 0.4, 0.4, 2.5),  # parked, and a pillar
            box(10, 14, 90, 0.3, 3),
            box(42, -17, 36, 0.3, 4),
            box(-30, -15, 40, 0.3, 3),  # fronts
        ),
        slope,
        bump_m,
    )


def room() -> World:
    """The view of a depth camera on a robot: a person who crosses, a chair, a box, a wall."""
    return World(
        (
            Box(3.0, -1.0, 0.4, 0.5, 1.7, velocity_mps=(0.0, 0.8)),
            Box(2.2, 0.9, 0.5, 0.5, 0.9),
            Box(4.2, -1.3, 0.6, 0.4, 0.5, 0.4),
            Box(5.5, 0, 0.2, 8, 2.4),
        )
    )


class Sweep(NamedTuple):
    points_m: np.ndarray  # (n, 3) float32, base frame: the lidar stands over its origin
    hit: np.ndarray  # (n,) int: GROUND or the index of the box
    seconds: np.ndarray  # (n,) float32 since the sweep's start
    origin_m: tuple[float, float, float]


def cast(lidar: Lidar, world: World, *, at_s: float = 0.0, seed: int = 0) -> Sweep:
    """One turn from `at_s` on; each ray hits a box at its position at the ray's own time."""
    rng = np.random.default_rng(seed)
    field = np.radians(lidar.field_deg)
    azimuth = np.linspace(field / 2, -field / 2, lidar.azimuths, endpoint=False)
    elevation = np.radians(lidar.elevations_deg)
    pan, tilt = (a.ravel() for a in np.meshgrid(azimuth, elevation, indexing="ij"))
    rays = np.column_stack([np.cos(tilt) * np.cos(pan), np.cos(tilt) * np.sin(pan), np.sin(tilt)])
    down = np.radians(lidar.pitch_deg)
    rays = rays @ np.array([[np.cos(down), 0, -np.sin(down)], [0, 1, 0], [np.sin(down), 0, np.cos(down)]])
    seconds = np.repeat(np.arange(lidar.azimuths) / lidar.azimuths * lidar.turn_s, len(elevation))
    origin = (0.0, 0.0, world.ground_z_m + lidar.height_m)
    range_m, hit = _ground(rays, origin, world), np.full(len(rays), GROUND)
    for i, box in enumerate(world.boxes):
        near_m = _box(rays, origin, box, world, at_s + seconds)
        closer = near_m < range_m
        range_m[closer], hit[closer] = near_m[closer], i
    inside = range_m < lidar.range_m
    noisy_m = range_m[inside] + rng.normal(0, lidar.noise_m, int(inside.sum()))
    points = np.array(origin) + rays[inside] * noisy_m[:, None]
    return Sweep(points.astype(np.float32), hit[inside], seconds[inside].astype(np.float32), origin)


def _ground(rays: np.ndarray, origin: tuple[float, float, float], world: World) -> np.ndarray:
    """(n,) range, infinite where a ray does not reach the ground."""
    if not world.ground:
        return np.full(len(rays), np.inf)
    falls = rays[:, 2] - rays[:, 0] * world.slope[0] - rays[:, 1] * world.slope[1]
    range_m = np.where(falls < -1e-3, (world.ground_z_m - origin[2]) / np.minimum(falls, -1e-3), np.inf)
    down = np.flatnonzero(range_m < 200)
    at, ray = range_m[down], rays[down]
    for _ in range(ROUNDS if world.bump_m else 0):
        over = origin[2] + at * ray[:, 2] - world.height_m(at * ray[:, 0], at * ray[:, 1])
        at = np.clip(at + 0.7 * over / -falls[down], 0.1, 400)
    if world.bump_m:  # where the steps found no ground the ray skims a crest: no return
        over = origin[2] + at * ray[:, 2] - world.height_m(at * ray[:, 0], at * ray[:, 1])
        at = np.where(np.abs(over) < 0.01, at, np.inf)
    range_m[down] = at
    return range_m


def _box(rays: np.ndarray, origin: tuple[float, float, float], box: Box, world: World, at_s: np.ndarray) -> np.ndarray:
    """(n,) range to where each ray enters the box, infinite where it passes by."""
    c, s = np.cos(box.yaw_rad), np.sin(box.yaw_rad)
    x, y = box.x_m + box.velocity_mps[0] * at_s, box.y_m + box.velocity_mps[1] * at_s
    base_m = float(world.height_m(np.array(box.x_m), np.array(box.y_m))) + box.bottom_m
    starts = (-(x * c + y * s), x * s - y * c, np.full(len(rays), origin[2] - base_m - box.height_m / 2))
    directions = (rays[:, 0] * c + rays[:, 1] * s, rays[:, 1] * c - rays[:, 0] * s, rays[:, 2])
    enter, leave = np.zeros(len(rays)), np.full(len(rays), np.inf)
    for start, direction, size_m in zip(starts, directions, (box.length_m, box.width_m, box.height_m), strict=True):
        steep = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
        a, b = (-size_m / 2 - start) / steep, (size_m / 2 - start) / steep
        enter, leave = np.maximum(enter, np.minimum(a, b)), np.minimum(leave, np.maximum(a, b))
    return np.where((enter < leave) & (enter > 0), enter, np.inf)
