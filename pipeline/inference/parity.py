"""The parity gate: an engine is refused unless its answers are those of ONNX Runtime in fp32, within a stated bound.

Example:
    result = compare(engine, reference, samples(), precision="fp16", temperature=1.3)
    result.refusal                   # "" or "labels agree in 97.1 % of 253 sure samples, at least 99.5 % are needed"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.engine import Engine, Samples, Tensors
from pipeline.inference.manifest import METADATA_KEY, Manifest, full_precision, precision_of
from pipeline.inference.onnx_file import OnnxFile
from pipeline.probabilities import softmax

MIN_SAMPLES = 256
MARGIN = 0.05  # between the two likeliest labels: below, a rounding decides, and either label is as good


@dataclass(frozen=True)
class Bound:
    """relative: of the largest difference in an output to the largest value in it. agreement: share of labels."""

    relative: float
    agreement: float


# fp16 keeps 11 bits, which 20 layers wear down to 7 or so. INT8 does not give the same answers, only near ones: the
# face encoder, the one model that passes, differs by 0.11 and keeps 99.6 % of its labels; the others by 0.68 and more.
BOUNDS = {"fp32": Bound(1e-3, 1.0), "fp16": Bound(2e-2, 0.995), "int8": Bound(0.2, 0.99)}


@dataclass(frozen=True)
class ParityResult:
    samples: int
    relative: dict[str, float]  # output → largest difference, relative to the largest value of that output
    sure: int  # samples whose fp32 margin is above MARGIN; 0 for a model without labels
    agreement: float  # of labels, among those
    refusal: str  # "" when it passed

    def figures(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "largest_relative_difference": round(max(self.relative.values(), default=0.0), 8),
            "sure_samples": self.sure,
            "label_agreement": round(self.agreement, 5),
        }

    def __str__(self) -> str:
        worst = max(self.relative.values(), default=0.0)
        labels = f", labels agree in {self.agreement:.1%} of {self.sure} sure ones" if self.sure else ""
        return f"{self.samples} samples: largest relative difference {worst:.1e}{labels}"


def compare(
    engine: Engine,
    reference: Engine,
    samples: Iterable[Tensors],
    *,
    precision: str,
    temperature: float = 1.0,
    labels: str = "logits",
    log_probs: bool = False,
) -> ParityResult:
    """samples: batches of inputs; the batch is the first size of every output. labels: the output that holds logits.
    log_probs: that output holds log-probabilities, whose tails rounding moves far: they are compared as probabilities.
    """
    count, sure, agreed = 0, 0, 0
    difference: dict[str, float] = {}
    scale: dict[str, float] = {}
    for inputs in samples:
        theirs, ours = engine.run(inputs), reference.run(inputs)
        count += max(len(value) for value in ours.values())
        for name, value in ours.items():
            other = theirs[name].astype(np.float64)
            if log_probs and name == labels and other.shape == value.shape:
                value, other = _probabilities(value), _probabilities(other)
            # Against the poison that a runner leaves in what an engine did not write: a NaN is never near.
            apart = np.abs(other - value) if other.shape == value.shape else np.array([np.inf])
            difference[name] = max(difference.get(name, 0.0), float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0)))
            scale[name] = max(scale.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
        if labels in ours and theirs[labels].shape == ours[labels].shape:
            probs = _probabilities(ours[labels] / temperature)
            ordered = np.sort(probs, axis=1)
            certain = ordered[:, -1] - ordered[:, -2] > MARGIN
            sure += int(certain.sum())
            agreed += int((theirs[labels].argmax(axis=1) == probs.argmax(axis=1))[certain].sum())
    relative = {
        name: difference[name] / scale[name] if scale[name] else float(difference[name] > 0) for name in difference
    }
    agreement = agreed / sure if sure else 1.0
    return ParityResult(count, relative, sure, agreement, _refusal(count, relative, sure, agreement, precision))


def compare_with_reference(engine: Engine, path: Path, samples: Samples | None, *, precision: str = "") -> ParityResult:
    """With ONNX Runtime on the CPU and the model's fp32 file. precision: default: what the file's name says. samples:
    None for a model that has none; the comparison is then on noise."""
    reference_path = full_precision(path)
    reference = Onnxruntime(reference_path, threads=1, device="cpu")
    manifest = Manifest.read(path) if METADATA_KEY in OnnxFile.read(path).metadata else None
    temperature = manifest.temperature if manifest else 1.0
    log_probs = manifest is not None and any("log-probabilities" in output.meaning for output in manifest.outputs)
    batches = samples() if samples is not None else noise(reference)
    return compare(
        engine,
        reference,
        batches,
        precision=precision or precision_of(path),
        temperature=temperature,
        log_probs=log_probs,
    )


def noise(engine: Engine, *, seed: int = 0) -> list[Tensors]:
    """Seeded normal noise of the engine's input shapes; a free size is taken for 1."""
    random = np.random.default_rng(seed)
    shapes = {name: tuple(s if isinstance(s, int) else 1 for s in shape) for name, shape in engine.inputs.items()}
    return [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(MIN_SAMPLES)
    ]


def _refusal(count: int, relative: dict[str, float], sure: int, agreement: float, precision: str) -> str:
    bound = BOUNDS[precision]
    if count < MIN_SAMPLES:
        return f"only {count} samples were compared, at least {MIN_SAMPLES} are needed"
    if not relative:
        raise ConfigError("the engine has no outputs to compare")
    name, worst = max(relative.items(), key=lambda item: item[1])
    if not worst <= bound.relative:
        return (
            f"output '{name}' differs by {worst:.2g} of its largest value from ONNX Runtime fp32, "
            f"at most {bound.relative:g} is allowed"
        )
    if agreement < bound.agreement:
        return f"labels agree in {agreement:.1%} of {sure} sure samples, at least {bound.agreement:.1%} are needed"
    return ""


def _probabilities(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In float64, so that the comparison itself rounds nothing away."""
    return softmax(logits.astype(np.float64))
