"""Expressions of the faces in view, and whether somebody speaks: AlignedSet → Prediction.

Faces are found and tracked, cut out as in training, classified in one engine call, and smoothed over time; voice activity
runs on the microphone's samples. Until a voice model exists the camera is the only evidence of expression: `used` is
("camera",) at most. Streams are told apart by their encoding, not by their name. Expressions, not feelings.

    task = Emotion(smoothing_ms=300)
    task.open("auto")
    task.predict(aligned).record()["label"]         # "happy"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.features import FACE_PX, face_crop, face_tensor
from pipeline.frame import AlignedSet, Frame, Prediction, Subject
from pipeline.inference.engine import Engine, Shape, load
from pipeline.inference.manifest import Manifest
from pipeline.tasks import Task
from pipeline.tasks.faces import INPUT as CENTERFACE_INPUT
from pipeline.tasks.faces import WINDOW_PX, FaceDetector, FaceTracker, Image, Track
from pipeline.tasks.voice_activity import VoiceActivity

PICTURES, SOUNDS = ("bgr8", "jpeg"), ("pcm_f32",)

# A hand over the lens leaves a little glow and the sensor's noise; a dim room is brighter, or has contrast.
DARK_LEVEL, DARK_CONTRAST = 24.0, 8.0  # mean and standard deviation, of 255


class Emotion(Task):
    """`probs` of a prediction are those of the largest face, smoothed; `subjects` are all faces in view, each with its own.
    No face: uniform, no label. A picture in which no face is found was still looked at, so the camera counts as used.

    model: a file of the models folder, without .onnx, or a path. smoothing_ms: time constant of an exponential mean.
    max_faces: the largest first. search_px: longest side at which a whole picture is searched for faces.
    """

    def __init__(
        self,
        *,
        model: str = "face-expression",
        smoothing_ms: float = 300.0,
        max_faces: int = 8,
        search_px: int = 320,
        threads: int = 1,
    ) -> None:
        if smoothing_ms < 0 or max_faces < 1 or threads < 1:
            raise ValueError("smoothing_ms must be at least 0, max_faces and threads at least 1")
        self._path = Path(model) if model.endswith(".onnx") else assets.MODELS / f"{model}.onnx"
        self._smoothing_ns = smoothing_ms * 1e6
        self._max_faces, self._search_px, self._threads = max_faces, search_px, threads

    def open(self, backend: str) -> None:
        if not self._path.is_file():
            raise AssetError(f"{self._path}: no such model. Train it with: python run_pipeline.py train face")
        manifest = Manifest.read(self._path)
        self.labels, self.model, self._temperature = manifest.labels, manifest.id, manifest.temperature
        face = {"face": (1, 1, FACE_PX, FACE_PX)}
        self._classifier = self._load(backend, self._path, manifest.name, face)
        window = {CENTERFACE_INPUT: (1, 3, WINDOW_PX, WINDOW_PX)}
        finder = self._load(backend, assets.path("centerface"), "centerface", window)
        self._tracker = FaceTracker(FaceDetector(finder, search_px=self._search_px), max_faces=self._max_faces)
        self._voice = VoiceActivity(self._load(backend, assets.path("silero-vad"), "silero-vad", None), self.log)
        self._probs: dict[int, npt.NDArray[np.float32]] = {}  # track id → smoothed
        self._smoothed_ns: dict[int, int] = {}

    def _load(self, backend: str, path: Path, name: str, warm_up: Mapping[str, Shape] | None) -> Engine:
        engine = load(path, backend=backend, threads=self._threads, warm_up=warm_up, log=self.log)
        self.metrics.facts[f"engine {name}"] = engine.description
        return engine

    def predict(self, aligned: AlignedSet) -> Prediction:
        sound = _first(aligned, SOUNDS)
        speaking = self._voice.update(sound) if sound else None
        pictures = _first(aligned, PICTURES)
        if not pictures:
            return self.prediction(aligned, None, speaking=speaking)
        frame = pictures[-1]
        image, wrong = picture(frame)
        if image is None:
            return self.prediction(aligned, None, bad={frame.stream: wrong}, speaking=speaking)
        tracks = self._tracker.update(image, frame.capture_ns)
        self._classify(image, tracks, frame.capture_ns)
        subjects = [self._subject(track) for track in tracks]
        largest = max(tracks, key=lambda track: track.face.side_px, default=None)
        probs = None if largest is None else self._probs[largest.id]
        return self.prediction(aligned, probs, subjects=subjects, used=(frame.stream,), speaking=speaking)

    def _classify(self, image: Image, tracks: Sequence[Track], now_ns: int) -> None:
        """Move the smoothed probabilities of the tracks on to `now_ns`; all faces in one engine call."""
        if not tracks:
            return
        crops = np.stack([face_crop(image, track.face.box_px, track.face.landmarks_px) for track in tracks])
        logits = self._classifier.run({"face": face_tensor(crops)})["logits"]  # (n, labels)
        for track, probs in zip(tracks, softmax(logits / self._temperature), strict=True):
            before = self._probs.get(track.id, probs)
            elapsed_ns = now_ns - self._smoothed_ns.get(track.id, now_ns)
            self._probs[track.id] = towards(before, probs, elapsed_ns, self._smoothing_ns)
            self._smoothed_ns[track.id] = now_ns
        known = self._tracker.known_ids()
        self._probs = {id: probs for id, probs in self._probs.items() if id in known}
        self._smoothed_ns = {id: ns for id, ns in self._smoothed_ns.items() if id in known}

    def _subject(self, track: Track) -> Subject:
        left, top, width, height = (float(value) for value in track.face.box_px)
        probs = tuple(float(p) for p in self._probs[track.id])
        return Subject(track.id, (left, top, width, height), probs, track.face.score)


def picture(frame: Frame) -> tuple[Image | None, str]:
    """The picture of a "bgr8" or "jpeg" frame, (h, w, 3) BGR; or None and why it cannot be used."""
    image: Any = frame.data
    if frame.encoding == "jpeg":
        image = cv2.imdecode(image, cv2.IMREAD_COLOR) if image.size else None
        if image is None:
            return None, "picture is torn: its JPEG cannot be decoded"
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        return None, f"picture has the shape {image.shape}, expected (height, width, 3)"
    thinned = image[::8, ::8]
    if thinned.mean() < DARK_LEVEL and thinned.mean(axis=2).std() < DARK_CONTRAST:
        return None, "picture is dark: covered lens?"
    return image, ""


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), dtype=np.float32)


def towards(
    before: npt.NDArray[np.float32], now: npt.NDArray[np.float32], elapsed_ns: int, constant_ns: float
) -> npt.NDArray[np.float32]:
    """Exponential mean after `elapsed_ns` of `now`: how much counts depends on the time between frames, not on their number."""
    share = 1.0 if constant_ns <= 0 else 1 - math.exp(-elapsed_ns / constant_ns)
    return np.asarray(before + np.float32(share) * (now - before), dtype=np.float32)


def _first(aligned: AlignedSet, encodings: tuple[str, ...]) -> tuple[Frame, ...]:
    """The frames of the set's first stream with one of the encodings; empty when there is none."""
    for frames in aligned.frames.values():
        fitting = tuple(frame for frame in frames if frame.encoding in encodings)
        if fitting:
            return fitting
    return ()
