"""Expressions of the faces in view and of the voice in the room: AlignedSet → Prediction.

detect → track → classify → listen → fuse → report. Faces are detected and tracked, cut out as in training, classified
in one engine call, and smoothed over time; while somebody speaks, the voice is classified every 250 ms. The two are
fused for every face by how good each is. Without a voice model, or while nobody speaks, the faces are the only
evidence. A stream's encoding, not its name, says whether it holds pictures or sound. Expressions, not feelings.

Example:
    task = Emotion(smoothing_ms=300)
    task.open("auto")
    task.predict(aligned).record()["label"]         # "happy"
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.clock import NS
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import NO_EMBEDDING, AlignedSet, Frame, Prediction, Subject
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND, model_path
from pipeline.perception.expression.face_classifier import FaceClassifier
from pipeline.perception.expression.faces import FaceDetector, FaceTracker, Image, Track, detector_shapes
from pipeline.perception.expression.fusion import Case, Fused, Fusion, disagree
from pipeline.perception.expression.modalities import Evidence, Modalities, is_described
from pipeline.perception.expression.smoothing import FixedLag
from pipeline.perception.expression.speaker import Speaker, level_db
from pipeline.perception.expression.voice import VoiceClassifier, VoiceEvidence
from pipeline.perception.expression.voice_activity import VoiceActivity
from pipeline.perception.inputs import PICTURES, SOUNDS, first, picture
from pipeline.perception.model_loader import Engines, warm_up_shapes
from pipeline.preprocessing import FACE_PX, face_crop
from pipeline.task import Task

VOICE_MODEL, FUSION_MODEL = "voice-expression", "fusion-expression"
COUNTS = 0.5  # an opinion of less weight is too poor to contradict another
MIN_PROB = 1e-9  # before the logarithm
NO_VOICE = VoiceEvidence(None, 0.0, "")


class View(NamedTuple):
    """The picture of a set. stream: "" where there is none, and capture_ns is then the anchor's. image: None where it
    cannot be used, and `fault` says why."""

    stream: str
    capture_ns: int
    image: Image | None
    fault: str


class Audio(NamedTuple):
    """The sound of a set. stream: "" where there is none, and end_ns is then the anchor's. speaking: None where
    unknown."""

    stream: str
    end_ns: int
    speaking: bool | None
    voice: VoiceEvidence


class Emotion(Task):
    """`probs` of a prediction are those of the largest face, smoothed and fused with the voice that is its own or
    shared; `subjects` are all faces in view, each with its own. No face: the voice's. Neither: uniform, no label. A
    picture in which no face is detected was still searched, so the camera counts as used; the microphone counts while
    the voice does.

    Args:
        model: Face network: a file of the models folder, without .onnx, or a path.
        voice: Voice network, named likewise; "none": the faces alone.
        fusion: Fusion network, named likewise; "average": the mean of face and voice, which needs no model and is worse
            than the face alone (docs/emotion.md).
        smoothing_ms: Time constant of the exponential mean of a face's answers (ms, ≥ 0; 0: none). Default 300: stills
            the flicker of single pictures, and a change of expression still shows within half a second.
        uncertain_below: The label is "uncertain" where no probability reaches this (0 to below 1). Default 0.35: two
            and a half times an even share among seven labels.
        lag_ms: The answer (not the subjects') goes through a hidden Markov smoother and is that of the moment lag_ms
            ago (ms, ≥ 0); timing_ms.lag repeats it. Default null: no smoother, no delay; the faces' own smoothing has
            already removed the flicker (docs/emotion.md).
        max_faces: How many faces are tracked, the largest first (≥ 1). Default 8: the largest batch of a GPU's engine.
        search_px: Longest side at which a whole picture is searched for faces (pixels). Default 320: faces down to
            about a thirtieth of the picture are detected; a larger side costs CPU with its square.
        embeddings: True: opinions carry the networks' embeddings, from which a person may be recognised. Default false.
        sources: For a fusion of one's own (train fusion --family): modality → the stream of "series_f32" that it comes
            from, where that is not called as the modality is. Default null: face and voice come from the two networks.
        threads: CPU threads of each network (≥ 1). Default 1: the other cores belong to the other nodes.
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
        embeddings: bool = False,
        sources: dict[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        if smoothing_ms < 0 or max_faces < 1 or threads < 1:
            raise ValueError("smoothing_ms must be at least 0, max_faces and threads at least 1")
        if not 0 <= uncertain_below < 1 or (lag_ms is not None and lag_ms < 0):
            raise ValueError("uncertain_below must be from 0 to below 1, lag_ms at least 0")
        self._face_path, self._voice_path, self._fusion_path = model_path(model), model_path(voice), model_path(fusion)
        self._voice_option, self._fusion_option, self._sources = voice, fusion, sources or {}
        self._lag_ms, self._embeddings = lag_ms, embeddings
        self._smoothing_ms, self._uncertain_below = smoothing_ms, uncertain_below
        self._max_faces, self._search_px, self._threads = max_faces, search_px, threads

    def open(self, backend: str) -> None:
        if not self._face_path.is_file():
            raise AssetError(f"{self._face_path}: no such model. Train it with: {COMMAND} train face")
        engines = self.open_engines(backend, threads=self._threads)
        manifest = engines.manifest(self._face_path)
        self._check_embedding(manifest, "another model")
        self.labels, self.model = manifest.labels, manifest.id
        face_engine = engines.load(self._face_path, manifest.name, {"face": (1, 1, FACE_PX, FACE_PX)})
        detector = engines.load(
            assets.path("centerface"), "centerface", detector_shapes(self._search_px), reduced=False
        )
        self._tracker = FaceTracker(FaceDetector(detector, search_px=self._search_px), max_faces=self._max_faces)
        activity = engines.load(assets.path("silero-vad"), "silero-vad", None, reduced=False, branches=True)
        self._activity = VoiceActivity(activity, self.log)
        self._voice, self._speaker = self._open_voice(engines), Speaker()
        self._fusion = self._open_fusion(engines)
        self.labels = self._fusion.labels
        compares = self._voice is not None or self._fusion.any_subset
        fuses_embedding = self._fusion.modalities.encoders.get("face") == "embedding"
        self._reports_opinions = compares or self._embeddings
        self._faces = FaceClassifier(
            face_engine,
            manifest,
            smoothing_ms=self._smoothing_ms,
            measure_quality=self._reports_opinions,
            keep_embeddings=self._embeddings or fuses_embedding,
        )
        self._smoother = None if self._lag_ms is None else FixedLag(len(self.labels), lag_ms=self._lag_ms)

    def _open_voice(self, engines: Engines) -> VoiceClassifier | None:
        if self._voice_option == "none":
            return None
        if not self._voice_path.is_file():
            if self._voice_option != VOICE_MODEL:
                raise AssetError(f"{self._voice_path}: no such model. Train it with: {COMMAND} train voice")
            self.log.info(f"no %s: the faces are the only evidence. Train one with: {COMMAND} train voice", VOICE_MODEL)
            return None
        if self._fusion_option == FUSION_MODEL and not self._fusion_path.is_file():
            # No rule without training is better than the face alone (docs/emotion.md), so none takes its place unasked.
            self.log.warning(
                f"no %s: the faces are the only evidence. Train one with: {COMMAND} train fusion, "
                "or set fusion: average",
                FUSION_MODEL,
            )
            return None
        manifest = engines.manifest(self._voice_path)
        self._check_embedding(manifest, "another, or voice: none")
        engine = engines.load(self._voice_path, manifest.name, warm_up_shapes(manifest))
        voice = VoiceClassifier(engine, manifest, self.labels)
        self.model = f"{self.model} + {manifest.id}"
        # People must know before they build on it, not when they read a card.
        self.log.info("%s: %s", manifest.name, manifest.licence)
        self.metrics.facts[f"licence {manifest.name}"] = manifest.licence
        return voice

    def _open_fusion(self, engines: Engines) -> Fusion:
        """A model of `train fusion --family` is used with any encoders, every other fusion only beside a voice."""
        manifest = Manifest.read(self._fusion_path) if self._fusion_path.is_file() else None
        described = manifest is not None and is_described(manifest)
        if self._sources and not described:
            raise ConfigError(
                "sources: only a fusion made by train fusion --family has modalities of its own. "
                "Name one: fusion: my-fusion.onnx"
            )
        if self._voice is None and not described:
            return Fusion(self.labels, Modalities.of_opinions(["face"], len(self.labels)))
        if self._fusion_option == "average":
            return Fusion(self.labels)
        if manifest is None:
            raise AssetError(
                f"{self._fusion_path}: no such model. Train it with: {COMMAND} train fusion, or set fusion: average"
            )
        engine = engines.load(self._fusion_path, manifest.name, warm_up_shapes(manifest), reduced=False)
        fusion = Fusion.of_model(engine, manifest, self.labels, self._sources)
        self.model = f"{self.model} + {manifest.id}"
        return fusion

    def _check_embedding(self, manifest: Manifest, instead: str) -> None:
        names = [tensor.name for tensor in manifest.outputs]
        if self._embeddings and "embedding" not in names:
            raise ConfigError(
                f"embeddings: true: {manifest.id} has no output 'embedding', only {names}. Name {instead}"
            )

    def predict(self, aligned: AlignedSet) -> Prediction:
        sound = first(aligned, SOUNDS)
        view = _view(aligned)
        tracks = self._track(view)
        self._classify(view, tracks, sound)
        audio = self._listen(sound, aligned.anchor_ns)
        shares = self._share_voice(tracks, audio.voice)
        fused = self._fuse(aligned, view, tracks, audio, shares)
        return self._report(aligned, view, tracks, audio, shares, fused)

    def _track(self, view: View) -> list[Track]:
        """The faces detected in this picture, each as a track that goes on from picture to picture."""
        return [] if view.image is None else self._tracker.update(view.image, view.capture_ns)

    def _classify(self, view: View, tracks: Sequence[Track], sound: tuple[Frame, ...]) -> None:
        """Move the state of each track's face on to this picture, and follow whose mouth moves with the sound."""
        if view.image is None or not tracks:
            return
        crops = np.stack([face_crop(view.image, track.face.box_px, track.face.landmarks_px) for track in tracks])
        if self._voice is not None and sound and len(tracks) > 1:
            by_id = {track.id: crop for track, crop in zip(tracks, crops, strict=True)}
            self._speaker.update(by_id, level_db=level_db(sound), capture_ns=view.capture_ns)
        self._faces.update(tracks, crops, view.capture_ns)
        self._faces.forget_others(self._tracker.known_ids())

    def _listen(self, sound: tuple[Frame, ...], anchor_ns: int) -> Audio:
        """Whether somebody speaks, and what the voice sounds like."""
        if not sound:
            return Audio("", anchor_ns, None, NO_VOICE)
        speaking = self._activity.update(sound)
        voice = NO_VOICE if self._voice is None else self._voice.update(sound, speaking=speaking)
        return Audio(sound[-1].stream, sound[-1].end_ns, speaking, voice)

    def _share_voice(self, tracks: Sequence[Track], voice: VoiceEvidence) -> list[str]:
        """What part the voice has in each face's answer: "own", "shared", or "" for none."""
        if voice.weight <= 0 or not tracks:
            return [""] * len(tracks)
        owner = self._speaker.owner() if len(tracks) > 1 else tracks[0].id
        return ["own" if t.id == owner else "shared" if owner is None else "" for t in tracks]

    def _fuse(
        self, aligned: AlignedSet, view: View, tracks: Sequence[Track], audio: Audio, shares: Sequence[str]
    ) -> Fused:
        """One case a face, of which the largest answers; without a face, the one case of all other evidence."""
        modalities = self._fusion.modalities
        streamed = modalities.from_streams(aligned)
        cases: list[Case] = []
        for track, share in zip(tracks, shares, strict=True) if tracks else [(None, "own")]:
            case = dict(streamed)
            if "face" in modalities.encoders:
                case["face"] = self._face_evidence(modalities, track, view, aligned.anchor_ns)
            if "voice" in modalities.encoders:
                case["voice"] = self._voice_evidence(modalities, share, len(tracks), audio, aligned.anchor_ns)
            cases.append(case)
        return self._fusion.fuse(cases, _largest(tracks))

    def _face_evidence(self, modalities: Modalities, track: Track | None, view: View, anchor_ns: int) -> Evidence:
        stream = "" if view.image is None else view.stream
        offset_s = (view.capture_ns - anchor_ns) / NS
        if track is None:
            return modalities.from_encoder("face", None, 0.0, "no face in view", stream=stream, offset_s=offset_s)
        face = self._faces[track.id]
        is_opinion = modalities.encoders["face"] == "opinion"
        return modalities.from_encoder(
            "face",
            np.log(np.maximum(face.probs, MIN_PROB)) if is_opinion else face.embedding,
            face.quality,
            face.quality_reason,
            stream=stream,
            offset_s=offset_s,
            probs=face.probs,
            embedding=face.embedding if self._embeddings else NO_EMBEDDING,
        )

    def _voice_evidence(self, modalities: Modalities, share: str, faces: int, audio: Audio, anchor_ns: int) -> Evidence:
        voice, reason = audio.voice, audio.voice.reason
        if share == "shared":
            note = f"shared by {faces} faces: no mouth clearly moves with it"
            reason = f"{reason}; {note}" if reason else note
        elif share == "" and voice.weight > 0:
            reason = "another face's mouth moves with the voice"
        is_opinion = modalities.encoders["voice"] == "opinion"
        return modalities.from_encoder(
            "voice",
            voice.log_probs if is_opinion or voice.log_probs is None else voice.embedding,
            voice.weight if share else 0.0,
            reason,
            stream=audio.stream,
            offset_s=(audio.end_ns - anchor_ns) / NS,
            probs=None if voice.log_probs is None else np.exp(voice.log_probs),
            embedding=voice.embedding if self._embeddings else NO_EMBEDDING,
        )

    def _report(
        self,
        aligned: AlignedSet,
        view: View,
        tracks: Sequence[Track],
        audio: Audio,
        shares: Sequence[str],
        fused: Fused,
    ) -> Prediction:
        camera = () if view.image is None else (view.stream,)
        opinions = fused.opinions if self._reports_opinions else ()
        answer = None if fused.probs is None else fused.probs[_largest(tracks)]
        if answer is not None and self._smoother is not None:
            answer = self._smoother.update(answer, aligned.anchor_ns)
        weighty = [np.array(o.probs) for o in opinions if o.weight >= COUNTS and o.probs]
        prediction = self.prediction(
            aligned,
            answer,
            bad={view.stream: view.fault} if view.fault else {},
            used=tuple(dict.fromkeys([*camera, *(o.stream for o in opinions if o.weight > 0)])),
            speaking=audio.speaking,
            subjects=[
                _subject(track, probs, share)
                for track, probs, share in zip(tracks, () if fused.probs is None else fused.probs, shares, strict=False)
            ],
            opinions=opinions,
            disagree=any(disagree(a, b) for a, b in combinations(weighty, 2)),
            agreement=fused.agreement,
            uncertain_below=self._uncertain_below,
        )
        if self._smoother is not None:
            prediction = msgspec.structs.replace(prediction, timing_ns={"lag": self._smoother.lag_ns})
        return prediction


def _view(aligned: AlignedSet) -> View:
    frames = first(aligned, PICTURES)
    if not frames:
        return View("", aligned.anchor_ns, None, "")
    return View(frames[-1].stream, frames[-1].capture_ns, *picture(frames[-1]))


def _largest(tracks: Sequence[Track]) -> int:
    """Index of the largest face; 0 where there is none."""
    return max(range(len(tracks)), key=lambda i: tracks[i].face.side_px, default=0)


def _subject(track: Track, probs: npt.NDArray[np.float32], voice: str) -> Subject:
    left, top, width, height = (float(value) for value in track.face.box_px)
    return Subject(track.id, (left, top, width, height), tuple(float(p) for p in probs), track.face.score, voice)
