"""The motion of everything in the rendered street. One loop takes LOOP_S, in which the ego drives STREET_M.

The street repeats every STREET_M along x, and after a loop everything is at its first position, or a whole street
farther, so that the drive is endless and has no seam.

Example:
    x, y, yaw = ego(np.array([12.5]))       # in the street's frame: x along it, y = 0 its middle

Timeline of a loop, in seconds:
     0 – 7 free road at 8 m/s, a red car 36 m ahead of the ego's front; from 3 on it brakes; the cyclist on the right
               is overtaken
     7 – 11 the ego brakes behind the red car, which stands before the first crossing: a person crosses from right to
     left
    11 – 16    the ego stands 5 m behind the car until that leaves at 13.5; the cyclist comes past on the right
    16 – 27    free road; the cyclist is overtaken again at its end
    27 – 35 two people cross right ahead, from the right (in the lane 29.9 – 31.3) and from the left (32.4 – 33.8); the
    ego
               brakes and stands 4 to 6 m before them from 31 on
    35 – 41    free road
Two cars come towards it and pass at 1.4, 2.9, 15.4, 17.8, 27.7 and 29.5, never in its lane.
"""

from __future__ import annotations

import numpy as np

from pipeline.sensors.rendered.solids import Track

LOOP_S, STREET_M = 41.0, 192.0
LOOP_NS = 41_000_000_000
LANE_Y_M = -1.6  # of the ego's lane; the other one lies opposite
CROSSINGS_X_M = (87.0, 167.5)  # the middle of the zebra stripes
CROSSING_LENGTH_M = 3.0

Keys = tuple[tuple[float, float], ...]

EGO: Keys = ((0, 8), (7, 8), (11, 0), (16, 0), (20, 8), (27, 8), (31, 0), (35, 0), (39, 8), (41, 8))
AHEAD: Keys = (
    (0, 8),
    (3.175, 8),
    (7.175, 0),
    (13.5, 0),
    (17, 10),
    (24.61, 10),
    (29.61, 0),
    (35, 0),
    (39, 8),
    (41, 8),
)
AHEAD_FROM_M = 40.0
ONCOMING_FROM_M = (24.0, 50.0)
CYCLIST_FROM_M = 18.0
# Over the street and back: x, from y, to y, seconds at which each begins and how long it takes. Chosen so that nothing
# collides.
WALKS = (
    (CROSSINGS_X_M[0] - 0.4, -7.0, 7.0, 3.5, 23.5, 9.5),
    (CROSSINGS_X_M[1] - 0.7, -6.8, 6.8, 27.0, 48.0, 9.5),
    (CROSSINGS_X_M[1] + 0.6, 6.8, -6.8, 27.2, 46.0, 9.5),
)
SWAYS = ((0.5, 7.5), (21.0, 28.0))  # seconds: the ego moves aside for the cyclist
SWAY_M = 0.4


class Route:
    """Speed over time, linear between the keys, periodic; x is its integral. keys: (seconds, m/s), from 0 to LOOP_S."""

    def __init__(self, keys: Keys, from_m: float = 0.0) -> None:
        self.t_s, self.speed = np.array(keys, float).T
        steps = np.diff(self.t_s) * (self.speed[1:] + self.speed[:-1]) / 2
        self.x_m = from_m + np.concatenate([[0.0], np.cumsum(steps)])
        assert self.t_s[-1] == LOOP_S and abs(self.x_m[-1] - from_m - STREET_M) < 0.2, self.x_m[-1] - from_m
        # A tiny change of speed removes the keys' rounding error, so that the loop closes exactly.
        self.stretch = STREET_M / (self.x_m[-1] - from_m)
        self.x_m = from_m + (self.x_m - from_m) * self.stretch

    def __call__(self, t_s: np.ndarray) -> np.ndarray:
        lap, t = np.divmod(t_s, LOOP_S)
        i = np.clip(np.searchsorted(self.t_s, t, "right") - 1, 0, len(self.t_s) - 2)
        since = t - self.t_s[i]
        gain = (self.speed[i + 1] - self.speed[i]) / (self.t_s[i + 1] - self.t_s[i])
        x: np.ndarray = self.x_m[i] + self.stretch * since * (self.speed[i] + gain * since / 2) + lap * STREET_M
        return x


_ego_route, _ahead_route = Route(EGO), Route(AHEAD, AHEAD_FROM_M)


def ego(t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rig's base: x, y, yaw in the street's frame."""
    t = np.mod(t_s, LOOP_S)
    y, slide = np.full_like(t, LANE_Y_M), np.zeros_like(t)
    for begin_s, end_s in SWAYS:
        turn = 2 * np.pi / (end_s - begin_s)
        inside = (t > begin_s) & (t < end_s)
        y += np.where(inside, SWAY_M / 2 * (1 - np.cos(turn * (t - begin_s))), 0)
        slide += np.where(inside, SWAY_M / 2 * turn * np.sin(turn * (t - begin_s)), 0)
    forward = np.maximum(np.interp(t, *np.array(EGO, float).T), 1.0)  # it moves aside at speed only
    return _ego_route(t_s), y, np.arctan2(slide, forward)


def ahead(t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The car in front."""
    return _ahead_route(t_s), np.full_like(t_s, LANE_Y_M), np.zeros_like(t_s)


def cruising(x_m: float, y_m: float, streets_a_loop: int) -> Track:
    """Constant speed, in streets per loop; negative: oncoming."""
    speed_mps, yaw = streets_a_loop * STREET_M / LOOP_S, 0.0 if streets_a_loop > 0 else np.pi
    return lambda t_s: (x_m + speed_mps * t_s, np.full_like(t_s, y_m), np.full_like(t_s, yaw))


def walking(x_m: float, from_y_m: float, to_y_m: float, there_s: float, back_s: float, takes_s: float) -> Track:
    """Over the street at `there_s`, back at `back_s`; both within one loop. Stands, looking at the street, in
    between."""

    def track(t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        t = np.mod(t_s - there_s, LOOP_S)
        back = np.mod(back_s - there_s, LOOP_S)
        share = np.interp(t, [0, takes_s, back, back + takes_s, LOOP_S], [0, 1, 1, 0, 0])
        # It turns around on arrival, towards its next walk.
        outward = (t < takes_s) | (t >= back + takes_s)
        towards = np.sign(to_y_m - from_y_m)
        yaw = np.where(outward, towards, -towards) * np.pi / 2
        return np.full_like(t, x_m), from_y_m + (to_y_m - from_y_m) * share, yaw

    return track
