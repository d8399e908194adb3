"""A picture and a cloud of the same moment, from a folder of files or from a recording.

Depth pictures become points by the depth camera's own intrinsics in the rig. Moments are yielded one at a time, because
a recording of minutes does not fit into memory.

Example:
    for moment in moments(Path("capture"), rig, camera="camera", sensor="lidar"): moment.image, moment.points_m
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from calibration.clouds import is_depth_picture, pairs_in, read_depth_m, read_picture, read_points
from calibration.pose import Floats
from pipeline.errors import ConfigError
from pipeline.frame import Frame, misfit
from pipeline.picture_files import decode_picture
from pipeline.rig.rig import Rig

TOGETHER_MS = 60.0  # a cloud and a picture farther apart are of different moments
POINTS_ENOUGH = 60_000  # of a depth picture: every n-th pixel


@dataclass(frozen=True, eq=False)
class Moment:
    name: str
    image: np.ndarray  # (h, w, 3) BGR
    points_m: Floats  # (n, 3) in the lidar's or depth camera's frame
    capture_ns: int = 0  # of the cloud; 0 in a folder, which has no times
    optical: bool = (
        False  # the points' frame is a camera's (x right, y down, z forward), not a lidar's (x forward, z up)
    )


def moments(source: Path, rig: Rig, *, camera: str, sensor: str) -> Iterator[Moment]:
    """camera, sensor: names in the rig, and of the recording's streams. ConfigError if there are none."""
    if source.suffix == ".mcap":
        yield from _recorded(source, rig, camera, sensor)
        return
    for pair in pairs_in(source):
        depth = pair.cloud.suffix.lower() == ".png" and is_depth_picture(pair.cloud)
        points = depth_points(read_depth_m(pair.cloud), rig, sensor) if depth else read_points(pair.cloud)
        yield Moment(pair.name, read_picture(pair.picture), points, optical=depth)


def depth_points(depth_m: Floats, rig: Rig, sensor: str) -> Floats:
    """(n, 3) in the depth camera's own frame, of at most POINTS_ENOUGH pixels."""
    lens = rig.camera(sensor)
    if depth_m.shape != lens.size[::-1]:
        size = "×".join(map(str, depth_m.shape[::-1]))
        raise ConfigError(
            f"{rig.where}: intrinsics.{sensor}: for {'×'.join(map(str, lens.size))}, but the depth picture is {size}. "
            "Calibrate the depth camera in the mode it is used in"
        )
    step = max(1, round((depth_m.size / POINTS_ENOUGH) ** 0.5))
    rows, columns = np.mgrid[: depth_m.shape[0] : step, : depth_m.shape[1] : step]
    depth = depth_m[rows, columns].ravel()
    there = depth > 0
    return lens.unproject(np.column_stack([columns.ravel(), rows.ravel()])[there], depth[there])


def picture_of(frame: Frame) -> np.ndarray | None:
    """(h, w, 3) BGR; None if it is not a picture, or cannot be decoded."""
    if frame.encoding == "bgr8":
        return frame.data
    return decode_picture(frame.data, cv2.IMREAD_COLOR) if frame.encoding == "jpeg" else None


def points_of(frame: Frame, rig: Rig, sensor: str) -> Floats | None:
    if frame.encoding in ("points_xyzi_f32", "points_xyzit_f32"):
        points = frame.data[:, :3].astype(np.float64)
        return points[np.isfinite(points).all(1) & (np.abs(points).max(1, initial=0) > 0)]
    return depth_points(frame.data / 1000.0, rig, sensor) if frame.encoding == "depth_u16_mm" else None


def _recorded(path: Path, rig: Rig, camera: str, sensor: str) -> Iterator[Moment]:
    """Each cloud with the nearest picture."""
    from pipeline.recording.reader import Reader

    pictures: deque[Frame] = deque(maxlen=8)
    clouds: deque[Frame] = deque(maxlen=8)
    with Reader(path) as reader:
        for name in (camera, sensor):
            if name not in reader.streams:
                raise ConfigError(f"{path}: no stream '{name}'. Streams here: {', '.join(reader.streams) or 'none'}")
        for stream, frame, _ in reader.messages([camera, sensor]):
            if not isinstance(frame, Frame) or frame.encoding == "none" or misfit(frame):
                continue
            (pictures if stream == camera else clouds).append(frame)
            while clouds and pictures and pictures[-1].capture_ns >= clouds[0].capture_ns:
                if (moment := _together(clouds.popleft(), pictures, rig, sensor)) is not None:
                    yield moment
        for cloud in clouds:
            if (moment := _together(cloud, pictures, rig, sensor)) is not None:
                yield moment


def _together(cloud: Frame, pictures: deque[Frame], rig: Rig, sensor: str) -> Moment | None:
    if not pictures:
        return None
    middle_ns = cloud.capture_ns + cloud.duration_ns // 2
    picture = min(pictures, key=lambda p: abs(p.capture_ns - middle_ns))
    image, points = picture_of(picture), points_of(cloud, rig, sensor)
    if abs(picture.capture_ns - middle_ns) > TOGETHER_MS * 1e6 or image is None or points is None or not len(points):
        return None
    return Moment(f"{cloud.stream} {cloud.seq}", image, points, middle_ns, optical=cloud.encoding == "depth_u16_mm")
