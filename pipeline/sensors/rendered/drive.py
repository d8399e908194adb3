"""A small drive rendered by our own code: camera, lidar and depth camera in one street, whose truth is known exactly.

Rendered, not real: for a demo and for tests, never for figures about the world. A function of the seed and the time
alone: the same options give the same stream, bit by bit. Time counts from the drive's beginning; after traffic.LOOP_S
everything is as it was, a street further (the timeline is in traffic.py). The base frame lies on the ground below the
vehicle, level, x forward.

Example:
    drive = Drive(seed=0)
    image = drive.camera(at_ns)                    # (360, 640, 3) uint8 BGR, an instant
    points = drive.sweep(start_ns)                 # (n, 5) float32, points_xyzit_f32 in the lidar's frame
    points, ids = drive.labelled_sweep(start_ns)   # ids: of each point's thing, 0 the ground
    depth = drive.depth(at_ns)                     # (180, 320) uint16, millimetres
    for thing in drive.truth(at_ns): print(thing.kind, thing.centre_m, thing.velocity_mps)
    rig()                                          # lenses and poses, as in configs/rigs/rendered.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.transforms import rigid
from pipeline.sensors.rendered import ground, traffic
from pipeline.sensors.rendered.picture import Scene
from pipeline.sensors.rendered.rays import Caster, Hits, lap_shift
from pipeline.sensors.rendered.street import street

SWEEP_NS = NS // 10
CUT_DEG = 144.0  # azimuth where a sweep begins and ends, to the left of ahead; it turns to the right
# The lidar looks straight ahead this long after a sweep's start: the time to take the picture of the same moment.
AHEAD_NS = SWEEP_NS * 4 // 10

CAMERA_M, LIDAR_M, DEPTH_M = (0.6, 0.0, 1.45), (0.1, 0.0, 1.85), (1.9, 0.0, 0.9)
CAMERA_FOCAL, DEPTH_FOCAL = 0.68, 0.62  # focal length over the picture's width: 73° and 78° wide
LIDAR_FARTHEST_M, LIDAR_NEAREST_M = 80.0, 0.9
RANGE_SIGMA_M = 0.015
DEPTH_FARTHEST_M, DEPTH_SIGMA = 10.0, 0.001  # σ = DEPTH_SIGMA · depth², as of a stereo camera


class Beams(NamedTuple):
    """A spinning lidar: beams evenly from lowest to highest, so many times round a sweep."""

    from_deg: float
    to_deg: float
    columns: int


BEAMS = {16: Beams(-15.0, 15.0, 1800), 32: Beams(-25.0, 10.0, 1024), 64: Beams(-24.8, 2.0, 2048)}


@dataclass(frozen=True)
class Truth:
    """One thing around the rig, in its base frame. id: the same in every loop."""

    id: int
    kind: str  # car, cyclist, person, house, tree, hedge, lamp, sign or bin
    centre_m: tuple[float, float, float]  # of its box
    size_m: tuple[float, float, float]  # length along yaw, width, height
    yaw_rad: float
    # By which its centre moves in the base frame, which itself moves and turns with the rig.
    velocity_mps: tuple[float, float]
    moves: bool  # over the ground, at times


def rig(*, width_px: int = 640, height_px: int = 360, depth_width_px: int = 320, depth_height_px: int = 180) -> Rig:
    """The sensors "camera", "lidar" and "depth" over "base"."""
    looking = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # base_from_camera: right is −y, down is −z
    source = "rendered, not real: exact by construction"
    return Rig(
        {
            "camera": _lens(width_px, height_px, CAMERA_FOCAL),
            "depth": _lens(depth_width_px, depth_height_px, DEPTH_FOCAL),
        },
        (
            Pose("base", "lidar", rigid(np.eye(3), LIDAR_M)),
            Pose("base", "camera", rigid(looking, CAMERA_M)),
            Pose("base", "depth", rigid(looking, DEPTH_M)),
        ),
        provenance={"all": source},
    )


def _lens(width_px: int, height_px: int, focal: float) -> Intrinsics:
    """A pinhole whose axis goes through the picture's middle."""
    focal_px = round(focal * width_px, 3)
    return Intrinsics("radtan", width_px, height_px, focal_px, focal_px, (width_px - 1) / 2, (height_px - 1) / 2)


