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

from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.clock import NS
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import NO_EMBEDDING, AlignedSet, Opinion, Prediction, Subject
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.faces import FaceDetector, FaceTracker, Image, Track, detector_shapes
from pipeline.perception.expression.fusion import Fusion, disagree
from pipeline.perception.expression.modalities import Modalities, takes_any
from pipeline.perception.expression.quality import face_quality
from pipeline.perception.expression.resting import Resting, average_neutral
from pipeline.perception.expression.smoothing import FixedLag, softmax, towards
from pipeline.perception.expression.speaker import Speaker, level_db
from pipeline.perception.expression.voice import Heard, Voice
from pipeline.perception.expression.voice_activity import VoiceActivity
from pipeline.perception.inputs import PICTURES, SOUNDS, first, picture
from pipeline.perception.model_loader import Engines, model_path, warm_up_shapes
from pipeline.preprocessing import FACE_PX, face_crop, face_tensor
from pipeline.task import Task

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
    baseline_s: so much of a face's and of the voice's first evidence is taken for this session's neutral (tasks/resting.py);
    0: off, as it is unless it was shown to help (docs/emotion.md).
    sources: for a fusion of one's own (train fusion --family), modality → the stream of "series_f32" it comes from, where that
    is not called as the modality is; face and voice come from the two models unless they are named here.
    embeddings: the opinions carry the networks' embeddings, from which a person may be recognised: only where asked for.
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
        baseline_s: float = 0.0,
        embeddings: bool = False,
        sources: dict[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        if smoothing_ms < 0 or max_faces < 1 or threads < 1:
            raise ValueError("smoothing_ms must be at least 0, max_faces and threads at least 1")
        if not 0 <= uncertain_below < 1 or (lag_ms is not None and lag_ms < 0) or baseline_s < 0:
            raise ValueError("uncertain_below must be from 0 to below 1, lag_ms and baseline_s at least 0")
        self._path, self._voice_path, self._fusion_path = model_path(model), model_path(voice), model_path(fusion)
        self._voice_wanted, self._fusion_rule, self._sources = voice, fusion, sources or {}
        self._lag_ms, self._embeddings, self._baseline_s = lag_ms, embeddings, baseline_s
        self._smoothing_ns, self._uncertain_below = smoothing_ms * 1e6, uncertain_below
        self._max_faces, self._search_px, self._threads = max_faces, search_px, threads

    def open(self, backend: str) -> None:
        if not self._path.is_file():
            raise AssetError(f"{self._path}: no such model. Train it with: python run_pipeline.py train face")
        engines = self.open_engines(backend, threads=self._threads)
        manifest = engines.manifest(self._path)
        self._check_embedding(manifest, "another model")
        self.labels, self.model, self._temperature = manifest.labels, manifest.id, manifest.temperature
        face = {"face": (1, 1, FACE_PX, FACE_PX)}
        self._classifier = engines.load(self._path, manifest.name, face)
        finder = engines.load(assets.path("centerface"), "centerface", detector_shapes(self._search_px), reduced=False)
        self._tracker = FaceTracker(FaceDetector(finder, search_px=self._search_px), max_faces=self._max_faces)
        listener = engines.load(assets.path("silero-vad"), "silero-vad", None, reduced=False, branches=True)
        self._activity = VoiceActivity(listener, self.log)
        self._voice, self._fusion, self._speaker = self._open_voice(engines), Fusion(), Speaker()
        self._face_rest = average_neutral(manifest) if self._baseline_s > 0 else None
        if self._baseline_s > 0 and self._face_rest is None:
            raise ConfigError(
                f"baseline_s: the manifest of {manifest.id} does not say what faces at rest are to it (neutral_… "
                "among its metrics). Train it anew, or set baseline_s: 0"
            )
        self._resting: dict[int, Resting] = {}  # track id → what is known of its rest
        self._modalities = self._open_modalities(engines)
        if self._voice is not None and self._modalities is None:
            self._fusion = self._open_fusion(engines)
        self._smoother = None if self._lag_ms is None else FixedLag(len(self.labels), lag_ms=self._lag_ms)
        self._probs: dict[int, npt.NDArray[np.float32]] = {}  # track id → smoothed, of the face alone
        self._quality: dict[int, tuple[float, str]] = {}
        self._embedding: dict[int, npt.NDArray[np.float32]] = {}  # track id → of its latest picture, where asked for
        self._smoothed_ns: dict[int, int] = {}

    def _open_voice(self, engines: Engines) -> Voice | None:
        self._voice_rest: Resting | None = None
        if self._voice_wanted == "none":
            return None
        if not self._voice_path.is_file():
            if self._voice_wanted != VOICE_MODEL:
                raise AssetError(
                    f"{self._voice_path}: no such model. Train it with: python run_pipeline.py train voice"
                )
            self.log.info(
                "no %s: the faces are the only evidence. Train one with: run_pipeline.py train voice", VOICE_MODEL
            )
            return None
        if self._fusion_rule == FUSION_MODEL and not self._fusion_path.is_file():
            # No rule without training is better than the face alone (docs/emotion.md), so none takes its place unasked.
            self.log.warning(
                "no %s: the faces are the only evidence. Train one with: run_pipeline.py train fusion, "
                "or set fusion: average",
                FUSION_MODEL,
            )
            return None
        manifest = engines.manifest(self._voice_path)
        self._check_embedding(manifest, "another, or voice: none")
        voice = Voice(engines.load(self._voice_path, manifest.name, warm_up_shapes(manifest)), manifest, self.labels)
        self.model = f"{self.model} + {manifest.id}"
        # People must know before they build on it, not when they read a card.
        self.log.info("%s: %s", manifest.name, manifest.licence)
        self.metrics.facts[f"licence {manifest.name}"] = manifest.licence
        return voice

    def _open_fusion(self, engines: Engines) -> Fusion:
        if self._fusion_rule == "average":
            return Fusion()
        if not self._fusion_path.is_file():
            raise AssetError(
                f"{self._fusion_path}: no such model. Train it with: python run_pipeline.py train fusion, or set fusion: average"
            )
        manifest = Manifest.read(self._fusion_path)
        rest = average_neutral(manifest, "voice_") if self._baseline_s > 0 else None
        self._voice_rest = None if rest is None else Resting(rest, seconds=self._baseline_s)
        fusion = Fusion(
            engines.load(self._fusion_path, manifest.name, warm_up_shapes(manifest), reduced=False),
            manifest,
            self.labels,
        )
        self.model = f"{self.model} + {manifest.id}"
        return fusion

    def _open_modalities(self, engines: Engines) -> Modalities | None:
        """A fusion that answers whatever is present, for any modalities and labels; None: face and voice, as usual."""
        manifest = Manifest.read(self._fusion_path) if self._fusion_path.is_file() else None
        if manifest is None or not takes_any(manifest):
            if self._sources:
                raise ConfigError(
                    "sources: only a fusion made by train fusion --family has modalities of its own. "
                    "Name one: fusion: my-fusion.onnx"
                )
            return None
        engine = engines.load(self._fusion_path, manifest.name, warm_up_shapes(manifest), reduced=False)
        found = Modalities(engine, manifest, self._sources)
        if "opinion" in found.wants.values() and found.labels != self.labels:
            raise ConfigError(
                f"fusion model {manifest.id}: it takes opinions about {found.labels}, the face model's are about "
                f"{self.labels}. Use the face model it was trained with."
            )
        self.labels, self.model = found.labels, f"{self.model} + {manifest.id}"
        return found

    def _check_embedding(self, manifest: Manifest, instead: str) -> None:
        names = [tensor.name for tensor in manifest.outputs]
        if self._embeddings and "embedding" not in names:
            raise ConfigError(
                f"embeddings: true: {manifest.id} has no output 'embedding', only {names}. Name {instead}"
            )

    def predict(self, aligned: AlignedSet) -> Prediction:
        sound = first(aligned, SOUNDS)
        speaking = self._activity.update(sound) if sound else None
        heard = self._voice.update(sound, speaking=speaking) if self._voice and sound else UNHEARD
        if self._voice_rest is not None and heard.log_probs is not None and heard.weight > 0:
            heard = heard._replace(log_probs=self._voice_rest.update(heard.log_probs, sound[-1].end_ns))
        microphone = sound[-1].stream if sound else ""
        pictures = first(aligned, PICTURES)
        image, wrong = picture(pictures[-1]) if pictures else (None, "")
        used = (pictures[-1].stream,) if image is not None else ()
        bad = {pictures[-1].stream: wrong} if pictures and image is None else {}
        tracks: list[Track] = []
        if image is not None:
            tracks = self._tracker.update(image, pictures[-1].capture_ns)
            self._classify(image, tracks, pictures[-1].capture_ns, level_db(sound) if sound else None)
        given = self._given(tracks, heard)
        largest = max(range(len(tracks)), key=lambda i: tracks[i].face.side_px, default=None)
        agreement = None
        if self._modalities is not None:
            pictured_ns = pictures[-1].capture_ns if pictures else aligned.anchor_ns
            heard_ns = sound[-1].end_ns if sound else aligned.anchor_ns
            own = {"face": (pictured_ns, used[0] if used else ""), "voice": (heard_ns, microphone)}
            probs, opinions, agreement = self._fuse_any(aligned, tracks, largest, heard, given, own)
            used = tuple(dict.fromkeys([*used, *(o.stream for o in opinions if o.weight > 0)]))
        else:
            probs = self._fuse(tracks, heard, given)
            opinions = self._opinions(tracks, largest, used[0] if used else "", heard, microphone, given)
            if heard.weight > 0 and any(o.modality == "voice" and o.weight > 0 for o in opinions):
                used = (*used, microphone)
                if heard.log_probs is not None and largest is not None and given[largest]:
                    face = np.log(np.maximum(self._probs[tracks[largest].id], 1e-9))
                    agreement = self._fusion.agreement(face, heard.log_probs)
        answer = None if probs is None else probs[largest or 0]
        if answer is not None and self._smoother is not None:
            answer = self._smoother.update(answer, aligned.anchor_ns)
        counted = [np.array(o.probs) for o in opinions if o.weight >= COUNTS and o.probs]
        prediction = self.prediction(
            aligned,
            answer,
            bad=bad,
            used=used,
            speaking=speaking,
            subjects=[
                self._subject(track, p, g)
                for track, p, g in zip(tracks, () if probs is None else probs, given, strict=False)
            ],
            opinions=opinions,
            disagree=any(disagree(a, b) for a, b in combinations(counted, 2)),
            agreement=agreement,
            uncertain_below=self._uncertain_below,
        )
        if self._smoother is not None:
            prediction = msgspec.structs.replace(prediction, timing_ns={"lag": self._smoother.lag_ns})
        return prediction

    def _classify(self, image: Image, tracks: Sequence[Track], now_ns: int, loud_db: float | None) -> None:
        """Move the smoothed probabilities of the tracks on to `now_ns`; all faces in one engine call."""
        if not tracks:
            return
        crops = np.stack([face_crop(image, track.face.box_px, track.face.landmarks_px) for track in tracks])
        if self._voice is not None or self._embeddings or self._modalities is not None:
            for track, crop in zip(tracks, crops, strict=True):
                self._quality[track.id] = face_quality(crop, side_px=track.face.side_px)
            if self._voice is not None and loud_db is not None and len(tracks) > 1:
                by_id = {track.id: crop for track, crop in zip(tracks, crops, strict=True)}
                self._speaker.update(by_id, level_db=loud_db, capture_ns=now_ns)
        said = self._classifier.run({"face": face_tensor(crops)})  # logits (n, labels), embedding (n, d)
        if self._embeddings or (self._modalities is not None and self._modalities.wants.get("face") == "embedding"):
            self._embedding |= {track.id: one for track, one in zip(tracks, said["embedding"], strict=True)}
        for track, probs in zip(tracks, softmax(said["logits"] / self._temperature), strict=True):
            if self._face_rest is not None:
                resting = self._resting.setdefault(track.id, Resting(self._face_rest, seconds=self._baseline_s))
                probs = np.exp(resting.update(np.log(np.maximum(probs, 1e-6)), now_ns))
            before = self._probs.get(track.id, probs)
            elapsed_ns = now_ns - self._smoothed_ns.get(track.id, now_ns)
            self._probs[track.id] = towards(before, probs, elapsed_ns, self._smoothing_ns)
            self._smoothed_ns[track.id] = now_ns
        known = self._tracker.known_ids()
        self._probs = {id: probs for id, probs in self._probs.items() if id in known}
        self._quality = {id: quality for id, quality in self._quality.items() if id in known}
        self._embedding = {id: one for id, one in self._embedding.items() if id in known}
        self._resting = {id: one for id, one in self._resting.items() if id in known}
        self._smoothed_ns = {id: ns for id, ns in self._smoothed_ns.items() if id in known}

    def _given(self, tracks: Sequence[Track], heard: Heard) -> list[str]:
        """What part the voice has in each face's answer: "own", "shared", or "" for none."""
        if heard.log_probs is None or heard.weight <= 0 or not tracks:
            return [""] * len(tracks)
        owner = self._speaker.owner() if len(tracks) > 1 else tracks[0].id
        return ["own" if t.id == owner else "shared" if owner is None else "" for t in tracks]

    def _fuse(self, tracks: Sequence[Track], heard: Heard, given: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """(faces, labels), of the voice alone (1, labels), or None."""
        if heard.log_probs is None or heard.weight <= 0:
            return np.stack([self._probs[t.id] for t in tracks]) if tracks else None
        if not tracks:
            return np.exp(heard.log_probs)[None]
        face = np.log(np.maximum(np.stack([self._probs[t.id] for t in tracks]), 1e-9))
        voice = np.repeat(heard.log_probs[None], len(tracks), axis=0)
        present = np.array(
            [
                [self._quality.get(t.id, (1.0, ""))[0], heard.weight if g else 0.0]
                for t, g in zip(tracks, given, strict=True)
            ],
            np.float32,
        )
        return self._fusion.fuse(face, voice, present)

    def _fuse_any(
        self,
        aligned: AlignedSet,
        tracks: Sequence[Track],
        largest: int | None,
        heard: Heard,
        given: Sequence[str],
        own: Mapping[str, tuple[int, str]],
    ) -> tuple[npt.NDArray[np.float32] | None, list[Opinion], float | None]:
        """As _fuse, by a fusion over any modalities, with the opinions behind the largest face's answer and their agreement.
        own: face and voice → when it was captured, and by which stream."""
        fusion, cases = self._modalities, []
        assert fusion is not None
        streamed = fusion.read(aligned)
        for track, share in zip(tracks, given, strict=True) if tracks else [(None, "own")]:
            case = dict(streamed)
            for name, kind in fusion.wants.items():
                values, weight, reason = None, 0.0, "no face in view" if name == "face" else heard.reason
                if name == "face" and track is not None:
                    weight, reason = self._quality[track.id]
                    values = (
                        np.log(np.maximum(self._probs[track.id], 1e-9))
                        if kind == "opinion"
                        else self._embedding[track.id]
                    )
                elif name == "voice" and heard.log_probs is not None:
                    weight = heard.weight if share else 0.0
                    values = heard.log_probs if kind == "opinion" else heard.embedding
                offset_s = (own[name][0] - aligned.anchor_ns) / NS
                case[name] = fusion.of(name, values, weight, offset_s=offset_s, stream=own[name][1], reason=reason)
            cases.append(case)
        first = largest or 0
        probs, alone, agreement = fusion.fuse(cases)
        opinions = fusion.opinions(cases[first], alone[first])
        return (probs if any(o.weight > 0 for o in opinions) else None), opinions, agreement[first]

    def _opinions(
        self,
        tracks: Sequence[Track],
        largest: int | None,
        camera: str,
        heard: Heard,
        microphone: str,
        given: Sequence[str],
    ) -> list[Opinion]:
        """Of the face that answers, and of the voice as it counted for it."""
        if self._voice is None and not self._embeddings:
            return []
        found = []
        if camera:
            if largest is None:
                found.append(Opinion("face", camera, 0.0, (), "no face in view"))
            else:
                id = tracks[largest].id
                weight, reason = self._quality[id]
                embedding = self._embedding.get(id, NO_EMBEDDING)
                found.append(Opinion("face", camera, weight, _plain(self._probs[id]), reason, embedding))
        if microphone and self._voice is not None:
            weight, reason = heard.weight, heard.reason
            if weight > 0 and largest is not None and given[largest] == "":
                weight, reason = 0.0, "another face's mouth moves with the voice"
            elif weight > 0 and largest is not None and given[largest] == "shared":
                reason = "; ".join(
                    filter(None, [reason, f"shared by {len(tracks)} faces: no mouth clearly moves with it"])
                )
            embedding = heard.embedding if self._embeddings else NO_EMBEDDING
            found.append(Opinion("voice", microphone, weight, _plain(heard.log_probs, log=True), reason, embedding))
        return found

    def _subject(self, track: Track, probs: npt.NDArray[np.float32], voice: str) -> Subject:
        left, top, width, height = (float(value) for value in track.face.box_px)
        return Subject(track.id, (left, top, width, height), _plain(probs), track.face.score, voice)


def _plain(probs: npt.NDArray[np.float32] | None, *, log: bool = False) -> tuple[float, ...]:
    return () if probs is None else tuple(float(p) for p in (np.exp(probs) if log else probs))
