"""Ten frames of a real drive with their published calibration (KITTI raw, 2011_09_26_0052), for the drift monitor's
figures.

Example:
    rig = kitti_rig(data_folder)
    for image, points_m in kitti_frames(data_folder): ...
    for name, points_m, boxes in kitti_labelled(data_folder): boxes[0].outline_m      # of frame 7 and three others
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from calibration.clouds import read_points
from calibration.pose import Floats
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.transforms import apply, rigid

KITTI_SEQUENCE = "driving/kitti_sequence"
KITTI_LABELLED = "driving/kitti_labelled"
SIZE = (1242, 375)
LIDAR_HEIGHT_M = 1.73  # the recording car's own data sheet
VEHICLES = ("Car", "Van", "Truck")


def kitti_rig(data: Path) -> Rig:
    """The rectified colour camera, and the lidar as its calibration has it."""
    lines = (data / KITTI_SEQUENCE / "calib.txt").read_text().splitlines()
    rows = {
        name: np.array(rest.split(), float)
        for name, _, rest in (line.partition(":") for line in lines if line[:1] != "#")
    }
    project = rows["P_rect_02"].reshape(3, 4)
    k = project[:, :3]
    aside = rigid(np.eye(3), np.linalg.inv(k) @ project[:, 3])  # the colour camera stands beside the reference one
    lidar = np.vstack([rows["Tr_velo_cam"].reshape(3, 4), [0, 0, 0, 1]])
    pose = aside @ rigid(rows["R_rect_00"].reshape(3, 3), (0, 0, 0)) @ lidar
    lens = Intrinsics("radtan", *SIZE, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    return Rig({"camera": lens}).with_pose(Pose("camera", "lidar", pose))


def kitti_frames(data: Path) -> list[tuple[np.ndarray, Floats]]:
    folder = data / KITTI_SEQUENCE
    pictures = sorted((folder / "image_02").glob("*.png"))
    return [(cv2.imread(str(p)), read_points(folder / "velodyne" / f"{p.stem}.bin")) for p in pictures]


class LabelledBox(NamedTuple):
    kind: str
    outline_m: np.ndarray  # (4, 2), seen from above: x forward, y left, the lidar over (0, 0)

    @property
    def range_m(self) -> float:
        return self.distance_m((0.0, 0.0))

    def distance_m(self, place_m: tuple[float, float]) -> float:
        """From a place to the nearest point of the outline's edges."""
        a = self.outline_m - np.array(place_m)
        edge = np.roll(a, -1, axis=0) - a
        t = np.clip(-(a * edge).sum(1) / (edge**2).sum(1), 0, 1)
        return float(np.linalg.norm(a + t[:, None] * edge, axis=1).min())


def kitti_labelled(data: Path) -> list[tuple[str, np.ndarray, list[LabelledBox]]]:
    """(name, sweep (n, 4) float32 as published, labels), of the four labelled sweeps."""
    labelled = []
    sequence, others = data / KITTI_SEQUENCE, data / KITTI_LABELLED
    calib = {p: sequence / "calib.txt" for p in sorted((sequence / "label_2").glob("*.txt"))}
    calib |= {p: others / "calib" / p.name for p in sorted((others / "label_2").glob("*.txt"))}
    for labels, numbers in calib.items():
        sweep = np.fromfile(labels.parent.parent / "velodyne" / f"{labels.stem}.bin", np.float32).reshape(-1, 4)
        labelled.append((labels.stem, sweep, _boxes(labels, numbers)))
    return labelled


def _boxes(labels: Path, calib: Path) -> list[LabelledBox]:
    lines = (line.partition(":") for line in calib.read_text().splitlines() if line and line[0] != "#")
    rows = {name.replace("_", ""): np.array(rest.split(), float) for name, _, rest in lines if name != "rate_hz"}
    turn = rows["Rrect00"] if "Rrect00" in rows else rows["R0rect"]
    lidar = rows["Trvelocam"] if "Trvelocam" in rows else rows["Trvelotocam"]
    camera_from_lidar = rigid(turn.reshape(3, 3), (0, 0, 0)) @ np.vstack([lidar.reshape(3, 4), [0, 0, 0, 1]])
    boxes = []
    for kind, *rest in (line.split() for line in labels.read_text().splitlines()):
        if kind == "DontCare":
            continue
        _, width_m, length_m, x, y, z, yaw = (
            float(v) for v in rest[7:14]
        )  # height, width, length, bottom's middle, yaw
        c, s = np.cos(yaw), np.sin(yaw)
        half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length_m / 2, width_m / 2)
        corners = np.column_stack([x + half @ (c, s), np.full(4, y), z + half @ (-s, c)])
        boxes.append(LabelledBox(kind, apply(np.linalg.inv(camera_from_lidar), corners)[:, :2]))
    return boxes
