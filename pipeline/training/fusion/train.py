"""Trains the live fusion of face and voice, from people's votes and our encoders' outputs to the shipped ONNX file.

Example:
    python run_pipeline.py train fusion --seed 1
    # on your own data: train_family.py
    python run_pipeline.py train fusion --data FOLDER --family cross --out my.onnx

The meaning of a face and a voice together is learnt from human votes (data/votes.py), where both opinions are about one
moment. The adapter to our encoders (fusion_adapter.py) is fitted on outputs for faces and voices that are not in the
encoders' training data: the face model's validation faces, and the voice folds' out-of-fold decisions. No recording
here has both, so a face and a clip of the same label make a pseudo-pair: the two senses are then independent given the
label, which those of one person are not, and every gain measured on them is an upper bound. Folds are by actor and by
face; a fusion that is not better than its best single modality is not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.installation import COMMAND
from pipeline.probabilities import softmax
from pipeline.training.data.faces import FACE_CLASSES, Faces, load_faces, near_duplicate_groups, split_by_group
from pipeline.training.data.folder import data_folder
from pipeline.training.data.rows import OWN_FORMAT
from pipeline.training.data.votes import folds, load_votes
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.face.evaluate import FACE_MODEL, face_logits
from pipeline.training.face.train import HELD_BACK
from pipeline.training.fusion import evaluate_votes
from pipeline.training.fusion.evaluate import area
from pipeline.training.fusion.fit import Examples, Recipe, fit, predict
from pipeline.training.fusion.fusion_adapter import FusionAdapter, export_adapter, opinions_of
from pipeline.training.fusion.nets import FusionNet
from pipeline.training.fusion.state import Modality
from pipeline.training.fusion.train_family import MIN_AGREEMENT_AUC, train_family

MODEL = FACE_MODEL.with_name("fusion-expression.onnx")
VOICE_ROWS = Path("runs/voice/out_of_fold.npz")  # written by voice/export.py
FOLDS = 5
FACES_PER_CLIP = 8
CORE = "hybrid"
ADAPTED = "votes and adapter"
MODALITIES = tuple(Modality(name, len(FACE_CLASSES), opinion=True) for name in ("face", "voice"))
PAIRED = Recipe(epochs=15, batch=256, rate=5e-3, distil=0.0)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pseudo-pairs. face, voice: (n, 7) log-probabilities. labels, speakers: (n,). face_row, clip_row: indices."""

    face: Floats
    voice: Floats
    labels: Rows
    speakers: npt.NDArray[np.str_]
    face_row: Rows
    clip_row: Rows

    def take(self, rows: Rows) -> Pairs:
        return Pairs(
            self.face[rows],
            self.voice[rows],
            self.labels[rows],
            self.speakers[rows],
            self.face_row[rows],
            self.clip_row[rows],
        )


