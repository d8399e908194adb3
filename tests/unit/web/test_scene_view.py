"""What the page is sent of points: where they fall on the picture and from above."""

import json
from typing import Any

import numpy as np
import pytest
from browsing import MS, RIG, sweep

from pipeline.frame import Frame
from pipeline.web.scene_view import MAX_SHOWN, NO_RIG, SceneView

NO_DEPTH = np.zeros((360, 640), np.uint16)


def unpacked(data: bytes) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The head, the points from above (n, 3) in metres and those on the picture (n, 3) in pixels and metres."""
    length = int.from_bytes(data[:2], "big")
    head, body = json.loads(data[2 : 2 + length]), data[2 + length :]
    top, on_picture = body[: 6 * head["top"]], body[6 * head["top"] :]
    assert len(on_picture) == 6 * head["on_picture"]
    u_v_range = np.frombuffer(on_picture, "<u2").reshape(-1, 3) * np.array([640 / 65535, 360 / 65535, 0.01])
    u_v_range[:, :2] -= 0.5
    return head, np.frombuffer(top, "<i2").reshape(-1, 3) / 100, u_v_range


def shown(view: SceneView, frame: Frame, **more: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    sensor = more.pop("sensor", frame.stream)
    return unpacked(
        view.message(view.sample(frame, sensor=sensor), **{"camera": "camera", "camera_sensor": "camera", **more})
    )


def test_a_point_lands_on_the_pixel_and_the_spot_where_it_is() -> None:
    # 10 m ahead of the camera, 2 m to the left and 1 m down: 80 px left of the middle and 40 px below it.
    head, top, on_picture = shown(SceneView(RIG), sweep([(10.5, 2.0, -1.0)], seq=7, capture_ns=5))
    assert (head["kind"], head["stream"], head["seq"], head["capture_ns"], head["duration_ns"]) == (
        "points",
        "lidar",
        7,
        5,
        100 * MS,
    )
    assert (head["frame"], head["camera"], head["reason"]) == ("base", "camera", "")
    assert on_picture == pytest.approx(np.array([[239.5, 219.5, np.sqrt(105)]]), abs=0.01)
    assert top == pytest.approx(np.array([[10.5, 2.0, 0.5]]), abs=0.006)


def test_points_behind_beside_and_above_the_picture_are_from_above_only() -> None:
    _, top, on_picture = shown(SceneView(RIG), sweep([(-10.0, 0, 0), (5.0, 30.0, 0), (5.0, 0, 20.0)]))
    assert len(top) == 3 and len(on_picture) == 0


def test_no_echo_and_no_number_are_no_points() -> None:
    _, top, on_picture = shown(SceneView(RIG), sweep([(0, 0, 0), (np.nan, 1, 1), (9, np.inf, 1), (9, 0, 0)]))
    assert len(top) == len(on_picture) == 1


def test_of_a_large_sweep_a_few_thousand_are_sent_from_all_around_and_the_same_each_time() -> None:
    turn = np.linspace(-np.pi, np.pi, 120_000)
    world = sweep(np.column_stack([20 * np.cos(turn), 20 * np.sin(turn), np.tile(np.linspace(-1.5, 2, 60), 2000)]))
    view = SceneView(RIG)
    _, top, on_picture = shown(view, world)
    assert 200 < len(top) <= MAX_SHOWN and 2000 < len(on_picture) <= MAX_SHOWN
    assert set(np.floor(np.degrees(np.arctan2(top[:, 1], top[:, 0])) / 10)) == set(range(-18, 18))
    assert np.array_equal(shown(view, world)[2], on_picture)
    assert len(view.message(view.sample(world, sensor="lidar"), camera="camera", camera_sensor="camera")) < 50_000


def test_without_a_rig_points_are_from_above_in_the_sensors_frame_with_the_reason_shown() -> None:
    head, top, on_picture = shown(SceneView(), sweep([(10.0, 2.0, 0.0)]))
    assert (head["frame"], head["reason"], len(on_picture)) == ("lidar", NO_RIG, 0)
    assert top == pytest.approx(np.array([[10.0, 2.0, 0.0]]))


def test_a_sensor_unknown_to_the_rig_is_reported_and_stops_nothing() -> None:
    head, top, _ = shown(SceneView(RIG), sweep([(10.0, 0, 0)]), camera="front", camera_sensor="front")
    assert "no camera called 'front'" in head["reason"] and len(top) == 1
    head, top, _ = shown(SceneView(RIG), sweep([(10.0, 0, 0)]), sensor="roof")
    assert "no frame called 'roof'" in head["reason"] and head["frame"] == "roof" and len(top) == 1


def test_a_picture_shrunk_as_a_whole_gets_its_points_and_a_cut_one_the_reason() -> None:
    assert shown(SceneView(RIG), sweep([(10.0, 0, 0)]), picture_px=(320, 180))[0]["on_picture"] == 1
    head, _, on_picture = shown(SceneView(RIG), sweep([(10.0, 0, 0)]), picture_px=(640, 480))
    assert len(on_picture) == 0 and head["reason"] == "camera: pictures are 640×480, the rig's 640×360"


def test_depth_becomes_points_through_the_rigs_lens() -> None:
    depth_mm = NO_DEPTH.copy()
    depth_mm[219, 239] = 10_000
    frame = Frame("depth", 0, 0, "depth_u16_mm", depth_mm)
    _, top, on_picture = shown(SceneView(RIG), frame, sensor="camera")
    assert top == pytest.approx(np.array([[10.5, 2.01, 0.51]]), abs=0.02) and on_picture[0, 0] == pytest.approx(
        239, abs=0.1
    )
    assert "no rig: the depth of camera" in shown(SceneView(), frame, sensor="camera")[0]["reason"]
    small = Frame("depth", 0, 0, "depth_u16_mm", np.ones((90, 160), np.uint16))
    assert (
        "depth of 160×90, but the rig's lens is of 640×360"
        in shown(SceneView(RIG), small, sensor="camera")[0]["reason"]
    )
