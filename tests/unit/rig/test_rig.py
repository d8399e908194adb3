"""The rig: chains of poses with their uncertainty, projection, and a file whose errors tell the fix."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig, TimeOffset
from pipeline.rig.rig_file import load_rig, save_rig
from pipeline.rig.transforms import rigid, rotation_from_vector, rotation_to_vector

cv2 = pytest.importorskip("cv2")

RADTAN = Intrinsics("radtan", 1920, 1208, 959.5, 960.2, 940.8, 600.7, (-0.28, 0.07, 0.001, -0.002, 0.05))
RATIONAL = Intrinsics(
    "rational", 1920, 1208, 959.5, 960.2, 940.8, 600.7, (-0.28, 0.07, 0.001, -0.002, 0.1, 0.02, 0.01, 0.001)
)
FISHEYE = Intrinsics("fisheye", 1920, 1208, 959.5, 960.2, 940.8, 670.7, (-0.0978, 0.1414, -0.1484, 0.0559))
MODELS = pytest.mark.parametrize("camera", [RADTAN, RATIONAL, FISHEYE], ids=lambda c: c.model)

# A camera that looks along the base's x: its x is the base's −y, its y the base's −z, its z the base's x.
CAMERA_FROM_BASE = rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), (0, 1.6, -0.3))


def some_rig() -> Rig:
    lidar = rigid(rotation_from_vector(np.array([0.02, -0.1, 0.7])), (0.5, 0.1, 1.8))
    covariance = np.diag([1e-5, 2e-5, 3e-5, 1e-4, 2e-4, 3e-4])
    return Rig(
        {"camera": RADTAN},
        (Pose("camera", "base", CAMERA_FROM_BASE, covariance), Pose("base", "lidar", lidar, 2 * covariance)),
        {"microphone": TimeOffset("microphone", "camera", -21.5, 1.4), "lidar": TimeOffset("lidar", "camera", 3.0)},
        {"intrinsics camera": "calibrate camera left --board 9x6"},
    )


@MODELS
def test_projection_agrees_with_opencv(camera: Intrinsics) -> None:
    points = np.random.default_rng(1).uniform((-3, -2, 4), (3, 2, 8), (1000, 3))
    pixels, visible = camera.project(points)
    zero, matrix, distortion = np.zeros(3), camera.matrix, np.array(camera.distortion)
    project = cv2.fisheye.projectPoints if camera.model == "fisheye" else cv2.projectPoints
    expected = project(points.reshape(-1, 1, 3), zero, zero, matrix, distortion)[0].reshape(-1, 2)
    assert visible.sum() > 500
    np.testing.assert_allclose(pixels[visible], expected[visible], atol=1e-9)


@MODELS
def test_pixels_with_depth_come_back_as_the_points_they_were(camera: Intrinsics) -> None:
    u, v = np.meshgrid(np.linspace(0, camera.width_px - 1, 40), np.linspace(0, camera.height_px - 1, 30))
    pixels = np.column_stack([u.ravel(), v.ravel()])
    points = camera.unproject(pixels, np.linspace(1, 9, len(pixels)))
    again, visible = camera.project(points)
    assert visible.all()
    np.testing.assert_allclose(again, pixels, atol=1e-6)


def test_a_point_behind_the_camera_has_no_pixel() -> None:
    pixels, visible = RADTAN.project(np.array([[0.1, 0.1, -5.0], [0.1, 0.1, 0.0], [0.0, 0.0, 5.0]]))
    assert visible.tolist() == [False, False, True]
    assert np.isnan(pixels[:2]).all()


@MODELS
def test_points_that_are_many_are_projected_as_each_alone(camera: Intrinsics) -> None:
    """A sweep goes round the camera: chunks of it lie in front, behind, and across."""
    bearing = np.linspace(-np.pi, np.pi, 40_000)
    points = np.column_stack([9 * np.sin(bearing), np.sin(37 * bearing), 9 * np.cos(bearing)])
    pixels, visible = camera.project(points)
    some = np.arange(0, len(points), 977)
    alone = [camera.project(points[i : i + 1]) for i in some]
    np.testing.assert_array_equal(visible[some], np.concatenate([one[1] for one in alone]))
    np.testing.assert_allclose(pixels[some], np.vstack([one[0] for one in alone]), atol=1e-9)
    assert 0 < visible.sum() < len(points) / 2 and np.isnan(pixels[0]).all()


def test_a_point_beside_the_camera_does_not_fold_back_into_the_picture() -> None:
    folding = Intrinsics("radtan", 640, 480, 500, 500, 320, 240, (-0.3, 0.0, 0.0, 0.0, 0.0))
    beside = np.array([[1.8, 0.0, 1.0]])  # 61° off the axis: the polynomial alone puts it at x = 345 px
    pixels, visible = folding.project(beside)
    assert not visible[0] and np.isnan(pixels).all()


def test_a_fisheye_sees_past_90_degrees() -> None:
    wide = Intrinsics("fisheye", 2000, 2000, 500, 500, 1000, 1000)
    pixels, visible = wide.project(np.array([[1.0, 0.0, -0.1]]))
    assert visible[0] and pixels[0, 0] == pytest.approx(1000 + 500 * (np.pi / 2 + np.arctan(0.1)))


def test_a_depth_picture_becomes_points_and_no_depth_none() -> None:
    depth_m = np.full((480, 640), 2.0)
    depth_m[0, 0] = 0.0
    points = Intrinsics("radtan", 640, 480, 500, 500, 320, 240, (-0.1, 0, 0, 0, 0)).points(depth_m).reshape(480, 640, 3)
    assert np.isnan(points[0, 0]).all()
    np.testing.assert_allclose(points[240, 320], (0, 0, 2), atol=1e-9)


def test_120_000_points_are_projected_in_milliseconds() -> None:
    """≤ 3 ms on a quiet machine; the bound here, of the thread's own time, is for one that is not."""
    bearing_rad, range_m, height_m = np.random.default_rng(0).uniform((-np.pi, 2, -2), (np.pi, 60, 3), (120_000, 3)).T
    sweep = np.column_stack([range_m * np.sin(bearing_rad), height_m, range_m * np.cos(bearing_rad)])
    points = sweep.astype(np.float32)  # as frames carry them; half lie behind the camera
    rig = Rig({"camera": RADTAN}, (Pose("camera", "lidar", np.eye(4)),))
    took_s = []
    for _ in range(9):
        start = time.process_time()
        rig.project(points, source="lidar", camera="camera")
        took_s.append(time.process_time() - start)
    assert min(took_s) < 0.05


