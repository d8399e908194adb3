"""A lidar that turns and drives through a world that stands still: its points, put back to where they are."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nodes.deskew import Deskew
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame, silence
from pipeline.sensors.lidar.deskew import deskew, from_rates, rotation, turned_by
from pipeline.testing import NodeHarness

SWEEP_NS = NS // 10
TURN = np.array([0.1, -0.2, 0.9])  # rad/s
DRIVE = np.array([12.0, 0.5, -0.2])  # m/s, in the lidar's frame


def world(count: int = 20_000, seed: int = 1) -> np.ndarray:
    """(n, 3) m, as seen at the sweep's start."""
    return np.random.default_rng(seed).uniform([-40, -40, -3], [40, 40, 5], (count, 3))


def pose_at(seconds: np.ndarray, turn: np.ndarray = TURN, drive: np.ndarray = DRIVE) -> tuple[np.ndarray, np.ndarray]:
    """Exact pose of a sensor whose rates in its own frame are constant: start_from_sensor (n, 3, 3), position (n,
    3)."""
    angle = np.linalg.norm(turn) * seconds[:, None, None]
    x, y, z = turn / np.linalg.norm(turn)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    ratio = np.linalg.norm(turn)
    along = (
        seconds[:, None, None] * np.eye(3)
        + (1 - np.cos(angle)) / ratio * cross
        + (angle - np.sin(angle)) / ratio * (cross @ cross)
    )
    return turned, along @ drive


def skewed(points: np.ndarray, turn: np.ndarray = TURN, drive: np.ndarray = DRIVE) -> np.ndarray:
    """(n, 5) as the moving lidar measures them, each at its own moment of the sweep."""
    seconds = np.linspace(0, 0.1, len(points), endpoint=False)
    turned, position = pose_at(seconds, turn, drive)
    in_sensor = np.einsum("nji,nj->ni", turned, points - position)
    return np.column_stack([in_sensor, np.full(len(points), 0.5), seconds]).astype(np.float32)


