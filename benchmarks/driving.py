"""Ten frames of a real drive with their published calibration (KITTI raw, 2011_09_26_0052), for the drift monitor's figures.

    rig = kitti_rig(data_folder)
    for image, points_m in kitti_frames(data_folder): ...
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from calibration.clouds import read_points
from calibration.pose import Floats
from pipeline.intrinsics import Intrinsics
from pipeline.rig import Pose, Rig, rigid

KITTI_SEQUENCE = "driving/kitti_sequence"
SIZE = (1242, 375)


def kitti_rig(data: Path) -> Rig:
    """The rectified colour camera, and the lidar as its calibration has it."""
    lines = (data / KITTI_SEQUENCE / "calib.txt").read_text().splitlines()
    rows = {name: np.array(rest.split(), float) for name, _, rest in (line.partition(":") for line in lines if line[:1] != "#")}
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
