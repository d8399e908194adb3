"""The expression of every tracked face: a network's answer to its latest picture, smoothed over time.

Owns what is remembered of a face from one picture to the next. Knows nothing of how faces are detected or tracked; a
track's id is all it goes by.

Example:
    faces = FaceClassifier(engine, manifest, smoothing_ms=300.0)
    faces.update(tracks, crops, frame.capture_ns)
    faces[track.id].probs                           # (7,) float32
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.frame import NO_EMBEDDING
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.faces import Track
from pipeline.perception.expression.quality import face_quality
from pipeline.perception.expression.smoothing import towards
from pipeline.preprocessing import face_tensor
from pipeline.probabilities import softmax

Floats = npt.NDArray[np.float32]


@dataclass
class FaceState:
    """One tracked face.

    Args:
        probs: (labels,) of the face alone, smoothed.
        classified_ns: Capture time of its latest picture.
        quality: How much it counts beside other evidence, 0 to 1; 1 where it is not measured.
        quality_reason: Why that is below 1.
        embedding: (d,) of its latest picture; empty where embeddings are not kept.
    """

    probs: Floats
    classified_ns: int
    quality: float = 1.0
    quality_reason: str = ""
    embedding: Floats = field(default_factory=lambda: NO_EMBEDDING)


class FaceClassifier:
    """The states of all tracked faces.

    Args:
        engine: face (n, 1, 48, 48) → logits (n, labels), embedding (n, d).
        manifest: Of that network: its temperature.
        smoothing_ms: Time constant of the exponential mean of a face's answers (ms, ≥ 0).
        measure_quality: True where faces are weighed against other evidence; it costs 0.1 ms a face.
        keep_embeddings: True where something reads them.
    """

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        *,
        smoothing_ms: float,
        measure_quality: bool = False,
        keep_embeddings: bool = False,
    ) -> None:
        self._engine, self._temperature, self._smoothing_ns = engine, manifest.temperature, smoothing_ms * 1e6
        self._measure_quality, self._keep_embeddings = measure_quality, keep_embeddings
        self._states: dict[int, FaceState] = {}  # track id → state

    def __getitem__(self, track_id: int) -> FaceState:
        return self._states[track_id]

    def update(self, tracks: Sequence[Track], crops: npt.NDArray[np.uint8], now_ns: int) -> None:
        """Classify all faces of one picture in one engine call. crops: (n, 48, 48) grey, one a track."""
        outputs = self._engine.run({"face": face_tensor(crops)})
        answers = np.asarray(softmax(outputs["logits"], temperature=self._temperature), np.float32)
        for i, (track, probs) in enumerate(zip(tracks, answers, strict=True)):
            state = self._states.setdefault(track.id, FaceState(probs, now_ns))
            state.probs = towards(state.probs, probs, now_ns - state.classified_ns, self._smoothing_ns)
            state.classified_ns = now_ns
            if self._measure_quality:
                state.quality, state.quality_reason = face_quality(crops[i], side_px=track.face.side_px)
            if self._keep_embeddings:
                state.embedding = outputs["embedding"][i]

    def forget_others(self, known_ids: Iterable[int]) -> None:
        """Drop the states of tracks that cannot come back."""
        known = set(known_ids)
        self._states = {id: state for id, state in self._states.items() if id in known}