def train(
    *,
    data: Path | None = None,
    out: Path = MODEL,
    seed: int = 1,
    face_model: Path = FACE_MODEL,
    voice_rows: Path = VOICE_ROWS,
    runs: Path = Path("runs/fusion"),
    family: str | None = None,
    format: str = OWN_FORMAT,
    epochs: int = 30,
) -> dict[str, dict[str, Scores]]:
    """Evaluate every method on pseudo-pairs, then fit the adapter on all of them and export the fusion.

    Args:
        data: The folder of the training data; with a family, the user's own data set.
        out: The ONNX file.
        seed: Of the folds, the pairs and the training.
        face_model: The face encoder.
        voice_rows: The out-of-fold outputs of `train voice`.
        runs: Folder of pairs.json.
        family: Train this family on the data set `data` instead.
        format: Format of that data set, as in data.rows.load_rows.
        epochs: Of that family.

    Returns method → present → scores. Raises ConfigError when outputs of an encoder are missing, or the fusion is
    refused.
    """
    if family is not None:
        if data is None or out == MODEL:
            raise ConfigError(
                "--family is for data of your own: give --data FOLDER too, and --out FILE.onnx for the result."
            )
        return train_family(data=data, format=format, out=out, family=family, seed=seed, epochs=epochs)
    torch.set_num_threads(1)
    folder = data_folder(data)
    faces = held_back_faces(face_model, folder)
    face = log_probs(face_logits(face_model, faces.images) / Manifest.read(face_model).temperature)
    voice, voice_labels, speakers = voice_opinions(voice_rows)
    core = core_from_votes(folder, seed=seed)
    pairs = pseudo_pairs(face, faces.labels, voice, voice_labels, speakers, seed=seed)
    print(
        f"fusion: {len(face)} validation faces, {len(voice)} clips of {len(set(speakers))} unseen actors, "
        f"{len(pairs.labels)} pseudo-pairs",
        flush=True,
    )
    table = judge(pairs, core, seed=seed)
    print(markdown(table))
    write(table, runs / "pairs.json", title="Pseudo-pairs of faces and unseen actors' clips")
    best_single, fused = (
        max(table["face alone"]["face"].accuracy, table["voice alone"]["voice"].accuracy),
        table[ADAPTED]["both"],
    )
    if fused.accuracy <= best_single:
        raise ConfigError(
            f"fusion: {fused.accuracy:.1%} on pseudo-pairs is not above {best_single:.1%}, "
            "its best single modality: not shipped. Set fusion: average, or train better encoders."
        )
    adapter, auc = fitted_adapter(core, pairs), agreement_auc(pairs, seed=seed)
    with_agreement = auc >= MIN_AGREEMENT_AUC
    adapter.coordinated = trained_on_pairs("coordinated", pairs, seed=seed) if with_agreement else None
    print(
        f"agreement of face and voice: AUC {auc:.3f} for one label against two, on unseen actors and faces: "
        + ("reported live" if with_agreement else f"below {MIN_AGREEMENT_AUC}, so it is left out")
    )
    export_adapter(adapter, out, len(FACE_CLASSES))
    meaning = "calibrated natural log-probabilities of the labels"
    sizes = {"face": ("n", 1, len(FACE_CLASSES)), "voice": ("n", 1, len(FACE_CLASSES))}
    manifest = Manifest(
        name=out.stem,
        task="emotion",
        inputs=(
            *(TensorInfo(name, shape, "float32", f"{name}: {meaning}") for name, shape in sizes.items()),
            TensorInfo(
                "present", ("n", 2), "float32", "weight of face and voice, 0 = absent, 1 = present, good quality"
            ),
        ),
        outputs=(
            TensorInfo("logits", ("n", len(FACE_CLASSES)), "float32", "natural log-probabilities of both together"),
            *(
                [TensorInfo("agreement", ("n", 1), "float32", "-1 to 1: how well the voice agreement the face")]
                if with_agreement
                else []
            ),
        ),
        labels=FACE_CLASSES,
        temperature=1.0,
        training_data=f"CREMA-D votes about 72 actors (ODbL); adapter: held-back outputs of "
        f"{Manifest.read(face_model).id}, out-of-fold outputs of the voice network on RAVDESS",
        licence="weights Apache-2.0; 27 of them were fitted on outputs for RAVDESS clips (CC BY-NC-SA 4.0): "
        "not for commercial use",
        made_by=f"python run_pipeline.py train fusion --seed {seed}",
        metrics={"agreement_auc": round(auc, 4)}
        | {
            f"pseudo_pairs_{what}_{name}": round(float(getattr(scores, name)), 4)
            for what, scores in (
                ("fused", fused),
                ("face", table["face alone"]["face"]),
                ("voice", table["voice alone"]["voice"]),
            )
            for name in ("accuracy", "uar", "macro_f1", "log_loss", "ece")
        },
    )
    manifest.write(out)
    print(f"{out}: {manifest.metrics}", flush=True)
    return table


def core_from_votes(folder: Path, *, seed: int) -> FusionNet:
    """The core network, trained on all votes."""
    core = evaluate_votes.network(CORE, seed=seed)
    fit(core, evaluate_votes.examples(load_votes(folder)), evaluate_votes.RECIPE, seed=seed)
    return core


def held_back_faces(model: Path, folder: Path) -> Faces:
    """The validation faces of the face model: they are not in its training data."""
    manifest = Manifest.read(model)
    if "--seed" not in manifest.made_by:
        raise ConfigError(f"{model}: its manifest does not say with which --seed faces were held back. Train it again.")
    held_back_seed = int(manifest.made_by.split("--seed")[1].split()[0])
    faces = load_faces(folder, "train48")
    return faces.take(split_by_group(near_duplicate_groups(faces.images), fraction=HELD_BACK, seed=held_back_seed)[1])


def voice_opinions(path: Path) -> tuple[Floats, Rows, npt.NDArray[np.str_]]:
    """(m, 7) mean log-probabilities of each RAVDESS clip, from networks trained without its actor; labels; actors."""
    if not path.is_file():
        raise ConfigError(f"{path}: does not exist. Make it with: {COMMAND} train voice")
    with np.load(path, allow_pickle=False) as rows:
        ravdess = np.char.startswith(rows["clip_speaker"], "ravdess")
        meaning = log_probs(rows["clip_log_probs"][ravdess].astype(np.float32))
        return meaning, rows["clip_label"][ravdess].astype(np.int64), rows["clip_speaker"][ravdess]


