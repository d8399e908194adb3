"""Trains the voice-expression networks, from the clips to the shipped ONNX files, top to bottom.

Example:
    python run_pipeline.py train voice --epochs 10 --seed 7           # may be stopped; continue with --resume

The features of a window are fixed (VIEWS), so they are computed once for all networks, and MLP ensembles are trained on
them. Two networks ship: one with seven labels, trained on RAVDESS and EmoDB, and one with EmoDB's four labels, trained
on EmoDB alone for its licence. For each, five more are trained without a fifth of the speakers; their predictions for
that fifth give the figures, the temperature and the training data of the fusion. One more is trained on RAVDESS alone
and tested on EmoDB. Nothing is selected on test data: the schedules are fixed, and the weights after the last epoch
ship.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.preprocessing import VOICE_FRAMES, voice_columns
from pipeline.training.data.faces import FACE_CLASSES
from pipeline.training.data.folder import data_folder
from pipeline.training.data.sound_augmentation import draw
from pipeline.training.data.speech import Speech, load_speech
from pipeline.training.mlp_ensemble import BATCH, MlpEnsemble, fit_ensemble
from pipeline.training.voice.evaluate import VOICE_MODEL
from pipeline.training.voice.export import ship
from pipeline.training.voice.net import VoiceAnalysis, VoiceNet
from pipeline.training.voice.speaker_encoder import SpeakerEncoder

COPIES = 12  # windows augmented of each clip
LABEL_SMOOTHING = 0.2  # people recognise acted speech in two cases of three
FOLDS = 5

# View → number of features, and the module that computes them.
MEASURED, ENCODED = "measured", "encoded"
VIEWS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    MEASURED: (VoiceAnalysis.MEASURES, VoiceAnalysis),
    ENCODED: (SpeakerEncoder.MEASURES, SpeakerEncoder.published),
}

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One network to train: its labels, its training and its test clips. Each view has an ensemble of its own."""

    name: str
    labels: tuple[str, ...]
    train: Ints
    test: Ints

    @property
    def views(self) -> tuple[str, ...]:
        """The EmoDB network is there for its free licence, so it uses no published weights."""
        return (MEASURED,) if self.name.startswith("emodb") else (MEASURED, ENCODED)


def parts(speech: Speech) -> list[Part]:
    """All networks to train; those that ship come last."""
    emodb, fold = speech.of("emodb"), np.zeros(len(speech), np.int64)
    for corpus in (emodb, ~emodb):
        # Consecutive names, so that every fold has odd and even RAVDESS actors: men and women.
        fold[corpus] = np.unique(speech.speakers[corpus], return_inverse=True)[1] % FOLDS
    everyone, rows = np.ones(len(speech), bool), np.flatnonzero

    def folds(name: str, labels: tuple[str, ...], who: npt.NDArray[np.bool_]) -> list[Part]:
        return [
            Part(f"{name}-{k}", labels, rows(who & (fold != k)), rows(who & (fold == k))) for k in np.unique(fold[who])
        ]

    networks = folds("voice", FACE_CLASSES, everyone)
    if emodb.any():
        four = tuple(label for i, label in enumerate(FACE_CLASSES) if (speech.labels[emodb] == i).any())
        networks += folds("emodb", four, emodb)
        networks += [Part("ravdess", FACE_CLASSES, rows(~emodb), rows(emodb))] if (~emodb).any() else []
        networks += [Part("emodb", four, rows(emodb), rows(emodb)[:0])]
    return [*networks, Part("voice", FACE_CLASSES, rows(everyone), rows(everyone)[:0])]


def train(
    *,
    data: Path | None = None,
    out: Path = VOICE_MODEL,
    epochs: int = 10,
    seed: int = 7,
    resume: bool = False,
    runs: Path = Path("runs/voice"),
    copies: int = COPIES,
) -> None:
    """Compute the features of every clip, train every network, and export `out` and, beside it, …-emodb.onnx.

    Args:
        data: The folder of the training data.
        out: The ONNX file of the seven-label network.
        epochs: Of every network; the schedule is fixed.
        seed: Of the augmentation and of the training.
        resume: Reuse the features and networks in `runs`.
        runs: Folder of features and checkpoints, out_of_fold.npz (training data of the fusion) and scores.json.
        copies: Augmented windows of each clip.

    Raises ConfigError when the data is missing or a checkpoint belongs to another run.
    """
    torch.set_num_threads(1)
    folder = data_folder(data)
    speech = load_speech(folder, cache=runs)
    networks = parts(speech)
    print(
        f"voice: {len(speech)} clips of {len(set(speech.speakers))} speakers, {len(networks)} networks to train",
        flush=True,
    )
    views = {name: compute() for name, (_, compute) in VIEWS.items()}
    augmented, live_features = {}, {}
    for name, view in views.items():
        augmented[name] = torch.cat(
            [measured(speech, name, view, runs, seed, copy, resume=resume) for copy in range(copies)]
        )
        live_features[name] = decisions(speech, name, view, runs, resume=resume)  # (decisions, features)
    nets, predictions = {}, {}
    for part in networks:
        ensembles = [
            trained(speech, augmented[view], part, view, runs, epochs=epochs, seed=seed, resume=resume)
            for view in part.views
        ]
        if len(part.test):
            inside = np.isin(speech.due_clip, part.test)
            logits = [
                predict(ensemble, live_features[view][inside])
                for view, ensemble in zip(part.views, ensembles, strict=True)
            ]
            predictions[part.name] = (np.stack(logits).mean(axis=0), speech.due_clip[inside])
        else:
            nets[part.name] = VoiceNet([views[view] for view in part.views], ensembles).eval()
    command = f"python run_pipeline.py train voice --epochs {epochs} --seed {seed}"
    ship(speech, predictions, nets, out, runs, command=command, seed=seed)


