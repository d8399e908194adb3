"""The path ahead: what makes it clear, and everything that must not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.sweeps import HDL64, Box, World, cast
from pipeline.clock import NS
from pipeline.perception.obstacles.path_clearance import Corridor, Hazard, View, decide
from pipeline.scene_state import FREE, UNKNOWN, FreeSpace

MS = 1_000_000
CORRIDOR = Corridor(width_m=2.0, length_m=20.0, stop_m=6.0)
NOTHING = np.zeros((0, 2), np.float32)


def square(x_m: float, y_m: float, half_m: float = 0.25) -> tuple[tuple[float, float], ...]:
    return tuple((x_m + a * half_m, y_m + b * half_m) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1)))


def view(*, end_ns: int = NS, visible_to_m: float = 40.0, stands=NOTHING, why: str = "", stream: str = "lidar") -> View:
    """Free from 4 m to visible_to_m, all across."""
    cells = np.full((150, 100), UNKNOWN, np.uint8)
    cells[60 : round((visible_to_m + 20) / 0.4)] = FREE
    return View(
        stream, end_ns, np.asarray(stands, np.float32).reshape(-1, 2), FreeSpace(cells, 0.4, (-20.0, -20.0)), why
    )


def test_a_path_with_fresh_evidence_is_clear_and_the_reason_names_the_stretch():
    ahead = decide(CORRIDOR, NS + 50 * MS, [view()])
    assert ahead.state == "clear" and ahead.nearest_m is None
    assert ahead.because == ("lidar: seen free to 20 m, from 4.0 m on",)


@pytest.mark.parametrize(
    ("views", "text"),
    [
        ([], "no cloud yet"),
        ([view(end_ns=NS - 400 * MS)], "no new lidar for 0.4 s"),
        ([view(end_ns=NS + 5 * NS)], "a clock jumped"),
        ([view(why="the same data as before: frozen?")], "lidar: the same data as before: frozen?"),
        ([view(why="no ground seen: 12 points lie flat below the sensor")], "no ground seen"),
        ([view(visible_to_m=11)], "the way is seen only to 11.2 m"),
        ([view(visible_to_m=4)], "no ground seen ahead within 5 m"),
    ],
    ids=["nothing", "old", "future", "frozen", "no ground", "half seen", "not seen"],
)
def test_without_fresh_evidence_all_along_it_is_unknown_with_a_reason(views, text):
    ahead = decide(CORRIDOR, NS, views)
    assert ahead.state == "unknown" and text in "; ".join(ahead.because)


def hiding(rows: np.ndarray | slice, columns: np.ndarray | slice) -> View:
    """A view in which these cells are not known."""
    plain = view()
    assert plain.grid is not None
    cells = plain.grid.cells.copy()
    cells[rows, columns] = UNKNOWN
    return plain._replace(grid=FreeSpace(cells, 0.4, (-20.0, -20.0)))


@pytest.mark.parametrize(("known_m", "state"), [(2.0, "clear"), (1.6, "clear"), (0.8, "unknown"), (0.4, "unknown")])
def test_most_of_the_width_must_be_visible(known_m: float, state: str):
    """Of the corridor, which is 2 m wide, a strip along its right side."""
    y_m = -20.0 + (np.arange(100) + 0.5) * 0.4
    assert decide(CORRIDOR, NS, [hiding(slice(None), y_m > -1.0 + known_m)]).state == state


@pytest.mark.parametrize(("gap_m", "state"), [(1.2, "clear"), (2.4, "unknown"), (3.6, "unknown")])
def test_a_stretch_that_is_not_visible_is_short(gap_m: float, state: str):
    first = round((10 + 20) / 0.4)
    assert decide(CORRIDOR, NS, [hiding(slice(first, first + round(gap_m / 0.4)), slice(None))]).state == state


def test_one_fresh_view_is_enough_and_the_lost_one_is_no_evidence():
    lost = view(end_ns=0, stream="lidar")
    assert decide(CORRIDOR, NS, [lost, view(stream="depth")]).state == "clear"
    short = decide(CORRIDOR, NS, [lost, view(stream="depth", visible_to_m=6)])
    assert short.state == "unknown" and "no new lidar for 1.0 s" in short.because


@pytest.mark.parametrize(("x_m", "state"), [(3.0, "blocked"), (12.0, "caution"), (25.0, "clear"), (-3.0, "clear")])
def test_something_in_the_corridor_blocks_it_near_and_warns_further_off(x_m, state):
    assert decide(CORRIDOR, NS, [view()], [Hazard("obstacle 7", square(x_m, 0.5))]).state == state
    assert decide(CORRIDOR, NS, [view(stands=[[x_m, 0.5]])]).state == state  # a hedge has no track


def test_a_lorry_across_the_path_has_no_corner_in_it():
    lorry = Hazard("obstacle 7", ((5.0, -6.0), (5.0, 6.0), (7.5, 6.0), (7.5, -6.0)))
    ahead = decide(CORRIDOR, NS, [view()], [lorry])
    assert ahead.state == "blocked" and ahead.nearest_m == pytest.approx(5.0)


def test_what_stands_beside_the_path_does_not_matter():
    assert decide(CORRIDOR, NS, [view()], [Hazard("obstacle 7", square(5, 1.5))]).state == "clear"


def test_what_comes_fast_blocks_from_further_off():
    ahead = decide(CORRIDOR, NS, [view()], [Hazard("obstacle 7", square(15, 0), (-10.0, 0.0))])
    assert ahead.state == "blocked" and ahead.ttc_s == pytest.approx(1.475)
    assert ahead.because == ("obstacle 7 at 14.8 m, closing at 10.0 m/s",)


def test_a_crossing_object_means_caution():
    crossing = Hazard("obstacle 7", square(8, -4), (0.0, 1.5))
    ahead = decide(CORRIDOR, NS, [view()], [crossing])
    assert ahead.state == "caution" and "comes into the way at 7.8 m in 2.0 s" in ahead.because[0]
    leaving = crossing._replace(velocity_mps=(0.0, -1.5))
    assert decide(CORRIDOR, NS, [view()], [leaving]).state == "clear"


def test_a_person_near_means_caution_whichever_sensor_detects_them():
    beside = Hazard("person", square(3, 2), label="person")
    assert decide(CORRIDOR, NS, [view()], [beside]).state == "caution"
    assert decide(CORRIDOR, NS, [view()], [beside._replace(label="bench")]).state == "clear"
    assert decide(CORRIDOR, NS, [], [beside]).state == "unknown"  # but no evidence that the way is free
    assert "person 3.3 m beside the way" in decide(CORRIDOR, NS, [], [beside]).because[-1]


def test_an_obstacle_remembered_blocks_also_when_the_lidar_is_lost():
    ahead = decide(CORRIDOR, NS, [view(end_ns=0)], [Hazard("obstacle 7", square(4, 0), predicted=True)])
    assert ahead.state == "blocked" and "seen a moment ago" in ahead.because[0]


def test_only_the_path_up_to_the_nearest_object_needs_to_be_visible():
    lorry = Hazard("obstacle 7", square(12, 0))
    assert decide(CORRIDOR, NS, [view(visible_to_m=12)], [lorry]).state == "caution"
    assert decide(CORRIDOR, NS, [view(visible_to_m=8)], [lorry]).state == "unknown"


def test_a_faster_rig_has_a_longer_corridor():
    slow, fast = Corridor(speed_mps=1.0), Corridor(speed_mps=10.0)
    assert slow.stop_m == pytest.approx(2 + 1 + 1 / 6) and fast.stop_m == pytest.approx(2 + 10 + 100 / 6)
    assert fast.length_m == 2 * fast.stop_m
    with pytest.raises(ValueError, match="stop 30 m, length 20 m"):
        Corridor(stop_m=30.0)


# --- from points: the same, through the whole scene model -----------------------------------------------------------

pytest.importorskip("pypatchworkpp", reason="pip install 'sensorium[lidar]'")
LIDAR = dataclasses.replace(HDL64, azimuths=1000, turn_s=0.0)
STREET = World((Box(10, 8, 60, 0.3, 3), Box(10, -8, 60, 0.3, 3)))
TURN_NS = NS // 10


def driven(world: World, *, sweeps: int = 4, model=None):
    from pipeline.perception.obstacles.scene_model import SceneModel

    model = model or SceneModel()
    for k in range(sweeps):
        sweep = cast(LIDAR, world, at_s=k / 10, seed=k)
        model.update("lidar", sweep.points_m, NS + k * TURN_NS, seconds=sweep.seconds, origin_m=sweep.origin_m)
    return model, sweep


def test_a_street_is_clear_until_its_lidar_is_cut():
    model, _ = driven(STREET)
    newest_ns = NS + 3 * TURN_NS
    assert model.path_clearance(newest_ns).state == "clear"
    assert model.path_clearance(newest_ns + 250 * MS).state == "clear"  # one or two sweeps may be lost
    cut = model.state(newest_ns + 400 * MS)
    assert cut.ahead.state == "unknown" and "no new lidar for 0.4 s" in cut.ahead.because
    assert cut.free_space is None  # what was free then may not be now


def test_a_frozen_lidar_is_no_evidence_from_its_first_repetition_on():
    model, sweep = driven(STREET)
    why = model.update("lidar", sweep.points_m, NS + 4 * TURN_NS, seconds=sweep.seconds, origin_m=sweep.origin_m)
    assert "frozen" in why
    assert model.path_clearance(NS + 4 * TURN_NS).state == "unknown"
    fresh = cast(LIDAR, STREET, seed=77)
    model.update("lidar", fresh.points_m, NS + 5 * TURN_NS, seconds=fresh.seconds, origin_m=fresh.origin_m)
    assert model.path_clearance(NS + 5 * TURN_NS).state == "clear"  # and from its first new sweep on it is again


def test_a_lidar_that_is_late_is_no_evidence_for_now():
    model, _ = driven(STREET)
    assert model.path_clearance(NS + 3 * TURN_NS + 700 * MS).state == "unknown"
    assert model.path_clearance(NS + 3 * TURN_NS, now_ns=NS + 3 * TURN_NS + 700 * MS).state == "unknown"


def test_a_wall_that_comes_nearer_has_a_time_to_collision():
    wall = World((Box(19.5, 0, 0.3, 60, 3, velocity_mps=(-5, 0)),))
    model, _ = driven(wall, sweeps=8)
    ahead = model.path_clearance(NS + 7 * TURN_NS)
    assert ahead.ttc_s == pytest.approx(ahead.nearest_m / 5, rel=0.15)
    assert ahead.state == "caution" and "closing at" in "; ".join(ahead.because)
