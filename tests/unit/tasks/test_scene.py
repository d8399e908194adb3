"""The scene as a whole: what each sensor contributes to one set, and the answer when one of them is cut off, frozen or
late."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import cv2
import msgspec
import numpy as np
import pytest

from pipeline.clock import NS
from pipeline.frame import AlignedSet, Frame, Prediction, Receipt
from pipeline.sensors.rendered.drive import AHEAD_NS, Drive
from pipeline.tasks.scene import Scene

pytest.importorskip("pypatchworkpp", reason="needs the extra 'lidar': scripts/setup lidar")

PERIOD_NS, SENT_AFTER_NS = NS // 10, 110_000_000
FREE_ROAD_NS = 17_500_000_000  # of the drive: nothing ahead for some seconds (pipeline/sensors/rendered/traffic.py)
Sweeps = Sequence[AlignedSet]


@functools.cache
def sweep(i: int) -> tuple[Frame, ...]:
    at_ns = i * PERIOD_NS
    return (
        Frame("lidar", i, at_ns, "points_xyzit_f32", DRIVE.sweep(FREE_ROAD_NS + at_ns), PERIOD_NS),
        Frame("depth", i, at_ns + AHEAD_NS, "depth_u16_mm", DRIVE.depth(FREE_ROAD_NS + at_ns + AHEAD_NS)),
        Frame("camera", i, at_ns + AHEAD_NS, "bgr8", DRIVE.camera(FREE_ROAD_NS + at_ns + AHEAD_NS)),
    )


DRIVE = Drive(beams=32)
ALL = ("lidar", "depth", "camera")


def moment(i: int, *without: str, **instead: Frame) -> AlignedSet:
    """The i-th set, `without` some streams, or with other frames in their place."""
    frames = {frame.stream: (instead.get(frame.stream, frame),) for frame in sweep(i) if frame.stream not in without}
    receipts = tuple(Receipt(name, "exact" if name in frames else "absent") for name in ALL)
    at_ns = i * PERIOD_NS
    return AlignedSet("lidar", at_ns, frames, receipts, tuple(without), at_ns + SENT_AFTER_NS, at_ns + SENT_AFTER_NS)


def scene(**options: object) -> Scene:
    task = Scene(
        rig="configs/rigs/rendered.yaml",
        sounds="none",
        detector="none",
        ego_box_m=[-2.2, 2.2, -1.0, 1.0],
        corridor={"front_m": 2.2, "length_m": 12},
        **{"by_arrival": True} | options,  # type: ignore[arg-type]
    )
    task.open("onnxruntime")
    return task


def predictions_of(sets: Sweeps, **options: object) -> list[Prediction]:
    task = scene(**options)
    return [task.predict(one) for one in sets]


def ahead(predictions: Sequence[Prediction]) -> list[str]:
    return [p.surroundings.ahead.state for p in predictions if p.surroundings is not None]


def test_a_free_road_is_clear_and_the_prediction_names_what_it_rests_on():
    last = predictions_of([moment(i) for i in range(6)])[-1]
    assert last.surroundings.ahead.state == "clear"
    assert last.label in (*last.labels, "uncertain") and len(last.labels) == 15
    assert set(last.used) == {"lidar", "depth", "camera"}
    assert last.missing == ("detector",)
    assert last.capture_ns == 5 * PERIOD_NS
    assert len(last.surroundings.obstacles) > 5 and last.surroundings.free_space is not None


def test_without_a_place_model_the_label_is_the_way_ahead():
    task = scene(place="none")
    last = [task.predict(moment(i)) for i in range(6)][-1]
    assert (last.label, last.labels) == ("clear", ("clear", "caution", "blocked", "unknown"))
    assert "camera" not in last.used  # nobody looked at its picture


def test_without_lidar_the_depth_camera_carries_on_and_the_lidar_is_missing():
    predictions = predictions_of(
        [*(moment(i) for i in range(5)), *(moment(i, "lidar") for i in range(5, 12)), moment(12), moment(13)]
    )
    cut = predictions[11]
    assert "lidar" in cut.missing and "depth" in cut.used
    assert cut.surroundings.obstacles or cut.surroundings.free_space is not None
    assert cut.surroundings.ahead.state != "clear"  # 10 m of depth are not the 12 m that must be visible
    assert any("lidar" in why for why in cut.surroundings.ahead.because)
    assert ahead(predictions)[12] != "unknown" and "lidar" in predictions[12].used  # within one sweep


def test_without_any_points_the_way_is_unknown_though_the_camera_sees():
    predictions = predictions_of(
        [*(moment(i) for i in range(5)), *(moment(i, "lidar", "depth") for i in range(5, 12)), moment(12)]
    )
    assert ahead(predictions)[8:12] == ["unknown"] * 4
    assert predictions[11].used == ("camera",)
    assert predictions[11].surroundings.obstacles == ()  # carried on for a moment, then gone
    assert ahead(predictions)[12] != "unknown"


def test_without_the_camera_obstacles_and_the_way_carry_on():
    predictions = predictions_of(
        [*(moment(i) for i in range(5)), *(moment(i, "camera") for i in range(5, 9)), moment(9)]
    )
    assert ahead(predictions)[5:9] == ["clear"] * 4
    assert "camera" in predictions[8].missing and "camera" not in predictions[8].used
    assert "camera" in predictions[9].used


@pytest.mark.parametrize("broken", [("lidar", "depth")])
def test_frozen_points_are_not_clear(broken: tuple[str, ...]):
    def again(name: str, i: int) -> Frame:
        """The data of set 4 under the stamps of set i."""
        old, new = (next(f for f in sweep(k) if f.stream == name) for k in (4, i))
        return msgspec.structs.replace(old, seq=new.seq, capture_ns=new.capture_ns)

    predictions = predictions_of(
        [*(moment(i) for i in range(5)), *(moment(i, **{n: again(n, i) for n in broken}) for i in range(5, 10))]
    )
    assert ahead(predictions)[4] == "clear"
    assert ahead(predictions)[6:] == ["unknown"] * 4
    assert any("frozen" in why for why in predictions[-1].surroundings.ahead.because)
    assert {o.stream: o.weight for o in predictions[-1].opinions if o.modality == "points"} == dict.fromkeys(
        broken, 0.0
    )


def test_points_that_come_half_a_second_late_are_not_clear():
    late = [msgspec.structs.replace(moment(i), arrival_ns=i * PERIOD_NS + 600_000_000) for i in range(6)]
    predictions = predictions_of(late)
    assert ahead(predictions) == ["unknown"] * 6
    assert any("lidar" in why for why in predictions[-1].surroundings.ahead.because)


def test_when_a_thread_sent_a_set_which_no_recording_knows_changes_no_answer():
    sets = [moment(i) for i in range(6)]
    held_up = [msgspec.structs.replace(one, sent_ns=one.arrival_ns + 600_000_000) for one in sets]
    assert ahead(predictions_of(held_up)) == ahead(predictions_of(sets)) == ["clear"] * 6


def test_a_set_of_a_tick_is_not_taken_for_earlier_than_its_newest_cloud():
    sets = [
        moment(i, *(("lidar",) if i > 4 else ())) for i in range(9)
    ]  # the last sweep ended at 500 ms, the last depth is of 840
    ticked = [msgspec.structs.replace(one, arrival_ns=one.anchor_ns) for one in sets]
    assert (
        ahead(predictions_of(ticked))[7:] == ahead(predictions_of(sets, by_arrival=False))[7:] == ["clear", "unknown"]
    )


@pytest.mark.parametrize("stream", ALL)
def test_what_cannot_be_used_is_bad_and_the_rest_carries_on(stream: str):
    broken = {
        "lidar": Frame("lidar", 5, 5 * PERIOD_NS, "points_xyzit_f32", np.zeros((4, 2), np.float32), PERIOD_NS),
        "depth": Frame("depth", 5, 5 * PERIOD_NS + AHEAD_NS, "depth_u16_mm", np.zeros((7, 9), np.uint16)),
        "camera": Frame("camera", 5, 5 * PERIOD_NS + AHEAD_NS, "bgr8", np.zeros((360, 640, 3), np.uint8)),
    }
    last = predictions_of([*(moment(i) for i in range(5)), moment(5, **{stream: broken[stream]})])[-1]
    assert stream in last.missing and stream not in last.used
    receipt = next(r for r in last.receipts if r.stream == stream)
    assert receipt.state == "bad" and receipt.reason
    assert set(last.used) == set(ALL) - {stream}


def test_the_same_sets_give_the_same_predictions():
    sets = [moment(i, *(("lidar",) if i in (4, 5) else ())) for i in range(8)]
    assert [p.record() for p in predictions_of(sets)] == [p.record() for p in predictions_of(sets)]


def with_boxes(i: int, text: Callable[[int], str]) -> AlignedSet:
    one = moment(i)
    boxes = Frame("boxes", i, i * PERIOD_NS + AHEAD_NS, "text_utf8", np.frombuffer(text(i).encode(), np.uint8))
    return msgspec.structs.replace(one, frames={**one.frames, "boxes": (boxes,)})


def test_a_jpeg_that_place_and_objects_look_at_is_decoded_once_and_not_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch,
):
    decoded: list[int] = []

    def counted(data: np.ndarray, flags: int, decode: Callable[..., np.ndarray] = cv2.imdecode) -> np.ndarray:
        decoded.append(len(data))
        return decode(data, flags)

    def as_jpeg(one: AlignedSet) -> AlignedSet:
        (frame,) = one.frames["camera"]
        data = cv2.imencode(".jpg", frame.data)[1].ravel()
        return msgspec.structs.replace(
            one, frames=one.frames | {"camera": (msgspec.structs.replace(frame, encoding="jpeg", data=data),)}
        )

    monkeypatch.setattr(cv2, "imdecode", counted)
    task = scene(place_every_ms=500.0)
    both = task.predict(as_jpeg(with_boxes(0, lambda _: "[]")))
    assert len(decoded) == 1 and both.label is not None
    task.predict(as_jpeg(with_boxes(1, lambda _: "[]")))  # the place is held; objects look
    assert len(decoded) == 2
    task.predict(as_jpeg(moment(2)))  # no boxes, no detector
    assert len(decoded) == 2


def test_a_box_of_another_program_names_the_obstacle_it_lies_on():
    at_ns = FREE_ROAD_NS + 5 * PERIOD_NS + AHEAD_NS
    car = min(
        (t for t in DRIVE.truth(at_ns) if t.kind == "car" and t.centre_m[0] > 5 and abs(t.centre_m[1]) < 12),
        key=lambda t: t.centre_m[0],
    )

    def boxes(i: int) -> str:
        box = box_of(next(t for t in DRIVE.truth(FREE_ROAD_NS + i * PERIOD_NS + AHEAD_NS) if t.id == car.id))
        return msgspec.json.encode([{"label": "car", "score": 0.9, "box_px": box}]).decode()

    last = predictions_of([with_boxes(i, boxes) for i in range(6)])[-1]
    (subject,) = last.subjects
    assert subject.label == "car" and subject.range_m is not None
    assert "detector" not in last.missing and "boxes" in last.used
    named = [o for o in last.surroundings.obstacles if o.label == "car"]
    assert len(named) == 1
    assert np.hypot(named[0].centre_m[0] - car.centre_m[0], named[0].centre_m[1] - car.centre_m[1]) < 2.0


def box_of(thing: object) -> list[float]:
    """The picture's box around a thing of the truth."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * thing.size_m  # type: ignore[attr-defined]
    cos, sin = np.cos(thing.yaw_rad), np.sin(thing.yaw_rad)  # type: ignore[attr-defined]
    turned = corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + thing.centre_m  # type: ignore[attr-defined]
    pixels, _, visible = DRIVE.rig.project(turned, source="base", camera="camera")
    low, high = pixels[visible].min(axis=0), pixels[visible].max(axis=0)
    return [float(v) for v in (*low, *(high - low))]
