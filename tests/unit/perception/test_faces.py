"""Faces: ids that last, searches that are rare, and the real detector on real pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.inference.choose_backend import load
from pipeline.perception.expression.faces import Face, FaceDetector, FaceTracker, Image, Window, distinct

MS = 1_000_000
FRAME_NS = 40 * MS
PICTURE = np.zeros((360, 640, 3), np.uint8)


def face_at(x: float, y: float = 180.0, side: float = 60.0, score: float = 0.9) -> Face:
    box = np.array([x - side / 2, y - side / 2, side, side], np.float32)
    return Face(box, np.zeros((5, 2), np.float32), score)


class Scene:
    """A detector that sees the faces put into it: all of them, or those in the windows."""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)
        self.searches = 0
        self.asked: list[Window] = []

    def whole(self, image: Image) -> list[Face]:
        self.searches += 1
        return self.faces

    def windows(self, image: Image, windows: Sequence[Window]) -> list[Face]:
        self.asked += windows
        return [f for f in self.faces if any(_holds(window, f) for window in windows)]


def _holds(window: Window, face: Face) -> bool:
    x, y = face.centre_px
    return bool(window.left < x < window.left + window.side and window.top < y < window.top + window.side)


def frames(count: int, first: int = 0) -> Iterator[int]:
    """capture_ns of `count` frames at 25 Hz."""
    return iter(range(first * FRAME_NS, (first + count) * FRAME_NS, FRAME_NS))


def ids(tracker: FaceTracker, capture_ns: int) -> list[int]:
    return [track.id for track in tracker.update(PICTURE, capture_ns)]


def test_moving_face_keeps_its_id_and_the_whole_picture_is_searched_twice_a_second() -> None:
    scene = Scene()
    tracker = FaceTracker(scene)
    for capture_ns in frames(50):
        scene.faces = [face_at(100 + capture_ns / FRAME_NS * 8)]  # 200 px a second
        assert ids(tracker, capture_ns) == [1]
    assert scene.searches == 4


def test_empty_picture_is_searched_ten_times_a_second_at_most() -> None:
    scene = Scene()
    tracker = FaceTracker(scene)
    for capture_ns in frames(25):
        assert ids(tracker, capture_ns) == []
    assert scene.searches <= 10


def test_newcomer_is_detected_within_half_a_second() -> None:
    scene = Scene(face_at(100))
    tracker = FaceTracker(scene)
    assert ids(tracker, 0) == [1]
    scene.faces.append(face_at(500))
    assert [ids(tracker, capture_ns) for capture_ns in frames(13, first=1)][-1] == [1, 2]


def test_face_hidden_for_half_a_second_keeps_its_id() -> None:
    scene = Scene(face_at(300))
    tracker = FaceTracker(scene)
    for capture_ns in frames(5):
        ids(tracker, capture_ns)
    scene.faces = []
    assert [ids(tracker, capture_ns) for capture_ns in frames(12, first=5)] == [[]] * 12
    scene.faces = [face_at(310)]
    assert [ids(tracker, capture_ns) for capture_ns in frames(4, first=17)][-1] == [1]


def test_face_hidden_for_two_seconds_comes_back_under_a_new_id() -> None:
    scene = Scene(face_at(300))
    tracker = FaceTracker(scene)
    ids(tracker, 0)
    scene.faces = []
    for capture_ns in frames(50, first=1):
        ids(tracker, capture_ns)
    scene.faces = [face_at(300)]
    assert [ids(tracker, capture_ns) for capture_ns in frames(4, first=51)][-1] == [2]


def test_two_people_who_cross_keep_their_ids() -> None:
    scene = Scene()
    tracker = FaceTracker(scene)
    for capture_ns in frames(17):
        step = capture_ns / FRAME_NS
        front, behind = face_at(100 + 25 * step, score=0.9), face_at(520 - 25 * step, score=0.8)
        scene.faces = distinct([front, behind])  # where they overlap only one is detected
        detected = tracker.update(PICTURE, capture_ns)
        if capture_ns == 0:
            left_to_right = [track.id for track in sorted(detected, key=lambda track: track.face.centre_px[0])]
    right_to_left = [track.id for track in sorted(detected, key=lambda track: -track.face.centre_px[0])]
    assert len(detected) == 2 and right_to_left == left_to_right


def test_face_elsewhere_does_not_inherit_the_id_of_one_that_left() -> None:
    scene = Scene(face_at(100))
    tracker = FaceTracker(scene)
    ids(tracker, 0)
    scene.faces = [face_at(500)]
    assert ids(tracker, FRAME_NS) == [2]


def test_same_picture_twice_changes_nothing() -> None:
    scene = Scene(face_at(300))
    tracker = FaceTracker(scene)
    first = tracker.update(PICTURE, FRAME_NS)
    scene.faces = []
    assert tracker.update(PICTURE, FRAME_NS) == first and scene.searches == 1


def test_earlier_picture_starts_over() -> None:
    tracker = FaceTracker(Scene(face_at(300)))
    assert ids(tracker, 10 * FRAME_NS) == [1]
    assert ids(tracker, 0) == [2]


def test_window_rests_while_the_face_moves_a_little() -> None:
    scene = Scene(face_at(300))
    tracker = FaceTracker(scene)
    for capture_ns in frames(10):
        scene.faces = [face_at(300 + (capture_ns // FRAME_NS) % 3)]
        tracker.update(PICTURE, capture_ns)
    assert len(set(scene.asked)) == 1


def test_at_most_the_largest_faces_are_followed() -> None:
    tracker = FaceTracker(Scene(face_at(100, side=40), face_at(300, side=90), face_at(500, side=60)), max_faces=2)
    assert sorted(track.face.side_px for track in tracker.update(PICTURE, 0)) == pytest.approx([60, 90])


def test_crowd_is_followed_by_searching_every_picture() -> None:
    scene = Scene(*(face_at(40 + 80 * i, side=40) for i in range(8)))
    tracker = FaceTracker(scene)
    assert [ids(tracker, capture_ns) for capture_ns in frames(5)] == [list(range(1, 9))] * 5
    assert scene.searches == 5 and scene.asked == []


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(load(asset("centerface")))


def asset(name: str) -> Path:
    try:
        return assets.path(name)
    except AssetError as error:
        pytest.skip(str(error))


def pictures(name: str, step: int = 1) -> Iterator[tuple[int, Image]]:
    """capture_ns and picture of every `step`-th frame of a clip."""
    import av

    with av.open(str(asset(name))) as clip:
        for i, frame in enumerate(clip.decode(video=0)):
            if i % step == 0:
                yield round(float(frame.time or 0) * 1e9), np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)


def test_five_people_are_five_faces_with_eyes_above_their_mouths(detector: FaceDetector) -> None:
    import cv2

    image = np.asarray(cv2.imread(str(asset("five-faces"))), np.uint8)
    faces = detector.whole(image)
    assert len(faces) == 5
    for face in faces:
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks_px
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        assert np.all(face.landmarks_px > face.box_px[:2]) and np.all(
            face.landmarks_px < face.box_px[:2] + face.box_px[2:]
        )


def test_window_finds_the_face_where_the_whole_picture_does(detector: FaceDetector) -> None:
    _, image = next(pictures("demo-clip"))
    (whole,) = detector.whole(image)
    side = round(2 * whole.side_px)
    left, top = (round(float(v) - side / 2) for v in whole.centre_px)
    (detected,) = detector.windows(image, [Window(left + 20, top - 10, side)])
    assert detected.box_px == pytest.approx(whole.box_px, abs=0.08 * whole.side_px)
    assert detected.landmarks_px == pytest.approx(whole.landmarks_px, abs=0.05 * whole.side_px)


def test_clip_without_a_face_has_none(detector: FaceDetector) -> None:
    tracker = FaceTracker(detector)
    assert [tracker.update(image, capture_ns) for capture_ns, image in pictures("no-face-clip", step=4)] == [[]] * 24


def test_face_of_the_demo_clip_is_followed_through_all_frames_under_one_id(detector: FaceDetector) -> None:
    tracker = FaceTracker(detector)
    detected = [
        [track.id for track in tracker.update(image, capture_ns)] for capture_ns, image in pictures("demo-clip")
    ]
    assert detected == [[1]] * 472
