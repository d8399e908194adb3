"""Objects with range: real pictures and sweeps with their labels, and the task from aligned sets to predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from detector_graphs import BGR, COLOURS, squares
from running import finished

from pipeline.frame import AlignedSet, Encoding, Frame, Prediction, Receipt, Subject
from pipeline.perception.objects.detections import Detection
from pipeline.perception.objects.object_finder import CameraView, ObjectFinder
from pipeline.perception.objects.subject_matching import match_subjects
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import save_rig
from pipeline.rig.transforms import apply, rigid
from pipeline.scene_state import Obstacle
from pipeline.task import make
from pipeline.tasks.objects import Objects

# The board straight ahead of it lies on the middle of a cell of the network, so that one cell alone answers.
LENS = Intrinsics("radtan", 256, 256, 256, 256, 135.5, 135.5)
# A camera that looks along the base's x, 0.2 m before the lidar, which is half a metre above the base.
RIG = Rig(
    {"front": LENS},
    (
        Pose("front", "base", rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), (0, 0.5, -0.2))),
        Pose("base", "lidar", rigid(np.eye(3), (0, 0, 0.5))),
    ),
)
MS = 1_000_000


def board(range_m: float, colour: str = "red", *, side_m: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a square board straight ahead of the camera, and the lidar's points of it, of the wall behind and
    the ground."""
    image = np.full((256, 256, 3), 90, np.uint8)
    half = round(256 * side_m / 2 / range_m)
    image[136 - half : 136 + half, 136 - half : 136 + half] = BGR[colour]
    y, z = (
        v.ravel()
        for v in np.meshgrid(np.linspace(-side_m / 2, side_m / 2, 30), np.linspace(-side_m / 2, side_m / 2, 30))
    )
    on_board = np.column_stack([np.full_like(y, range_m + 0.2), y, z])
    y, z = (v.ravel() for v in np.meshgrid(np.linspace(-8, 8, 80), np.linspace(-1, 6, 40)))
    behind = np.column_stack([np.full_like(y, 20.0), y, z])
    hidden = (np.abs(y) < 20 / range_m) & (np.abs(z) < 20 / range_m)
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(2, 19, 60), np.linspace(-6, 6, 40)))
    ground = np.column_stack([x, y, np.full_like(x, -1.6)])
    points = np.vstack([on_board, behind[~hidden], ground])
    return image, np.hstack([points, np.zeros((len(points), 1))]).astype(np.float32)