def rates(rate_hz: int, start_ns: int = 0, turn: np.ndarray = TURN, drive: np.ndarray = DRIVE):
    times_ns = start_ns + np.arange(-rate_hz // 10, rate_hz // 4) * NS // rate_hz
    return times_ns, np.tile(turn, (len(times_ns), 1)), np.tile(drive, (len(times_ns), 1))


def test_points_come_back_to_where_they_are():
    points = world()
    measured = skewed(points)
    assert np.linalg.norm(measured[:, :3] - points, axis=1).max() > 1.0  # what there is to do
    still = deskew(measured, 5 * NS, from_rates(*rates(200, 5 * NS)))
    assert still.dtype == np.float32 and still.shape == (len(points), 4) and np.array_equal(still[:, 3], measured[:, 3])
    assert np.linalg.norm(still[:, :3] - points, axis=1).max() < 1e-3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_points_can_be_deskewed_to_any_time_of_the_sweep(share):
    points = world()
    [turned], [position] = pose_at(np.array([0.1 * share]))
    still = deskew(skewed(points), 0, from_rates(*rates(200)), at_ns=round(share * SWEEP_NS))
    assert np.linalg.norm(still[:, :3] - (points - position) @ turned, axis=1).max() < 1e-3


def test_a_sensor_that_turns_unevenly():
    """At 400 Hz, against steps so small that they are the truth."""
    points = world(2000)

    def turning(at_s: np.ndarray) -> np.ndarray:
        return np.stack([0.3 * np.sin(20 * at_s), 0.4 * np.cos(15 * at_s), 1.5 + 2 * np.sin(10 * at_s)], axis=-1)

    fine_ns = np.arange(-10_000_000, 110_000_000, 10_000)
    truth = from_rates(fine_ns, turning(fine_ns / NS), np.tile(DRIVE, (len(fine_ns), 1)))
    seconds = np.linspace(0, 0.1, len(points), endpoint=False)
    at = np.searchsorted(fine_ns, np.round(seconds * NS))
    home, home_m = truth.rotations[1000], truth.positions_m[1000]
    in_world = points @ home.T + home_m
    in_sensor = np.einsum("nji,nj->ni", truth.rotations[at], in_world - truth.positions_m[at])
    measured = np.column_stack([in_sensor, np.zeros(len(points)), fine_ns[at] / NS]).astype(np.float32)
    coarse_ns = np.arange(-10_000_000, 112_500_000, 2_500_000)
    still = deskew(measured, 0, from_rates(coarse_ns, turning(coarse_ns / NS), np.tile(DRIVE, (len(coarse_ns), 1))))
    assert np.linalg.norm(still[:, :3] - points, axis=1).max() < 2e-3


def test_a_sensor_that_stands_still_sees_what_it_sees():
    points = skewed(world(1000), TURN * 1e-9, DRIVE * 0)
    still = deskew(points, 0, from_rates([0], np.zeros((1, 3))))
    assert np.array_equal(still, points[:, :4])


def test_a_turn_and_its_vector_agree():
    vectors = np.random.default_rng(2).normal(0, 1, (500, 3)) * np.geomspace(1e-9, 1.5, 500)[:, None] / 2
    assert np.abs(turned_by(rotation(vectors)) - vectors).max() < 1e-7


@pytest.mark.parametrize(
    ("times", "turning"),
    [([0, 0], np.zeros((2, 3))), ([1, 0], np.zeros((2, 3))), ([], np.zeros((0, 3))), ([0, 1], np.zeros((2, 2)))],
)
def test_rates_that_are_none_are_refused(times, turning):
    with pytest.raises(ValueError, match="times"):
        from_rates(times, turning)


def test_a_sweep_does_not_take_for_ever():
    points = skewed(world(120_000))
    motion = from_rates(*rates(200))
    deskew(points, 0, motion)
    took_s = []
    for _ in range(5):
        begin_s = time.process_time()
        deskew(points, 0, motion)
        took_s.append(time.process_time() - begin_s)
    assert min(took_s) < 0.2  # it takes some 20 ms (`bench lidar`); the bound is for a machine that is not quiet


# The node


def sweep(seq: int, capture_ns: int, points: np.ndarray) -> Frame:
    return Frame("lidar", seq, capture_ns, "points_xyzit_f32", points, duration_ns=SWEEP_NS)


def imu(at_ns: int, turn: np.ndarray = TURN) -> Frame:
    return Frame("imu", -1, at_ns, "imu_f64", np.array([0, 0, 9.81, *turn]))


def odometry(at_ns: int, drive: np.ndarray = DRIVE) -> Frame:
    return Frame("odometry", -1, at_ns, "series_f32", drive.astype(np.float32))


def send_rates(harness: NodeHarness, from_ms: int, to_ms: int) -> None:
    for at_ms in range(from_ms, to_ms, 5):
        harness.send("imu", imu(at_ms * 1_000_000), at_ns=max(harness.clock.now_ns(), at_ms * 1_000_000))
        harness.send("odometry", odometry(at_ms * 1_000_000))


def test_a_sweep_waits_for_the_motion_to_its_end_and_no_longer():
    points = world(5000)
    with NodeHarness(Deskew(), inputs=["lidar", "imu", "odometry"], name="still") as harness:
        send_rates(harness, 950, 1090)
        assert harness.send("lidar", sweep(0, NS, skewed(points)), at_ns=NS + SWEEP_NS) == []
        send_rates(harness, 1090, 1110)
    [frame] = harness.emitted
    assert isinstance(frame, Frame) and (frame.stream, frame.seq, frame.encoding, frame.reason) == (
        "still",
        0,
        "points_xyzi_f32",
        "",
    )
    assert (frame.capture_ns, frame.duration_ns) == (NS, SWEEP_NS)
    assert np.linalg.norm(frame.data[:, :3] - points, axis=1).max() < 1e-3


def test_a_sweep_without_motion_goes_on_as_it_is_and_says_so():
    points = skewed(world(500))
    with NodeHarness(Deskew(max_wait_ms=50.0), inputs=["lidar", "imu"], name="still") as harness:
        harness.send("lidar", sweep(0, 0, points), at_ns=SWEEP_NS)
        assert harness.node.wake_ns() == SWEEP_NS + 50_000_000 and harness.wait_until(SWEEP_NS + 49_000_000) == []
        [frame] = harness.wait_until(SWEEP_NS + 51_000_000)
    assert isinstance(frame, Frame) and frame.encoding == "points_xyzit_f32" and np.array_equal(frame.data, points)
    assert frame.reason == "not de-skewed: no motion was received"


def test_motion_with_a_gap_is_not_believed():
    with NodeHarness(Deskew(max_wait_ms=0.0), inputs=["lidar", "imu"], name="still") as harness:
        harness.send("imu", imu(NS - 150_000_000), at_ns=NS - 150_000_000)
        harness.send("imu", imu(NS + 95_000_000), at_ns=NS + 95_000_000)
        [frame] = harness.send("lidar", sweep(0, NS, skewed(world(500))), at_ns=NS + SWEEP_NS)
    assert isinstance(frame, Frame) and "gaps of up to 245 ms" in frame.reason


def test_an_imu_that_is_mounted_otherwise_is_turned_by_the_rig(tmp_path):
    pose = "{target: lidar, source: imu, translation_m: [0, 0, 0], roll_pitch_yaw_deg: [180, 0, 0]}"
    (tmp_path / "rig.yaml").write_text(f"version: 1\nposes: [{pose}]\n")
    points = world(5000)
    with NodeHarness(Deskew(rig=str(tmp_path / "rig.yaml")), inputs=["lidar", "imu"], name="still") as harness:
        for at_ms in range(950, 1115, 5):
            harness.send("imu", imu(at_ms * 1_000_000, TURN * [1, -1, -1]), at_ns=at_ms * 1_000_000)
        [frame] = harness.send("lidar", sweep(0, NS, skewed(points, drive=DRIVE * 0)), at_ns=NS + 120_000_000)
    assert isinstance(frame, Frame) and np.linalg.norm(frame.data[:, :3] - points, axis=1).max() < 1e-3


def test_silences_are_passed_on_in_order():
    with NodeHarness(Deskew(), inputs=["lidar", "imu"], name="still") as harness:
        harness.send("lidar", sweep(0, 0, skewed(world(100))), at_ns=SWEEP_NS)
        sent = harness.send("lidar", silence("lidar", NS, "unplugged"), at_ns=NS)
    assert [(f.encoding, f.capture_ns, f.seq) for f in sent if isinstance(f, Frame)] == [
        ("points_xyzit_f32", 0, 0),
        ("none", NS, 1),
    ]


def test_a_deskew_without_motion_in_its_inputs_is_refused():
    with pytest.raises(ConfigError, match=r"\[lidar, imu\]"):
        NodeHarness(Deskew(), inputs=["lidar"])
