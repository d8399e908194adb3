"""The rendered drive: what its three sensors tell is where the truth says it is, at every point's own time."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from running import COMMAND, environment

from nodes.rendered import Rendered
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.node import Context
from pipeline.rig.rig_file import save_rig
from pipeline.rig.transforms import apply
from pipeline.sensors.rendered import ground as street_ground
from pipeline.sensors.rendered import traffic
from pipeline.sensors.rendered.drive import CAMERA_M, LIDAR_M, RANGE_SIGMA_M, Drive, Truth, rig
from pipeline.sensors.rendered.picture import Scene, far_to_near
from pipeline.sensors.rendered.rays import gait, lap_shift
from pipeline.sensors.rendered.solids import Thing
from pipeline.testing import play

ROOT = Path(__file__).resolve().parents[3]
MS = 1_000_000
AHEAD_ID = 1  # the car in front is built first
# On the way, in a sway, standing, with people in front, across the loop's seam.
MOMENTS_NS = (0, 4 * NS, 12 * NS, 24 * NS + 123_456_789, round(32.5 * NS), traffic.LOOP_NS - 50 * MS)


@cache
def drive() -> Drive:
    return Drive(seed=0)


def thing_of(truth: tuple[Truth, ...], thing_id: int) -> Truth:
    return next(t for t in truth if t.id == thing_id)


def in_street(points: np.ndarray, start_ns: int) -> np.ndarray:
    """Points of a sweep in the street's frame, each by where the lidar was at the point's own time."""
    x, y, yaw = traffic.ego(start_ns % traffic.LOOP_NS / NS + points[:, 4].astype(float))
    px, py, pz = points[:, :3].astype(float).T + np.array(LIDAR_M)[:, None]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.stack([x + cos * px - sin * py, y + sin * px + cos * py, pz + street_ground.height(x)], axis=1)


def off_surface_m(thing: Thing, at_m: np.ndarray, t_s: np.ndarray) -> np.ndarray:
    """How far points of the street, each with its time, lie off the nearest surface of a thing as it was then."""
    x, y, yaw = thing.track(t_s)
    x = x + lap_shift(x[:1], float(at_m[0, 0]))
    z = street_ground.stand(x, y)
    dx, dy = at_m[:, 0] - x, at_m[:, 1] - y
    local = np.stack([np.cos(yaw) * dx + np.sin(yaw) * dy, np.cos(yaw) * dy - np.sin(yaw) * dx, at_m[:, 2] - z], axis=1)
    swing = gait(thing, t_s)
    off = []
    for solid in thing.solids:
        own = local - np.stack([solid.swing_m * swing, 0 * swing, 0 * swing], axis=1)
        off.append(np.abs((own @ solid.normals.T - solid.offsets).max(axis=1)))
    return np.min(off, axis=0)


# --- the lidar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_ns", MOMENTS_NS)
def test_every_point_lies_on_its_thing_at_the_position_of_the_point_s_time(start_ns: int) -> None:
    points, ids = drive().labelled_sweep(start_ns)
    street, t_s = in_street(points, start_ns), start_ns % traffic.LOOP_NS / NS + points[:, 4].astype(float)
    assert len(points) > 25_000 and len(set(ids.tolist())) > 25
    for thing in drive().things:
        if (mine := ids == thing.id).any():
            off = off_surface_m(thing, street[mine], t_s[mine])
            assert off.max() < 5 * RANGE_SIGMA_M, f"{thing.kind} {thing.id}: {off.max():.3f} m off"


def test_a_point_lies_where_a_moving_car_was_at_the_point_s_own_time_not_at_the_sweep_s() -> None:
    start_ns = 2 * NS  # an oncoming car passes on the left, late in the sweep
    oncoming = drive().things[1]
    points, ids = drive().labelled_sweep(start_ns)
    mine = ids == oncoming.id
    street, t_s = in_street(points, start_ns)[mine], start_ns / NS + points[mine, 4].astype(float)
    late = points[mine, 4] > 0.06
    assert late.sum() > 10
    assert np.median(off_surface_m(oncoming, street[late], t_s[late])) < RANGE_SIGMA_M
    assert np.percentile(off_surface_m(oncoming, street[late], np.full(late.sum(), start_ns / NS)), 90) > 0.3


@pytest.mark.parametrize("start_ns", MOMENTS_NS)
def test_ground_points_lie_on_road_kerb_or_pavement(start_ns: int) -> None:
    points, ids = drive().labelled_sweep(start_ns)
    x, y, z = in_street(points, start_ns)[ids == 0].T
    up = street_ground.height(x) + np.where(np.abs(y) > street_ground.ROAD_M, street_ground.KERB_M, 0)
    on_kerb = np.abs(np.abs(y) - street_ground.ROAD_M) < 6 * RANGE_SIGMA_M
    assert len(x) > 10_000
    assert np.abs(z - up)[~on_kerb].max() < 5 * RANGE_SIGMA_M
    off_kerb = np.abs(np.median(z[~on_kerb] - up[~on_kerb]))
    assert off_kerb < 0.002


def test_sweep_turns_to_the_right_and_looks_ahead_40_ms_after_its_start() -> None:
    points = drive().sweep(0)
    assert points.dtype == np.float32 and points.shape[1] == 5
    assert (np.diff(points[:, 4]) >= 0).all() and 0 <= points[0, 4] and points[-1, 4] < 0.1
    assert 0 <= points[:, 3].min() and points[:, 3].max() <= 1
    azimuth = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    assert np.abs(points[np.abs(azimuth) < 0.5, 4] - 0.04).max() < 0.0003
    assert np.median(points[np.abs(azimuth - 90) < 1, 4]) == pytest.approx(0.015, abs=0.001)


def test_beams_give_sweeps_of_their_size_and_others_are_refused() -> None:
    assert 20_000 < len(Drive(beams=16).sweep(0)) < 28_800
    assert 115_000 < len(Drive(beams=64).sweep(0)) < 131_072
    with pytest.raises(ConfigError, match="16, 32, 64"):
        Drive(beams=33)


# --- the camera and the depth camera ----------------------------------------------------------------------------------


def test_points_on_the_red_car_project_onto_red_in_the_picture() -> None:
    at_ns = 12 * NS  # both cars stand
    points, ids = drive().labelled_sweep(at_ns)
    image = drive().camera(at_ns)
    pixels, _, visible = drive().rig.project(points[:, :3], source="lidar", camera="camera")

    def share_of_red(chosen: np.ndarray) -> float:
        u, v = np.round(pixels[chosen & visible]).astype(int).T
        blue, green, red = image[v, u].astype(int).T
        return float(np.mean(red - np.maximum(blue, green) > 50))

    on_body = (ids == AHEAD_ID) & (points[:, 2] + LIDAR_M[2] < 0.86)
    assert (on_body & visible).sum() > 150
    assert share_of_red(on_body) > 0.85  # the rest is its number plate, and noise at the edges
    assert share_of_red(ids == 0) < 0.01


def test_points_on_painted_stripes_project_onto_white_in_the_picture_and_points_beside_them_onto_asphalt() -> None:
    at_ns = round(33.3 * NS)  # standing before the second crossing
    points, ids = drive().labelled_sweep(at_ns)
    x, y, _ = in_street(points, at_ns).T
    image = cv2.cvtColor(drive().camera(at_ns), cv2.COLOR_BGR2GRAY)
    pixels, depth_m, visible = drive().rig.project(points[:, :3], source="lidar", camera="camera")
    around = [drive().scene.paint.reflectance(x + dx, y + dy) for dx in (-0.3, 0, 0.3) for dy in (-0.12, 0, 0.12)]
    near = visible & (ids == 0) & (depth_m < 12)
    for chosen, is_right in (
        (near & (np.min(around, axis=0) > 0.6), image > 130),
        (near & (np.max(around, axis=0) < 0.13), image < 110),
    ):
        u, v = np.round(pixels[chosen]).astype(int).T
        assert len(u) > 40 and is_right[v, u].mean() > 0.9


@pytest.mark.parametrize(("thing_id", "at_ns"), [(1, 12 * NS), (1, 6 * NS), (2, NS), (7, 31 * NS), (4, 4 * NS)])
def test_outline_of_a_thing_in_the_picture_is_where_rays_of_the_same_camera_meet_it(thing_id: int, at_ns: int) -> None:
    """The picture is painted, the sweep is cast: two ways that must agree on what hides what."""
    lens, t_s = drive().rig.camera("camera"), at_ns / NS
    base = drive().base(at_ns)
    x, y, z = (base @ [*CAMERA_M, 1])[:3]
    yaw = np.arctan2(base[1, 0], base[0, 0])
    others = [t for t in drive().things if t.id != thing_id]
    both = [np.empty((lens.height_px, lens.width_px, 3), np.uint8) for _ in range(2)]
    drive().scene.take(lens, (x, y, z, yaw), t_s, both[0])
    Scene(others, 0).take(lens, (x, y, z, yaw), t_s, both[1])
    changed = np.abs(both[0].astype(int) - both[1]).max(axis=2) > 6

    left = -(np.arange(lens.width_px) - lens.cx_px) / lens.fx_px
    hits = drive().caster.cast(
        t_s=np.full(lens.width_px, t_s),
        origin=np.repeat([[x], [y], [z]], lens.width_px, axis=1),
        direction=np.stack([np.cos(yaw) - left * np.sin(yaw), np.sin(yaw) + left * np.cos(yaw)]),
        slopes=(-(np.arange(lens.height_px) - lens.cy_px) / lens.fy_px)[::-1],
        farthest_m=100.0,
    )
    met = (hits.id.T == thing_id)[::-1]
    on_ground = (hits.id.T == 0)[::-1]
    assert met.sum() > 150
    assert (met & changed).sum() > 0.9 * met.sum()
    # What changed beside it: its shadow and its wheels before the ground, and the blurred pixels of its edge.
    edge = cv2.dilate(met.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert (changed & ~edge & ~on_ground).sum() < 0.03 * met.sum()


def test_boxes_are_drawn_in_an_order_that_hides_none_wrongly() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        low = random.uniform((-30, -30, -3), (30, 30, 2), (60, 3))
        high = low + random.uniform(0.5, 6, (60, 3))
        apart = np.ones(60, bool)  # keep those that overlap none before them, nor the eye
        for i in range(60):
            clash = ((low[:i] < high[i]) & (high[:i] > low[i])).all(axis=1) & apart[:i]
            apart[i] = not clash.any() and not ((low[i] < 0.1) & (high[i] > -0.1)).all()
        low, high = low[apart], high[apart]
        rank = np.argsort(far_to_near(low, high))
        rays = random.standard_normal((3000, 3)) * (1, 1, 0.1)
        with np.errstate(divide="ignore"):
            a, b = low[None] / rays[:, None], high[None] / rays[:, None]
        enters, leaves = np.minimum(a, b).max(axis=2), np.maximum(a, b).min(axis=2)
        for t, met in zip(enters, (enters < leaves) & (enters > 0), strict=True):
            ranks = rank[met][np.argsort(-t[met])]  # from far to near
            assert (np.diff(ranks) > 0).all()


def test_depth_picture_tells_how_far_the_car_ahead_is_and_lies_on_the_road() -> None:
    at_ns = 12 * NS
    depth_m = drive().depth(at_ns) / 1000
    lens = drive().rig.camera("depth")
    car = thing_of(drive().truth(at_ns), AHEAD_ID)
    to_rear = car.centre_m[0] - car.size_m[0] / 2 - 1.9
    assert depth_m.shape == (180, 320) and 4 < to_rear < 8
    middle = depth_m[round(lens.cy_px) + 5, 150:170]
    assert np.median(middle) == pytest.approx(to_rear, abs=0.02)
    assert depth_m.max() <= 10.2 and (depth_m[:40] == 0).mean() > 0.5  # nothing in the sky

    points = apply(drive().rig.transform("base", "depth"), lens.points(depth_m))
    road = (np.abs(points[:, 1]) < 1.5) & (points[:, 0] < car.centre_m[0] - 3)
    assert road.sum() > 3000 and np.abs(points[road, 2]).max() < 0.08


# --- the truth --------------------------------------------------------------------------------------------------------


def test_truth_s_velocity_is_how_its_place_in_the_base_frame_changes() -> None:
    for at_ns in (3 * NS, 9 * NS, 29 * NS):
        before, now, after = (drive().truth(at_ns + d * MS) for d in (-1, 0, 1))
        for a, b, c in zip(before, now, after, strict=True):
            if abs(c.centre_m[0] - a.centre_m[0]) < 10:  # not the one that just leaves the street's end
                slope = (np.array(c.centre_m) - a.centre_m)[:2] / 2e-3
                np.testing.assert_allclose(b.velocity_mps, slope, atol=0.02)
    standing = thing_of(drive().truth(12 * NS), AHEAD_ID)
    assert np.hypot(*standing.velocity_mps) < 1e-6 and standing.kind == "car"


def test_loop_has_no_seam() -> None:
    last, first = drive().truth(traffic.LOOP_NS - 1000), drive().truth(0)
    for a, b in zip(last, first, strict=True):
        gap_m = np.abs(np.array(a.centre_m) - b.centre_m)
        gap_m[0] = min(gap_m[0], abs(gap_m[0] - traffic.STREET_M))
        assert gap_m.max() < 0.001 and abs(np.sin(a.yaw_rad - b.yaw_rad)) < 0.001, a.kind
        np.testing.assert_allclose(a.velocity_mps, b.velocity_mps, atol=0.01)
    np.testing.assert_array_equal(drive().camera(7 * NS), drive().camera(7 * NS + 3 * traffic.LOOP_NS))
    steps = [
        float(np.abs(drive().camera(at).astype(int) - drive().camera(at + 20 * MS)).mean())
        for at in (NS, 2 * NS, traffic.LOOP_NS - 10 * MS)
    ]
    assert steps[2] < 1.5 * max(steps[:2])


def test_nobody_is_run_over() -> None:
    rig_box = Truth(0, "rig", (0.0, 0.0, 0.8), (4.4, 1.8, 1.6), 0.0, (0.0, 0.0), True)
    for at_ns in range(0, traffic.LOOP_NS, NS // 5):
        truth = [rig_box, *drive().truth(at_ns)]
        half = np.array([turned(t) for t in truth]) / 2
        centre = np.array([t.centre_m[:2] for t in truth])
        touches = (np.abs(centre[:, None] - centre[None]) < half[:, None] + half[None] - 1e-6).all(axis=2)
        np.fill_diagonal(touches, False)
        low = np.array([t.kind not in ("tree", "lamp", "house") for t in truth])  # crowns and arms reach over others
        moves = np.array([t.moves for t in truth])
        clash = np.argwhere(touches & moves[:, None] & low[:, None] & low[None])
        assert not len(clash), f"{at_ns / NS:.1f} s: {[(truth[a].kind, truth[b].kind) for a, b in clash]}"


def turned(thing: Truth) -> tuple[float, float]:
    """Length and width of the upright rectangle around a box that stands askew."""
    cos, sin = abs(np.cos(thing.yaw_rad)), abs(np.sin(thing.yaw_rad))
    return thing.size_m[0] * cos + thing.size_m[1] * sin, thing.size_m[0] * sin + thing.size_m[1] * cos


def test_a_loop_holds_a_free_road_a_car_to_stop_behind_and_people_who_cross() -> None:
    def in_the_way(at_s: float) -> tuple[str, float]:
        """The nearest thing in a lane of 2.2 m ahead, and the gap to the front of the ego, 2.2 m before its middle."""
        ahead_m = [("nothing", np.inf)]
        for t in drive().truth(round(at_s * NS)):
            length, width = turned(t)
            if t.centre_m[0] > 0 and abs(t.centre_m[1]) < width / 2 + 1.1 and t.kind not in ("tree", "lamp"):
                ahead_m.append((t.kind, t.centre_m[0] - length / 2 - 2.2))
        return min(ahead_m, key=lambda f: f[1])

    for at_s in (1.0, 20.0, 23.0, 38.0):
        assert in_the_way(at_s)[1] > 20
    for at_s in (11.5, 13.0):
        kind, gap_m = in_the_way(at_s)
        assert kind == "car" and 4 < gap_m < 6
    for at_s in (31.0, 32.5):
        kind, gap_m = in_the_way(at_s)
        assert kind == "person" and 2 < gap_m < 6
    closing = [in_the_way(at_s)[1] for at_s in (4.0, 6.0, 8.0, 10.0)]
    assert closing == sorted(closing, reverse=True)


def test_same_seed_gives_the_same_drive_to_the_bit_and_another_seed_another() -> None:
    at_ns = 5 * NS + 1
    again, other = Drive(seed=0), Drive(seed=1)
    for take in ("camera", "sweep", "depth"):
        here = getattr(drive(), take)(at_ns)
        np.testing.assert_array_equal(here, getattr(again, take)(at_ns))
        assert here.shape != (there := getattr(other, take)(at_ns)).shape or (here != there).any()
    # The next loop shows the same street with other noise.
    assert drive().truth(at_ns) == drive().truth(at_ns + traffic.LOOP_NS)
    assert len(drive().sweep(at_ns)) != len(drive().sweep(at_ns + traffic.LOOP_NS))


def test_committed_rig_file_is_the_rig_of_the_drive(tmp_path: Path) -> None:
    save_rig(rig(), tmp_path / "rig.yaml")
    assert (ROOT / "configs/rigs/rendered.yaml").read_text() == (tmp_path / "rig.yaml").read_text(), (
        "write it again: python -m pipeline.sensors.rendered --rig configs/rigs/rendered.yaml"
    )


# --- the node ---------------------------------------------------------------------------------------------------------


def test_camera_and_lidar_nodes_show_one_world_on_one_grid() -> None:
    (lidar, *_) = play(Rendered(sensor="lidar"), count=1, start_ns=7 * NS)
    cameras = play(Rendered(sensor="camera", trigger_ms=40.0), count=3, start_ns=7 * NS)
    (depth, *_) = play(Rendered(sensor="depth", trigger_ms=40.0, width_px=160, height_px=90), count=1, start_ns=7 * NS)
    assert (lidar.capture_ns, lidar.duration_ns, lidar.encoding) == (7 * NS, 100 * MS, "points_xyzit_f32")
    assert [c.capture_ns for c in cameras] == [7 * NS + k * 100 * MS + 40 * MS for k in range(3)]
    np.testing.assert_array_equal(lidar.data, drive().sweep(0))
    np.testing.assert_array_equal(cameras[2].data, drive().camera(240 * MS))
    assert depth.data.shape == (90, 160) and depth.encoding == "depth_u16_mm"


def test_frames_are_delivered_when_the_sensor_would_have_them() -> None:
    frames = play(Rendered(sensor="lidar", beams=16, delay_ms=5.0), count=3)
    assert [f.publish_ns for f in frames] == [f.end_ns + 5 * MS for f in frames]
    assert [f.publish_ns for f in play(Rendered(sensor="lidar", beams=16, realtime=False), count=2)] == [0, 0]


def test_stream_says_that_it_is_rendered() -> None:
    for sensor in ("camera", "lidar", "depth"):
        node = Rendered(sensor=sensor)  # type: ignore[arg-type]
        node.context = Context("camera")
        assert "rendered, not real" in node.info().description and node.info().sensor == sensor


def test_losses_are_counted_and_leave_a_gap() -> None:
    frames = play(node := Rendered(sensor="depth", width_px=16, height_px=16, count=60, drop_percent=20.0))
    lost = node.context.metrics.dropped()["source"]["simulated loss"]
    assert 4 < lost < 25 and len(frames) + lost == 60 and (np.diff([f.seq for f in frames]) >= 1).all()
    assert [f.capture_ns for f in frames] == [f.seq * 100 * MS for f in frames]


def test_machine_that_cannot_keep_up_leaves_frames_out_and_counts_them() -> None:
    node = Rendered(sensor="depth", width_px=16, height_px=16, count=10)
    original = node._frame

    def slow(number: int, start_ns: int) -> Any:
        if number == 2:
            node.context.clock.sleep_until(570 * MS)
        return original(number, start_ns)

    node._frame = slow  # type: ignore[method-assign]
    frames = play(node)
    assert [f.seq for f in frames] == [0, 1, 2, 5, 6, 7, 8, 9]
    assert [f.capture_ns for f in frames] == [f.seq * 100 * MS for f in frames]
    assert node.context.metrics.dropped()["source"]["rendered too slowly"] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"sensor": "radar"},
        {"sensor": "lidar", "beams": 20},
        {"sensor": "lidar", "width_px": 640},
        {"sensor": "camera", "rate_hz": 0.0},
        {"sensor": "camera", "width_px": 5},
        {"sensor": "camera", "drop_percent": 100.0},
        {"sensor": "camera", "trigger_ms": -1.0},
    ],
)
def test_impossible_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Rendered(**options)


@pytest.mark.system
@pytest.mark.paced  # a busy machine pairs a sweep with a later picture
def test_scene_demo_s_sets_hold_the_picture_taken_while_their_sweep_looked_ahead(folder: Path) -> None:
    events = folder / "events.jsonl"
    command = [*COMMAND, "demo", "--scene", "--for", "5s", "--no-dashboard", "--set", f"nodes.align.event_log={events}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "unaccounted: none" in done.stdout
    sets = [entry for entry in map(json.loads, events.read_text().splitlines()) if entry[0] == "set"]
    whole = 0
    for _, _, missing, receipts in sets:
        seq_skew = {stream: (seq, skew_ns) for stream, state, seq, _, skew_ns, *_ in receipts if stream not in missing}
        whole += len(seq_skew) == 3
        if "lidar" in seq_skew:  # else a busy machine was late with it, and the set is of a tick
            for seq, skew_ns in (seq_skew[stream] for stream in seq_skew if stream != "lidar"):
                assert (seq, skew_ns) == (seq_skew["lidar"][0], 40 * MS)
    assert whole > 10  # of 50: the machine may be busy
