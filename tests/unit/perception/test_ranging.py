"""Ranges of boxes by points that a lidar would see: walls behind, things before, thin things, few points; and closing
speeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.clock import NS
from pipeline.perception.objects.detections import Detection
from pipeline.perception.objects.object_tracks import Closing, ObjectTracker
from pipeline.perception.objects.ranging import Ranged, range_boxes
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import rigid, rotation_from_vector

LENS = Intrinsics("radtan", 1200, 400, 700, 700, 599.5, 199.5)
CAMERA_M = (0.3, 0.0, 0.0)  # a hand's breadth before the lidar, which stands at the origin 1.7 m above the ground
CAMERA_FROM_BASE = rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), (0, 0, 0)) @ rigid(
    np.eye(3), [-v for v in CAMERA_M]
)
GROUND_M = -1.7
STEP_S = 0.1

Box = tuple[Sequence[float], Sequence[float]]  # its two corners, x, y, z


def sweep(*boxes: Box, seed: int = 0, noise_m: float = 0.02) -> np.ndarray:
    """(n, 3) where the rays of a 64-line lidar first meet a box or the ground."""
    bearing, height = np.meshgrid(np.radians(np.arange(-45, 45, 0.2)), np.radians(np.linspace(-24, 4, 64)))
    rays = np.column_stack(
        [(np.cos(height) * np.cos(bearing)).ravel(), (np.cos(height) * np.sin(bearing)).ravel(), np.sin(height).ravel()]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.where(rays[:, 2] < 0, GROUND_M / rays[:, 2], np.inf)
        for low, high in boxes:
            a, b = np.array(low) / rays, np.array(high) / rays
            enters, leaves = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
            nearest = np.where((enters > 0) & (enters < leaves), np.minimum(nearest, enters), nearest)
    hit = nearest < 90
    reach = nearest[hit] + np.random.default_rng(seed).normal(0, noise_m, np.count_nonzero(hit))
    return rays[hit] * reach[:, None]


def box_px(box: Box) -> tuple[float, float, float, float]:
    """Left, top, width, height of a box in the picture, cut at the picture's edge."""
    corners = np.array([[c[i][k] for k, i in enumerate(which)] for c in (box,) for which in np.ndindex(2, 2, 2)], float)
    camera_m = corners @ CAMERA_FROM_BASE[:3, :3].T + CAMERA_FROM_BASE[:3, 3]
    pixels = camera_m[:, :2] / camera_m[:, 2:] * 700 + (599.5, 199.5)
    low, high = np.clip(pixels.min(axis=0), 0, LENS.size), np.clip(pixels.max(axis=0), 0, LENS.size)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def ranged(points: np.ndarray, *boxes: Sequence[float], **options: object) -> list[Ranged]:
    pixels, _, visible = LENS.project_from(CAMERA_FROM_BASE, points)
    return range_boxes(np.array(boxes), pixels[visible], points[visible], camera_m=CAMERA_M, **options)  # type: ignore[arg-type]


def car(x_m: float, y_m: float = 0.0) -> Box:
    """Its rear at x."""
    return (x_m, y_m - 0.9, GROUND_M), (x_m + 4.2, y_m + 0.9, GROUND_M + 1.5)


WALL: Box = ((30.0, -30.0, GROUND_M), (30.5, 30.0, 4.0))


@pytest.mark.parametrize("x_m", [4.0, 9.0, 15.0, 25.0])
def test_a_car_before_a_wall_is_as_far_as_its_rear(x_m: float) -> None:
    (result,) = ranged(sweep(car(x_m, 2.0), WALL), box_px(car(x_m, 2.0)))
    truth_m = np.hypot(x_m - CAMERA_M[0], 1.1)  # of the corner that is nearest to the camera's axis
    assert result.range_m == pytest.approx(truth_m, abs=0.15)
    assert result.position_m is not None and result.position_m[0] == pytest.approx(x_m, abs=0.2)
    assert 1.0 < result.position_m[1] < 3.0 and result.points > 20 and not result.reason


def test_a_loose_box_does_not_take_the_wall_behind_or_the_ground_before() -> None:
    left, top, width, height = box_px(car(12.0))
    loose = (left - 0.15 * width, top - 0.15 * height, 1.3 * width, 1.3 * height)
    (result,) = ranged(sweep(car(12.0), WALL), loose)
    assert result.range_m == pytest.approx(11.7, abs=0.15)


def test_a_thin_pole_is_ranged_in_a_box_that_is_mostly_wall() -> None:
    pole: Box = ((10.0, 2.0, GROUND_M), (10.1, 2.1, 1.0))
    left, top, width, height = box_px(pole)
    (result,) = ranged(sweep(pole, WALL), (left - 1.5 * width, top, 4 * width, height))
    assert result.range_m == pytest.approx(np.hypot(9.7, 2.0), abs=0.15)


