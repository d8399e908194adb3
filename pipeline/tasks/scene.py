"""What is around: place, obstacles, free space, objects with range, sounds and the way ahead. AlignedSet → Prediction.

Each part is a task of its own too (place, obstacles, objects, sounds); here they look at the same set, and each carries
on without the others. Points and depth say where things are, the camera what they are and what kind of place this is, the
microphone what is heard. "clear" ahead needs fresh points that saw the way free; without them it is "unknown". A prototype's
eyes, not a safety function.

    scene: {use: infer, task: scene, inputs: [align], options: {rig: rig.yaml, corridor: {width_m: 1.2, length_m: 10}}}
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.frame import POINTS, AlignedSet, Opinion, Prediction, Subject
from pipeline.perception.inputs import PICTURES, SOUNDS, Picture, first, latest
from pipeline.perception.objects.detections import DETECTION_ENCODINGS, Detection, read_detections
from pipeline.perception.objects.detector import NO_DETECTOR, NONE, Detector
from pipeline.perception.objects.object_finder import CameraViews, ObjectFinder
from pipeline.perception.objects.subject_matching import match_subjects
from pipeline.perception.obstacles.clouds import Cloud, Clouds
from pipeline.perception.obstacles.path_clearance import STATES, Corridor, Thing, one_hot
from pipeline.perception.obstacles.scene_model import UNUSABLE, Around, warm_up
from pipeline.perception.place import PlaceEstimator, PlaceModel
from pipeline.perception.sound_events import SoundEventDetector, load_detector
from pipeline.plugins import check_options
from pipeline.rig import rig as rigs
from pipeline.rig.rig import Rig
from pipeline.scene_state import Sound, Surroundings
from pipeline.task import Task


class Scene(Task):
    """`probs` and `label` are the place's, of the camera; without a place model those of the way ahead. `subjects` are the
    objects in the picture, `surroundings` all that has a place around the rig, as of the end of the newest cloud.

    rig: a rig file; without one the first sensor of points is taken to look straight ahead, height_m above the ground. sensors:
    stream → what the rig calls it, where that is not the stream's name. own_m: [x from, x to, y from, y to], what is seen
    there is the rig itself. rig_wait_s: how long to wait at the start for the rig file, where a node of this run writes it
    (`save_rig` of depth). place, sounds: models, without .onnx, or a path; "none": without. detector: as of the task
    objects. corridor: width_m, length_m, stop_m, front_m and blind_m of the way that is looked at. range_m: as far as obstacles
    are followed. by_arrival: the way is clear only by what is fresh when the set's anchor arrives, which matters where all
    streams may be late together. That moment is told again in a replay; when the set was sent, at most max_wait_ms later,
    is not. place_every_ms: how often the place is looked at. uncertain_below: the label is "uncertain" where no probability
    reaches this.
    """

    def __init__(
        self,
        *,
        rig: str = "",
        rig_wait_s: float = 0.0,
        sensors: dict[str, str] | None = None,
        height_m: float = 1.7,
        own_m: list[float] | None = None,
        place: str = "place",
        sounds: str = "sound-events",
        detector: str | dict[str, Any] = "auto",
        corridor: dict[str, float] | None = None,
        range_m: float = 60.0,
        by_arrival: bool = False,
        place_every_ms: float = 500.0,
        smoothing_ms: float = 1000.0,
        uncertain_below: float = 0.35,
        threads: int = 1,
    ) -> None:
        if threads < 1 or smoothing_ms < 0 or place_every_ms < 0 or not 0 <= uncertain_below < 1:
            raise ValueError(
                "threads must be at least 1, smoothing_ms and place_every_ms at least 0, uncertain_below from 0 to below 1"
            )
        self._rig_wait_s = rig_wait_s
        self._rig_path, self._sensors, self._height_m, self._own_m = rig, sensors or {}, height_m, own_m or []
        self._place_wanted, self._sounds_wanted, self._detector_wanted = place, sounds, detector
        self._corridor = Corridor(**check_options(Corridor, corridor or {}, "corridor"))
        self._range_m, self._place_every_ms, self._smoothing_ms = range_m, place_every_ms, smoothing_ms
        self._by_arrival, self._uncertain_below, self._threads = by_arrival, uncertain_below, threads

    def open(self, backend: str) -> None:
        engines = self.open_engines(backend, threads=self._threads)
        rig = self._load_rig() if self._rig_path else None
        self._clouds = Clouds(rig, height_m=self._height_m, sensors=self._sensors, own_m=self._own_m, log=self.log)
        self._around = Around(corridor=self._corridor, range_m=self._range_m)
        warm_up()
        self.metrics.facts["corridor"] = str(self._corridor)
        models = []
        self._place_estimator: PlaceEstimator | None = None
        if self._place_wanted != NONE:
            place = PlaceModel.open(engines, self._place_wanted)
            self._place_estimator = PlaceEstimator(
                place, smoothing_ms=self._smoothing_ms, every_ms=self._place_every_ms
            )
            models.append(place.id)
        self.labels = place.labels if self._place_estimator is not None else STATES
        self._detector: SoundEventDetector | None = None
        if self._sounds_wanted != NONE:
            self._detector, manifest = load_detector(engines, model=self._sounds_wanted)
            models.append(manifest.id)
        detector = Detector.load(self._detector_wanted, engines, self.log)
        self._detects, self._finder = detector is not None, ObjectFinder(detector)
        models += [detector.name] if detector is not None else []
        self.model = " + ".join(models)
        self._views = CameraViews(self._clouds, self.log)

    def _load_rig(self) -> Rig:
        give_up_s = time.monotonic() + self._rig_wait_s
        while not Path(self._rig_path).exists() and time.monotonic() < give_up_s:
            time.sleep(0.05)
        return rigs.load(self._rig_path)

    def predict(self, aligned: AlignedSet) -> Prediction:
        bad: dict[str, str] = {}
        missing: list[str] = []
        clouds = self._read_clouds(aligned, bad)
        at_ns = max([aligned.anchor_ns, *(cloud.end_ns for cloud in clouds)])
        pictured = latest(aligned, PICTURES)
        picture = Picture(pictured) if pictured is not None else None
        subjects, looked = self._objects(aligned, picture, clouds, bad, missing)
        places, probs = self._place(picture, bad)
        heard, sounds = self._sounds(aligned, bad)
        around = self._surroundings(aligned, at_ns, subjects, sounds)
        used = [c.stream for c in clouds] + [o.stream for o in (*places, *heard) if o.weight > 0] + looked
        prediction = self.prediction(
            aligned,
            one_hot(around.ahead) if self._place_estimator is None else probs,
            subjects=subjects,
            used=tuple(dict.fromkeys(used)),
            bad=bad,
            opinions=[*self._points_say(), *places, *heard],
            uncertain_below=self._uncertain_below,
        )
        return msgspec.structs.replace(prediction, missing=(*prediction.missing, *missing), surroundings=around)

    # --- points -----------------------------------------------------------------------------------------------------

    def _read_clouds(self, aligned: AlignedSet, bad: dict[str, str]) -> list[Cloud]:
        """The newest cloud of every stream that measures places, told to `around`."""
        found: list[Cloud] = []
        for stream, frames in aligned.frames.items():
            if not frames or frames[-1].encoding not in POINTS:
                continue
            try:
                cloud = self._clouds.read(frames[-1])
            except ValueError as error:
                bad[stream] = str(error)
                continue
            why = self._around.update(
                stream,
                cloud.points_m,
                cloud.capture_ns,
                duration_ns=cloud.duration_ns,
                seconds=cloud.seconds,
                origin_m=cloud.origin_m,
            )
            if why in UNUSABLE:
                bad[stream] = why
            else:
                found.append(cloud)
        return found

    def _points_say(self) -> list[Opinion]:
        """Whether each stream of points is evidence that the way is free, and if not, why."""
        return [Opinion("points", view.stream, 0.0 if view.why else 1.0, (), view.why) for view in self._around.views]

    def _surroundings(
        self, aligned: AlignedSet, at_ns: int, subjects: Sequence[Subject], sounds: Sequence[Sound]
    ) -> Surroundings:
        labels, others = match_subjects(subjects, self._around.obstacles(at_ns)) if subjects else ({}, [])
        things = [
            Thing(one.label or "object", ((one.position_m[0], one.position_m[1]),), None, one.label) for one in others
        ]
        now_ns = aligned.arrival_ns if self._by_arrival else None
        around = self._around.surroundings(at_ns, now_ns=now_ns, labels=labels, things=things)
        return msgspec.structs.replace(around, sounds=tuple(sounds))

    # --- pictures ---------------------------------------------------------------------------------------------------

    def _objects(
        self,
        aligned: AlignedSet,
        picture: Picture | None,
        clouds: Sequence[Cloud],
        bad: dict[str, str],
        missing: list[str],
    ) -> tuple[list[Subject], list[str]]:
        """Boxes of the detector, or of another program's stream, with the ranges that the points give them; and the streams
        that were looked at for it."""
        sent = latest(aligned, DETECTION_ENCODINGS)
        boxes: list[Detection] | None = None
        if sent is not None:
            try:
                boxes = read_detections(sent.data.tobytes().decode())
            except ValueError as error:
                bad[sent.stream] = str(error)
        if boxes is None and not self._detects:
            missing.append(NO_DETECTOR)
            return [], []
        image, wrong = picture.seen if picture is not None else (None, "")
        if picture is not None and image is None:
            bad[picture.frame.stream] = wrong
        where = picture.frame if picture is not None else sent
        if where is None or (boxes is None and image is None):
            return [], []
        points = np.concatenate([c.points_m for c in clouds]) if clouds else None
        found = self._finder.find(
            image,
            points,
            where.capture_ns,
            self._views.of(where, image),
            boxes=boxes,
            points_ns=clouds[0].capture_ns if clouds else None,
        )
        return found, [where.stream if boxes is None or sent is None else sent.stream]

    def _place(
        self, picture: Picture | None, bad: dict[str, str]
    ) -> tuple[list[Opinion], npt.NDArray[np.float32] | None]:
        if self._place_estimator is None or picture is None:
            return [], None
        stream = picture.frame.stream
        probs, wrong, age_ns = self._place_estimator.update(picture)
        if probs is None:
            bad[stream] = wrong
            return [Opinion("place", stream, 0.0, (), wrong)], None
        # What the network is sure of, calibrated: the weight that its word has.
        held = f"held: looked {age_ns / 1e6:.0f} ms before this picture" if age_ns else ""
        return [Opinion("place", stream, float(probs.max()), tuple(float(p) for p in probs), held)], probs

    # --- sounds -----------------------------------------------------------------------------------------------------

    def _sounds(self, aligned: AlignedSet, bad: dict[str, str]) -> tuple[list[Opinion], tuple[Sound, ...]]:
        frames = first(aligned, SOUNDS)
        if self._detector is None or not frames:
            return [], ()
        sounds = self._detector.update(frames, aligned.anchor_ns)
        stream, reason = frames[-1].stream, self._detector.reason
        if reason.startswith("not at"):
            bad[stream] = reason
        told = reason or ", ".join(f"{sound.label} {sound.prob:.0%}" for sound in sounds)
        return [Opinion("sound", stream, sounds[0].prob if sounds else 0.0, (), told)], sounds
