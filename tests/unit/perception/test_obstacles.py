"""Ground, obstacles and free space from points, against exact truth and against KITTI's labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.driving import KITTI_SEQUENCE
from benchmarks.obstacles import MATCH_M, follow, ground_figures, kitti_matches
from benchmarks.sweeps import DEPTH, HDL64, VLP16, Box, World, cast, room, street
from pipeline.clock import NS
from pipeline.perception.obstacles.ground import GroundFinder
from pipeline.perception.obstacles.scene_model import SceneModel
from pipeline.scene_state import FREE, OCCUPIED, UNKNOWN

pytest.importorskip("pypatchworkpp", reason="pip install 'sensorium[lidar]'")

COARSE = dataclasses.replace(HDL64, azimuths=1000)  # as many beams, a quicker turn: what needs no fine detail
STILL = dataclasses.replace(COARSE, turn_s=0.0)
TURN_NS = NS // 10


def observed(
    world: World, *, sweeps: int = 1, lidar=STILL, model: SceneModel | None = None, start: int = 0
) -> SceneModel:
    model = model or SceneModel()
    for k in range(start, start + sweeps):
        sweep = cast(lidar, world, at_s=k / 10, seed=k)
        model.update("lidar", sweep.points_m, NS + k * TURN_NS, seconds=sweep.seconds, origin_m=sweep.origin_m)
    return model


def state_of(model: SceneModel, k: int):
    return model.state(NS + k * TURN_NS)


@pytest.mark.parametrize("lidar", [HDL64, VLP16, DEPTH], ids=["64 beams", "16 beams", "depth camera"])
@pytest.mark.parametrize(
    ("slope", "bump_m"), [((0, 0), 0), ((0.08, -0.03), 0), ((0.02, 0), 0.06)], ids=["flat", "slope", "bumps"]
)
def test_ground_is_separated_from_what_stands_on_it(lidar, slope, bump_m):
    boxes = room().boxes if lidar is DEPTH else street().boxes
    recall, precision = ground_figures(lidar, World(boxes, slope, bump_m if lidar is not DEPTH else bump_m / 4))
    assert recall >= 0.97 and precision >= 0.97


@pytest.mark.parametrize("ground_z_m", [0.0, -1.73, 0.9])
def test_the_height_of_the_sensor_need_not_be_known(ground_z_m):
    sweep = cast(COARSE, World(street().boxes, ground_z_m=ground_z_m))
    assert GroundFinder().find(sweep.points_m, sweep.origin_m).z_m == pytest.approx(ground_z_m, abs=0.05)


def test_no_ground_in_view_is_reported_and_nothing_is_free():
    wall = World((Box(2.0, 0, 0.2, 20, 4),), ground=False)
    model = observed(wall, lidar=dataclasses.replace(DEPTH, pitch_deg=0.0))
    state = state_of(model, 0)
    assert "no ground seen" in model.views[0].why
    assert state.ahead.state in ("blocked", "unknown")
    assert not (state.free_space.cells == FREE).any()
    assert state.obstacles[0].range_m == pytest.approx(1.9, abs=0.1)


@pytest.mark.parametrize(
    ("lidar", "world"),
    [(HDL64, street()), (VLP16, street(5.0)), (DEPTH, room())],
    ids=["64 beams", "16 beams, rig at 5 m/s", "depth camera"],
)
def test_obstacles_are_where_they_are_and_as_fast_as_they_are(lidar, world):
    errors = follow(lidar, world, SceneModel(), sweeps=14)
    assert len(errors.place_m) > 15 and len(errors.speed_mps) > 15
    assert np.percentile(errors.place_m, 95) <= 0.1
    assert np.percentile(errors.speed_mps, 95) <= 0.3
    assert errors.lost == 0


def test_eight_of_nine_labelled_vehicles_of_kitti_are_detected(data_dir):
    if not (data_dir / KITTI_SEQUENCE).is_dir():
        pytest.skip(f"no {KITTI_SEQUENCE} in {data_dir}")
    off_m = [off for *_, off, _ in kitti_matches(data_dir)]
    assert len(off_m) == 9 and sum(off <= MATCH_M for off in off_m) >= 8


def test_a_box_has_its_near_faces_its_height_and_no_velocity():
    box = Box(8, 3, 0.6, 0.8, 1.2, 0.4)
    (obstacle,) = state_of(observed(World((box,)), sweeps=5), 4).obstacles
    assert obstacle.range_m == pytest.approx(box.nearest_m(0), abs=0.1)
    assert obstacle.size_m[2] == pytest.approx(1.2, abs=0.1)
    assert obstacle.bearing_deg == pytest.approx(np.degrees(np.arctan2(3, 8)), abs=4)
    assert obstacle.velocity_mps == pytest.approx((0, 0), abs=0.1) and obstacle.velocity_sigma_mps < 0.5


def test_neighbours_are_not_merged_and_a_car_at_a_slant_is_not_split():
    row = World(
        (
            Box(15, 3.5, 4.2, 1.8, 1.5),
            Box(20.2, 3.5, 4.2, 1.8, 1.5),
            Box(9, -3, 0.5, 0.5, 1.7),
            Box(9, -4.1, 0.5, 0.5, 1.7),
        )
    )
    obstacles = state_of(observed(row, lidar=HDL64), 0).obstacles
    assert len(obstacles) == 4
    assert max(obstacles, key=lambda o: o.points).size_m[0] == pytest.approx(4.2, abs=0.3)


def test_a_roof_belongs_to_the_front_before_it_and_to_no_neighbour():
    pair = World((Box(9, 0.5, 4.2, 1.8, 1.5, velocity_mps=(-1, 0)), Box(13.5, -3.2, 4.2, 1.8, 1.5)))
    model = SceneModel()
    for k in range(8):
        obstacles = state_of(observed(pair, model=model, start=k), k).obstacles
        assert [o.id for o in obstacles] == [1, 2] and max(o.size_m[0] for o in obstacles) < 5


def test_a_car_beside_a_long_wall_is_an_obstacle_of_its_own():
    beside = World((Box(20, -3, 4.2, 1.8, 1.5), Box(20, -4.6, 40, 0.3, 1.8)))
    car = next(o for o in state_of(observed(beside, lidar=HDL64), 0).obstacles if o.size_m[0] < 6)
    assert car.range_m == pytest.approx(beside.boxes[0].nearest_m(0), abs=0.2)


def test_a_wall_that_people_walk_along_does_not_move():
    world = World((Box(6, 0, 0.2, 9, 2.4), Box(4, -2, 0.4, 0.4, 1.7, velocity_mps=(0, 1.2))))
    model, moving = SceneModel(), []
    for k in range(12):
        observed(world, model=model, start=k)
        moving += [
            o
            for o in state_of(model, k).obstacles
            if o.range_m > 4.5 and o.velocity_mps and np.hypot(*o.velocity_mps) > 0.5
        ]
    assert moving == []


def test_time_to_collision_is_reported_per_obstacle_and_sector():
    model = observed(World((Box(14, 0, 4, 1.8, 1.5, velocity_mps=(-4, 0)),)), sweeps=8)
    state = state_of(model, 7)
    (car,) = state.obstacles
    assert car.ttc_s == pytest.approx(car.range_m / 4, rel=0.1)
    ahead = [s for s in state.sectors if s.from_deg <= 1 <= s.to_deg]
    assert ahead[0].nearest_m == pytest.approx(car.range_m, abs=0.1) and ahead[0].ttc_s == pytest.approx(car.ttc_s)
    assert ahead[0].observed > 0.1
    behind = state.sectors[0]
    assert behind.nearest_m is None and behind.ttc_s is None and len(state.sectors) == 36


def test_only_visible_ground_is_free():
    grid = state_of(observed(World((Box(10, 0, 2, 3, 2),))), 0).free_space
    assert grid.at(6.0, 0.0) == grid.at(6.0, 5.0) == FREE
    assert grid.at(9.2, 0.0) == OCCUPIED
    assert grid.at(14.0, 0.0) == UNKNOWN  # behind it
    assert grid.at(1.0, 0.0) == UNKNOWN  # at the sensor's own feet


def test_a_sweep_that_is_lost_costs_no_identity_and_an_obstacle_that_is_gone_is_gone_soon():
    moving = World((Box(12, -3, 0.5, 0.5, 1.7, velocity_mps=(0, 1.2)),))
    model = observed(moving, sweeps=6)
    (before,) = state_of(model, 5).obstacles
    observed(moving, model=model, start=7)  # sweep 6 never came
    (after,) = state_of(model, 7).obstacles
    assert after.id == before.id
    observed(World(), model=model, start=8)
    (predicted,) = state_of(model, 8).obstacles
    assert predicted.id == before.id and predicted.points == 0
    observed(World(), model=model, start=9, sweeps=3)
    assert state_of(model, 11).obstacles == ()


def test_tracks_end_when_no_sweep_comes_any_more():
    model = observed(World((Box(12, -3, 0.5, 0.5, 1.7),)), sweeps=6)
    assert state_of(model, 8).obstacles[0].points > 0  # a late sweep is no reason to doubt it
    assert state_of(model, 10).obstacles[0].points == 0
    assert state_of(model, 13).obstacles == ()


def test_when_time_goes_back_the_model_starts_again():
    world = World((Box(12, 0, 0.5, 0.5, 1.7),))
    model = observed(world, sweeps=6, start=50)
    known = state_of(model, 55).obstacles[0]
    observed(world, model=model)
    again = state_of(model, 0).obstacles[0]
    assert known.velocity_mps is not None and again.velocity_mps is None and again.id != known.id


def test_a_replay_gives_the_same_and_queries_change_nothing():
    def run(*, queries: bool) -> list[dict]:
        model, records = SceneModel(), []
        for k in range(5):
            observed(street(), model=model, start=k, lidar=COARSE)
            if queries:
                observed(street(), model=model, start=k, lidar=COARSE)  # the same sweep, in a second set
                state_of(model, k + 2)
            records.append(state_of(model, k).record())
        return records

    assert run(queries=False) == run(queries=True)


def test_two_sensors_update_the_same_tracks():
    world = World((Box(4, 0, 0.5, 0.5, 1.5, velocity_mps=(-0.5, 0)),))
    model = SceneModel()
    for k in range(8):
        for stream, lidar, late_ns in (("lidar", STILL, 0), ("depth", DEPTH, 30_000_000)):
            sweep = cast(lidar, world, at_s=k / 10 + late_ns / NS, seed=k)
            model.update(stream, sweep.points_m, NS + k * TURN_NS + late_ns, origin_m=sweep.origin_m)
    (person,) = model.state(NS + 7 * TURN_NS).obstacles
    assert person.velocity_mps == pytest.approx((-0.5, 0), abs=0.1)
