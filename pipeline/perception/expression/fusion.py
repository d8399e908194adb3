"""Joins the evidence of several modalities into one answer, for every face at once.

Three kinds of fusion run through the same class:
- "average", which needs no training: the mean of the encoders' probabilities, each weighted by its presence.
- A model of two opinions: any ONNX with a manifest whose inputs are `face` and `voice` (n, 1, labels), calibrated
  log-probabilities, and `present` (n, 2), a weight of each from 0 to 1, and whose output is `logits` (n, labels); an
  output `agreement` (n, 1) says how well the voice fits the face. It is asked only where both are present.
- A model of `train fusion --family`: any modalities, any subset of them present (modalities.py).

Example:
    fusion = Fusion(manifest.labels)                                # the average of face and voice
    fusion = Fusion.of_model(engine, manifest, labels, sources={})
    fusion.fuse([{"face": …, "voice": …}]).probs                    # one mapping a face -> (1, 7) probabilities
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.frame import NO_EMBEDDING, Opinion
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND
from pipeline.perception.expression.modalities import ENCODED, OFFSET, PRESENT, Evidence, Modalities, is_described
from pipeline.probabilities import softmax

Floats = npt.NDArray[np.float32]
Case = Mapping[str, Evidence]  # modality → evidence: of one face, or of none

SURE = 0.5  # two opinions disagree when each is this sure of another label; below, they only differ


class Fused(NamedTuple):
    """probs: (cases, labels), or None where the answering case has no evidence. opinions: what each modality of that
    case says alone. agreement: how well they fit together, -1 to 1; None where the fusion has no such output."""

    probs: Floats | None
    opinions: tuple[Opinion, ...]
    agreement: float | None


class Fusion:
    """One run-time fusion for every kind of model.

    Args:
        labels: Of the answer.
        modalities: What it takes. Default: an opinion of the face and one of the voice.
        engine: The network; None for the average.
        manifest: Of the network.
    """

    def __init__(
        self,
        labels: Sequence[str],
        modalities: Modalities | None = None,
        engine: Engine | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.modalities = modalities or Modalities.of_opinions(ENCODED, len(self.labels))
        # A described model answers whatever is present. Any other is asked only for cases in which everything is, and
        # a single modality's own probabilities are the answer to the others.
        self.any_subset = manifest is not None and is_described(manifest)
        self._engine, self._temperature = engine, manifest.temperature if manifest else 1.0
        self._outputs = {tensor.name for tensor in manifest.outputs} if manifest else set()
        self._takes_offset = manifest is not None and any(tensor.name == OFFSET for tensor in manifest.inputs)
        self._names = tuple(self.modalities.shapes)

    @classmethod
    def of_model(cls, engine: Engine, manifest: Manifest, labels: Sequence[str], sources: Mapping[str, str]) -> Fusion:
        """labels: of the face model. sources: modality → stream, for a model of `train fusion --family`."""
        if is_described(manifest):
            modalities = Modalities.of_model(manifest, sources)
            if "opinion" in modalities.encoders.values() and manifest.labels != tuple(labels):
                raise ConfigError(
                    f"fusion model {manifest.id}: it takes opinions about {manifest.labels}, the face model's are "
                    f"about {tuple(labels)}. Use the face model it was trained with."
                )
            return cls(manifest.labels, modalities, engine, manifest)
        inputs, expected = [tensor.name for tensor in manifest.inputs], [*ENCODED, PRESENT]
        if sorted(inputs) != sorted(expected) or manifest.labels != tuple(labels):
            raise ConfigError(
                f"fusion model {manifest.id}: it has the inputs {inputs} and the labels {manifest.labels}; expected "
                f"{expected} and {tuple(labels)}, as the face model has them. Train it with: "
                f"{COMMAND} train fusion, or set fusion: average"
            )
        return cls(labels, None, engine, manifest)

    def fuse(self, cases: Sequence[Case], answering: int = 0) -> Fused:
        """One case a face. answering: the index of the case whose opinions and agreement are reported."""
        present = any(evidence.largest_weight > 0 for evidence in cases[answering].values())
        if self.any_subset:
            probs, opinions, agreement = self._fuse_any_subset(cases, answering)
            return Fused(probs if present else None, opinions, agreement)
        case = cases[answering]
        opinions = tuple(_own_opinion(name, case[name]) for name in self._names if case[name].stream)
        if not present:
            return Fused(None, opinions, None)
        return Fused(self._fuse_complete(cases), opinions, self._agreement(case))

    def _fuse_complete(self, cases: Sequence[Case]) -> Floats:
        """Cases with several modalities are joined; a single modality's own probabilities are the answer otherwise."""
        weights = np.array([[case[name].weight[-1] for name in self._names] for case in cases], np.float32)
        several = (weights > 0).sum(axis=1) > 1
        if not several.any():
            return np.stack([_own_probs(case) for case in cases])
        values = {name: np.stack([case[name].values for case in cases]) for name in self._names}  # (n, 1, labels)
        probs = np.exp(np.stack([values[self._names[column]][i, 0] for i, column in enumerate(weights.argmax(axis=1))]))
        together = {name: value[several] for name, value in values.items()}
        probs[several] = (
            self._average(together, weights[several])
            if self._engine is None
            else self._run({**together, PRESENT: weights[several]})
        )
        return np.asarray(probs, np.float32)

    def _average(self, values: Mapping[str, Floats], weights: Floats) -> Floats:
        shares = weights / weights.sum(axis=1, keepdims=True)
        return np.asarray(
            sum(shares[:, i : i + 1] * np.exp(values[name][:, 0]) for i, name in enumerate(self._names)), np.float32
        )

    def _run(self, inputs: dict[str, Floats]) -> Floats:
        assert self._engine is not None
        return _probabilities(self._engine.run(inputs)["logits"], self._temperature)

    def _agreement(self, case: Case) -> float | None:
        """Of all modalities at full weight: it is about what they say, not about how good each is."""
        if self._engine is None or "agreement" not in self._outputs or not all(map(_is_present, case.values())):
            return None
        full = np.ones((1, len(self._names)), np.float32)
        outputs = self._engine.run({**{name: case[name].values[None] for name in self._names}, PRESENT: full})
        return float(outputs["agreement"][0, 0])

    def _fuse_any_subset(
        self, cases: Sequence[Case], answering: int
    ) -> tuple[Floats, tuple[Opinion, ...], float | None]:
        assert self._engine is not None
        inputs = {name: np.stack([case[name].values for case in cases]) for name in self._names}
        inputs[PRESENT] = np.array(
            [np.concatenate([c[name].weight for name in self._names]) for c in cases], np.float32
        )
        if self._takes_offset:
            inputs[OFFSET] = np.stack([np.concatenate([c[name].offset_s for name in self._names]) for c in cases])
        outputs = self._engine.run(inputs)
        case = cases[answering]
        nothing = np.zeros((len(self._names), 0), np.float32)
        alone = (
            _probabilities(outputs["opinions"][answering]) if "opinions" in outputs else nothing
        )  # (modalities, labels)
        opinions = tuple(
            _opinion(
                name,
                case[name],
                probs if _is_present(case[name]) else None,
                float(np.float32(case[name].largest_weight)),
            )
            for name, probs in zip(self._names, alone, strict=True)
        )
        agreement = self._mean_agreement(case, outputs["agreement"][answering]) if "agreement" in outputs else None
        return _probabilities(outputs["logits"], self._temperature), opinions, agreement

    def _mean_agreement(self, case: Case, pairs: Floats) -> float | None:
        """Over the pairs of modalities that are both present."""
        present = [_is_present(case[name]) for name in self._names]
        fits = [float(pair) for pair, both in zip(pairs, combinations(present, 2), strict=True) if all(both)]
        return sum(fits) / len(fits) if fits else None


def disagree(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> bool:
    """Each is sure of another label. (labels,) probabilities."""
    return bool(first.argmax() != second.argmax() and min(first.max(), second.max()) >= SURE)


def _probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    return np.asarray(softmax(logits, temperature=temperature), np.float32)


def _is_present(evidence: Evidence) -> bool:
    return evidence.largest_weight > 0


def _own_probs(case: Case) -> Floats:
    return next(e.probs for e in case.values() if _is_present(e) and e.probs is not None)


def _own_opinion(name: str, evidence: Evidence) -> Opinion:
    return _opinion(name, evidence, evidence.probs, evidence.largest_weight, evidence.embedding)


def _opinion(
    name: str, evidence: Evidence, probs: Floats | None, weight: float, embedding: Floats = NO_EMBEDDING
) -> Opinion:
    plain = () if probs is None else tuple(float(p) for p in probs)
    return Opinion(name, evidence.stream, weight, plain, evidence.reason, embedding)
