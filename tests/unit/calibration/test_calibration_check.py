"""A rig against new data, and the drift monitor: drift is detected, a right rig passes, and the rest is unknown."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import run_pipeline
from benchmarks.driving import KITTI_SEQUENCE, kitti_frames, kitti_rig
from calibration.lidar_camera.drift import Drift, depth_edges
from calibration.pose import turned
from calibration.report.overlay import draw_points
from nodes.drift import Drift as DriftNode
from pipeline.frame import Frame
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import save_rig
from pipeline.rig.transforms import rigid
from pipeline.testing import NodeHarness

YAW_1_DEG = np.radians([0.0, 1.0, 0.0])
LENS = Intrinsics("radtan", 200, 100, 150, 150, 99.5, 49.5)


@pytest.fixture(scope="module")
def driving(data_dir):
    if not (data_dir / KITTI_SEQUENCE).is_dir():
        pytest.skip(f"no {KITTI_SEQUENCE} in {data_dir}")
    return kitti_rig(data_dir), kitti_frames(data_dir)


def answer(driving, rotation_rad):
    rig, frames = driving
    drift = Drift(rig.camera("camera"), turned(rig.transform("camera", "lidar"), rotation_rad))
    for image, points in frames:
        drift.add(image, points)
    return drift.answer()


def test_a_drift_of_one_degree_is_detected_on_ten_frames_of_driving(driving):
    drifted = answer(driving, YAW_1_DEG)
    assert drifted.state == "drifted" and drifted.rotation_deg[1] == pytest.approx(-1.0, abs=0.4)


def test_the_published_calibration_is_left_alone(driving):
    assert answer(driving, np.zeros(3)).state == "aligned"


def test_a_picture_without_edges_leaves_it_unknown(driving):
    rig, frames = driving
    drift = Drift(rig.camera("camera"), rig.transform("camera", "lidar"))
    for _, points in frames:
        drift.add(np.full((375, 1242, 3), 90, np.uint8), points)
    assert drift.answer().state == "unknown"


def test_too_few_frames_leave_it_unknown():
    assert "6 are needed" in Drift(LENS, np.eye(4)).answer().reason


def test_depth_edges_are_at_the_near_side():
    azimuth = np.linspace(-0.5, 0.5, 200)
    ranges = np.where(np.abs(azimuth) < 0.2, 4.0, 9.0)
    points, weights = depth_edges(np.column_stack([ranges * np.cos(azimuth), ranges * np.sin(azimuth), np.zeros(200)]))
    assert len(points) == 2 and np.allclose(np.linalg.norm(points, axis=1), 4.0) and (weights > 0).all()


def test_near_points_are_drawn_red_and_far_ones_blue():
    points = np.array([[-0.5, 0, 2.0], [5.0, 0, 20.0]])
    drawn = draw_points(np.zeros((100, 200, 3), np.uint8), points, LENS, np.eye(4))
    (near, far), _ = LENS.project(points)
    blue, _, red = drawn[round(near[1]), round(near[0])].astype(int)
    assert red > blue
    blue, _, red = drawn[round(far[1]), round(far[0])].astype(int)
    assert blue > red


def check(*words):
    args = run_pipeline.parser().parse_args(["calibrate", "check", *map(str, words)])
    args.function(args)


def test_the_command_fails_for_a_rig_that_is_off_and_leaves_pictures_to_look_at(driving, data_dir, tmp_path, capsys):
    rig, _ = driving
    off = Pose("camera", "lidar", turned(rig.transform("camera", "lidar"), YAW_1_DEG))
    save_rig(rig.with_pose(off), tmp_path / "rig.yaml")
    with pytest.raises(SystemExit):
        check(tmp_path / "rig.yaml", data_dir / KITTI_SEQUENCE, "--overlays", tmp_path / "overlays")
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL: the lidar seems rotated by")
    pictures = list((tmp_path / "overlays").glob("*.jpg"))
    assert len(pictures) == 6 and cv2.imread(str(pictures[0])).shape == (375, 1242, 3)


def test_the_node_reports_a_drift_as_a_fact(driving, tmp_path):
    rig, frames = driving
    off = Pose("camera", "lidar", turned(rig.transform("camera", "lidar"), YAW_1_DEG))
    save_rig(rig.with_pose(off), tmp_path / "rig.yaml")
    harness = NodeHarness(DriftNode(rig=str(tmp_path / "rig.yaml"), every_s=0), inputs=["camera", "lidar"])
    for k, (image, points) in enumerate(frames):
        cloud = np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
        harness.send("camera", Frame("camera", k, k * 10**8, "bgr8", image))
        harness.send("lidar", Frame("lidar", k, k * 10**8, "points_xyzi_f32", cloud))
    harness.end()
    assert harness.node.context.metrics.facts["drift"].startswith("drifted")


def test_the_node_says_unknown_for_pictures_of_another_size(tmp_path):
    save_rig(
        Rig({"camera": LENS}).with_pose(Pose("camera", "lidar", rigid(np.eye(3), (0, 0, 0)))),
        tmp_path / "rig.yaml",
    )
    harness = NodeHarness(DriftNode(rig=str(tmp_path / "rig.yaml")), inputs=["camera", "lidar"])
    harness.send("camera", Frame("camera", 0, 0, "bgr8", np.zeros((50, 50, 3), np.uint8)))
    harness.send("lidar", Frame("lidar", 0, 0, "points_xyzi_f32", np.ones((5, 4), np.float32)))
    assert "50×50" in harness.node.context.metrics.facts["drift"]
