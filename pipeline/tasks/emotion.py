"""Expressions of the faces in view and of the voice that is heard: AlignedSet → Prediction.

Faces are found and tracked, cut out as in training, classified in one engine call, and smoothed over time; while somebody
speaks, the voice is classified every 250 ms. The two are fused for every face by how good each is. Without a voice model,
or while nobody speaks, the faces are the only evidence. Streams are told apart by their encoding, not by their name.
Expressions, not feelings.

    task = Emotion(smoothing_ms=300)
    task.open("auto")
    task.predict(aligned).record()["label"]         # "happy"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.features import FACE_PX, face_crop, face_tensor
from pipeline.frame import AlignedSet, Frame, Opinion, Prediction, Subject
from pipeline.inference.engine import Engine, Shape, Shapes, Tensors, load
from pipeline.inference.manifest import Manifest, with_precision
from pipeline.tasks import Task
from pipeline.tasks.faces import FaceDetector, FaceTracker, Image, Track, detector_shapes
from pipeline.tasks.fusion import Fusion, disagree
from pipeline.tasks.quality import face_quality
from pipeline.tasks.smoothing import FixedLag
from pipeline.tasks.speaker import Speaker, level_db
from pipeline.tasks.voice import Heard, Voice
from pipeline.tasks.voice_activity import VoiceActivity

PICTURES, SOUNDS = ("bgr8", "jpeg"), ("pcm_f32",)

# A hand over the lens leaves a little glow and the sensor's noise; a dim room is brighter, or has contrast.
DARK_LEVEL, DARK_CONTRAST = 24.0, 8.0  # mean and standard deviation, of 255


VOICE_MODEL, FUSION_MODEL = "voice-expression", "fusion-expression"
COUNTS = 0.5  # an opinion of less weight is too poor to contradict another
UNHEARD = Heard(None, 0.0, "")


class Emotion(Task):
    """`probs` of a prediction are those of the largest face, smoothed and fused with the voice that is its own or shared;
    `subjects` are all faces in view, each with its own. No face: the voice's. Neither: uniform, no label. A picture in
    which no face is found was still looked at, so the camera counts as used; the microphone counts where it was heard.

    model, voice, fusion: each a file of the models folder, without .onnx, or a path. voice "none": the faces alone. fusion
    "average": the mean, which needs no model. smoothing_ms: time constant of an exponential mean of a face's answers.
    max_faces: the largest first. search_px: longest side at which a whole picture is searched for faces.
    uncertain_below: the label is "uncertain" where no probability reaches this. lag_ms: the answer (not the subjects') goes
    through a hidden Markov smoother, and is that of the moment lag_ms ago; timing_ms says so. None: as it is, now.
    """

    def __init__(
        self,
        *,
        model: str = "face-expression",
        voice: str = VOICE_MODEL,
        fusion: str = FUSION_MODEL,
        smoothing_ms: float = 300.0,
        uncertain_below: float = 0.35,
        lag_ms: float | None = None,
        max_faces: int = 8,
        search_px: int = 320,
        threads: int = 1,
    ) -> None:
        if smoothing_ms < 0 or max_faces < 1 or threads < 1:
            raise ValueError("smoothing_ms must be at least 0, max_faces and threads at least 1")
        if not 0 <= uncertain_below < 1 or (lag_ms is not None and lag_ms < 0):
            raise ValueError("uncertain_below must be from 0 to below 1, lag_ms at least 0")
        self._path, self._voice_path, self._fusion_path = _model(model), _model(voice), _model(fusion)
        self._voice_wanted, self._fusion_rule = voice, fusion
        self._lag_ms = lag_ms
        self._smoothing_ns, self._uncertain_below = smoothing_ms * 1e6, uncertain_below
        self._max_faces, self._search_px, self._threads = max_faces, search_px, threads
        self._engines: list[Engine] = []

    def open(self, backend: str) -> None:
        if not self._path.is_file():
            raise AssetError(f"{self._path}: no such model. Train it with: python run_pipeline.py train face")
        manifest = self._manifest(self._path)
        self.labels, self.model, self._temperature = manifest.labels, manifest.id, manifest.temperature
        face = {"face": (1, 1, FACE_PX, FACE_PX)}
        self._classifier = self._load(backend, self._path, manifest.name, face)
        finder = self._load(backend, assets.path("centerface"), "centerface", detector_shapes(self._search_px), reduced=False)
        self._tracker = FaceTracker(FaceDetector(finder, search_px=self._search_px), max_faces=self._max_faces)
        # Its graph branches (If), which TensorRT refuses, and a step of 0.3 ms is less than a GPU's copies and launch.
        listens = "onnxruntime" if backend in ("auto", "tensorrt", "tensorrt_rtx") else backend
        listener = self._load(listens, assets.path("silero-vad"), "silero-vad", None, reduced=False)
        self._activity = VoiceActivity(listener, self.log)
        self._voice, self._fusion, self._speaker = self._open_voice(backend), Fusion(), Speaker()
        if self._voice is not None:
            self._fusion = self._open_fusion(backend)
        self._smoother = None if self._lag_ms is None else FixedLag(len(self.labels), lag_ms=self._lag_ms)
        self._probs: dict[int, npt.NDArray[np.float32]] = {}  # track id → smoothed, of the face alone
        self._quality: dict[int, tuple[float, str]] = {}
        self._smoothed_ns: dict[int, int] = {}

    def _open_voice(self, backend: str) -> Voice | None:
        if self._voice_wanted == "none":
            return None
        if not self._voice_path.is_file():
            if self._voice_wanted != VOICE_MODEL:
                raise AssetError(f"{self._voice_path}: no such model. Train it with: python run_pipeline.py train voice")
            self.log.info("no %s: the faces are the only evidence. Train one with: run_pipeline.py train voice", VOICE_MODEL)
            return None
        if self._fusion_rule == FUSION_MODEL and not self._fusion_path.is_file():
            # No rule without training is better than the face alone (docs/emotion.md), so none takes its place unasked.
            self.log.warning("no %s: the faces are the only evidence. Train one with: run_pipeline.py train fusion, "
                             "or set fusion: average", FUSION_MODEL)  # fmt: skip
            return None
        manifest = self._manifest(self._voice_path)
        voice = Voice(self._load(backend, self._voice_path, manifest.name, _warm_up(manifest)), manifest, self.labels)
        self.model = f"{self.model} + {manifest.id}"
        # People must know before they build on it, not when they read a card.
        self.log.info("%s: %s", manifest.name, manifest.licence)
        self.metrics.facts[f"licence {manifest.name}"] = manifest.licence
        return voice

    def _open_fusion(self, backend: str) -> Fusion:
        if self._fusion_rule == "average":
            return Fusion()
        if not self._fusion_path.is_file():
            raise AssetError(
                f"{self._fusion_path}: no such model. Train it with: python run_pipeline.py train fusion, or set fusion: average"
            )
        manifest = Manifest.read(self._fusion_path)
        fusion = Fusion(
            self._load(backend, self._fusion_path, manifest.name, _warm_up(manifest), reduced=False), manifest, self.labels
        )
        self.model = f"{self.model} + {manifest.id}"
        return fusion

    def _manifest(self, path: Path) -> Manifest:
        """Of the file that will run: its precision is part of what a prediction says it was made by."""
        reduced = with_precision(path, self.precision)
        return Manifest.read(reduced if reduced.is_file() else path)

    def _load(
        self, backend: str, path: Path, name: str, warm_up: Mapping[str, Shape] | Shapes | None, *, reduced: bool = True
    ) -> Engine:
        """reduced: at the precision that was asked for; else fp32, of which alone there is a file."""

        def tell(description: str) -> None:  # also from the thread that brings a built engine up
            self.metrics.facts[f"engine {name}"] = description

        def given() -> Iterator[Tensors]:
            from pipeline.tasks import samples

            return samples.of(path)

        precision = self.precision if reduced else "fp32"
        engine = load(path, backend=backend, precision=precision, threads=self._threads, warm_up=warm_up, samples=given,
                      tell=tell, log=self.log)  # fmt: skip
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines = []

    def predict(self, aligned: AlignedSet) -> Prediction:
        sound = _first(aligned, SOUNDS)
        speaking = self._activity.update(sound) if sound else None
        heard = self._voice.update(sound, speaking=speaking) if self._voice and sound else UNHEARD
        microphone = sound[-1].stream if sound else ""
        pictures = _first(aligned, PICTURES)
        image, wrong = picture(pictures[-1]) if pictures else (None, "")
        used = (pictures[-1].stream,) if image is not None else ()
        bad = {pictures[-1].stream: wrong} if pictures and image is None else {}
        tracks: list[Track] = []
        if image is not None:
            tracks = self._tracker.update(image, pictures[-1].capture_ns)
            self._classify(image, tracks, pictures[-1].capture_ns, level_db(sound) if sound else None)
        probs, given = self._fuse(tracks, heard)
        largest = max(range(len(tracks)), key=lambda i: tracks[i].face.side_px, default=None)
        opinions = self._opinions(tracks, largest, used[0] if used else "", heard, microphone, given)
        if heard.weight > 0 and any(o.modality == "voice" and o.weight > 0 for o in opinions):
            used = (*used, microphone)
        answer = None if probs is None else probs[largest or 0]
        if answer is not None and self._smoother is not None:
            answer = self._smoother.update(answer, aligned.anchor_ns)
        counted = [np.array(o.probs) for o in opinions if o.weight >= COUNTS]
        prediction = self.prediction(
            aligned, answer, bad=bad, used=used, speaking=speaking,
            subjects=[self._subject(track, p, g) for track, p, g in zip(tracks, () if probs is None else probs, given, strict=False)],
            opinions=opinions, disagree=len(counted) == 2 and disagree(*counted), uncertain_below=self._uncertain_below,
        )  # fmt: skip
        if self._smoother is not None:
            prediction = msgspec.structs.replace(prediction, timing_ns={"lag": self._smoother.lag_ns})
        return prediction

    def _classify(self, image: Image, tracks: Sequence[Track], now_ns: int, loud_db: float | None) -> None:
        """Move the smoothed probabilities of the tracks on to `now_ns`; all faces in one engine call."""
        if not tracks:
            return
        crops = np.stack([face_crop(image, track.face.box_px, track.face.landmarks_px) for track in tracks])
        if self._voice is not None:
            for track, crop in zip(tracks, crops, strict=True):
                self._quality[track.id] = face_quality(crop, side_px=track.face.side_px)
            if loud_db is not None and len(tracks) > 1:
                by_id = {track.id: crop for track, crop in zip(tracks, crops, strict=True)}
                self._speaker.update(by_id, level_db=loud_db, capture_ns=now_ns)
        logits = self._classifier.run({"face": face_tensor(crops)})["logits"]  # (n, labels)
        for track, probs in zip(tracks, softmax(logits / self._temperature), strict=True):
            before = self._probs.get(track.id, probs)
            elapsed_ns = now_ns - self._smoothed_ns.get(track.id, now_ns)
            self._probs[track.id] = towards(before, probs, elapsed_ns, self._smoothing_ns)
            self._smoothed_ns[track.id] = now_ns
        known = self._tracker.known_ids()
        self._probs = {id: probs for id, probs in self._probs.items() if id in known}
        self._quality = {id: quality for id, quality in self._quality.items() if id in known}
        self._smoothed_ns = {id: ns for id, ns in self._smoothed_ns.items() if id in known}

    def _fuse(self, tracks: Sequence[Track], heard: Heard) -> tuple[npt.NDArray[np.float32] | None, list[str]]:
        """(faces, labels), of the voice alone (1, labels), or None; and what part the voice had in each face's."""
        if heard.log_probs is None or heard.weight <= 0:
            return (np.stack([self._probs[t.id] for t in tracks]) if tracks else None), [""] * len(tracks)
        if not tracks:
            return np.exp(heard.log_probs)[None], []
        owner = self._speaker.owner() if len(tracks) > 1 else tracks[0].id
        given = ["own" if t.id == owner else "shared" if owner is None else "" for t in tracks]
        face = np.log(np.maximum(np.stack([self._probs[t.id] for t in tracks]), 1e-9))
        voice = np.repeat(heard.log_probs[None], len(tracks), axis=0)
        present = np.array([[self._quality.get(t.id, (1.0, ""))[0], heard.weight if g else 0.0]
                            for t, g in zip(tracks, given, strict=True)], np.float32)
        return self._fusion.fuse(face, voice, present), given

    def _opinions(
        self, tracks: Sequence[Track], largest: int | None, camera: str, heard: Heard, microphone: str, given: Sequence[str]
    ) -> list[Opinion]:
        """Of the face that answers, and of the voice as it counted for it."""
        if self._voice is None:
            return []
        found = []
        if camera:
            if largest is None:
                found.append(Opinion("face", camera, 0.0, (), "no face in view"))
            else:
                id = tracks[largest].id
                weight, reason = self._quality[id]
                found.append(Opinion("face", camera, weight, _plain(self._probs[id]), reason))
        if microphone:
            weight, reason = heard.weight, heard.reason
            if weight > 0 and largest is not None and given[largest] == "":
                weight, reason = 0.0, "another face's mouth moves with the voice"
            elif weight > 0 and largest is not None and given[largest] == "shared":
                reason = "; ".join(filter(None, [reason, f"shared by {len(tracks)} faces: no mouth clearly moves with it"]))
            found.append(Opinion("voice", microphone, weight, _plain(heard.log_probs, log=True), reason))
        return found

    def _subject(self, track: Track, probs: npt.NDArray[np.float32], voice: str) -> Subject:
        left, top, width, height = (float(value) for value in track.face.box_px)
        return Subject(track.id, (left, top, width, height), _plain(probs), track.face.score, voice)


def _model(name: str) -> Path:
    return Path(name) if name.endswith(".onnx") else assets.MODELS / f"{name}.onnx"


def _warm_up(manifest: Manifest) -> dict[str, Shape] | None:
    shapes = {tensor.name: tensor.shape[1:] for tensor in manifest.inputs}
    sizes = {name: (1, *(size for size in shape if isinstance(size, int))) for name, shape in shapes.items()}
    return sizes if all(len(sizes[name]) == len(shape) + 1 for name, shape in shapes.items()) else None


def _plain(probs: npt.NDArray[np.float32] | None, *, log: bool = False) -> tuple[float, ...]:
    return () if probs is None else tuple(float(p) for p in (np.exp(probs) if log else probs))


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
