"""Evaluates the shipped fusion with degraded pictures and degraded or missing sound, condition by condition.

Example:
    python run_pipeline.py evaluate degradation --seed 1

Pseudo-pairs as in train.py, with actors and faces that were not used for fitting. The fusion with the live quality
weights is compared with one that weights both modalities fully: the quality weights are useful only where they are
better. A missing picture leaves the voice alone, however long it lasts; the conditions of the sound are in
degradation_sound.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.quality import face_quality
from pipeline.preprocessing import FACE_PX
from pipeline.training.data.faces import FACE_CLASSES
from pipeline.training.data.folder import data_folder
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.face.evaluate import FACE_MODEL, face_logits
from pipeline.training.fusion import degradation_sound
from pipeline.training.fusion import train as fusion
from pipeline.training.fusion.fusion_adapter import FusionAdapter

Image = npt.NDArray[np.uint8]
VOICE_MODEL = FACE_MODEL.with_name("voice-expression.onnx")


def blurred(sigma_px: float) -> Callable[[Image], Image]:
    return lambda face: np.asarray(cv2.GaussianBlur(face, (0, 0), sigma_px), np.uint8)


def small(side_px: int) -> Callable[[Image], Image]:
    def shrink(face: Image) -> Image:
        tiny = cv2.resize(face, (side_px, side_px), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(tiny, (FACE_PX, FACE_PX), interpolation=cv2.INTER_LINEAR), np.uint8)

    return shrink


def dark(face: Image) -> Image:
    noise = np.random.default_rng(int(face.sum())).normal(0, 3, face.shape)
    return np.asarray((face * 0.1 + noise).clip(0, 255), np.uint8)


def covered(rows: slice) -> Callable[[Image], Image]:
    def cover(face: Image) -> Image:
        hidden = face.copy()
        hidden[rows] = 128
        return hidden

    return cover


# Condition → how the picture is degraded, and the size of the face in it, in pixels.
CONDITIONS: dict[str, tuple[Callable[[Image], Image], float]] = {
    "clean": (lambda face: face, FACE_PX),
    "face blurred, σ 1.5 px of 48": (blurred(1.5), FACE_PX),
    "face blurred, σ 3 px of 48": (blurred(3.0), FACE_PX),
    "face 20 px": (small(20), 20),
    "face dark and noisy": (dark, FACE_PX),
    "mouth covered": (covered(slice(30, 48)), FACE_PX),
    "eyes covered": (covered(slice(8, 24)), FACE_PX),
}


def evaluate_degradation(
    *,
    data: Path | None = None,
    seed: int = 1,
    out: Path = Path("runs/fusion/degradation.json"),
    face_model: Path = FACE_MODEL,
    voice_model: Path = VOICE_MODEL,
    voice_rows: Path = fusion.VOICE_ROWS,
) -> dict[str, dict[str, Scores]]:
    """condition → which prediction → scores."""
    torch.set_num_threads(1)
    folder = data_folder(data)
    faces = fusion.held_back_faces(face_model, folder)
    temperature = Manifest.read(face_model).temperature
    face = fusion.log_probs(face_logits(face_model, faces.images) / temperature)
    voice, voice_labels, speakers = fusion.voice_opinions(voice_rows)
    pairs = fusion.pseudo_pairs(face, faces.labels, voice, voice_labels, speakers, seed=seed)
    fitted = [
        (fusion.fitted_adapter(fusion.core_from_votes(folder, seed=seed), pairs.take(train)), test)
        for train, test in fusion.splits(pairs, seed=seed)
    ]
    tested = np.concatenate([test for _, test in fitted])
    table: dict[str, dict[str, Scores]] = {}

    def add(condition: str, prediction: str, logits: npt.NDArray[np.floating]) -> None:
        table.setdefault(condition, {})[prediction] = score(
            logits, pairs.labels[tested], pairs.speakers[tested], seed=seed
        )

    for condition, (degrade, side_px) in CONDITIONS.items():
        degraded = np.stack([degrade(image) for image in faces.images])
        face_log_probs = fusion.log_probs(face_logits(face_model, degraded) / temperature)[pairs.face_row]
        weight = quality(degraded, side_px=side_px)[pairs.face_row]
        for prediction, weights in (("both", weight), ("both, quality ignored", np.ones_like(weight))):
            present = np.stack([weights, np.ones_like(weights)], 1)
            add(
                condition,
                prediction,
                np.concatenate(
                    [
                        adapter.predict(face_log_probs[rows], pairs.voice[rows], present[rows])
                        for adapter, rows in fitted
                    ]
                ),
            )
        add(condition, "voice absent", face_log_probs[tested])
    add("face absent: picture out 0.5, 2 or 5 s, no face in view", "face absent", pairs.voice[tested])
    face_weight = quality(faces.images)[pairs.face_row]
    add_sound(
        table,
        pairs,
        fitted,
        *degradation_sound.opinions_by_condition(folder, voice_model),
        face_weight=face_weight,
        seed=seed,
    )
    print(f"labels: {', '.join(FACE_CLASSES)}; {len(tested)} pseudo-pairs\n{markdown(table)}")
    write(table, out, title="Degraded pseudo-pairs")
    return table


def quality(images: Image, *, side_px: float = FACE_PX) -> npt.NDArray[np.float32]:
    """(n, 48, 48) -> (n,) live weights."""
    return np.array([face_quality(image, side_px=side_px)[0] for image in images], np.float32)


def add_sound(
    table: dict[str, dict[str, Scores]],
    pairs: fusion.Pairs,
    fitted: list[tuple[FusionAdapter, fusion.Rows]],
    clips: fusion.Rows,
    opinions_by_condition: dict[str, tuple[fusion.Floats, fusion.Floats]],
    *,
    face_weight: fusion.Floats,
    seed: int,
) -> None:
    """One row for each condition of the sound, over the tested pairs whose clip is in it; faces are not degraded."""
    place = np.full(int(pairs.clip_row.max()) + 1, -1)
    place[clips] = np.arange(len(clips))
    for condition, (log_probs, weight) in opinions_by_condition.items():
        predictions: dict[str, list[npt.NDArray[np.floating]]] = {
            "both": [],
            "both, quality ignored": [],
            "voice alone": [],
        }
        used = []
        for adapter, test in fitted:
            rows = test[place[pairs.clip_row[test]] >= 0]
            at = place[pairs.clip_row[rows]]
            voice, counts = log_probs[at], weight[at]
            for name, present in (
                ("both", np.stack([face_weight[rows], counts], 1)),
                ("both, quality ignored", np.stack([np.ones(len(rows)), counts > 0], 1)),
            ):
                predictions[name].append(adapter.predict(pairs.face[rows], voice, present.astype(np.float32)))
            predictions["voice alone"].append(voice)
            used.append(rows)
        rows = np.concatenate(used)
        table[f"sound: {condition}"] = {
            name: score(np.concatenate(each), pairs.labels[rows], pairs.speakers[rows], seed=seed)
            for name, each in predictions.items()
        }
