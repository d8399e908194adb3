"""The evidence that a fusion joins: which modalities it takes, and what each of them has to say in one aligned set.

`face` and `voice` come from the task's own encoders, as opinions or as embeddings. Any other modality, and these two
where `sources` names a stream for them, is a feature stream: "series_f32" frames of an aligned stream, from any node (a
text encoder's sentence vectors, a pulse belt's rates, another face encoder). What is absent has the weight 0 and a
reason.

Example:
    modalities = Modalities.of_model(Manifest.read(Path("my-fusion.onnx")), sources={"pulse": "belt"})
    modalities.from_streams(aligned)["pulse"]           # Evidence((1, 4), weight (1,), offset_s (1,), "belt", "")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError, nearest
from pipeline.frame import NO_EMBEDDING, AlignedSet
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND

Floats = npt.NDArray[np.float32]
Kind = Literal["opinion", "embedding"]

ENCODED = ("face", "voice")  # the modalities that the task's own encoders serve
PRESENT, OFFSET = "present", "offset_s"  # a fusion's inputs that are not modalities


class Evidence(NamedTuple):
    """What one modality has to say about one face.

    Args:
        values: (tokens, width) float32, as the fusion takes it; zeros where absent.
        weight: (tokens,) how much each token counts, 0 (absent) to 1.
        offset_s: (tokens,) when each was captured, in seconds after the set's anchor.
        stream: where it came from; "" where the set holds no such stream.
        reason: Why the weight is below 1, "" at 1.
        probs: (labels,) the encoder's own probabilities; None for a feature stream and where there is no opinion.
        embedding: (d,) of the encoder, where the prediction is to carry it.
    """

    values: Floats
    weight: npt.NDArray[np.float64]
    offset_s: Floats
    stream: str
    reason: str
    probs: Floats | None = None
    embedding: Floats = NO_EMBEDDING

    @property
    def largest_weight(self) -> float:
        return float(self.weight.max())


@dataclass(frozen=True)
class Modalities:
    """What a fusion takes.

    Args:
        fusion: Its name, for messages.
        shapes: modality → (tokens, width), in the order of the fusion's input `present`.
        encoders: modality → what of the task's own encoder it takes.
        streams: modality → the feature stream that it comes from.
    """

    fusion: str
    shapes: Mapping[str, tuple[int, int]]
    encoders: Mapping[str, Kind]
    streams: Mapping[str, str]

    @classmethod
    def of_opinions(cls, names: Sequence[str], labels: int, *, fusion: str = "average") -> Modalities:
        """One opinion about `labels` labels from each of the task's encoders that is named."""
        return cls(fusion, {name: (1, labels) for name in names}, {name: "opinion" for name in names}, {})

    @classmethod
    def of_model(cls, manifest: Manifest, sources: Mapping[str, str]) -> Modalities:
        """As the manifest of a model of `train fusion --family` describes them. sources: modality → stream; one that is
        not named comes from the stream of its own name."""
        shapes: dict[str, tuple[int, int]] = {}
        for tensor in manifest.inputs:
            if tensor.name in (PRESENT, OFFSET):
                continue
            if len(tensor.shape) != 3 or not all(isinstance(size, int) for size in tensor.shape[1:]):
                raise ConfigError(
                    f"fusion model {manifest.id}: its input '{tensor.name}' is {tensor.shape}, "
                    "expected (n, tokens, width)"
                )
            shapes[tensor.name] = (int(tensor.shape[1]), int(tensor.shape[2]))
        inputs, outputs = ([tensor.name for tensor in side] for side in (manifest.inputs, manifest.outputs))
        if PRESENT not in inputs or not shapes or "logits" not in outputs:
            raise ConfigError(
                f"fusion model {manifest.id}: it has the inputs {inputs} and the outputs {outputs}; "
                "expected modalities, 'present' and 'logits', as train fusion exports them"
            )
        for name in sources:
            if name not in shapes:
                raise ConfigError(
                    f"sources: the fusion {manifest.id} has no modality '{name}'.{nearest(name, shapes)} "
                    f"It has: {', '.join(shapes)}"
                )
        opinions = {tensor.name for tensor in manifest.inputs if tensor.meaning.startswith("opinion:")}
        encoded = [name for name in ENCODED if name in shapes and name not in sources]
        return cls(
            manifest.id,
            shapes,
            {name: "opinion" if name in opinions else "embedding" for name in encoded},
            {name: sources.get(name, name) for name in shapes if name not in encoded},
        )

    def from_streams(self, aligned: AlignedSet) -> dict[str, Evidence]:
        """What the feature streams have in this set; the newest tokens of each, the last one last."""
        evidence = {}
        for name, stream in self.streams.items():
            tokens, width = self.shapes[name]
            frames = [f for f in aligned.frames.get(stream, ()) if f.encoding == "series_f32"][-tokens:]
            fitting = [f for f in frames if f.data.size == width and np.isfinite(f.data).all()]
            values, weight = np.zeros((tokens, width), np.float32), np.zeros(tokens)
            offset_s = np.zeros(tokens, np.float32)
            for at, frame in enumerate(fitting, start=tokens - len(fitting)):
                values[at], weight[at] = frame.data.ravel(), 1.0
                offset_s[at] = (frame.capture_ns - aligned.anchor_ns) / NS
            reason = "" if fitting else f"nothing from '{stream}' in the set"
            if len(fitting) < len(frames):
                reason = f"'{stream}' has {frames[-1].data.size} numbers, the fusion takes {width} finite ones"
            evidence[name] = Evidence(values, weight, offset_s, stream, reason)
        return evidence

    def from_encoder(
        self,
        name: str,
        values: Floats | None,
        weight: float,
        reason: str,
        *,
        stream: str,
        offset_s: float,
        probs: Floats | None = None,
        embedding: Floats = NO_EMBEDDING,
    ) -> Evidence:
        """Evidence of one of the task's own encoders. values: (width,), or None where the encoder has no answer."""
        tokens, width = self.shapes[name]
        if values is not None and values.size != width:
            raise ConfigError(
                f"fusion: '{name}' gives {values.size} numbers, the model takes {width}. Use the encoder that the "
                f"fusion was trained with, or train it with this one: {COMMAND} train fusion"
            )
        tensor, weights = np.zeros((tokens, width), np.float32), np.zeros(tokens)
        if values is not None and weight > 0:
            tensor[-1], weights[-1] = values, weight
        offsets_s = np.full(tokens, offset_s, np.float32)
        return Evidence(tensor, weights, offsets_s, stream, reason, probs, embedding)


def is_described(manifest: Manifest) -> bool:
    """True for a model of `train fusion --family`: its manifest says of each input what it is, and it answers whatever
    is present."""
    return any(tensor.meaning.startswith(("opinion:", "embedding:", "series:", "probs:")) for tensor in manifest.inputs)
