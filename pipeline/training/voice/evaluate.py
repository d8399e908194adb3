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
    """A shipped model on every clip of `data`, through the live engine; speakers it was trained on apart from the others,
    for only these say how right it is."""
    told = Manifest.read(model)
    if not set(told.labels) <= set(FACE_CLASSES) or [tensor.name for tensor in told.inputs] != ["voice"]:
        raise ConfigError(
            f"{model}: not a voice model: its inputs are {[t.name for t in told.inputs]}, its labels {told.labels}. "
            "Give one that train voice made."
        )
    speech = load_speech(data_folder(data), speeds=(1.0,))
    logits = voice_logits(model, speech) / told.temperature
    trained_on = np.isin(speech.speakers, told.training_data.split())
    table: dict[str, dict[str, Scores]] = {}
    for corpus in ("ravdess", "emodb"):
        for heard, said in ((False, "speakers never heard"), (True, "SPEAKERS IT WAS TRAINED ON")):
            rows = np.flatnonzero(speech.of(corpus) & (trained_on == heard))
            here = [i for i, label in enumerate(told.labels) if FACE_CLASSES.index(label) in speech.labels[rows]]
            known = np.array([told.labels.index(label) if label in told.labels else -1 for label in FACE_CLASSES])[
                speech.labels
            ]
            rows = rows[known[rows] >= 0]
            if not len(rows):
                continue
            decisions = np.isin(speech.due_clip, rows)
            clip = speech.due_clip[decisions]
            short = np.searchsorted(here, known)
            table[f"{corpus}, {said}, {len(here)} labels"] = {
                "clip": score(
                    clip_means(logits[decisions][:, here], clip, rows), short[rows], speech.speakers[rows], seed=seed
                ),
                "decision": score(logits[decisions][:, here], short[clip], speech.speakers[clip], seed=seed),
            }
    print(f"{told.id}\n{markdown(table)}")
    write(table, out, title=told.id)
    return table


def voice_logits(model: Path, speech: Speech) -> Floats:
    """(decisions, labels), as the live engine answers."""
    engine = load(model, backend="onnxruntime")
    logits = []
    for clip, due in zip(speech.due_clip, speech.due, strict=True):
        mel = speech.columns(int(clip), int(due), VOICE_FRAMES)
        logits.append(engine.run({"voice": voice_columns(mel, np.ones(mel.shape[1], bool))[None]})["logits"])
    return np.concatenate(logits)