def test_what_hides_half_of_a_car_does_not_give_it_its_own_range() -> None:
    van: Box = ((8.0, -1.5, GROUND_M), (12.0, 0.3, 0.4))
    far = car(20.0, 0.2)
    near, hidden = ranged(sweep(van, far, WALL), box_px(van), box_px(far))
    assert near.range_m == pytest.approx(7.7, abs=0.15)
    assert hidden.range_m == pytest.approx(19.7, abs=0.2)


def test_a_little_thing_that_hangs_before_a_car_does_not_stand_for_it() -> None:
    little: Box = ((8.0, -0.1, -0.9), (8.1, 0.1, -0.6))
    (result,) = ranged(sweep(little, car(12.0), WALL), box_px(car(12.0)))
    assert result.range_m == pytest.approx(11.7, abs=0.15)


def test_two_people_side_by_side_have_each_their_own_range() -> None:
    first: Box = ((8.0, 0.3, GROUND_M), (8.3, 0.8, 0.1))
    second: Box = ((9.5, -0.4, GROUND_M), (9.8, 0.1, 0.1))
    results = ranged(sweep(first, second, WALL), box_px(first), box_px(second))
    assert [f.range_m for f in results] == [pytest.approx(np.hypot(7.7, 0.3), abs=0.12), pytest.approx(9.2, abs=0.12)]


def test_an_object_without_points_has_no_range_rather_than_the_walls() -> None:
    (result,) = ranged(sweep(WALL), box_px(((9.0, -0.3, -1.0), (9.2, 0.3, 0.2))))
    assert result.range_m is None and result.position_m is None
    assert "background" in result.reason


@pytest.mark.parametrize(
    ("count", "reason"), [(0, "there is no point in it"), (2, "2 points above the ground in it, 3 are needed")]
)
def test_too_few_points_give_no_range_with_a_reason(count: int, reason: str) -> None:
    points = np.array([[10.0, 0.0, 0.5], [10.0, 0.05, 0.5]])[:count]
    (result,) = ranged(np.vstack([points, [[20.0, 8.0, 0.0]]]), (560, 150, 80, 60))
    assert (result.range_m, result.reason) == (None, reason)


@pytest.mark.parametrize("points", [np.empty((0, 3)), np.full((5, 3), np.nan), np.tile([10.0, 0.0, 0.5], (40, 1))])
@pytest.mark.parametrize("box", [(560, 150, 80, 60), (560, 150, 0, 0), (-900, -900, 10, 10), (0, 0, 1e9, 1e9)])
def test_odd_boxes_and_clouds_give_no_range_or_a_right_one(points: np.ndarray, box: tuple[float, ...]) -> None:
    pixels = LENS.project_from(CAMERA_FROM_BASE, points)[0]
    (result,) = range_boxes(np.array([box]), pixels, points, camera_m=CAMERA_M)
    assert result.reason if result.range_m is None else result.range_m == pytest.approx(9.7)


def test_known_ground_is_taken_for_what_it_is() -> None:
    """A speed bump of 40 cm is no ground to a plane; those who know better say so."""
    bump: Box = ((6.0, -3.0, GROUND_M), (7.0, 3.0, GROUND_M + 0.4))
    points = sweep(bump, car(12.0))
    pixels, _, visible = LENS.project_from(CAMERA_FROM_BASE, points)
    ground = points[:, 2] < GROUND_M + 0.45
    left, top, width, height = box_px(car(12.0))
    grown = np.array([(left, top, width, height + 80)])
    (result,) = range_boxes(grown, pixels[visible], points[visible], camera_m=CAMERA_M, ground=ground[visible])
    assert result.range_m == pytest.approx(11.7, abs=0.15)


def test_a_camera_that_looks_back_ranges_as_well_as_one_that_looks_ahead() -> None:
    points = sweep(car(9.0), WALL)
    pixels, _, visible = LENS.project_from(CAMERA_FROM_BASE, points)
    about = rotation_from_vector(np.array([0, 0, np.pi]))
    camera_m = about @ CAMERA_M
    (result,) = range_boxes(np.array([box_px(car(9.0))]), pixels[visible], points[visible] @ about.T, camera_m=camera_m)
    assert result.range_m == pytest.approx(8.7, abs=0.12)
    assert result.position_m is not None and result.position_m[0] == pytest.approx(-9.0, abs=0.2)
    assert result.fit > 0.7  # the seam of the angles does not cut it in two


def test_points_that_are_no_numbers_count_for_nothing() -> None:
    points = sweep(car(9.0))
    pixels, _, visible = LENS.project_from(CAMERA_FROM_BASE, points)
    pixels, points = pixels[visible], points[visible].copy()
    points[::7] = np.nan
    points[3::7, 2] = np.inf
    (result,) = range_boxes(np.array([box_px(car(9.0))]), pixels, points, camera_m=CAMERA_M)
    assert result.range_m == pytest.approx(8.7, abs=0.12)