def log_probs(logits: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(np.log(np.maximum(softmax(logits.astype(np.float64)), 1e-7)), np.float32)


def pseudo_pairs(
    face: Floats, face_labels: Rows, voice: Floats, voice_labels: Rows, speakers: npt.NDArray[np.str_], *, seed: int
) -> Pairs:
    """Each clip with FACES_PER_CLIP faces of its label."""
    random = np.random.default_rng(seed)
    chosen = np.stack([random.choice(np.flatnonzero(face_labels == label), FACES_PER_CLIP) for label in voice_labels])
    clip = np.repeat(np.arange(len(voice)), FACES_PER_CLIP)
    rows = chosen.ravel()
    return Pairs(face[rows], voice[clip], voice_labels[clip], speakers[clip], rows, clip)


def judge(pairs: Pairs, core: FusionNet, *, seed: int) -> dict[str, dict[str, Scores]]:
    """Scores of every method on actors and faces that were not used for fitting."""
    face, voice = pairs.face, pairs.voice
    predictions: dict[str, dict[str, npt.NDArray[np.floating]]] = {
        "face alone": {"face": face},
        "voice alone": {"voice": voice},
        "average (no training)": {"both": np.log((np.exp(face) + np.exp(voice)) / 2)},
        "product (no training)": {"both": face + voice},
    }
    fitted: dict[str, Callable[[Pairs, Pairs], npt.NDArray[np.floating]]] = {
        ADAPTED: partial(adapted, core),
        **{
            f"{family}, on pseudo-pairs": partial(paired, family, seed=seed)
            for family in ("weighted", "stacked", "hybrid")
        },
    }
    counted = np.zeros(len(pairs.labels), bool)
    for name in fitted:
        predictions[name] = {"both": np.zeros_like(face)}
    for rows, test in splits(pairs, seed=seed):
        counted[test] = True
        for name, method in fitted.items():
            predictions[name]["both"][test] = method(pairs.take(rows), pairs.take(test))
    return {
        name: {
            what: score(logits[counted], pairs.labels[counted], pairs.speakers[counted], seed=seed)
            for what, logits in by.items()
        }
        for name, by in predictions.items()
    }


def splits(pairs: Pairs, *, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """(training rows, test rows): neither the actor nor the face of a test pair is in the training rows."""
    actors = np.unique(pairs.speakers, return_inverse=True)[1].astype(np.int64)
    face_fold = np.random.default_rng(seed).integers(0, FOLDS, int(pairs.face_row.max()) + 1)[pairs.face_row]
    for fold, (others, held) in enumerate(folds(actors, count=FOLDS, seed=seed)):
        yield others[face_fold[others] != fold], held[face_fold[held] == fold]


def fitted_adapter(core: FusionNet, pairs: Pairs) -> FusionAdapter:
    adapter = FusionAdapter(core, FACE_CLASSES)
    adapter.fit(pairs.face, pairs.voice, pairs.labels)
    return adapter


def adapted(core: FusionNet, train: Pairs, test: Pairs) -> Floats:
    return np.asarray(
        fitted_adapter(core, train).predict(test.face, test.voice, np.ones((len(test.labels), 2), np.float32))
    )


def paired(family: str, train: Pairs, test: Pairs, *, seed: int) -> Floats:
    """A family trained on pseudo-pairs alone."""
    return predict(
        trained_on_pairs(family, train, seed=seed), Examples.of(MODALITIES, (test.face, test.voice), test.labels)
    )


def trained_on_pairs(family: str, pairs: Pairs, *, seed: int) -> FusionNet:
    torch.manual_seed(seed)
    net = FusionNet(MODALITIES, len(FACE_CLASSES), family=family, layers=1)
    fit(net, Examples.of(MODALITIES, (pairs.face, pairs.voice), pairs.labels), PAIRED, seed=seed)
    return net


def agreement_auc(pairs: Pairs, *, seed: int) -> float:
    """AUC of the agreement: a face and a voice of one label against those of two, for unseen actors and faces."""
    random, agreements, same = np.random.default_rng(seed), [], []
    for train, test in splits(pairs, seed=seed):
        net, partner = trained_on_pairs("coordinated", pairs.take(train), seed=seed), random.permutation(test)
        with torch.no_grad():
            agreement = net(*opinions_of(pairs.face[test], pairs.voice[partner])).agreement[:, 0]
        agreements.append(agreement.numpy())
        same.append(pairs.labels[test] == pairs.labels[partner])
    return area(np.concatenate(agreements), np.concatenate(same)) or 0.0
