"""Sweeps and depth pictures become points of the base frame."""

import numpy as np
import pytest

from pipeline.frame import Frame
from pipeline.preprocessing import cloud, timed_cloud
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import rigid

LENS = Intrinsics("radtan", 640, 480, 400.0, 400.0, 319.5, 239.5)
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # base from a camera that looks along x


def points(rows, encoding="points_xyzi_f32", duration_ns=0) -> Frame:
    return Frame("lidar", 0, 0, encoding, np.array(rows, np.float32), duration_ns)


def test_points_are_turned_and_moved_into_the_base_frame():
    left = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # the sensor's x is the base's y
    assert cloud(points([[2, 0, 0, 0.5]]), rigid(left, (1, 0, 1.5))).tolist() == [[1, 2, 1.5]]


def test_each_point_of_a_timed_sweep_keeps_its_own_time_and_others_have_the_middle():
    _, seconds = timed_cloud(points([[1, 0, 0, 0, 0.03], [2, 0, 0, 0, 0.07]], "points_xyzit_f32"), np.eye(4))
    assert seconds.tolist() == pytest.approx([0.03, 0.07])
    _, seconds = timed_cloud(points([[1, 0, 0, 0]], duration_ns=100_000_000), np.eye(4))
    assert seconds.tolist() == pytest.approx([0.05])


def test_a_depth_picture_and_a_sweep_of_the_same_wall_are_the_same_points():
    depth = Frame("depth", 0, 0, "depth_u16_mm", np.full((480, 640), 3000, np.uint16))
    points_m = cloud(depth, rigid(FORWARD, (0.2, 0, 0.6)), LENS)
    assert points_m.shape == (320 * 240, 3) and points_m.dtype == np.float32
    assert np.allclose(points_m[:, 0], 3.2, atol=1e-5)
    corner = points_m[0]  # the picture's upper left: left and up
    assert corner[1] == pytest.approx(3.0 * 319.5 / 400, abs=1e-4) and corner[2] == pytest.approx(
        0.6 + 3.0 * 239.5 / 400, abs=1e-4
    )


def test_what_was_not_measured_is_left_out():
    rows = [[1, 0, 0, 0], [np.nan, 0, 0, 0], [0, np.inf, 0, 0], [0, 0, 0, 0]]
    assert len(cloud(points(rows), rigid(np.eye(3), (0, 0, 1)))) == 1
    nothing = Frame("depth", 0, 0, "depth_u16_mm", np.zeros((480, 640), np.uint16))
    assert cloud(nothing, np.eye(4), LENS).shape == (0, 3)
    assert cloud(points(np.zeros((0, 4))), np.eye(4)).shape == (0, 3)


def test_the_rig_itself_is_left_out():
    rows = [[0.5, 0.2, 0, 0], [3, 0.2, 0, 0]]
    assert cloud(points(rows), np.eye(4), ego_box_m=(-1, 1, -1, 1)).tolist() == [[3, pytest.approx(0.2), 0]]


@pytest.mark.parametrize(
    ("frame", "lens", "says"),
    [
        (Frame("depth", 0, 0, "depth_u16_mm", np.ones((480, 640), np.uint16)), None, "needs its lens"),
        (
            Frame("depth", 0, 0, "depth_u16_mm", np.ones((240, 320), np.uint16)),
            LENS,
            "320 × 240 px, but its lens is known for 640 × 480",
        ),
        (Frame("lidar", 0, 0, "points_xyzit_f32", np.ones((7, 4), np.float32)), None, "shape (7, 4)"),
        (Frame("imu", 0, 0, "imu_f64", np.ones(6)), None, "has no points"),
    ],
)
def test_a_frame_without_points_is_refused_with_the_reason(frame, lens, says):
    with pytest.raises(ValueError) as error:
        cloud(frame, np.eye(4), lens)
    assert says in str(error.value)