def test_chains_cancel() -> None:
    rig = some_rig()
    np.testing.assert_allclose(
        rig.transform("camera", "lidar"), rig.transform("camera", "base") @ rig.transform("base", "lidar"), atol=1e-12
    )
    np.testing.assert_allclose(
        rig.transform("lidar", "camera") @ rig.transform("camera", "lidar"), np.eye(4), atol=1e-12
    )


def test_what_is_ahead_of_the_base_is_in_the_middle_of_the_picture() -> None:
    pixels, depth_m, visible = some_rig().project(np.array([[10.3, 0.0, 1.6]]), source="base", camera="camera")
    assert visible[0] and depth_m[0] == pytest.approx(10.0)
    np.testing.assert_allclose(pixels[0], (RADTAN.cx_px, RADTAN.cy_px), atol=1e-9)


def test_covariance_of_a_chain_is_what_a_simulation_finds() -> None:
    rig, rng = some_rig(), np.random.default_rng(3)
    outer, inner = rig.poses
    stated = rig.pose("lidar", "camera")
    assert stated.covariance is not None
    errors = []
    for _ in range(1500):
        shaken = [_shaken(pose, rng) for pose in (outer, inner)]
        true = np.linalg.inv(shaken[0] @ shaken[1])
        turn = rotation_to_vector(true[:3, :3] @ stated.target_from_source[:3, :3].T)
        errors.append([*turn, *(true[:3, 3] - stated.target_from_source[:3, 3])])
    np.testing.assert_allclose(np.std(errors, axis=0), stated.sigma, rtol=0.09)


def _shaken(pose: Pose, rng: np.random.Generator) -> np.ndarray:
    e = rng.multivariate_normal(np.zeros(6), pose.covariance)
    return rigid(rotation_from_vector(e[:3]) @ pose.target_from_source[:3, :3], pose.target_from_source[:3, 3] + e[3:])


@pytest.mark.parametrize("angle", [0.0, 1e-10, 0.3, np.pi - 1e-6, np.pi])
def test_rotation_vectors_and_matrices_are_each_others_inverse(angle: float) -> None:
    vector = angle * np.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(rotation_to_vector(rotation_from_vector(vector)), vector, atol=1e-8)


def test_time_offsets_resolve_both_ways_and_through_a_common_reference() -> None:
    rig = some_rig()
    assert rig.offset_ms("camera", "microphone").offset_ms == 21.5
    assert rig.offset_ms("microphone", "lidar").offset_ms == -24.5
    assert rig.offset_ms("microphone", "lidar").sigma_ms is None  # the lidar's is not known