class Drive:
    """seed: builds another street and other noise. beams: a key of BEAMS. The sizes are those of the pictures."""

    def __init__(
        self,
        *,
        seed: int = 0,
        beams: int = 32,
        width_px: int = 640,
        height_px: int = 360,
        depth_width_px: int = 320,
        depth_height_px: int = 180,
    ) -> None:
        if beams not in BEAMS:
            raise ConfigError(f"beams: found {beams}, expected one of {', '.join(map(str, BEAMS))}")
        self.seed, self.beams = seed, BEAMS[beams]
        self.rig = rig(
            width_px=width_px, height_px=height_px, depth_width_px=depth_width_px, depth_height_px=depth_height_px
        )
        self.things = street(seed)
        self.caster = Caster(self.things)
        self.scene = Scene(self.things, seed)
        self.elevations_rad = np.radians(np.linspace(self.beams.from_deg, self.beams.to_deg, beams))

    def camera(self, at_ns: int, out: np.ndarray | None = None) -> np.ndarray:
        """(h, w, 3) uint8 BGR, written into `out` if given."""
        lens = self.rig.camera("camera")
        image = np.empty((lens.height_px, lens.width_px, 3), np.uint8) if out is None else out
        t_s = _loop_s(at_ns)
        (x, y, z), yaw = self._sensor(np.array([t_s]), CAMERA_M)
        return self.scene.take(lens, (float(x[0]), float(y[0]), float(z[0]), float(yaw[0])), t_s, image)

    def sweep(self, start_ns: int, duration_ns: int = SWEEP_NS) -> np.ndarray:
        """(n, 5) float32: x, y, z in the lidar's frame as it was at each point's own time, reflectance in [0, 1],
        seconds since start_ns. Turns to the right from CUT_DEG on, column by column, each column's beams at once.
        """
        return self.labelled_sweep(start_ns, duration_ns)[0]

    def labelled_sweep(self, start_ns: int, duration_ns: int = SWEEP_NS) -> tuple[np.ndarray, np.ndarray]:
        """The same, and the id of the thing that each point fell on, (n,) int32: 0 is the ground (road, kerb, pavement,
        lawn)."""
        columns = self.beams.columns
        since_s = np.arange(columns) * (duration_ns / 1e9 / columns)
        azimuth = np.radians(CUT_DEG) - 2 * np.pi * np.arange(columns) / columns
        t_s = _loop_s(start_ns) + since_s
        origin, yaw = self._sensor(t_s, LIDAR_M)
        slopes = np.tan(self.elevations_rad)
        direction = np.stack([np.cos(azimuth + yaw), np.sin(azimuth + yaw)])
        hits = self.caster.cast(
            t_s=t_s,
            origin=origin,
            direction=direction,
            slopes=slopes,
            farthest_m=LIDAR_FARTHEST_M,
            nearest_m=LIDAR_NEAREST_M,
        )
        random = np.random.default_rng([self.seed, 11, start_ns])
        range_m = hits.t / np.cos(self.elevations_rad).astype(np.float32)
        reflectance = self._reflectance(hits, origin, direction)
        # The return is weak from far, dark and slanted surfaces; a share of returns is lost anyway.
        echo = reflectance * (0.3 + 0.7 * hits.facing)
        strength = echo * (LIDAR_FARTHEST_M / np.maximum(range_m, 1)) ** 2
        lost = random.random(hits.t.shape, np.float32) < 0.01 + 0.5 * np.exp(-5 * strength)
        noisy = range_m + np.float32(RANGE_SIGMA_M) * random.standard_normal(hits.t.shape, np.float32)
        i, j = np.nonzero((hits.id >= 0) & ~lost & (range_m < LIDAR_FARTHEST_M))
        flat = noisy[i, j] * np.cos(self.elevations_rad).astype(np.float32)[j]
        points = np.empty((len(i), 5), np.float32)
        points[:, 0] = flat * np.cos(azimuth).astype(np.float32)[i]
        points[:, 1] = flat * np.sin(azimuth).astype(np.float32)[i]
        points[:, 2] = flat * slopes.astype(np.float32)[j]
        points[:, 3] = echo[i, j]
        points[:, 4] = since_s.astype(np.float32)[i]
        return points, hits.id[i, j]

    def depth(self, at_ns: int) -> np.ndarray:
        """(h, w) uint16: millimetres along the optical axis; 0 where nothing lies within DEPTH_FARTHEST_M."""
        lens = self.rig.camera("depth")
        t_s = np.full(lens.width_px, _loop_s(at_ns))
        origin, yaw = self._sensor(t_s, DEPTH_M)
        left = -(np.arange(lens.width_px) - lens.cx_px) / lens.fx_px
        direction = np.stack([np.cos(yaw) - left * np.sin(yaw), np.sin(yaw) + left * np.cos(yaw)])
        slopes = (-(np.arange(lens.height_px) - lens.cy_px) / lens.fy_px)[::-1]
        hits = self.caster.cast(
            t_s=t_s, origin=origin, direction=direction, slopes=slopes, farthest_m=DEPTH_FARTHEST_M, nearest_m=0.2
        )
        random = np.random.default_rng([self.seed, 12, at_ns])
        depth = np.where(np.isfinite(hits.t), hits.t, 0)
        depth += np.float32(DEPTH_SIGMA) * depth**2 * random.standard_normal(depth.shape, np.float32)
        mm: np.ndarray = np.ascontiguousarray(np.round(depth * 1000).astype(np.uint16).T[::-1])
        return mm

    def truth(self, at_ns: int) -> tuple[Truth, ...]:
        """Every thing from 72 m behind to 120 m ahead, in the order of their ids."""
        t_s = _loop_s(at_ns)
        at = np.array([t_s - 1e-4, t_s, t_s + 1e-4])  # the slope over ± 0.1 ms is the velocity
        rig_x, rig_y, rig_yaw = traffic.ego(at)
        rig_z, cos, sin = ground.height(rig_x[1]), np.cos(rig_yaw), np.sin(rig_yaw)
        truths = []
        for thing in self.things:
            x, y, yaw = thing.track(at)
            z = float(ground.stand(x[1], y[1]) - rig_z)
            x, y = x + lap_shift(x[1], float(rig_x[1])) - rig_x, y - rig_y
            ahead, left = cos * x + sin * y, cos * y - sin * x
            centre = (float(ahead[1]), float(left[1]), z + thing.size_m[2] / 2)
            velocity = (float(ahead[2] - ahead[0]) / 2e-4, float(left[2] - left[0]) / 2e-4)
            turned = float((yaw[1] - rig_yaw[1] + np.pi) % (2 * np.pi) - np.pi)
            truths.append(Truth(thing.id, thing.kind, centre, thing.size_m, turned, velocity, thing.moves))
        return tuple(truths)

    def base(self, at_ns: int) -> np.ndarray:
        """street_from_base, (4, 4): where the rig is. x grows by traffic.STREET_M in every loop and starts again with
        it."""
        (x, y, z), yaw = self._sensor(np.array([_loop_s(at_ns)]), (0.0, 0.0, 0.0))
        cos, sin = float(np.cos(yaw[0])), float(np.sin(yaw[0]))
        return rigid(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]), (x[0], y[0], z[0]))

    def _sensor(self, t_s: np.ndarray, mount_m: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Where a sensor is at each time, (3, n), and how far the rig is turned, (n,)."""
        x, y, yaw = traffic.ego(t_s)
        mx, my, mz = mount_m
        cos, sin = np.cos(yaw), np.sin(yaw)
        return np.stack([x + cos * mx - sin * my, y + sin * mx + cos * my, ground.height(x) + mz]), yaw

    def _reflectance(self, hits: Hits, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        i, j = np.nonzero(hits.id == 0)
        x = origin[0, i] + hits.t[i, j] * direction[0, i]
        y = origin[1, i] + hits.t[i, j] * direction[1, i]
        reflectance = hits.reflectance.copy()
        reflectance[i, j] = self.scene.paint.reflectance(x, y)
        return reflectance


def _loop_s(at_ns: int) -> float:
    """Seconds within the loop: times that differ by whole loops are the same moment, bit by bit."""
    return at_ns % traffic.LOOP_NS / NS