def measured(speech: Speech, name: str, view: nn.Module, runs: Path, seed: int, copy: int, *, resume: bool) -> Tensor:
    """(n, features): one augmented window of each clip, another for every copy; with `resume` from the file of an
    earlier run.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + copy)
    batches = torch.arange(len(speech)).split(64)
    return _cached(
        runs / f"{name}-{seed}-{copy}.npy",
        (len(speech), VIEWS[name][0]),
        resume,
        lambda: torch.cat([view(draw(speech, clips, generator)) for clips in batches]),
    )


def decisions(speech: Speech, name: str, view: nn.Module, runs: Path, *, resume: bool) -> Tensor:
    """(decisions, features): the windows of the live task on the clips without augmentation."""

    def window(decision: int) -> npt.NDArray[np.float32]:
        mel = speech.columns(int(speech.due_clip[decision]), int(speech.due[decision]), VOICE_FRAMES)
        return voice_columns(mel, np.ones(mel.shape[1], bool))  # (2, 64, 300)

    batches = torch.arange(len(speech.due)).split(64)
    return _cached(
        runs / f"{name}-decisions.npy",
        (len(speech.due), VIEWS[name][0]),
        resume,
        lambda: torch.cat([view(torch.from_numpy(np.stack([window(int(i)) for i in batch]))) for batch in batches]),
    )


@torch.no_grad()
def _cached(cached: Path, shape: tuple[int, int], resume: bool, compute: Callable[[], Tensor]) -> Tensor:
    if resume and cached.is_file():
        stored = np.load(cached, allow_pickle=False)
        if stored.shape == shape:
            return torch.from_numpy(stored)
    began_s, features = time.monotonic(), compute()
    temporary = cached.with_suffix(".new.npy")
    np.save(temporary, features.numpy())
    temporary.replace(cached)  # atomic: a killed run leaves no partial file
    print(f"voice: {cached.stem}, {len(features)} windows, {time.monotonic() - began_s:.0f} s", flush=True)
    return features


def trained(
    speech: Speech, augmented: Tensor, part: Part, view: str, runs: Path, *, epochs: int, seed: int, resume: bool
) -> MlpEnsemble:
    """The ensemble of one network for this view; with `resume` from its checkpoint, where there is one."""
    cached = runs / f"{part.name}-{view}.pt"
    run = {"seed": seed, "epochs": epochs, "windows": len(augmented), "clips": len(part.train)}
    if resume and cached.is_file():
        stored = torch.load(cached, weights_only=True)
        if stored["run"] != run:
            raise ConfigError(
                f"{cached}: trained with {stored['run']}, this run has {run}. Start again without --resume."
            )
        ensemble = MlpEnsemble(augmented.shape[1], len(part.labels))
        ensemble.load_state_dict(stored["net"])
        return ensemble.eval()
    began_s = time.monotonic()
    ensemble, loss = fit(speech, augmented, part, epochs=epochs, seed=seed)
    print(
        f"{part.name:<10} {view}: {len(part.train)} clips  loss {loss:.3f}  {time.monotonic() - began_s:.0f} s",
        flush=True,
    )
    temporary = cached.with_suffix(".new")
    torch.save({"net": ensemble.state_dict(), "run": run}, temporary)
    temporary.replace(cached)
    return ensemble


def fit(speech: Speech, augmented: Tensor, part: Part, *, epochs: int, seed: int) -> tuple[MlpEnsemble, float]:
    """Train one ensemble on (copies × n, features). Returns it and the mean loss of its last epoch."""
    torch.manual_seed(seed)
    net = MlpEnsemble(augmented.shape[1], len(part.labels))
    rows = torch.from_numpy(part.train)
    clips = rows.repeat(len(augmented) // len(speech))
    x = augmented[torch.cat([rows + first for first in range(0, len(augmented), len(speech))])]  # (N, features)
    target = torch.tensor([part.labels.index(label) if label in part.labels else -1 for label in FACE_CLASSES])[
        speech.labels
    ][clips]
    known = known_labels(speech, part.labels)[clips]  # (N, labels)
    loss = fit_ensemble(
        net,
        x,
        target,
        lambda logits, batch: cross_entropy(logits, target[batch], known[batch]),
        steps=max(1, len(x) // BATCH),
        epochs=epochs,
    )
    return net, loss


@torch.no_grad()
def predict(net: MlpEnsemble, features: Tensor) -> npt.NDArray[np.float32]:
    """(B, labels) logits"""
    return np.asarray(net(features)[0].numpy())


def known_labels(speech: Speech, labels: tuple[str, ...]) -> Tensor:
    """(n, labels) bool: which labels occur in the data set of the clip."""
    emodb = speech.of("emodb")
    known = np.zeros((len(speech), len(labels)), bool)
    for corpus in (emodb, ~emodb):
        known[corpus] = np.isin([FACE_CLASSES.index(label) for label in labels], speech.labels[corpus])
    return torch.from_numpy(known)


def cross_entropy(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy over the labels of the clip's data set: a set without fear is no evidence against fear."""
    logs = torch.log_softmax(logits.masked_fill(~known, -1e4), -1)  # (members, B, labels)
    even = known.float() / known.sum(1, keepdim=True)
    smoothed = (1 - LABEL_SMOOTHING) * F.one_hot(labels, logits.shape[-1]) + LABEL_SMOOTHING * even
    return -(smoothed * logs).sum(-1).mean()
