"""Frames of points and depth → points in the rig's base frame: which sensor a stream is of, its pose, the rig's own
points.

Example:
    clouds = Clouds(rig, height_m=1.7)
    cloud = clouds.read(frame)              # points_m (n, 3), seconds (n,), origin_m; ValueError for unusable frames
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.preprocessing import timed_cloud
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.transforms import rigid

Floats = npt.NDArray[np.float32]


class Cloud(NamedTuple):
    """One frame as points in the base frame. points_m: (n, 3). seconds: (n,) since capture_ns. origin_m: of its
    sensor."""

    stream: str
    points_m: Floats
    seconds: Floats
    origin_m: tuple[float, float, float]
    capture_ns: int
    duration_ns: int

    @property
    def end_ns(self) -> int:
        return self.capture_ns + self.duration_ns


class Clouds:
    """Reads frames as points in the base frame."""

    def __init__(
        self,
        rig: Rig | None,
        *,
        height_m: float,
        sensors: Mapping[str, str] | None = None,
        ego_box_m: Sequence[float] = (),
        stride_px: int = 2,
        log: logging.Logger | None = None,
    ) -> None:
        """
        Args:
            rig: The sensors' poses and lenses. None: every sensor stands height_m above the base frame's origin and
                looks along x; so does the first one where no pose of the rig leads to its base frame.
            height_m: Height of such a sensor above the ground (m).
            sensors: Stream → its name in the rig, where that is not the stream's name.
            ego_box_m: As of preprocessing.timed_cloud.
            stride_px: As of preprocessing.timed_cloud.
            log: For what is assumed.
        """
        check_ego_box(ego_box_m)
        self._everywhere = rig is None
        self.rig, self._height_m, self._sensors = rig or Rig(), height_m, dict(sensors or {})
        self._ego_box_m, self._stride_px = tuple(ego_box_m), stride_px
        self._log = log or logging.getLogger("clouds")
        self._poses: dict[str, npt.NDArray[np.float64]] = {}

    def sensor(self, stream: str) -> str:
        return self._sensors.get(stream, stream)

    def read(self, frame: Frame) -> Cloud:
        """Raises ValueError with the reason for an unusable frame: its pose or lens is unknown, its data is
        malformed."""
        name, lens = self.sensor(frame.stream), None
        if frame.encoding == "depth_u16_mm" and (lens := self.rig.intrinsics.get(name)) is None:
            raise ValueError(f"the lens of '{name}' is not known: name a rig file with its intrinsics (options: rig)")
        pose = self._pose(name)
        points_m, seconds = timed_cloud(frame, pose, lens, stride_px=self._stride_px, ego_box_m=self._ego_box_m)
        x, y, z = (float(v) for v in pose[:3, 3])
        return Cloud(frame.stream, points_m, seconds, (x, y, z), frame.capture_ns, frame.duration_ns)

    def _pose(self, name: str) -> npt.NDArray[np.float64]:
        """base_from_sensor."""
        if name not in self._poses:
            posed = {end for pose in self.rig.poses for end in (pose.target, pose.source)}
            if self._everywhere or self.rig.base not in posed:
                self._assume_level(name)
            try:
                self._poses[name] = self.rig.transform(self.rig.base, name)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self._poses[name]

    def _assume_level(self, name: str) -> None:
        """No pose leads to the base frame: it is placed under this sensor, on the ground."""
        above = rigid(np.eye(3), (0.0, 0.0, self._height_m))
        if name in self.rig.intrinsics:  # a depth camera's z is forward, its y down
            above[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        self._log.info(
            "no pose leads from '%s' to a base frame: it is assumed to look straight ahead, %g m above ground",
            name,
            self._height_m,
        )
        self.rig = self.rig.with_pose(Pose(self.rig.base, name, above))


def check_ego_box(ego_box_m: Sequence[float]) -> None:
    """Raises ValueError unless it is empty or a rectangle of the base frame."""
    if len(ego_box_m) not in (0, 4):
        raise ValueError(f"ego_box_m: found {list(ego_box_m)}, expected [x from, x to, y from, y to]")
