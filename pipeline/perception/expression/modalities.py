"""A fusion over any set of modalities: what it wants is read from its manifest, where each comes from, from the config.

`face` and `voice` come from this task's own encoders, as opinions or as embeddings. Any other modality, and these two where
`sources` names a stream for them, is a feature stream: "series_f32" frames of an aligned stream, made by any node (a text
encoder's sentence vectors, a pulse belt's rates, another face encoder). What is absent has the weight 0, and why is said.

    fusion = Modalities(engine, Manifest.read(Path("my-fusion.onnx")), sources={"pulse": "belt"})
    fusion.read(aligned)["pulse"]                       # Evidence((1, 4), weight (1,), offset_s (1,), "belt", "")
    probs, alone, agreement = fusion.fuse([{"face": …, "voice": …, "pulse": …}])      # (1, labels), (1, modalities, labels)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError, nearest
from pipeline.frame import AlignedSet, Opinion
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest

Floats = npt.NDArray[np.float32]

OWN = ("face", "voice")  # what the task's own encoders can give
PRESENT, OFFSET = "present", "offset_s"


class Evidence(NamedTuple):
    """values: (tokens, width). weight, offset_s: (tokens,). stream: where it came from. reason: why a weight is below 1."""

    values: Floats
    weight: Floats
    offset_s: Floats
    stream: str
    reason: str


class Modalities:
    """sources: modality → the stream it comes from; one that is not named comes from the stream of its own name."""

    def __init__(self, engine: Engine, manifest: Manifest, sources: Mapping[str, str]) -> None:
        self._engine, self._temperature = engine, manifest.temperature
        self.labels, self.outputs = manifest.labels, tuple(tensor.name for tensor in manifest.outputs)
        inputs = {tensor.name: tensor for tensor in manifest.inputs}
        self._reads_offset = OFFSET in inputs
        self.shapes: dict[str, tuple[int, int]] = {}  # modality → (tokens, width), in the order of `present`
        for name, tensor in inputs.items():
            if name in (PRESENT, OFFSET):
                continue
            if len(tensor.shape) != 3 or not all(isinstance(size, int) for size in tensor.shape[1:]):
                raise ConfigError(
                    f"fusion model {manifest.id}: its input '{name}' is {tensor.shape}, expected (n, tokens, width)"
                )
            self.shapes[name] = (int(tensor.shape[1]), int(tensor.shape[2]))
        if PRESENT not in inputs or not self.shapes or "logits" not in self.outputs:
            raise ConfigError(
                f"fusion model {manifest.id}: it has the inputs {list(inputs)} and the outputs {list(self.outputs)}; "
                "expected modalities, 'present' and 'logits', as train fusion exports them"
            )
        for name in sources:
            if name not in self.shapes:
                raise ConfigError(
                    f"sources: the fusion {manifest.id} has no modality '{name}'.{nearest(name, self.shapes)} "
                    f"It has: {', '.join(self.shapes)}"
                )
        opinions = {tensor.name for tensor in manifest.inputs if tensor.meaning.startswith("opinion:")}
        own = [name for name in OWN if name in self.shapes and name not in sources]
        self.wants = {name: "opinion" if name in opinions else "embedding" for name in own}
        self.streams = {name: sources.get(name, name) for name in self.shapes if name not in own}

    def read(self, aligned: AlignedSet) -> dict[str, Evidence]:
        """What the feature streams have in this set; the newest tokens of each, the last one last."""
        found = {}
        for name, stream in self.streams.items():
            tokens, width = self.shapes[name]
            frames = [f for f in aligned.frames.get(stream, ()) if f.encoding == "series_f32"][-tokens:]
            fitting = [f for f in frames if f.data.size == width and np.isfinite(f.data).all()]
            values, weight, offset_s = (
                np.zeros((tokens, width), np.float32),
                np.zeros(tokens, np.float32),
                np.zeros(tokens, np.float32),
            )
            for at, frame in enumerate(fitting, start=tokens - len(fitting)):
                values[at], weight[at] = frame.data.ravel(), 1.0
                offset_s[at] = (frame.capture_ns - aligned.anchor_ns) / NS
            reason = "" if fitting else f"nothing from '{stream}' in the set"
            if len(fitting) < len(frames):
                reason = f"'{stream}' gave {frames[-1].data.size} numbers, the fusion wants {width} finite ones"
            found[name] = Evidence(values, weight, offset_s, stream, reason)
        return found

    def of(
        self, name: str, values: Floats | None, weight: float, *, offset_s: float, stream: str, reason: str
    ) -> Evidence:
        """Evidence of one of the task's own encoders; values None: it has nothing to say."""
        tokens, width = self.shapes[name]
        if values is not None and values.size != width:
            raise ConfigError(
                f"fusion: '{name}' gives {values.size} numbers, the model wants {width}. Use the encoder that the "
                "fusion was trained with, or train it anew with this one: python run_pipeline.py train fusion"
            )
        held, counts = np.zeros((tokens, width), np.float32), np.zeros(tokens, np.float32)
        if values is not None and weight > 0:
            held[-1], counts[-1] = values, weight
        return Evidence(held, counts, np.full(tokens, offset_s, np.float32), stream, reason)

    def fuse(self, cases: Sequence[Mapping[str, Evidence]]) -> tuple[Floats, Floats, list[float | None]]:
        """One case a face. Returns probabilities (n, labels), those of each modality alone (n, modalities, labels; empty
        where the model tells none), and how well each case's modalities fit together, -1 to 1, where it tells that."""
        inputs = {name: np.stack([case[name].values for case in cases]) for name in self.shapes}
        inputs[PRESENT] = np.stack([np.concatenate([case[name].weight for name in self.shapes]) for case in cases])
        if self._reads_offset:
            inputs[OFFSET] = np.stack([np.concatenate([case[name].offset_s for name in self.shapes]) for case in cases])
        said = self._engine.run(inputs)
        alone = (
            _softmax(said["opinions"])
            if "opinions" in said
            else np.zeros((len(cases), len(self.shapes), 0), np.float32)
        )
        agreement = [
            self._fit(case, said["agreement"][i]) if "agreement" in said else None for i, case in enumerate(cases)
        ]
        return _softmax(said["logits"] / self._temperature), alone, agreement

    def _fit(self, case: Mapping[str, Evidence], pairs: Floats) -> float | None:
        """The mean over the pairs of modalities that are both there."""
        there = [bool(case[name].weight.max() > 0) for name in self.shapes]
        fits = [float(pair) for pair, both in zip(pairs, combinations(there, 2), strict=True) if all(both)]
        return sum(fits) / len(fits) if fits else None

    def opinions(self, case: Mapping[str, Evidence], alone: Floats) -> list[Opinion]:
        """What each modality of a case said by itself. alone: (modalities, labels)."""
        return [
            Opinion(name, said.stream, weight, tuple(float(p) for p in probs) if weight else (), said.reason)
            for (name, said), probs, weight in zip(
                ((name, case[name]) for name in self.shapes),
                alone,
                (float(case[name].weight.max()) for name in self.shapes),
                strict=True,
            )
        ]


def takes_any(manifest: Manifest) -> bool:
    """True for a model of `train fusion --family`: it says of each input what it is, and answers whatever is present."""
    return any(tensor.meaning.startswith(("opinion:", "embedding:", "series:", "probs:")) for tensor in manifest.inputs)


def _softmax(logits: npt.NDArray[np.floating]) -> Floats:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)