# ---- closing speeds


def drive(
    tracker: ObjectTracker, ranges_m: Sequence[float | None], *, begin_ns: int = 0, sweeps: int = 1
) -> list[float | None]:
    """One box, its range of each sweep; `sweeps`: pictures a sweep."""
    speeds: list[float | None] = []
    for i, range_m in enumerate(ranges_m):
        at_ns = begin_ns + round(i * STEP_S * NS)
        for k in range(sweeps):
            box = Detection("car", 0.9, (500, 150, 100 + i, 60))
            (track,) = tracker.update([box], [Ranged(range_m)], at_ns + k * 30_000_000, at_ns)
        speeds.append(track.closing_mps)
    return speeds


def test_closing_speed_is_reported_once_it_is_known_and_is_right() -> None:
    noise = np.random.default_rng(1).normal(0, 0.08, 30)
    speeds = drive(ObjectTracker(), [30 - 8 * STEP_S * i + noise[i] for i in range(30)])
    assert speeds[:3] == [None, None, None]
    known = [v for v in speeds if v is not None]
    assert len(known) >= 24
    assert np.abs(np.array(known[-15:]) - 8).max() < 0.8 and np.mean(known[-15:]) == pytest.approx(8, abs=0.3)


def test_what_stands_still_or_goes_away_does_not_close() -> None:
    assert drive(ObjectTracker(), [12.0] * 15)[-1] == pytest.approx(0, abs=0.05)
    assert drive(ObjectTracker(), [12.0 + 0.3 * i for i in range(15)])[-1] == pytest.approx(-3, abs=0.2)


def test_a_sweep_in_three_sets_counts_once() -> None:
    ranges = [30 - 0.8 * i for i in range(12)]
    assert drive(ObjectTracker(), ranges, sweeps=3) == drive(ObjectTracker(), ranges)


def test_one_stray_range_does_not_shake_the_speed() -> None:
    ranges = [30 - 0.5 * i for i in range(20)]
    ranges[14] = 18.0
    assert drive(ObjectTracker(), ranges)[14] == pytest.approx(5, abs=0.3)


def test_without_a_range_there_is_no_closing_speed_and_it_comes_back() -> None:
    ranges: list[float | None] = [30 - 0.5 * i for i in range(12)]
    ranges[9] = None
    speeds = drive(ObjectTracker(), ranges)
    assert speeds[9] is None and speeds[11] == pytest.approx(5, abs=0.3)


def test_a_jump_that_stays_begins_anew() -> None:
    filter_ = Closing(20.0, 0)
    for i in range(1, 10):
        filter_.measure(20.0, round(i * STEP_S * NS))
    filter_.measure(14.0, round(1.0 * NS))
    assert filter_.range_m == pytest.approx(20, abs=0.1)
    filter_.measure(14.0, round(1.1 * NS))
    assert filter_.range_m == 14.0 and filter_.closing_mps is None


def test_two_that_pass_each_other_in_the_picture_keep_their_ids_by_their_ranges() -> None:
    tracker, ids = ObjectTracker(), []
    for i in range(11):
        near, far = (300 + 30 * i, 150, 120, 90), (600 - 30 * i, 150, 110, 85)
        tracks = tracker.update(
            [Detection("car", 0.9, near), Detection("car", 0.8, far)],
            [Ranged(8.0), Ranged(25.0)],
            i * 100_000_000,
            i * 100_000_000,
        )
        ids.append([t.id for t in tracks])
    assert ids == [[1, 2]] * 11


def test_boxes_that_nearly_cover_each_other_are_distinguished_by_range() -> None:
    tracker, ids = ObjectTracker(), []
    for near_px, far_px in ((300, 312), (311, 299), (300, 312)):  # as a detector's boxes jump
        boxes = [Detection("car", 0.9, (near_px, 150, 120, 90)), Detection("car", 0.8, (far_px, 150, 120, 90))]
        tracks = tracker.update(boxes, [Ranged(8.0), Ranged(14.0)], len(ids) * 100_000_000, len(ids) * 100_000_000)
        ids.append([t.id for t in tracks])
    assert ids == [[1, 2]] * 3


def test_a_thing_away_for_two_seconds_comes_back_under_a_new_id() -> None:
    tracker, box = ObjectTracker(), [Detection("car", 0.9, (300, 150, 120, 90))]
    ids = [tracker.update(box, [Ranged(8.0)], s * NS // 2, s * NS // 2)[0].id for s in (0, 1, 2, 7)]
    assert ids == [1, 1, 1, 2]
