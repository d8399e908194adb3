"""Tracks of boxes from picture to picture, and how fast the range of each shrinks.

Example:
    tracker = ObjectTracker()
    for track in tracker.update(detections, ranged, capture_ns, ranged_ns):     # in the order of the detections
        track.id, track.closing_mps                                             # None until it is known well enough
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.perception.boxes import overlap
from pipeline.perception.objects.detections import Detection
from pipeline.perception.objects.ranging import Ranged

Floats = npt.NDArray[np.float32]

MAX_GAP_NS = NS  # an object that is not detected for longer comes back under a new id
MIN_OVERLAP = 0.2  # of a box with its predicted position
OTHER_LABEL_OVERLAP = 0.5  # detectors sometimes label a car as a truck
RANGE_GATE_M, RANGE_GATE_SHARE = 2.0, 0.15  # farther apart in a step, two boxes are of two objects,
SURE_OVERLAP = 0.6  # unless they overlap so well that the range must be an outlier
BOX_GAIN = 0.5

# Noise of the nearest surface from sweep to sweep, as different points fall on it.
RANGE_SIGMA_M, RANGE_SIGMA_SHARE = 0.08, 0.005
ACCELERATION_MPS2 = 3.0  # firm braking; harder braking is tracked with a delay
FASTEST_MPS = 30.0  # standard deviation of the initial rate
KNOWN_MPS = 1.0  # a speed is reported below this standard deviation
OUTLIER_SIGMAS = 4.0


@dataclass
class Closing:
    """Range and its rate by a Kalman filter of constant velocity; call `measure` once per sweep."""

    range_m: float
    at_ns: int
    rate_mps: float = 0.0
    covariance: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2)))
    _outliers: int = 0

    def __post_init__(self) -> None:
        self._begin(self.range_m, self.at_ns)

    def _begin(self, range_m: float, at_ns: int) -> None:
        self.range_m, self.at_ns, self.rate_mps, self._outliers = range_m, at_ns, 0.0, 0
        self.covariance = np.diag([_sigma_m(range_m) ** 2, FASTEST_MPS**2])

    def measure(self, range_m: float, at_ns: int) -> None:
        step_s = (at_ns - self.at_ns) / NS
        if step_s <= 0:
            return
        if step_s > MAX_GAP_NS / NS:
            self._begin(range_m, at_ns)
            return
        move = np.array([[1.0, step_s], [0.0, 1.0]])
        push = np.array([step_s**2 / 2, step_s]) * ACCELERATION_MPS2
        expected = move @ (self.range_m, self.rate_mps)
        covariance = move @ self.covariance @ move.T + np.outer(push, push)
        off_m, variance = range_m - expected[0], covariance[0, 0] + _sigma_m(range_m) ** 2
        if off_m**2 > OUTLIER_SIGMAS**2 * variance:
            # Once: an outlier, or partly hidden for a moment. Twice in a row: the filter was wrong.
            self._outliers += 1
            if self._outliers > 1:
                self._begin(range_m, at_ns)
            return
        gain = covariance[:, 0] / variance
        self.range_m, self.rate_mps = (float(v) for v in expected + gain * off_m)
        self.covariance = covariance - np.outer(gain, covariance[0])
        self.at_ns, self._outliers = at_ns, 0

    @property
    def closing_mps(self) -> float | None:
        return -self.rate_mps if self.covariance[1, 1] < KNOWN_MPS**2 else None


def _sigma_m(range_m: float) -> float:
    return RANGE_SIGMA_M + RANGE_SIGMA_SHARE * range_m


@dataclass
class ObjectTrack:
    id: int
    label: str
    box_px: Floats  # (4,) left, top, width, height, as last seen
    last_seen_ns: int
    ranged: Ranged
    closing: Closing | None = None
    drift_px_s: Floats = field(default_factory=lambda: np.zeros(4, np.float32))

    def expected_px(self, now_ns: int) -> Floats:
        return self.box_px + self.drift_px_s * np.float32((now_ns - self.last_seen_ns) / NS)

    @property
    def closing_mps(self) -> float | None:
        return None if self.closing is None or self.ranged.range_m is None else self.closing.closing_mps


class ObjectTracker:
    """State advances by capture times alone, so the same pictures and points give the same tracks."""

    def __init__(self) -> None:
        self._tracks: list[ObjectTrack] = []
        self._last_id = 0  # ids are never used again
        self._now_ns = -(1 << 62)

    def update(
        self, detections: Sequence[Detection], ranged: Sequence[Ranged], capture_ns: int, ranged_ns: int
    ) -> list[ObjectTrack]:
        """capture_ns: of the picture; one before the last resets the tracks. ranged_ns: of the points, which may be
        the same for several pictures. Returns the track of each detection."""
        if capture_ns < self._now_ns:
            self._tracks.clear()
        self._now_ns = capture_ns
        self._tracks = [track for track in self._tracks if capture_ns - track.last_seen_ns <= MAX_GAP_NS]
        boxes = [np.array(d.box_px, np.float32) for d in detections]
        fits = []
        for i, track in enumerate(self._tracks):
            expected = track.expected_px(capture_ns)
            for j, (detection, box, one) in enumerate(zip(detections, boxes, ranged, strict=True)):
                shared = overlap(expected, box)
                least = MIN_OVERLAP if detection.label == track.label else OTHER_LABEL_OVERLAP
                apart = _apart(track.ranged.range_m, one.range_m)
                if shared >= least and (apart <= 1 or shared >= SURE_OVERLAP):
                    fits.append((shared - 0.5 * min(apart, 2.0), -i, -j))
        matches: dict[int, ObjectTrack] = {}
        taken: set[int] = set()
        for _, i, j in sorted(fits, reverse=True):
            if -i not in taken and -j not in matches:
                taken.add(-i)
                matches[-j] = self._tracks[-i]
        for j, (detection, box, one) in enumerate(zip(detections, boxes, ranged, strict=True)):
            if j not in matches:
                self._last_id += 1
                matches[j] = ObjectTrack(self._last_id, detection.label, box, capture_ns, one)
                self._tracks.append(matches[j])
            _follow(matches[j], detection, box, one, capture_ns, ranged_ns)
        return [matches[j] for j in range(len(detections))]


def _apart(before_m: float | None, now_m: float | None) -> float:
    """In units of what an object may move between two pictures; 0 where one range is unknown."""
    if before_m is None or now_m is None:
        return 0.0
    return abs(now_m - before_m) / (RANGE_GATE_M + RANGE_GATE_SHARE * min(before_m, now_m))


def _follow(track: ObjectTrack, detection: Detection, box: Floats, ranged: Ranged, now_ns: int, ranged_ns: int) -> None:
    if now_ns > track.last_seen_ns:
        measured = (box - track.box_px) / np.float32((now_ns - track.last_seen_ns) / NS)
        track.drift_px_s = track.drift_px_s + np.float32(BOX_GAIN) * (measured - track.drift_px_s)
    track.box_px, track.label, track.last_seen_ns, track.ranged = box, detection.label, now_ns, ranged
    if ranged.range_m is not None:
        if track.closing is None:
            track.closing = Closing(ranged.range_m, ranged_ns)
        else:
            track.closing.measure(ranged.range_m, ranged_ns)
