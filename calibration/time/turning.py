"""Camera against lidar by how fast the rig turns: rotation between pictures against yaw between sweeps.

Both are yaw rates in rad/s about the upright axis, positive to the left. A rig that only drives straight on gives no
answer.

Example:
    camera, lidar = CameraTurns(intrinsics), LidarTurns()
    camera.add(image_bgr, frame.capture_ns)
    lidar.add(points_m, frame.capture_ns + frame.duration_ns // 2)
    turning_answer(camera, lidar).offset_ms      # ADDED to the lidar's times
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration.pose import Floats
from calibration.time.answer import Answer
from calibration.time.lag import Series, find_lag
from pipeline.rig.intrinsics import Intrinsics

COMPARE_WIDTH_PX = 320  # width at which pictures are compared
MIN_CORNERS = 12
BINS = 1440  # of azimuth: 0.25°
BAND_RAD = 0.35  # elevations around level: walls rather than floor
FARTHEST_M = 50.0
MAX_TURN = 0.25  # rad between two sweeps
MIN_TURN_RATE = 0.03  # rad/s: a slower rotation is lost in noise


@dataclass
class _Turns:
    """Yaw rates, each at the middle of the two moments between which it was measured."""

    times_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    _before_ns: int = 0

    def _note(self, turn_rad: float | None, capture_ns: int) -> None:
        if turn_rad is not None and 0 < capture_ns - self._before_ns < 1_000_000_000:
            self.times_s.append((capture_ns + self._before_ns) / 2e9)
            self.rates.append(turn_rad * 1e9 / (capture_ns - self._before_ns))
        self._before_ns = capture_ns

    def series(self) -> Series:
        return Series(np.array(self.times_s), np.array(self.rates))

    @property
    def turns(self) -> bool:
        """Whether there was any rotation to compare."""
        return len(self.rates) > 1 and float(np.std(self.rates)) > MIN_TURN_RATE


@dataclass
class CameraTurns(_Turns):
    intrinsics: Intrinsics | None = None
    _grey: np.ndarray | None = None

    def add(self, image: np.ndarray, capture_ns: int) -> None:
        assert self.intrinsics is not None
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        scale = COMPARE_WIDTH_PX / grey.shape[1]
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        turn = None if self._grey is None else _yaw(self._grey, grey, self.intrinsics, scale)
        self._grey = grey
        self._note(turn, capture_ns)


def _yaw(before: np.ndarray, now: np.ndarray, intrinsics: Intrinsics, scale: float) -> float | None:
    """rad about the camera's upward axis, from the median motion of corners; None with too few corners."""
    corners = cv2.goodFeaturesToTrack(before, 150, 0.01, 6)
    if corners is None or len(corners) < MIN_CORNERS:
        return None
    moved, tracked, _ = cv2.calcOpticalFlowPyrLK(
        before, now, corners, np.empty_like(corners), winSize=(15, 15), maxLevel=3
    )
    good = tracked.ravel() == 1
    if good.sum() < MIN_CORNERS:
        return None
    # Scaling about pixel corners: pixel centres lie at half a pixel.
    rays = [intrinsics.rays((p.reshape(-1, 2)[good] + 0.5) / scale - 0.5) for p in (corners, moved)]
    angle = [np.arctan2(r[:, 0], r[:, 2]) for r in rays]
    # The picture moves to the right when the camera turns to the left. Driving forward moves both halves apart: the
    # median stays.
    return float(np.median(angle[1] - angle[0]))


@dataclass
class LidarTurns(_Turns):
    _profile: Floats | None = None

    def add(self, points_m: Floats, middle_ns: int) -> None:
        """points_m: (n, 3), z up."""
        profile = _profile(points_m)
        turn = None if self._profile is None else _shift(self._profile, profile)
        self._profile = profile
        self._note(turn, middle_ns)


def _profile(points: Floats) -> Floats:
    """(BINS,) log of the range in each direction; NaN without a point."""
    flat = np.hypot(points[:, 0], points[:, 1])
    level = (np.abs(np.arctan2(points[:, 2], flat)) < BAND_RAD) & (flat > 0.5) & (flat < FARTHEST_M)
    bins = ((np.arctan2(points[level, 1], points[level, 0]) + np.pi) / (2 * np.pi) * BINS).astype(int) % BINS
    total, count = np.bincount(bins, np.log(flat[level]), BINS), np.bincount(bins, minlength=BINS)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _shift(before: Floats, now: Floats) -> float | None:
    """rad by which the sensor turned to the left (its view turns to the right); None without a match."""
    most = round(MAX_TURN / (2 * np.pi) * BINS)
    costs = []
    for shift in range(-most, most + 1):
        difference = np.abs(np.roll(now, shift) - before)
        good = np.isfinite(difference)
        if good.sum() < BINS // 8:
            return None
        costs.append(float(np.mean(np.minimum(difference[good], 0.3))))
    best = int(np.argmin(costs))
    if best in (0, len(costs) - 1):
        return None
    left, middle, right = costs[best - 1 : best + 2]
    fine = 0.5 * (left - right) / max(left - 2 * middle + right, 1e-9)
    return (best - most + float(np.clip(fine, -0.5, 0.5))) * 2 * np.pi / BINS


def turning_answer(camera: CameraTurns, lidar: LidarTurns) -> Answer:
    lag = find_lag(camera.series(), lidar.series())
    unknown = lag.unknown
    if not camera.turns or not lidar.turns:
        unknown = "the rig hardly turned"
    return Answer(lag.offset_ms, lag.sigma_ms, lag.interval_ms, "the rotation of the rig", unknown)
