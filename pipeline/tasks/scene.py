"""The whole scene: place, obstacles, free space, objects with range, sounds and the path ahead. AlignedSet →
Prediction.

Each part is a task of its own too (place, obstacles, objects, sounds); here all use the same set, and each works
without the others. Points and depth measure positions, the camera names objects and the kind of place, the microphone
gives sound events. "clear" ahead needs fresh points that show free ground; without them it is "unknown". A prototype's
eyes, not a safety function.

Example:
    scene: {use: infer, task: scene, inputs: [align], options: {rig: rig.yaml, corridor: {width_m: 1.2, length_m: 10}}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from pipeline.perception.obstacles.clouds import Cloud
from pipeline.perception.obstacles.options import NESTED, SceneOptions
from pipeline.perception.obstacles.path_clearance import STATES, Corridor, Hazard, one_hot
from pipeline.perception.obstacles.scene_model import UNUSABLE, GridOptions, GroundOptions, warm_up
from pipeline.perception.place import PlaceEstimator, PlaceModel
from pipeline.perception.sound_events import SoundEventDetector, load_detector
from pipeline.scene_state import SceneState, Sound
from pipeline.task import Task


class Scene(Task):
    """`probs` and `label` are the place's, of the camera; without a place model those of the path ahead. `subjects` are
    the objects in the picture, `surroundings` everything with a position around the rig, as of the end of the newest
    cloud."""

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        return NESTED.items()

    def __init__(
        self,
        *,
        rig: str = "",
        rig_wait_s: float = 0.0,
        sensors: dict[str, str] | None = None,
        streams: list[str] | None = None,
        height_m: float = 1.7,
        ego_box_m: list[float] | None = None,
        stride_px: int = 2,
        range_m: float = 60.0,
        ground: dict[str, Any] | None = None,
        grid: dict[str, Any] | None = None,
        corridor: dict[str, Any] | None = None,
        max_age_ms: float = 300.0,
        by_arrival: bool = False,
        place: str = "place",
        sounds: str = "sound-events",
        detector: str | dict[str, Any] = "auto",
        place_every_ms: float = 500.0,
        smoothing_ms: float = 1000.0,
        uncertain_below: float = 0.35,
        threads: int = 1,
    ) -> None:
        """
        Args:
            rig: A rig file. Without one the first sensor of points is taken to look straight ahead, height_m above the
                ground, and boxes have no ranges.
            rig_wait_s: How long to wait at the start for the rig file (s), where a node of this run writes it
                (`save_rig` of depth). Default 0: the file exists.
            sensors: Stream → its name in the rig, where that is not the stream's name.
            streams: The streams of points and depth to use. Default: all of them.
            height_m: Height of the first sensor above the ground (m), without a rig file. Default 1.7: a car's roof.
            ego_box_m: [x from, x to, y from, y to] of the rig itself in the base frame (m): points in it are left out.
            stride_px: Use every n-th pixel of a depth picture in both directions (px, ≥ 1). Default 2: a quarter of the
                points, which are still denser than the clusters' cells.
            range_m: Obstacles farther than this are not tracked (m, > 1). Default 60: beyond, a car has few points.
            ground: {z_m, max_step_m, clearance_m}: the ground, and what can be driven over and under (GroundOptions).
            grid: {x_m, y_m, cell_m, sectors}: the free-space grid and the sectors (GridOptions).
            corridor: {width_m, length_m, stop_m, front_m, min_range_m, speed_mps}: the path ahead (Corridor).
            max_age_ms: Older evidence does not make the path clear (ms, > 0). Default 300: three sweeps at 10 Hz.
            by_arrival: Measure the age of evidence at the arrival of the set's anchor instead of at the set's own time,
                for streams that may all be late together. A replay gives the same answer; the time until the set was
                sent, at most max_wait_ms, is not counted.
            place: The place model: a file of the models folder, without .onnx, or a path; "none": without.
            sounds: The sound model, likewise; "none": without.
            detector: The object detector, as of the task objects: "auto", "none", a path, an asset's name, or a table.
            place_every_ms: Least time between two runs of the place network (ms, ≥ 0). Default 500: a place changes
                slowly, and the network shares a core with the rest.
            smoothing_ms: Time constant of an exponential mean over the place's probabilities (ms, ≥ 0). Default 1000.
            uncertain_below: The label is "uncertain" where no probability reaches this (0 ≤ p < 1).
            threads: CPU threads of each network (≥ 1). Default 1: cameras and other tasks need the other cores.
        """
        if threads < 1 or smoothing_ms < 0 or place_every_ms < 0 or not 0 <= uncertain_below < 1:
            raise ValueError(
                "threads must be at least 1, smoothing_ms and place_every_ms at least 0, "
                "uncertain_below from 0 to below 1"
            )
        self._options = SceneOptions(
            rig=rig,
            rig_wait_s=rig_wait_s,
            sensors=sensors or {},
            streams=tuple(streams or ()),
            height_m=height_m,
            ego_box_m=tuple(ego_box_m or ()),
            stride_px=stride_px,
            range_m=range_m,
            ground=GroundOptions(**(ground or {})),
            grid=GridOptions(**(grid or {})),
            corridor=Corridor(**(corridor or {})),
            max_age_ms=max_age_ms,
            by_arrival=by_arrival,
        )
        self._model = self._options.model()
        self._place_name, self._sounds_name, self._detector_option = place, sounds, detector
        self._place_every_ms, self._smoothing_ms = place_every_ms, smoothing_ms
        self._uncertain_below, self._threads = uncertain_below, threads

    def open(self, backend: str) -> None:
        engines = self.open_engines(backend, threads=self._threads)
        self._clouds = self._options.clouds(self._options.load_rig(), self.log)
        warm_up()
        self.metrics.facts["corridor"] = str(self._model.corridor)
        models = []
        self.labels = STATES
        self._place_estimator: PlaceEstimator | None = None
        if self._place_name != NONE:
            place = PlaceModel.open(engines, self._place_name)
            self._place_estimator = PlaceEstimator(
                place, smoothing_ms=self._smoothing_ms, every_ms=self._place_every_ms
            )
            self.labels = place.labels
            models.append(place.id)
        self._sound_detector: SoundEventDetector | None = None
        if self._sounds_name != NONE:
            self._sound_detector, manifest = load_detector(engines, model=self._sounds_name)
            models.append(manifest.id)
        detector = Detector.load(self._detector_option, engines, self.log)
        self._detects, self._finder = detector is not None, ObjectFinder(detector)
        models += [detector.name] if detector is not None else []
        self.model = " + ".join(models)
        self._views = CameraViews(self._clouds, self.log)

    def predict(self, aligned: AlignedSet) -> Prediction:
        bad: dict[str, str] = {}
        missing: list[str] = []
        clouds = self._read_clouds(aligned, bad)
        at_ns = max([aligned.anchor_ns, *(cloud.end_ns for cloud in clouds)])
        camera = latest(aligned, PICTURES)
        picture = Picture(camera) if camera is not None else None
        subjects, box_streams = self._objects(aligned, picture, clouds, bad, missing)
        places, probs = self._place(picture, bad)
        sound_opinions, sounds = self._sounds(aligned, bad)
        state = self._state(aligned, at_ns, subjects, sounds)
        used = [c.stream for c in clouds] + [o.stream for o in (*places, *sound_opinions) if o.weight > 0] + box_streams
        prediction = self.prediction(
            aligned,
            one_hot(state.ahead) if self._place_estimator is None else probs,
            subjects=subjects,
            used=tuple(dict.fromkeys(used)),
            bad=bad,
            opinions=[*self._point_opinions(), *places, *sound_opinions],
            uncertain_below=self._uncertain_below,
        )
        return msgspec.structs.replace(prediction, missing=(*prediction.missing, *missing), surroundings=state)

    # --- points -----------------------------------------------------------------------------------------------------

    def _read_clouds(self, aligned: AlignedSet, bad: dict[str, str]) -> list[Cloud]:
        """The newest cloud of every stream of points, each passed on to the model."""
        clouds: list[Cloud] = []
        for stream, frames in aligned.frames.items():
            if not frames or frames[-1].encoding not in POINTS or not self._options.reads(stream):
                continue
            try:
                cloud = self._clouds.read(frames[-1])
            except ValueError as error:
                bad[stream] = str(error)
                continue
            why = self._model.update(
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
                clouds.append(cloud)
        return clouds

    def _point_opinions(self) -> list[Opinion]:
        """Whether each stream of points is evidence of free ground, and if not, why."""
        return [Opinion("points", view.stream, 0.0 if view.why else 1.0, (), view.why) for view in self._model.views]

    def _state(
        self, aligned: AlignedSet, at_ns: int, subjects: Sequence[Subject], sounds: Sequence[Sound]
    ) -> SceneState:
        labels, others = match_subjects(subjects, self._model.obstacles(at_ns)) if subjects else ({}, [])
        hazards = [
            Hazard(one.label or "object", ((one.position_m[0], one.position_m[1]),), None, one.label) for one in others
        ]
        state = self._model.state(at_ns, now_ns=self._options.now_ns(aligned), labels=labels, hazards=hazards)
        return msgspec.structs.replace(state, sounds=tuple(sounds))

    # --- pictures ---------------------------------------------------------------------------------------------------

    def _objects(
        self,
        aligned: AlignedSet,
        picture: Picture | None,
        clouds: Sequence[Cloud],
        bad: dict[str, str],
        missing: list[str],
    ) -> tuple[list[Subject], list[str]]:
        """Boxes of the detector, or of another program's stream, with ranges from the points; and the streams that were
        used for it."""
        text = latest(aligned, DETECTION_ENCODINGS)
        boxes: list[Detection] | None = None
        if text is not None:
            try:
                boxes = read_detections(text.data.tobytes().decode())
            except ValueError as error:
                bad[text.stream] = str(error)
        if boxes is None and not self._detects:
            missing.append(NO_DETECTOR)
            return [], []
        image, fault = picture.decoded if picture is not None else (None, "")
        if picture is not None and image is None:
            bad[picture.frame.stream] = fault
        frame = picture.frame if picture is not None else text
        if frame is None or (boxes is None and image is None):
            return [], []
        points = np.concatenate([c.points_m for c in clouds]) if clouds else None
        subjects = self._finder.find(
            image,
            points,
            frame.capture_ns,
            self._views.of(frame, image),
            boxes=boxes,
            points_ns=clouds[0].capture_ns if clouds else None,
        )
        return subjects, [frame.stream if boxes is None or text is None else text.stream]

    def _place(
        self, picture: Picture | None, bad: dict[str, str]
    ) -> tuple[list[Opinion], npt.NDArray[np.float32] | None]:
        if self._place_estimator is None or picture is None:
            return [], None
        stream = picture.frame.stream
        probs, fault, age_ns = self._place_estimator.update(picture)
        if probs is None:
            bad[stream] = fault
            return [Opinion("place", stream, 0.0, (), fault)], None
        # The weight is the network's calibrated confidence.
        age = f"held: looked {age_ns / 1e6:.0f} ms before this picture" if age_ns else ""
        return [Opinion("place", stream, float(probs.max()), tuple(float(p) for p in probs), age)], probs

    # --- sounds -----------------------------------------------------------------------------------------------------

    def _sounds(self, aligned: AlignedSet, bad: dict[str, str]) -> tuple[list[Opinion], tuple[Sound, ...]]:
        frames = first(aligned, SOUNDS)
        if self._sound_detector is None or not frames:
            return [], ()
        sounds = self._sound_detector.update(frames, aligned.anchor_ns)
        stream, reason = frames[-1].stream, self._sound_detector.reason
        if reason.startswith("not at"):
            bad[stream] = reason
        summary = reason or ", ".join(f"{sound.label} {sound.prob:.0%}" for sound in sounds)
        return [Opinion("sound", stream, sounds[0].prob if sounds else 0.0, (), summary)], sounds
