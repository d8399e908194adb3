"""Sound events of the microphone (a dog's bark, rain …): AlignedSet → Prediction.

sounds: {use: infer, task: sounds, inputs: [align]}     # the microphone synced by `policy: window`
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.perception.sound_events import MODEL, REPORT_ABOVE, SILENCE, load_detector
from pipeline.scene_state import SceneState, Sound
from pipeline.task import Task

Floats = npt.NDArray[np.float32]


class Sounds(Task):
    """The label is the event; "other" where no event is likely enough, "silence" without sound."""

    def __init__(
        self, *, model: str = MODEL.stem, stream: str = "", report_above: float = REPORT_ABOVE, threads: int = 1
    ) -> None:
        """
        Args:
            model: A file of the models folder, without .onnx, or a path that ends with it.
            stream: The microphone's name; empty: the set's first stream of sound.
            report_above: Least probability of a reported event (0 < p < 1). Default 0.7: chosen within folds 1 to 3 of
                ESC-10, where 96 % of the reported events were right.
            threads: CPU threads of the network (≥ 1). Default 1: a window costs 3 ms.
        """
        if not 0 < report_above < 1 or threads < 1:
            raise ValueError("report_above must lie between 0 and 1, threads be at least 1")
        self._model_name, self._stream, self._report_above, self._threads = model, stream, report_above, threads

    def open(self, backend: str) -> None:
        engines = self.open_engines(backend, threads=self._threads)
        self._detector, manifest = load_detector(engines, model=self._model_name, report_above=self._report_above)
        self.labels, self.model = (*manifest.labels, SILENCE), manifest.id

    def predict(self, aligned: AlignedSet) -> Prediction:
        stream, frames = sound_of(aligned, self._stream)
        sounds = self._detector.update(frames, aligned.anchor_ns)
        bad = {stream: self._detector.reason} if frames and self._detector.reason.startswith("not at") else None
        answer = self.prediction(aligned, self._all(sounds), used=(stream,) if sounds and frames else (), bad=bad)
        return msgspec.structs.replace(
            answer, label=sounds[0].label if sounds else None, surroundings=SceneState(sounds=sounds)
        )

    def _all(self, sounds: tuple[Sound, ...]) -> Floats | None:
        """(labels and silence,) probabilities; None: there was no usable audio."""
        if not sounds:
            return None
        if self._detector.probs is None:
            return np.asarray(np.arange(len(self.labels)) == len(self.labels) - 1, np.float32)
        return np.asarray(np.append(self._detector.probs, 0), np.float32)


def sound_of(aligned: AlignedSet, stream: str = "") -> tuple[str, tuple[Frame, ...] | None]:
    """(name, frames) of the microphone: the stream called so, or the first that carries sound."""
    if stream:
        return stream, aligned.frames.get(stream)
    for name, frames in aligned.frames.items():
        if frames and frames[0].encoding == "pcm_f32":
            return name, frames
    return "", None
