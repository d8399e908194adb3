"""ROS camera_info, Kalibr camchain and KITTI calib, both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig, TimeOffset
from pipeline.rig.rig_formats import (
    read_camera_info,
    read_kalibr,
    read_kitti,
    write_camera_info,
    write_kalibr,
    write_kitti,
)
from pipeline.rig.transforms import rigid, rotation_from_vector

RADTAN = Intrinsics("radtan", 640, 480, 535.4, 535.7, 342.6, 234.6, (-0.28, 0.07, 0.001, -0.0002, 0.1))
RADTAN4 = Intrinsics("radtan", 640, 480, 535.4, 535.7, 342.6, 234.6, (-0.28, 0.07, 0.001, -0.0002, 0.0))
RATIONAL = Intrinsics("rational", 640, 480, 535.4, 535.7, 342.6, 234.6, (-0.28, 0.07, 0.001, 0, 0.1, 0.2, 0.3, 0.4))
FISHEYE = Intrinsics("fisheye", 1920, 1208, 959.5, 960.2, 940.8, 670.7, (-0.0978, 0.1414, -0.1484, 0.0559))


@pytest.mark.parametrize("lens", [RADTAN, RATIONAL, FISHEYE], ids=lambda lens: lens.model)
def test_camera_info_comes_back_as_it_was_written(lens: Intrinsics, tmp_path: Path) -> None:
    write_camera_info(lens, tmp_path / "info.yaml", name="left")
    assert read_camera_info(tmp_path / "info.yaml") == ("left", lens)


def test_an_echoed_camera_info_message_is_read(tmp_path: Path) -> None:
    (tmp_path / "info.yaml").write_text(
        "height: 480\nwidth: 640\ndistortion_model: plumb_bob\nd: [-0.28, 0.07, 0.001, -0.0002, 0.1]\n"
        "k: [535.4, 0.0, 342.6, 0.0, 535.7, 234.6, 0.0, 0.0, 1.0]\n"
    )
    assert read_camera_info(tmp_path / "info.yaml") == ("", RADTAN)


def test_a_real_fisheye_camera_info_is_read(data_dir: Path) -> None:
    _, lens = read_camera_info(data_dir / "calibration" / "camera_lidar_poses" / "camera_info.yaml")
    assert lens.model == "fisheye" and lens.size == (1920, 1208) and lens.fx_px == pytest.approx(959.554)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("535.4, 0.0,", "535.4, 0.3,", "skew of 0.3"),
        ("plumb_bob", "plumbob", "Did you mean 'plumb_bob'?"),
        ("0.1]", "0.1, 1, 2, 3]", "8 coefficients, and radtan has 5"),
        ("0.0, 1.0]", "0.0]", "found 8 numbers, expected 9"),
        ("width: 640\n", "", "width: missing"),
    ],
)
def test_a_bad_camera_info_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (
        "height: 480\nwidth: 640\ndistortion_model: plumb_bob\nD: [-0.28, 0.07, 0.001, -0.0002, 0.1]\n"
        "K: [535.4, 0.0, 342.6, 0.0, 535.7, 234.6, 0.0, 0.0, 1.0]\n"
    )
    assert old in text
    (tmp_path / "info.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_camera_info(tmp_path / "info.yaml")
    assert message in str(caught.value)


def test_a_camchain_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pair = Pose("right", "left", rigid(rotation_from_vector(np.array([0.01, 0.02, -0.01])), (-0.12, 0.001, 0.002)))
    imu = Pose("left", "imu", rigid(rotation_from_vector(np.array([1.5, 0.1, -1.2])), (0.02, 0.03, -0.05)))
    rig = Rig({"left": RADTAN4, "right": FISHEYE}, (pair, imu), {"left": TimeOffset("left", "imu", -4.25)})
    write_kalibr(rig, tmp_path / "camchain.yaml")
    again = read_kalibr(tmp_path / "camchain.yaml")
    assert again.intrinsics == rig.intrinsics and again.time_offsets == rig.time_offsets
    for target, source in (("right", "left"), ("left", "imu"), ("right", "imu")):
        np.testing.assert_allclose(again.transform(target, source), rig.transform(target, source), atol=1e-15)


@pytest.mark.parametrize("lens", [RADTAN, RATIONAL], ids=lambda lens: lens.model)
def test_kalibr_cannot_hold_every_distortion(lens: Intrinsics, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Kalibr's radtan cannot hold"):
        write_kalibr(Rig({"camera": lens}), tmp_path / "camchain.yaml")


def test_a_camchain_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    camera = "camera_model: pinhole, distortion_model: none, intrinsics: [500, 500, 320, 240], resolution: [640, 480]"
    unit, moved = "[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]", "[[1,0,0,0.1],[0,1,0,0],[0,0,1,0],[0,0,0,1]]"
    (tmp_path / "camchain.yaml").write_text(
        f"cam0: {{{camera}, T_cam_imu: {unit}}}\ncam1: {{{camera}, T_cn_cnm1: {moved}, T_cam_imu: {unit}}}\n"
    )
    with pytest.raises(ConfigError, match="cam1.T_cam_imu: contradicts"):
        read_kalibr(tmp_path / "camchain.yaml")


def test_kitti_comes_back_as_it_was_written(data_dir: Path, tmp_path: Path) -> None:
    rig = read_kitti(data_dir / "driving" / "kitti_labelled" / "calib" / "000000.txt", size=(1242, 375))
    write_kitti(rig, tmp_path / "calib.txt")
    again = read_kitti(tmp_path / "calib.txt", size=(1242, 375))
    assert again.intrinsics == rig.intrinsics and len(rig.intrinsics) == 4
    np.testing.assert_allclose(again.transform("camera_2", "imu"), rig.transform("camera_2", "imu"), atol=1e-12)


def test_kitti_projects_as_its_own_formula_does(data_dir: Path) -> None:
    path = data_dir / "driving" / "kitti_sequence" / "calib.txt"
    lines = [line.partition(":") for line in path.read_text().splitlines() if line[0] in "PRT"]
    rows = {key: np.array(values.split(), float) for key, _, values in lines}
    points = np.random.default_rng(0).uniform((5, -3, -1), (30, 3, 1), (200, 3))
    homogeneous = (
        np.column_stack([points, np.ones(200)]) @ np.vstack([rows["Tr_velo_cam"].reshape(3, 4), (0, 0, 0, 1)]).T
    )
    expected = (homogeneous[:, :3] @ rows["R_rect_00"].reshape(3, 3).T) @ rows["P_rect_02"].reshape(3, 4)[:, :3].T
    expected += rows["P_rect_02"].reshape(3, 4)[:, 3]
    rig = read_kitti(path, size=(1242, 375), names={2: "camera"})
    pixels, depth_m, visible = rig.project(points, source="lidar", camera="camera")
    assert visible.sum() > 100
    np.testing.assert_allclose(pixels, expected[:, :2] / expected[:, 2:], atol=1e-6)
    np.testing.assert_allclose(depth_m, expected[:, 2], atol=1e-9)


def test_kitti_without_a_camera_names_the_lines_it_has(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("Tr: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(ConfigError, match="no camera in it.*Here: Tr"):
        read_kitti(tmp_path / "calib.txt", size=(1242, 375))


def test_kitti_with_a_short_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("P2: 700 0 600 0 0 700 180\n")
    with pytest.raises(ConfigError, match="P2: found a list of 7, expected 12 numbers"):
        read_kitti(tmp_path / "calib.txt", size=(1242, 375))


def test_a_rig_goes_to_ros_and_comes_back_by_the_command(tmp_path: Path) -> None:
    import run_pipeline
    from pipeline.rig.rig_file import load_rig, save_rig

    save_rig(Rig({"left": RADTAN, "wide": FISHEYE}), tmp_path / "rig.yaml")

    def convert(*words: str) -> None:
        args = run_pipeline.parser().parse_args(["calibrate", "convert", *words])
        args.function(args)

    convert(str(tmp_path / "rig.yaml"), str(tmp_path / "wide.yaml"), "--to", "ros", "--name", "wide")
    convert(str(tmp_path / "wide.yaml"), str(tmp_path / "other.yaml"), "--to", "rig")
    assert load_rig(tmp_path / "other.yaml").intrinsics == {"wide": FISHEYE}
    with pytest.raises(ConfigError, match="this has: left, wide"):
        convert(str(tmp_path / "rig.yaml"), str(tmp_path / "one.yaml"), "--to", "ros")
