"""The task `obstacles`: aligned sets in, predictions with receipts out."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from benchmarks.sweeps import DEPTH, HDL64, Box, Sweep, World, cast
from nodes.infer import Infer
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Receipt
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import save_rig
from pipeline.rig.transforms import rigid
from pipeline.task import make
from pipeline.tasks.obstacles import Obstacles
from pipeline.tasks.scene import Scene
from pipeline.testing import NodeHarness

pytest.importorskip("pypatchworkpp", reason="pip install 'sensorium[lidar]'")

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/prediction.schema.json").read_text())
LIDAR = dataclasses.replace(HDL64, azimuths=1000)
STREET = World((Box(10, 8, 60, 0.3, 3), Box(10, -8, 60, 0.3, 3)))
TURN_NS = NS // 10
LENS = Intrinsics("radtan", 320, 240, 200.0, 200.0, 159.5, 119.5)
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def lidar_frame(k: int, sweep: Sweep, *, timed: bool = True, stream: str = "lidar") -> Frame:
    own = sweep.points_m - np.array(sweep.origin_m, np.float32)
    rows = np.column_stack([own, np.zeros(len(own)), sweep.seconds] if timed else [own, np.zeros(len(own))]).astype(
        np.float32
    )
    return Frame(stream, k, NS + k * TURN_NS, "points_xyzit_f32" if timed else "points_xyzi_f32", rows, TURN_NS)


def aligned(k: int, *frames: Frame, missing: tuple[str, ...] = (), late_ns: int = 0) -> AlignedSet:
    receipts = [Receipt(f.stream, "exact", (f.seq,)) for f in frames] + [Receipt(s, "absent") for s in missing]
    anchor_ns = NS + k * TURN_NS
    return AlignedSet(
        "lidar", anchor_ns, {f.stream: (f,) for f in frames}, tuple(receipts), missing, anchor_ns + late_ns
    )


def opened(**options) -> Obstacles:
    task = make("obstacles", {"height_m": 1.73} | options)
    task.open("auto")
    return task


def drive(task: Obstacles, world: World, sweeps: int = 4, **kind):
    return [
        task.predict(aligned(k, lidar_frame(k, cast(LIDAR, world, at_s=k / 10, seed=k), **kind))) for k in range(sweeps)
    ]


def test_its_label_is_the_state_of_the_path_and_its_record_fits_the_schema():
    last = drive(opened(), STREET)[-1]
    assert last.label == last.surroundings.ahead.state == "clear" and last.probs.tolist() == [1, 0, 0, 0]
    assert last.used == ("lidar",) and last.missing == () and last.model.startswith("patchwork++@")
    timed = msgspec.structs.replace(last, timing_ns={"wait": 0, "infer": 0, "total": 0})  # as the node adds them
    jsonschema.validate(json.loads(json.dumps(timed.record())), SCHEMA)


def test_a_sweep_without_times_of_its_points_serves_as_well():
    near = World((*STREET.boxes, Box(5, 0, 0.5, 0.5, 1.7)))
    assert drive(opened(), near, timed=False)[-1].label == drive(opened(), near)[-1].label == "blocked"


def test_a_missing_lidar_is_reported_and_the_path_is_soon_unknown():
    task = opened()
    drive(task, STREET)
    lost = [task.predict(aligned(k, missing=("lidar",))) for k in range(4, 9)]
    assert [p.label for p in lost] == ["clear"] * 4 + ["unknown"]  # the last sweep ended 0.3 s before the fourth
    assert lost[-1].missing == ("lidar",) and lost[-1].used == ()
    assert "no lidar in this set" in lost[-1].surroundings.ahead.because
    back = task.predict(aligned(9, lidar_frame(9, cast(LIDAR, STREET, seed=9))))
    assert back.label == "clear"  # within one sweep


def test_a_frozen_lidar_is_bad():
    task = opened()
    drive(task, STREET, sweeps=2)
    frozen = task.predict(aligned(2, lidar_frame(2, cast(LIDAR, STREET, at_s=0.1, seed=1))))
    assert frozen.label == "unknown" and frozen.used == () and frozen.missing == ("lidar",)
    assert frozen.receipts[0].state == "bad" and "frozen" in frozen.receipts[0].reason


def test_sets_that_all_arrive_late_are_not_clear_with_by_arrival():
    for by_arrival, label in ((False, "clear"), (True, "unknown")):
        task = opened(by_arrival=by_arrival)
        assert task.predict(aligned(0, lidar_frame(0, cast(LIDAR, STREET)), late_ns=120_000_000)).label == "clear"
        late = task.predict(aligned(1, lidar_frame(1, cast(LIDAR, STREET, seed=1)), late_ns=900_000_000))
        assert late.label == label


def depth_frame(k: int, world: World) -> Frame:
    """What DEPTH sees, as a picture: its rays fall on the pixels of LENS."""
    sweep = cast(
        dataclasses.replace(DEPTH, azimuths=400, elevations_deg=tuple(np.linspace(-29, 29, 300))), world, seed=k
    )
    down = np.radians(DEPTH.pitch_deg)
    camera = (sweep.points_m - np.array(sweep.origin_m)) @ rig_turn(down)
    pixels, visible = LENS.project(camera)
    depth = np.zeros((240, 320), np.uint16)
    u, v = np.round(pixels[visible]).astype(int).T
    depth[np.clip(v, 0, 239), np.clip(u, 0, 319)] = np.round(camera[visible, 2] * 1000)
    return Frame("depth", k, NS + k * TURN_NS, "depth_u16_mm", depth)


def rig_turn(down_rad: float) -> np.ndarray:
    c, s = np.cos(down_rad), np.sin(down_rad)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ FORWARD


def test_a_depth_camera_is_placed_by_the_rig(tmp_path):
    pose = Pose("base", "depth_camera", rigid(rig_turn(np.radians(DEPTH.pitch_deg)), (0, 0, DEPTH.height_m)))
    save_rig(Rig({"depth_camera": LENS}, (pose,)), tmp_path / "rig.yaml")
    task = opened(
        rig=str(tmp_path / "rig.yaml"),
        sensors={"depth": "depth_camera"},
        corridor={"width_m": 0.6, "length_m": 3.0, "stop_m": 1.0, "min_range_m": 1.0},
        stride_px=1,
    )
    box = Box(2.2, 0.8, 0.5, 0.5, 0.9)
    for k in range(5):
        last = task.predict(aligned(k, depth_frame(k, World((box,)))))
    (obstacle,) = last.surroundings.obstacles
    assert obstacle.range_m == pytest.approx(box.nearest_m(0), abs=0.1)
    assert last.label == "clear"


def test_a_depth_picture_without_a_known_lens_is_bad_and_the_lidar_carries_on():
    task = opened()
    for k in range(3):
        picture = Frame("depth", k, NS + k * TURN_NS, "depth_u16_mm", np.ones((240, 320), np.uint16))
        last = task.predict(aligned(k, lidar_frame(k, cast(LIDAR, STREET, seed=k)), picture))
    assert last.used == ("lidar",) and last.missing == ("depth",) and last.label == "clear"
    assert any(
        "the lens of 'depth' is not known: name a rig file" in reason for reason in last.surroundings.ahead.because
    )


def test_only_the_named_streams_are_used():
    task = opened(streams=["rear"])
    last = task.predict(aligned(0, lidar_frame(0, cast(LIDAR, STREET))))
    assert last.label == "unknown" and last.used == () and last.surroundings.obstacles == ()


def test_it_runs_in_a_graph_and_prints_nothing_among_the_predictions(capfd):
    with NodeHarness(Infer(task="obstacles", options={"height_m": 1.73}), inputs=["align"]) as harness:
        for k in range(3):
            harness.send("align", aligned(k, lidar_frame(k, cast(LIDAR, STREET, seed=k))))
    assert [p.label for p in harness.emitted][-1] == "clear" and harness.emitted[-1].timing_ns["infer"] >= 0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corridor": {"widht_m": 2.0}}, "Did you mean 'width_m'"),
        ({"corridor": {"stop_m": 30.0}}, "stop 30 m, length 20 m"),
        ({"ego_box_m": [1.0]}, "ego_box_m: found \\[1.0\\]"),
        ({"grid": {"x_m": [1.0]}}, "grid.x_m: found \\[1.0\\], expected \\[from, to\\]"),
        ({"grid": {"cell_m": 0.0}}, "cell"),
        ({"ground": {"max_step_m": 3.0}}, "max_step_m 3 m, clearance_m 2.5 m"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make("obstacles", options)


@pytest.mark.parametrize("task", ["obstacles", "scene"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"own_m": [-1, 1, -1, 1]}, "'own_m' is now called 'ego_box_m'"),
        ({"every_px": 1}, "'every_px' is now called 'stride_px'"),
        ({"step_m": 0.1}, "'step_m' is now called 'max_step_m', one level below: ground"),
        ({"ground_z_m": 0.1}, "'ground_z_m' is now called 'z_m', one level below: ground"),
        ({"grid_x_m": [0, 1]}, "'grid_x_m' is now called 'x_m', one level below: grid"),
        ({"corridor": {"blind_m": 1.0}}, "corridor: 'blind_m' is now called 'min_range_m'"),
        ({"width_m": 1.0}, "one level below: corridor: {width_m"),
        ({"sectors": 12}, "one level below: grid: {sectors"),
    ],
)
def test_a_renamed_option_names_the_new_one(task, options, message):
    with pytest.raises(ConfigError, match=message):
        make(task, options)


@pytest.mark.parametrize("option", ["ground", "grid", "corridor", "range_m", "stride_px", "max_age_ms", "streams"])
def test_obstacles_and_scene_take_the_same_options(option):
    of_obstacles, of_scene = (inspect.signature(kind).parameters[option] for kind in (Obstacles, Scene))
    assert of_obstacles == of_scene


def test_without_patchwork_the_error_names_what_to_install(monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'sensorium\[lidar\]'"):
        make("obstacles").open("auto")
