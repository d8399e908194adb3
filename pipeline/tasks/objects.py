"""Objects with range: what a detector sees in the picture, and how far each is by a lidar or depth camera.

    objects: {use: infer, task: objects, inputs: [align], options: {detector: auto, rig: rig.yaml}}

Without points the boxes come without ranges; without a detector, and where no other program sends boxes, there are none,
and `missing` says "detector". Streams are told apart by their encoding. Places are in the base frame: x forward, y left,
z up. A prototype's eyes, not a safety function.

    finder = ObjectFinder(detector)                                      # the plain class: no task, no files
    finder.find(image_bgr, points_base, capture_ns, View.of(rig, "camera"))[0].range_m
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.frame import POINTS, AlignedSet, Frame, Prediction, Subject
from pipeline.perception.inputs import PICTURES, latest, picture
from pipeline.perception.objects.detections import Detection, read_detections
from pipeline.perception.objects.detector import Detector
from pipeline.perception.objects.object_tracks import ObjectTracker
from pipeline.perception.objects.ranging import Ranged, range_boxes
from pipeline.perception.obstacles.clouds import Clouds
from pipeline.rig import rig as rigs
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.scene_state import Obstacle
from pipeline.task import Task

Image = npt.NDArray[np.uint8]

TEXTS = ("text_utf8",)
NO_DETECTOR, NO_RIG = "detector", "rig"  # in `missing`
SAME_PLACE_M, SAME_PLACE_SHARE = 0.5, 0.02  # so far outside an obstacle's box, a subject is still on it


@dataclass(frozen=True)
class View:
    """A camera and where it stands. camera_from_base: (4, 4) float64, metres."""

    intrinsics: Intrinsics
    camera_from_base: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rig: Rig, camera: str) -> View:
        """Raises ConfigError where the rig has no such camera, or no pose joins it to the base frame."""
        return cls(rig.camera(camera), rig.transform(camera, rig.base))

    @cached_property
    def camera_m(self) -> tuple[float, float, float]:
        """x, y, z of the camera in the base frame."""
        x, y, z = -self.camera_from_base[:3, :3].T @ self.camera_from_base[:3, 3]
        return float(x), float(y), float(z)


class ObjectFinder:
    """Remembers its tracks from picture to picture. ranged: of the latest boxes, in their order, with the reason where
    there is no range."""

    def __init__(self, detector: Detector | None = None) -> None:
        self._detector, self._tracker = detector, ObjectTracker()
        self.ranged: list[Ranged] = []
        # What OpenCV and numpy set up on their first call takes 0.1 s, which no picture shall wait for.
        some = np.random.default_rng(0).uniform(1, 9, (100, 3))
        range_boxes(np.array([[0, 0, 9, 9]]), some[:, :2], some)

    def find(
        self,
        image: Image | None,
        points_base: npt.NDArray[Any] | None,
        capture_ns: int,
        view: View | None,
        *,
        boxes: Sequence[Detection] | None = None,
        points_ns: int | None = None,
        ground: npt.NDArray[np.bool_] | None = None,
    ) -> list[Subject]:
        """image: (h, w, 3) BGR; not looked at where `boxes` come from elsewhere, in the pixels of `view`. points_base: (n, 3)
        metres in the base frame; None, or no view: no ranges. capture_ns: the picture's; points_ns: the points', taken for
        the same where it is None. ground: (n,) which points are ground, where that is known better than a plane tells.
        Returns a subject a box, in the order of the boxes or surest first; without boxes and detector none.
        """
        if boxes is None:
            boxes = self._detector.find(image) if self._detector is not None and image is not None else []
        self.ranged = self._range(boxes, points_base, view, ground)
        tracks = self._tracker.update(boxes, self.ranged, capture_ns, capture_ns if points_ns is None else points_ns)
        return [
            Subject(
                t.id,
                box.box_px,
                (),
                box.score,
                label=box.label,
                range_m=t.ranged.range_m,
                position_m=t.ranged.position_m or (),
                closing_mps=t.closing_mps,
            )
            for t, box in zip(tracks, boxes, strict=True)
        ]

    def _range(
        self,
        boxes: Sequence[Detection],
        points_base: npt.NDArray[Any] | None,
        view: View | None,
        ground: npt.NDArray[np.bool_] | None,
    ) -> list[Ranged]:
        if points_base is None or view is None:
            return [Ranged(reason="no points" if points_base is None else "no rig")] * len(boxes)
        if not boxes:
            return []
        pixels, _, seen = view.intrinsics.project_from(view.camera_from_base, points_base)
        at = np.flatnonzero(seen)
        return range_boxes(
            np.array([box.box_px for box in boxes]),
            pixels[at],
            points_base[at],
            camera_m=view.camera_m,
            ground=None if ground is None else ground[at],
        )


class Views:
    """Streams of pictures → where their cameras look from, as the rig has it."""

    def __init__(self, clouds: Clouds, log: logging.Logger) -> None:
        self._clouds, self._log = clouds, log
        self._known: dict[str, View] = {}
        self._told: set[str] = set()

    def of(self, seen: Frame, image: Image | None) -> View | None:
        """seen: the picture, or boxes in its pixels. None, and once a line in the log: the rig does not know the camera, or not
        at this size."""
        name, rig = self._clouds.sensor(seen.stream), self._clouds.rig
        try:
            view = self._known[name] = self._known.get(name) or View.of(rig, name)
        except ConfigError as error:
            self._warn(f"boxes have no ranges: {error}")
            return None
        if image is not None and image.shape[1::-1] != view.intrinsics.size:
            found, known = ("×".join(map(str, size)) for size in (image.shape[1::-1], view.intrinsics.size))
            self._warn(
                f"{rig.where}: intrinsics.{name} are of pictures of {known}, found {found}: no ranges. Calibrate at that size"
            )
            return None
        return view

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._log.warning("%s", text)


class Objects(Task):
    """`subjects`: every object, with label, box, score, range_m, position_m and closing_mps. `labels` are the detector's, and
    `probs` the shares of the picture's detections, by score.

    detector: "auto" (the pinned one, where it has been fetched), "none", a path of an ONNX file, the name of an asset, or a
    table {file, layout, labels, colour, mean, std, input_px, min_score, overlap}, as perception/objects/detector.py has it. rig: a rig
    file, without which there are no ranges. sensors: stream → what the rig calls it, where that is not the stream's name. Boxes
    that another program finds come as a stream of text_utf8 (detections.read_detections) and take the detector's place.
    """

    def __init__(
        self,
        *,
        detector: str | dict[str, Any] = "auto",
        rig: str = "",
        sensors: dict[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise ValueError("threads must be at least 1")
        self._wanted, self._rig_path, self._sensors, self._threads = detector, rig, sensors or {}, threads

    def open(self, backend: str) -> None:
        rig = rigs.load(self._rig_path) if self._rig_path else None
        if rig is None:
            self.log.warning("no rig: the boxes have no ranges. Give one in options: {rig: rig.yaml}")
        clouds = None if rig is None else Clouds(rig, height_m=0.0, sensors=self._sensors, log=self.log)
        self._clouds, self._views = clouds, None if clouds is None else Views(clouds, self.log)
        self._detector = Detector.load(self._wanted, self.open_engines(backend, threads=self._threads), self.log)
        self.metrics.facts["detector"] = "none"
        if self._detector is not None:
            self.labels, self.model = self._detector.labels, self._detector.name
            self.metrics.facts["detector"] = f"{self._detector.name}, {self._detector.layout}"
        self.finder = ObjectFinder(self._detector)

    def predict(self, aligned: AlignedSet) -> Prediction:
        bad: dict[str, str] = {}
        missing: list[str] = []
        pictured, sent, measured = (latest(aligned, kind) for kind in (PICTURES, TEXTS, POINTS))
        image = boxes = points = None
        if pictured is not None:
            image, wrong = picture(pictured)
            bad |= {pictured.stream: wrong} if image is None else {}
        if sent is not None:
            try:
                boxes = read_detections(sent.data.tobytes().decode())
            except ValueError as error:
                bad[sent.stream] = str(error)
        if boxes is None and self._detector is None:
            missing.append(NO_DETECTOR)
        seen = pictured or sent  # the boxes are in the camera's pixels
        view = self._views.of(seen, image) if self._views is not None and seen is not None else None
        if measured is not None:
            missing += [NO_RIG] if view is None and seen is not None else []
            try:
                points = self._clouds.read(measured).points_m if self._clouds is not None else None
            except ValueError as error:
                bad[measured.stream] = str(error)
        seen_ns = seen.capture_ns if seen is not None else aligned.anchor_ns
        subjects = self.finder.find(
            image, points, seen_ns, view, boxes=boxes, points_ns=measured.capture_ns if measured else None
        )
        looked = [sent.stream] if boxes is not None and sent is not None else []
        looked += [pictured.stream] if boxes is None and self._detector is not None and pictured is not None else []
        ranged = [measured.stream] if measured and any(one.range_m is not None for one in self.finder.ranged) else []
        prediction = self.prediction(
            aligned, self._shares(subjects), subjects=subjects, used=(*looked, *ranged), bad=bad
        )
        return msgspec.structs.replace(prediction, missing=(*prediction.missing, *missing)) if missing else prediction

    def _shares(self, subjects: Sequence[Subject]) -> npt.NDArray[np.float32] | None:
        """Of each label in what was found, by score; None where nothing of the detector's labels was."""
        sums = np.zeros(len(self.labels), np.float32)
        for subject in subjects:
            if subject.label in self.labels:
                sums[self.labels.index(subject.label)] += subject.score
        return sums / sums.sum() if sums.sum() > 0 else None