def aligned(anchor_ms: int, **frames: tuple[Encoding, np.ndarray] | None) -> AlignedSet:
    present = {
        n: (Frame(n, anchor_ms // 100, anchor_ms * MS, f[0], np.array(f[1])),)
        for n, f in frames.items()
        if f is not None
    }
    receipts = tuple(Receipt(n, "exact" if n in present else "absent") for n in frames)
    return AlignedSet("front", anchor_ms * MS, present, receipts, tuple(n for n in frames if n not in present))


@pytest.fixture
def rig_path(tmp_path: Path) -> str:
    save_rig(RIG, tmp_path / "rig.yaml")
    return str(tmp_path / "rig.yaml")


@pytest.fixture
def opened(tmp_path: Path, rig_path: str) -> Iterator[Any]:
    tasks: list[Objects] = []

    def open_(**options: Any) -> Objects:
        option = {"file": str(squares(tmp_path / "squares.onnx")), "labels": list(COLOURS), "min_score": 0.6}
        task = make("objects", {"detector": option, "rig": rig_path, **options})
        assert isinstance(task, Objects)
        task.log = logging.getLogger("objects")
        task.open("onnxruntime")
        tasks.append(task)
        return task

    yield open_
    for task in tasks:
        task.close()


# ---- real data


@pytest.mark.parametrize("moment", ["sequence/7", "labelled/0", "labelled/1", "labelled/2"])
def test_ranges_of_labelled_boxes_are_within_3_percent_or_30_cm(moment: str, data_dir: Path) -> None:
    """What the truth is: benchmarks/objects.py."""
    if not (data_dir / "driving").is_dir():
        pytest.skip(f"no driving/ in {data_dir}")
    from benchmarks.objects import moments, ranged_objects, right

    (this,) = (m for m in moments(data_dir) if m.name == moment)
    wrong = [(o, range_m, reason) for o, range_m, _, reason in ranged_objects(this) if not right(range_m, o.truth_m)]
    assert wrong == []


@pytest.mark.system
@pytest.mark.timeout(400)  # an import and a replay, each of several processes
def test_a_real_drive_is_replayed_and_the_boxes_sent_with_it_have_their_ranges(data_dir: Path, folder: Path) -> None:
    drive = data_dir / "driving" / "kitti_sequence"
    if not drive.is_dir():
        pytest.skip(f"no driving/ in {data_dir}")
    from benchmarks.objects import moments, right
    from pipeline.rig.rig_formats import read_kitti

    rig = read_kitti(drive / "calib.txt", size=(1242, 375), lidar="velodyne", names={2: "image_02"})
    save_rig(rig.with_pose(Pose("base", "velodyne", rigid(np.eye(3), (0, 0, 1.73)))), folder / "rig.yaml")
    (folder / "drive.yaml").write_text("""
nodes:
  image_02: {use: replay, path: drive.mcap}
  velodyne: {use: replay, path: drive.mcap}
  boxes: {use: replay, path: drive.mcap}
  align:
    use: align
    inputs: [image_02, velodyne, boxes]
    anchor: image_02
    max_wait_ms: null
    sync: {boxes: {policy: nearest, within_ms: 20}, velodyne: {policy: nearest, within_ms: 50}}
  objects: {use: infer, task: objects, inputs: [align], process: align, options: {detector: none, rig: rig.yaml}}
""")
    assert finished(folder, "import", str(drive), "drive.mcap", timeout_s=120).returncode == 0
    played = finished(
        folder, "replay", "drive.yaml", "drive.mcap", "--out", "found.jsonl", "--no-dashboard", timeout_s=240
    )
    lines = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    predictions = [one for one in lines if "task" in one]
    assert len(predictions) == 10, played.stderr
    labelled = predictions[7]
    truths = [o.truth_m for o in next(moments(data_dir)).objects]
    ranges = [s["range_m"] for s in labelled["subjects"]]
    assert len(ranges) == len(truths) == 8 and all(map(right, ranges, truths))
    assert labelled["missing"] == [] and labelled["used"] == ["boxes", "velodyne"]
    assert {tuple(one["missing"]) for one in predictions if one is not labelled} == {("boxes", "detector")}


def test_points_sit_on_the_picture(data_dir: Path) -> None:
    """Where the depth of neighbouring points of a line jumps, the picture has edges; a few pixels aside it has
    fewer."""
    if not (data_dir / "driving").is_dir():
        pytest.skip(f"no driving/ in {data_dir}")
    import cv2

    from benchmarks.objects import moments

    this = next(moments(data_dir))
    grey = cv2.GaussianBlur(cv2.cvtColor(this.image, cv2.COLOR_BGR2GRAY), (0, 0), 1).astype(float)
    edges = np.minimum(np.abs(np.gradient(grey, axis=1)), 20)
    pixels, depth_m, visible = this.view.intrinsics.project_from(this.view.camera_from_base, this.points_m)
    beside = (np.abs(np.diff(pixels, axis=0)) < (12, 4)).all(axis=1) & visible[:-1] & visible[1:]
    jump_m = np.diff(depth_m)
    near = np.concatenate([np.flatnonzero(beside & (jump_m > 1.5)), np.flatnonzero(beside & (jump_m < -1.5)) + 1])
    x, y = np.rint(pixels[near]).astype(int).T
    strength = {aside: edges[y, np.clip(x + aside, 0, edges.shape[1] - 1)].mean() for aside in range(-24, 25, 3)}
    assert len(near) > 100
    assert abs(max(strength, key=lambda aside: strength[aside])) <= 3
    assert strength[0] > 1.3 * np.mean([s for aside, s in strength.items() if abs(aside) >= 9])


# ---- the plain class


def test_boxes_from_elsewhere_are_ranged_without_a_detector_or_a_picture() -> None:
    _, points = board(8.0)
    finder = ObjectFinder()
    points_base = apply(RIG.transform("base", "lidar"), points[:, :3])
    box = Detection("sign", 0.7, (104, 104, 64, 64))
    (subject,) = finder.find(None, points_base, 0, CameraView.of(RIG, "front"), boxes=[box])
    assert (subject.label, subject.score, subject.box_px) == ("sign", 0.7, (104, 104, 64, 64))
    assert subject.range_m == pytest.approx(8.0, abs=0.05)
    assert subject.position_m == pytest.approx((8.2, 0, 0.5), abs=0.1)
    assert finder.find(None, points_base, MS, CameraView.of(RIG, "front")) == []


def test_an_obstacle_is_called_what_the_surest_box_on_it_is() -> None:
    ahead = Obstacle(1, (12.0, 0.0, 0.7), (4.0, 1.8, 1.5), 0.0, 10.0, 0.0)
    turned = Obstacle(2, (12.0, 6.0, 0.7), (4.0, 1.8, 1.5), np.pi / 2, 11.0, 25.0)
    nothing = Obstacle(3, (30.0, -5.0, 0.7), (1.0, 1.0, 1.5), 0.0, 29.0, -10.0)

    def subject(label: str, score: float, *position_m: float) -> Subject:
        return Subject(1, (0, 0, 9, 9), (), score, label=label, range_m=10.0, position_m=position_m)

    subjects = [
        subject("car", 0.9, 10.0, 0.2, 0.5),
        subject("truck", 0.4, 10.1, 0.0, 0.5),
        subject("van", 0.5, 12.0, 4.1, 0.5),
        subject("dog", 0.9, 20.0, 0.0, 0.2),
        Subject(9, (0, 0, 9, 9), (), label="cat"),
    ]
    labels, others = match_subjects(subjects, [ahead, turned, nothing])
    assert labels == {1: ("car", 0.9), 2: ("van", 0.5)}
    assert [subject.label for subject in others] == ["dog"]
    assert [subject.label for subject in match_subjects(subjects, [])[1]] == ["truck", "van", "car", "dog"]


# ---- the task


def test_a_board_is_detected_ranged_and_its_closing_speed_reported(opened: Any) -> None:
    task = opened()
    predictions = []
    for i in range(12):
        image, points = board(9.6 - 0.2 * i)  # about 64 px, as the network wants them: 2 m/s at 10 Hz
        predictions.append(task.predict(aligned(100 * i, front=("bgr8", image), lidar=("points_xyzi_f32", points))))
    last = predictions[-1]
    (subject,) = last.subjects
    assert subject.label == "red" and subject.range_m == pytest.approx(7.4, abs=0.05)
    assert subject.closing_mps == pytest.approx(2, abs=0.2) and predictions[0].subjects[0].closing_mps is None
    assert {p.subjects[0].id for p in predictions} == {1}
    assert last.label == "red" and last.used == ("front", "lidar") and last.missing == ()
    assert last.model.startswith("squares@")
    record = last.record()["subjects"][0]
    assert (
        record["label"] == "red"
        and record["range_m"] == pytest.approx(7.4, abs=0.05)
        and len(record["position_m"]) == 3
    )


def test_the_same_sets_give_the_same_predictions_again(opened: Any) -> None:
    def run() -> list[Prediction]:
        task = opened()
        return [
            task.predict(
                aligned(
                    100 * i, front=("bgr8", board(9 - 0.2 * i)[0]), lidar=("points_xyzi_f32", board(9 - 0.2 * i)[1])
                )
            )
            for i in range(5)
        ]

    assert [p.record() for p in run()] == [p.record() for p in run()]


def test_without_the_lidar_the_boxes_stay_and_have_no_range(opened: Any) -> None:
    task = opened()
    prediction = task.predict(aligned(0, front=("bgr8", board(8.0)[0]), lidar=None))
    (subject,) = prediction.subjects
    assert (subject.label, subject.range_m, subject.position_m, subject.closing_mps) == ("red", None, (), None)
    assert prediction.missing == ("lidar",) and prediction.used == ("front",)


def test_a_depth_picture_ranges_as_a_lidar_does(opened: Any) -> None:
    image, _ = board(8.0)
    depth = np.full((256, 256), 20_000, np.uint16)
    depth[104:168, 104:168] = 8000
    depth[:4] = 0  # no reading
    prediction = opened(sensors={"depth": "front"}).predict(
        aligned(0, front=("bgr8", image), depth=("depth_u16_mm", depth))
    )
    assert prediction.subjects[0].range_m == pytest.approx(8.0, abs=0.05) and prediction.used == ("front", "depth")


def test_without_a_detector_missing_says_so(opened: Any) -> None:
    image, points = board(8.0)
    task = opened(detector="none")
    prediction = task.predict(aligned(0, front=("bgr8", image), lidar=("points_xyzi_f32", points)))
    assert prediction.subjects == () and prediction.missing == ("detector",) and prediction.label is None
    assert prediction.used == ()  # nobody looked at the picture
    json.dumps(prediction.record())


def test_boxes_of_another_program_take_the_detectors_place(opened: Any) -> None:
    _, points = board(8.0)
    boxes = json.dumps([{"label": "sign", "box_px": [104, 104, 64, 64], "score": 0.8}]).encode()
    task = opened(detector="none", sensors={"boxes": "front"})
    sent = aligned(0, boxes=("text_utf8", np.frombuffer(boxes, np.uint8)), lidar=("points_xyzi_f32", points))
    prediction = task.predict(sent)
    assert prediction.subjects[0].label == "sign" and prediction.subjects[0].range_m == pytest.approx(8.0, abs=0.05)
    assert prediction.missing == () and prediction.used == ("boxes", "lidar")


def test_boxes_that_cannot_be_read_leave_nobody_who_tells_what_things_are(opened: Any) -> None:
    sent = aligned(0, boxes=("text_utf8", np.frombuffer(b"[{]", np.uint8)), lidar=("points_xyzi_f32", board(8.0)[1]))
    assert opened(detector="none", sensors={"boxes": "front"}).predict(sent).missing == ("boxes", "detector")


@pytest.mark.parametrize(
    ("stream", "frame", "message"),
    [
        ("boxes", ("text_utf8", np.frombuffer(b"nonsense", np.uint8)), "expected JSON"),
        ("front", ("bgr8", np.zeros((256, 256, 3), np.uint8)), "dark"),
        ("lidar", ("points_xyzi_f32", np.zeros(7, np.float32)), "shape (7,)"),
    ],
)
def test_what_cannot_be_used_is_missing_with_the_reason(stream: str, frame: Any, message: str, opened: Any) -> None:
    image, points = board(8.0)
    frames = {"front": ("bgr8", image), "lidar": ("points_xyzi_f32", points), stream: frame}
    prediction = opened().predict(aligned(0, **frames))
    assert stream in prediction.missing and stream not in prediction.used
    (reason,) = (r.reason for r in prediction.receipts if r.stream == stream)
    assert message in reason


def test_pictures_of_another_size_than_the_rigs_have_no_ranges_and_the_log_says_why(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    image, points = board(8.0)
    with caplog.at_level(logging.WARNING):
        prediction = opened().predict(
            aligned(0, front=("bgr8", np.repeat(image, 2, axis=1)), lidar=("points_xyzi_f32", points))
        )
    assert "rig" in prediction.missing and all(s.range_m is None for s in prediction.subjects)
    assert "intrinsics.front are of pictures of 256×256, found 512×256" in caplog.text


def test_without_a_rig_there_are_boxes_and_missing_says_rig(opened: Any) -> None:
    image, points = board(8.0)
    prediction = opened(rig="").predict(aligned(0, front=("bgr8", image), lidar=("points_xyzi_f32", points)))
    assert [s.range_m for s in prediction.subjects] == [None] and prediction.missing == ("rig",)


def test_a_camera_the_rig_does_not_know_has_no_ranges_and_the_log_names_the_nearest(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    image, points = board(8.0)
    with caplog.at_level(logging.WARNING):
        prediction = opened(sensors={"front": "frnot"}).predict(
            aligned(0, front=("bgr8", image), lidar=("points_xyzi_f32", points))
        )
    assert "rig" in prediction.missing and all(s.range_m is None for s in prediction.subjects)
    assert "no camera called 'frnot'" in caplog.text and "Did you mean 'front'" in caplog.text
