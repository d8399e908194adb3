"""Measures a shipped model the way the live pipeline runs it: the same engine, one thread, the same features.

Needs no torch. The figures of a classifier are accuracy, macro-F1 (every class counts the same, rare ones too) and the
calibration error of its probabilities after the temperature in its manifest.

    evaluate_face()["publictest_accuracy"]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.load import load
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.preprocessing import face_tensor
from pipeline.training.data.datasets import FACE_CLASSES, data_folder, load_faces

FACE_MODEL = MODELS / "face-expression.onnx"
CALIBRATION_BINS = 15

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def evaluate_face(model: Path = FACE_MODEL, data: Path | None = None) -> dict[str, float]:
    """The shipped face model on FER2013's official PublicTest, which trained nothing and chose nothing.

    Returns publictest_accuracy (and its standard error), publictest_macro_f1, publictest_ece and recall_<label>, all
    0 to 1. Raises ConfigError when the model or the data is missing or the labels are others.
    """
    manifest = Manifest.read(model)
    if manifest.labels != FACE_CLASSES:
        raise ConfigError(
            f"{model}: its labels are {manifest.labels}, FER2013's are {FACE_CLASSES}. Give a face-expression model."
        )
    faces = load_faces(data_folder(data), "publictest48")
    logits = face_logits(model, faces.images)
    measured = figures(logits, faces.labels, temperature=manifest.temperature)
    accuracy = measured["accuracy"]
    result = {f"publictest_{name}": value for name, value in measured.items()}
    result["publictest_accuracy_standard_error"] = (accuracy * (1 - accuracy) / len(faces)) ** 0.5
    predicted = logits.argmax(axis=1)
    for index, label in enumerate(FACE_CLASSES):
        result[f"recall_{label}"] = float((predicted[faces.labels == index] == index).mean())
    return result


def report_face(
    *, model: Path = FACE_MODEL, data: Path | None = None, out: Path = Path("runs/face/publictest.json"), seed: int = 1
) -> dict[str, float]:
    """The same, printed as a table with 95 % intervals over faces; `out`: a JSON file, and a picture beside it."""
    from pipeline.training.evaluation.report import write  # these two build on this module
    from pipeline.training.evaluation.scores import markdown, score

    measured, manifest = evaluate_face(model, data), Manifest.read(model)
    faces = load_faces(data_folder(data), "publictest48")
    logits = face_logits(model, faces.images) / manifest.temperature
    table = {manifest.id: {"face": score(logits, faces.labels, np.arange(len(faces)), seed=seed)}}
    print(markdown(table))
    write(table, out, title="FER2013 PublicTest")
    return measured


def face_logits(model: Path, images: npt.NDArray[np.uint8]) -> Logits:
    """images: (n, 48, 48) -> (n, 7) float32."""
    engine = load(model, backend="onnxruntime")
    batches = [images[start : start + 64] for start in range(0, len(images), 64)]
    return np.concatenate([engine.run({"face": face_tensor(batch)})["logits"] for batch in batches])


def figures(logits: Logits, labels: Labels, *, temperature: float) -> dict[str, float]:
    """accuracy, macro_f1 and ece of (n, classes) logits against (n,) labels."""
    probs = softmax(logits / temperature)
    predicted = probs.argmax(axis=1)
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": macro_f1(predicted, labels, classes=logits.shape[1]),
        "ece": expected_calibration_error(probs, labels),
    }


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Over the last axis, in float64."""
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def macro_f1(predicted: Labels, labels: Labels, *, classes: int) -> float:
    """The mean over classes of F1; a class that is neither there nor predicted counts as 0."""
    scores = []
    for index in range(classes):
        hits = int(((predicted == index) & (labels == index)).sum())
        found, there = int((predicted == index).sum()), int((labels == index).sum())
        scores.append(2 * hits / (found + there) if found + there else 0.0)
    return float(np.mean(scores))


def expected_calibration_error(probs: npt.NDArray[np.float64], labels: Labels) -> float:
    """How far the probability of the winner is from how often it is right: the mean gap over 15 equal bins, weighted by
    their share of the answers (Guo 2017)."""
    confidence = probs.max(axis=1)
    right = (probs.argmax(axis=1) == labels).astype(np.float64)
    bin_of = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = 0.0
    for index in range(CALIBRATION_BINS):
        inside = bin_of == index
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(error)


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The one number that, dividing the logits, makes their probabilities fit the labels best (least negative log
    likelihood). It changes no answer, only how sure it sounds. Searched from 0.25 to 4 in steps of 1 %."""
    candidates = np.exp(np.arange(np.log(0.25), np.log(4.0), 0.01))
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits / t)[rows, labels] + 1e-12).mean() for t in candidates]
    return float(candidates[int(np.argmin(losses))])