def test_a_rig_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    rig = some_rig().with_intrinsics("wide", FISHEYE, "by hand")
    save_rig(rig, tmp_path / "rig.yaml")
    again = load_rig(tmp_path / "rig.yaml")
    assert (
        again.intrinsics == rig.intrinsics
        and again.time_offsets == rig.time_offsets
        and again.provenance == rig.provenance
    )
    for got, expected in zip(again.poses, rig.poses, strict=True):
        assert (got.target, got.source) == (expected.target, expected.source)
        np.testing.assert_array_equal(got.target_from_source, expected.target_from_source)
        np.testing.assert_array_equal(got.covariance, expected.covariance)


def test_a_pose_can_be_written_by_hand_as_angles(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text(
        "version: 1\nposes: [{target: base, source: lidar, translation_m: [1, 0, 2], roll_pitch_yaw_deg: [0, 0, 90], "
        "sigma_deg: 1.0, sigma_m: 1e-2}]\n"
    )
    pose = load_rig(tmp_path / "rig.yaml").pose("base", "lidar")
    np.testing.assert_allclose(pose.target_from_source @ (5, 0, 0, 1), (1, 5, 2, 1), atol=1e-12)
    np.testing.assert_allclose(pose.sigma, [np.deg2rad(1)] * 3 + [0.01] * 3)


CAMERA = (
    "version: 1\nintrinsics: {camera: {model: radtan, width_px: 640, height_px: 480, "
    "fx_px: 500, fy_px: 500, cx_px: 320, cy_px: 240"
)
POSE = "version: 1\nposes: [{target: base, source: lidar, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a rig"),
        ("version: 2", "version: found 2"),
        ("poses: []", "version: missing"),
        ("version: 1\nintrinsic: {}", "Did you mean 'intrinsics'?"),
        (CAMERA.replace("fx_px", "fx") + "}}", "intrinsics.camera: unknown key 'fx'"),
        (CAMERA.replace("fx_px: 500, ", "") + "}}", "intrinsics.camera.fx_px: missing"),
        (
            CAMERA.replace("fx_px: 500", "fx_px: wide") + "}}",
            "intrinsics.camera.fx_px: found str 'wide', expected a number",
        ),
        (CAMERA.replace("fx_px: 500", "fx_px: -500") + "}}", "expected more than 0"),
        (CAMERA.replace("radtan", "radtam") + "}}", "Did you mean 'radtan'?"),
        (CAMERA + ", distortion: [0.1, 0.2]}}", "intrinsics.camera.distortion: found a list of 2, expected 5 numbers"),
        (CAMERA + ", distortion: [0.1, 0.2, .nan, 0, 0]}}", "distortion[2]: found nan, expected a finite number"),
        (POSE + "translation_m: [1, 2]}]", "poses[0].translation_m: found a list of 2, expected 3 numbers"),
        (POSE + "matrix: [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]}]", "poses[0]: not a rigid motion"),
        (POSE + "translation_m: [0, 0, 0], quaternion_xyzw: [0, 0, 0, 0]}]", "a quaternion of length 0"),
        (
            POSE + "translation_m: [0, 0, 0], quaternion_xyzw: [0, 0, 0, 1], roll_pitch_yaw_deg: [0, 0, 0]}]",
            "both hold the rotation",
        ),
        (
            POSE + "translation_m: [0, 0, 0]}, {target: lidar, source: base, translation_m: [0, 0, 0]}]",
            "poses[1]: lidar_from_base closes",
        ),
        ("version: 1\ntime_offsets: {microphone: {reference: camera, offset: 3}}", "Did you mean 'offset_ms'?"),
        ("version: 1\nposes: {a: 1}", "poses: found dict"),
        ("version: 1\nposes: [{target: [}", "not valid YAML"),
    ],
)
def test_a_bad_rig_file_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"rig\.yaml") as caught:
        load_rig(tmp_path / "rig.yaml")
    assert message in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "my-rig.yaml").write_text("version: 1\n")
    with pytest.raises(ConfigError, match=r"Did you mean 'my-rig.yaml'\?"):
        load_rig(tmp_path / "my-rigs.yaml")


def test_an_unknown_camera_and_an_unconnected_frame_are_refused() -> None:
    rig = some_rig()
    with pytest.raises(ConfigError, match="Did you mean 'camera'"):
        rig.camera("camra")
    with pytest.raises(ConfigError, match="no frame called 'lidr'"):
        rig.transform("camera", "lidr")
    with pytest.raises(ConfigError, match="no chain connects 'camera' and 'microphone'"):
        rig.transform("camera", "microphone")
