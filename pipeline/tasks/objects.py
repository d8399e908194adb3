"""Objects with range: a detector's boxes in the picture, and the range of each by a lidar or depth camera.

Example:
    objects: {use: infer, task: objects, inputs: [align], options: {detector: auto, rig: rig.yaml}}

Without points the boxes come without ranges; without a detector, and where no other program sends boxes, there are
none, and `missing` says "detector". Streams are recognised by their encoding. Positions are in the base frame: x
forward, y left, z up. A prototype's eyes, not a safety function.
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
from pipeline.rig.rig_file import load_rig
from pipeline.task import Task

NO_RIG = "rig"  # in `missing`


class Objects(Task):
    """`subjects`: every object, with label, box, score, range_m, position_m and closing_mps. `labels` are the
    detector's, and `probs` each label's share of the picture's detections, by score. Boxes of another program come as a
    stream of text_utf8 (detections.read_detections) and replace the detector."""

    def __init__(
        self,
        *,
        detector: str | dict[str, Any] = "auto",
        rig: str = "",
        sensors: dict[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        """
        Args:
            detector: "auto" (the pinned one, where it has been downloaded), "none", a path of an ONNX file, the name of
                an asset, or a table {file, layout, labels, colour, mean, std, input_px, min_score, overlap}
                (Description).
            rig: A rig file. Without one there are no ranges.
            sensors: Stream → its name in the rig, where that is not the stream's name.
            threads: CPU threads of the detector (≥ 1). Default 1: cameras and other tasks need the other cores.
        """
        if threads < 1:
            raise ValueError("threads must be at least 1")
        self._detector_option, self._rig_path, self._sensors, self._threads = detector, rig, sensors or {}, threads

    def open(self, backend: str) -> None:
        rig = load_rig(self._rig_path) if self._rig_path else None
        if rig is None:
            self.log.warning("no rig: the boxes have no ranges. Give one in options: {rig: rig.yaml}")
        clouds = None if rig is None else Clouds(rig, height_m=0.0, sensors=self._sensors, log=self.log)
        self._clouds, self._views = clouds, None if clouds is None else CameraViews(clouds, self.log)
        self._detector = Detector.load(
            self._detector_option, self.open_engines(backend, threads=self._threads), self.log
        )
        self.metrics.facts["detector"] = "none"
        if self._detector is not None:
            self.labels, self.model = self._detector.labels, self._detector.name
            self.metrics.facts["detector"] = f"{self._detector.name}, {self._detector.layout}"
        self.finder = ObjectFinder(self._detector)

    def predict(self, aligned: AlignedSet) -> Prediction:
        bad: dict[str, str] = {}
        missing: list[str] = []
        camera, text, points_frame = (latest(aligned, kind) for kind in (PICTURES, DETECTION_ENCODINGS, POINTS))
        image = boxes = points = None
        if camera is not None:
            image, fault = picture(camera)
            bad |= {camera.stream: fault} if image is None else {}
        if text is not None:
            try:
                boxes = read_detections(text.data.tobytes().decode())
            except ValueError as error:
                bad[text.stream] = str(error)
        if boxes is None and self._detector is None:
            missing.append(NO_DETECTOR)
        frame = camera or text  # the boxes are in the camera's pixels
        view = self._views.of(frame, image) if self._views is not None and frame is not None else None
        if points_frame is not None:
            missing += [NO_RIG] if view is None and frame is not None else []
            try:
                points = self._clouds.read(points_frame).points_m if self._clouds is not None else None
            except ValueError as error:
                bad[points_frame.stream] = str(error)
        capture_ns = frame.capture_ns if frame is not None else aligned.anchor_ns
        subjects = self.finder.find(
            image, points, capture_ns, view, boxes=boxes, points_ns=points_frame.capture_ns if points_frame else None
        )
        box_streams = [text.stream] if boxes is not None and text is not None else []
        box_streams += [camera.stream] if boxes is None and self._detector is not None and camera is not None else []
        ranged = (
            [points_frame.stream] if points_frame and any(one.range_m is not None for one in self.finder.ranged) else []
        )
        prediction = self.prediction(
            aligned, self._shares(subjects), subjects=subjects, used=(*box_streams, *ranged), bad=bad
        )
        return msgspec.structs.replace(prediction, missing=(*prediction.missing, *missing)) if missing else prediction

    def _shares(self, subjects: Sequence[Subject]) -> npt.NDArray[np.float32] | None:
        """Each label's share of the subjects, by score; None without subjects of the detector's labels."""
        sums = np.zeros(len(self.labels), np.float32)
        for subject in subjects:
            if subject.label in self.labels:
                sums[self.labels.index(subject.label)] += subject.score
        return sums / sums.sum() if sums.sum() > 0 else None
