"""Objects with range: what a detector sees in the picture, and how far each is by a lidar or depth camera.

    objects: {use: infer, task: objects, inputs: [align], options: {detector: auto, rig: rig.yaml}}

Without points the boxes come without ranges; without a detector, and where no other program sends boxes, there are none,
and `missing` says "detector". Streams are told apart by their encoding. Places are in the base frame: x forward, y left,
z up. A prototype's eyes, not a safety function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.frame import POINTS, AlignedSet, Prediction, Subject
from pipeline.perception.inputs import PICTURES, latest, picture
from pipeline.perception.objects.detections import DETECTION_ENCODINGS, read_detections
from pipeline.perception.objects.detector import NO_DETECTOR, Detector
from pipeline.perception.objects.object_finder import CameraViews, ObjectFinder
from pipeline.perception.obstacles.clouds import Clouds
from pipeline.rig import rig as rigs
from pipeline.task import Task

NO_RIG = "rig"  # in `missing`


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
        self._clouds, self._views = clouds, None if clouds is None else CameraViews(clouds, self.log)
        self._detector = Detector.load(self._wanted, self.open_engines(backend, threads=self._threads), self.log)
        self.metrics.facts["detector"] = "none"
        if self._detector is not None:
            self.labels, self.model = self._detector.labels, self._detector.name
            self.metrics.facts["detector"] = f"{self._detector.name}, {self._detector.layout}"
        self.finder = ObjectFinder(self._detector)

    def predict(self, aligned: AlignedSet) -> Prediction:
        bad: dict[str, str] = {}
        missing: list[str] = []
        pictured, sent, measured = (latest(aligned, kind) for kind in (PICTURES, DETECTION_ENCODINGS, POINTS))
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
