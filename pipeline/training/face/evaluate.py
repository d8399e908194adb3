"""Evaluates a shipped face model in the live engine, with one thread and the live preprocessing. Needs no torch.

The figures are accuracy, macro-F1 (every class has the same weight) and the calibration error of the probabilities,
with the temperature of the manifest.

Example:
    evaluate_face()["publictest_accuracy"]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.preprocessing import face_tensor
from pipeline.training.data.faces import FACE_CLASSES, load_faces
from pipeline.training.data.folder import data_folder
from pipeline.training.evaluation.classifier_figures import figures
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import markdown, score

FACE_MODEL = MODELS / "face-expression.onnx"


def evaluate_face(model: Path = FACE_MODEL, data: Path | None = None) -> dict[str, float]:
    """Figures of the shipped face model on FER2013's official PublicTest, which was not used for training or selection.

    Returns publictest_accuracy (and its standard error), publictest_macro_f1, publictest_ece and recall_<label>, all 0
    to 1. Raises ConfigError when the model or the data is missing or the labels differ.
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
    """Print these figures as a table with 95 % intervals over faces; write them to `out` and a chart beside it."""
    measured, manifest = evaluate_face(model, data), Manifest.read(model)
    faces = load_faces(data_folder(data), "publictest48")
    logits = face_logits(model, faces.images) / manifest.temperature
    table = {manifest.id: {"face": score(logits, faces.labels, np.arange(len(faces)), seed=seed)}}
    print(markdown(table))
    write(table, out, title="FER2013 PublicTest")
    return measured


def face_logits(model: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """images: (n, 48, 48) -> (n, 7) float32."""
    engine = load(model, backend="onnxruntime")
    batches = [images[start : start + 64] for start in range(0, len(images), 64)]
    return np.concatenate([engine.run({"face": face_tensor(batch)})["logits"] for batch in batches])
