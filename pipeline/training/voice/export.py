"""Exports the voice networks, with temperatures and figures from out-of-fold predictions; `train voice` ends here.

The prediction for a clip is the mean log-probability over its decisions. The temperature of a fold is fitted on the
other folds, so that no figure uses labels that its temperature was fitted to; the shipped temperature is fitted on all
folds. A live opinion is the mean over about a second, between one decision and a whole clip; the temperature of the
seven-label model is therefore the geometric mean of the one for decisions and the one for clips.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES
from pipeline.training.data.faces import FACE_CLASSES
from pipeline.training.data.speech import Speech
from pipeline.training.evaluation.classifier_figures import fit_temperature
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, clip_means, markdown, score
from pipeline.training.export.onnx_export import export_network, sample_sound_windows
from pipeline.training.voice.net import VoiceNet

# Hyperparameters were chosen on these speakers, with networks trained on the other twelve actors (and the other five of
# EmoDB, or none of it): figures without these speakers are reported too.
CHOSEN_ON = (*(f"ravdess-{actor:02d}" for actor in (1, 2, 6, 7, 11, 12, 16, 17)), "emodb-03", "emodb-08", "emodb-12")

LICENCES = {
    "ravdess": "weights CC BY-NC-SA 4.0, as RAVDESS, on which they were trained: not for commercial use; the "
    "speaker encoder inside is Resemblyzer's, Apache-2.0",
    "emodb": "weights Apache-2.0; trained on EmoDB alone, which its publisher gives away as CC0",
}

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Predictions = Mapping[str, tuple[Floats, Ints]]  # network → (decisions, labels) logits, (decisions,) clip index


def calibrated(speech: Speech, predictions: Predictions, name: str, labels: Ints) -> tuple[Floats, Ints, float]:
    """The predictions of the folds, each divided by the temperature of the other folds, and the overall temperature."""
    folds = [prediction for part, prediction in predictions.items() if part.startswith(f"{name}-")]

    def temperature(of: list[tuple[Floats, Ints]]) -> float:
        logits, clip = np.concatenate([a for a, _ in of]), np.concatenate([c for _, c in of])
        of_decisions = fit_temperature(logits, labels[clip])
        if name == "emodb":  # its few hundred clips give a worse temperature than its decisions
            return of_decisions
        rows = np.unique(clip)
        return math.sqrt(of_decisions * fit_temperature(clip_means(logits, clip, rows), labels[rows]))

    if len(folds) < 2:
        raise ConfigError(
            f"voice: {len(set(speech.speakers))} speakers are too few for cross-validation over speakers. "
            "Give more clips."
        )
    scaled = [logits / temperature([other for other in folds if other[1] is not clip]) for logits, clip in folds]
    return np.concatenate(scaled), np.concatenate([clip for _, clip in folds]), temperature(folds)


def scored(speech: Speech, predictions: Predictions, *, seed: int) -> dict[str, dict[str, Scores]]:
    """Test set → "clip" or "decision" → scores. No speaker in a test set is in the training data of its network."""
    table: dict[str, dict[str, Scores]] = {}

    def add(what: str, logits: Floats, clip: Ints, rows: Ints, labels: Ints) -> None:
        inside = np.isin(clip, rows)
        table[what] = {
            "clip": score(clip_means(logits, clip, rows), labels[rows], speech.speakers[rows], seed=seed),
            "decision": score(logits[inside], labels[clip[inside]], speech.speakers[clip[inside]], seed=seed),
        }

    rows, emodb = np.arange(len(speech)), speech.of("emodb")
    logits, clip, temperature = calibrated(speech, predictions, "voice", speech.labels)
    add("RAVDESS, 7 labels", logits, clip, rows[~emodb], speech.labels)
    unused_for_choice = ~np.isin(speech.speakers, CHOSEN_ON)
    if (unused_for_choice & ~emodb).any():
        add(
            "RAVDESS, 7 labels, actors not used for any choice",
            logits,
            clip,
            rows[~emodb & unused_for_choice],
            speech.labels,
        )
    if "ravdess" in predictions:
        four = np.unique(speech.labels[emodb])
        label_index = np.searchsorted(four, speech.labels)
        logits, clip = predictions["ravdess"]
        add("RAVDESS → EmoDB, among its 4 labels", logits[:, four] / temperature, clip, rows[emodb], label_index)
        if (unused_for_choice & emodb).any():
            add(
                "RAVDESS → EmoDB, speakers not used for any choice",
                logits[:, four] / temperature,
                clip,
                rows[emodb & unused_for_choice],
                label_index,
            )
        add("RAVDESS → EmoDB, among all 7", logits / temperature, clip, rows[emodb], speech.labels)
        logits, clip, _ = calibrated(speech, predictions, "voice", speech.labels)
        add("EmoDB too, among its 4 labels", logits[:, four], clip, rows[emodb], label_index)
        logits, clip, _ = calibrated(speech, predictions, "emodb", label_index)
        add("EmoDB alone, 4 labels", logits, clip, rows[emodb], label_index)
    return table


def ship(
    speech: Speech,
    predictions: Predictions,
    nets: Mapping[str, VoiceNet],
    out: Path,
    runs: Path,
    *,
    command: str,
    seed: int,
) -> None:
    """Print and write the figures, and export each network with its figures in the manifest."""
    table = scored(speech, predictions, seed=seed)
    print(markdown(table))
    write(table, runs / "scores.json", title="Voice, unseen speakers")
    emodb = speech.of("emodb")
    for name, net in nets.items():
        path = out if name == "voice" else out.with_name(f"{out.stem}-emodb.onnx")
        labels = FACE_CLASSES if name == "voice" else tuple(FACE_CLASSES[i] for i in np.unique(speech.labels[emodb]))
        known = np.array([labels.index(label) if label in labels else -1 for label in FACE_CLASSES])[speech.labels]
        _, _, temperature = calibrated(speech, predictions, name, known)
        figures = (
            {"EmoDB alone, 4 labels": "emodb"}
            if name == "emodb"
            else {
                "RAVDESS, 7 labels": "ravdess",
                "RAVDESS, 7 labels, actors not used for any choice": "ravdess_fresh",
                "RAVDESS → EmoDB, among its 4 labels": "ravdess_to_emodb",
            }
        )
        training_speakers = speech.speakers if name == "voice" else speech.speakers[emodb]
        export_voice(net, path)
        embedding = sum(head.in_features for ensemble in net.ensembles for head in ensemble.heads)
        manifest(
            path,
            labels,
            embedding,
            temperature,
            sorted(set(training_speakers)),
            command,
            {
                f"{label_index}_{per}_{measure}": round(float(getattr(table[what][per], measure)), 4)
                for what, label_index in figures.items()
                if what in table
                for per in ("clip", "decision")
                for measure in ("uar", "accuracy", "macro_f1", "ece")
            },
        ).write(path)
        print(f"{path}: temperature {temperature:.2f}", flush=True)
    logits, clip, _ = calibrated(speech, predictions, "voice", speech.labels)
    rows = np.unique(clip)
    np.savez(
        runs / "out_of_fold.npz",
        decision_logits=logits,
        decision_clip=clip,
        clip_log_probs=clip_means(logits, clip, rows),
        clip_label=speech.labels[rows],
        clip_speaker=speech.speakers[rows],
        clip_name=speech.names[rows],
    )


def manifest(
    path: Path,
    labels: tuple[str, ...],
    embedding: int,
    temperature: float,
    speakers: list[str],
    command: str,
    metrics: dict[str, float],
) -> Manifest:
    nc = any(name.startswith("ravdess") for name in speakers)
    return Manifest(
        name=path.stem,
        task="emotion",
        inputs=(
            TensorInfo(
                "voice", ("n", 2, VOICE_BANDS, VOICE_FRAMES), "float32", "preprocessing.voice_tensor of the last 3 s"
            ),
        ),
        outputs=(
            TensorInfo("logits", ("n", len(labels)), "float32", "divide by the temperature, then softmax"),
            TensorInfo("embedding", ("n", embedding), "float32", "what the logits are a linear map of"),
        ),
        labels=labels,
        temperature=temperature,
        training_data=f"acted speech of {' '.join(speakers)}",
        licence=LICENCES["ravdess" if nc else "emodb"],
        made_by=command,
        windows_ms={"voice": VOICE_FRAMES * 10},
        metrics=metrics,
    )


def export_voice(net: VoiceNet, path: Path) -> None:
    """Write `voice` (n, 2, 64, 300) -> `logits` (n, labels), `embedding` (n, 512 a view), float32.

    Raises as export_face does.
    """
    export_network(copy.deepcopy(net).eval(), path, "voice", sample_sound_windows())