def told_apart(
    subjects: Sequence[Subject], obstacles: Sequence[Obstacle]
) -> tuple[dict[int, tuple[str, float]], list[Subject]]:
    """What each obstacle is: id → label and score of the surest subject whose surface lies on it. And the subjects that have a
    place and lie on none."""
    labels: dict[int, tuple[str, float]] = {}
    others = []
    for subject in sorted(subjects, key=lambda one: one.score):  # the surest is written last
        if not subject.position_m:
            continue
        off_m = [_outside_m(obstacle, subject.position_m) for obstacle in obstacles]
        nearest = int(np.argmin(off_m)) if off_m else -1
        if off_m and off_m[nearest] <= SAME_PLACE_M + SAME_PLACE_SHARE * (subject.range_m or 0.0):
            labels[obstacles[nearest].id] = (subject.label, subject.score)
        else:
            others.append(subject)
    return labels, others


def _outside_m(obstacle: Obstacle, position_m: Sequence[float]) -> float:
    """How far a place lies outside an obstacle's box, along the ground; 0 inside."""
    x, y = position_m[0] - obstacle.centre_m[0], position_m[1] - obstacle.centre_m[1]
    cos, sin = np.cos(obstacle.yaw_rad), np.sin(obstacle.yaw_rad)
    along, across = abs(x * cos + y * sin) - obstacle.size_m[0] / 2, abs(y * cos - x * sin) - obstacle.size_m[1] / 2
    return float(np.hypot(max(along, 0.0), max(across, 0.0)))
