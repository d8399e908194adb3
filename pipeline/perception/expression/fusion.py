"""Joins the opinions of face and voice into one, for every face at once.

The fusion is any ONNX with a manifest whose inputs are `face` and `voice` (n, 1, labels), calibrated log-probabilities,
and `present` (n, 2), a weight of each from 0 to 1, and whose output is `logits` (n, labels); an output `agreement` (n, 1)
says how well the voice fits the face. Without one, the rule "average" is what needs no training: the mean of the two, each
counting as much as it is present.

    fusion = Fusion(engine, manifest)
    fusion.fuse(face, voice, present)           # (n, 7), (n, 7), (n, 2) -> (n, 7) probabilities
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest

Floats = npt.NDArray[np.float32]
INPUTS = ("face", "voice", "present")

# Two opinions disagree when each is this sure of another label: below, they only differ.
SURE = 0.5


class Fusion:
    """engine None: the rule "average"."""

    def __init__(
        self, engine: Engine | None = None, manifest: Manifest | None = None, labels: Sequence[str] = ()
    ) -> None:
        self._engine, self._temperature = engine, manifest.temperature if manifest else 1.0
        self._tells_agreement = manifest is not None and any(tensor.name == "agreement" for tensor in manifest.outputs)
        if manifest is not None:
            inputs = [tensor.name for tensor in manifest.inputs]
            if sorted(inputs) != sorted(INPUTS) or manifest.labels != tuple(labels):
                raise ConfigError(
                    f"fusion model {manifest.id}: it has the inputs {inputs} and the labels {manifest.labels}; expected "
                    f"{list(INPUTS)} and {tuple(labels)}, as the face model has them. Train it with: "
                    "python run_pipeline.py train fusion, or set fusion: average"
                )

    def fuse(self, face: Floats, voice: Floats, present: Floats) -> Floats:
        """face, voice: (n, labels) log-probabilities. present: (n, 2), of which one is above 0. Returns (n, labels)
        probabilities. Where a modality is absent, the other's own probabilities are the answer, bit for bit."""
        alone = np.where(present[:, :1] > 0, face, voice)
        probs = np.exp(alone)
        both = (present > 0).all(axis=1)
        if both.any():
            probs[both] = self._both(face[both], voice[both], present[both])
        return np.asarray(probs, np.float32)

    def agreement(self, face: Floats, voice: Floats) -> float | None:
        """How well a voice fits a face, -1 to 1. (labels,) log-probabilities. None where the model does not tell it."""
        if self._engine is None or not self._tells_agreement:
            return None
        here = np.ones((1, 2), np.float32)
        said = self._engine.run({"face": face[None, None], "voice": voice[None, None], "present": here})
        return float(said["agreement"][0, 0])

    def _both(self, face: Floats, voice: Floats, present: Floats) -> Floats:
        if self._engine is None:
            weights = present / present.sum(axis=1, keepdims=True)
            return np.asarray(weights[:, :1] * np.exp(face) + weights[:, 1:] * np.exp(voice), np.float32)
        logits = self._engine.run({"face": face[:, None], "voice": voice[:, None], "present": present})["logits"]
        raised = np.exp((logits - logits.max(axis=1, keepdims=True)) / self._temperature)
        return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def disagree(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> bool:
    """Each is sure of another label. (labels,) probabilities."""
    return bool(first.argmax() != second.argmax() and min(first.max(), second.max()) >= SURE)
