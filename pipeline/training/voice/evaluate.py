"""Measures a shipped voice model on every clip of a folder, through the live engine.

Example:
    python run_pipeline.py evaluate voice --data DIR --model models/voice-expression.onnx
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.preprocessing import VOICE_FRAMES, voice_columns
from pipeline.training.data.faces import FACE_CLASSES
from pipeline.training.data.folder import data_folder
from pipeline.training.data.speech import Speech, load_speech
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, clip_means, markdown, score

VOICE_MODEL = MODELS / "voice-expression.onnx"

Floats = npt.NDArray[np.float32]


def evaluate_voice(
    *, model: Path = VOICE_MODEL, data: Path | None = None, out: Path = Path("runs/voice/evaluated.json"), seed: int = 1
) -> dict[str, dict[str, Scores]]:
    """Scores of a shipped model, separately for the speakers in its training data: only the others show its accuracy.

    Args:
        model: The ONNX file, with its manifest.
        data: The folder of the clips.
        out: A JSON file for the scores; a chart is written beside it.
        seed: Of the bootstrap.
    """
    manifest = Manifest.read(model)
    if not set(manifest.labels) <= set(FACE_CLASSES) or [tensor.name for tensor in manifest.inputs] != ["voice"]:
        raise ConfigError(
            f"{model}: not a voice model: its inputs are {[t.name for t in manifest.inputs]}, its labels "
            f"{manifest.labels}. Give a model of `train voice`."
        )
    speech = load_speech(data_folder(data), speeds=(1.0,))
    logits = voice_logits(model, speech) / manifest.temperature
    trained_on = np.isin(speech.speakers, manifest.training_data.split())
    table: dict[str, dict[str, Scores]] = {}
    for corpus in ("ravdess", "emodb"):
        for in_training, which_speakers in ((False, "unseen speakers"), (True, "SPEAKERS IT WAS TRAINED ON")):
            rows = np.flatnonzero(speech.of(corpus) & (trained_on == in_training))
            label_rows = [
                i for i, label in enumerate(manifest.labels) if FACE_CLASSES.index(label) in speech.labels[rows]
            ]
            known = np.array(
                [manifest.labels.index(label) if label in manifest.labels else -1 for label in FACE_CLASSES]
            )[speech.labels]
            rows = rows[known[rows] >= 0]
            if not len(rows):
                continue
            decisions = np.isin(speech.due_clip, rows)
            clip = speech.due_clip[decisions]
            label_index = np.searchsorted(label_rows, known)
            table[f"{corpus}, {which_speakers}, {len(label_rows)} labels"] = {
                "clip": score(
                    clip_means(logits[decisions][:, label_rows], clip, rows),
                    label_index[rows],
                    speech.speakers[rows],
                    seed=seed,
                ),
                "decision": score(
                    logits[decisions][:, label_rows], label_index[clip], speech.speakers[clip], seed=seed
                ),
            }
    print(f"{manifest.id}\n{markdown(table)}")
    write(table, out, title=manifest.id)
    return table


def voice_logits(model: Path, speech: Speech) -> Floats:
    """(decisions, labels) logits of the live engine."""
    engine = load(model, backend="onnxruntime")
    logits = []
    for clip, due in zip(speech.due_clip, speech.due, strict=True):
        mel = speech.columns(int(clip), int(due), VOICE_FRAMES)
        logits.append(engine.run({"voice": voice_columns(mel, np.ones(mel.shape[1], bool))[None]})["logits"])
    return np.concatenate(logits)
