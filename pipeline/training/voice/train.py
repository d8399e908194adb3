"""Trains the voice-expression networks, from the clips to the shipped ONNX files, top to bottom.

    python run_pipeline.py train voice --epochs 10 --seed 7           # stop it at any time; go on with --resume

What a network sees of a window is fixed (VIEWS), so it is measured once for all of them, and small perceptrons are
trained on it. Two networks ship: one with seven labels that heard RAVDESS and EmoDB, and one with EmoDB's four labels
that heard EmoDB alone, for its licence. For each, five more hear everybody but a fifth of the speakers, and what these
say of the fifth they never heard gives the figures, the temperature and the fusion's evidence; yet another hears
RAVDESS alone and is judged on EmoDB. No part chooses an epoch or anything else by what it is judged on: fixed
schedules, the averaged weights at the end.
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

COPIES = 12  # windows drawn of each clip
LABEL_SMOOTHING = 0.2  # acted speech is understood by people in two cases of three
FOLDS = 5

# What is seen of a window, how many numbers that is, and how it is made.
MEASURED, ENCODED = "measured", "encoded"
VIEWS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    MEASURED: (VoiceAnalysis.MEASURES, VoiceAnalysis),
    ENCODED: (SpeakerEncoder.MEASURES, SpeakerEncoder.published),
}

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One network to train: on the clips `train`, with these labels, to be asked about the clips `test`. Each view has
    a ensemble of its own.
    """

    name: str
    labels: tuple[str, ...]
    train: Ints
    test: Ints

    @property
    def views(self) -> tuple[str, ...]:
        """EmoDB alone is for its free licence; it does without the weights of others."""
        return (MEASURED,) if self.name.startswith("emodb") else (MEASURED, ENCODED)


def parts(speech: Speech) -> list[Part]:
    """The networks that ship come last."""
    emodb, fold = speech.of("emodb"), np.zeros(len(speech), np.int64)
    for corpus in (emodb, ~emodb):
        # Names in order, so that odd and even RAVDESS actors, men and women, are in every fold.
        fold[corpus] = np.unique(speech.speakers[corpus], return_inverse=True)[1] % FOLDS
    everybody, rows = np.ones(len(speech), bool), np.flatnonzero

    def folds(name: str, labels: tuple[str, ...], who: npt.NDArray[np.bool_]) -> list[Part]:
        return [
            Part(f"{name}-{k}", labels, rows(who & (fold != k)), rows(who & (fold == k))) for k in np.unique(fold[who])
        ]

    found = folds("voice", FACE_CLASSES, everybody)
    if emodb.any():
        four = tuple(label for i, label in enumerate(FACE_CLASSES) if (speech.labels[emodb] == i).any())
        found += folds("emodb", four, emodb)
        found += [Part("ravdess", FACE_CLASSES, rows(~emodb), rows(emodb))] if (~emodb).any() else []
        found += [Part("emodb", four, rows(emodb), rows(emodb)[:0])]
    return [*found, Part("voice", FACE_CLASSES, rows(everybody), rows(everybody)[:0])]


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
    """Measure windows of every clip, train every part on them, and ship `out` and, beside it, …-emodb.onnx.

    runs: the folder of what was measured and trained so far (what --resume goes on from), out_of_fold.npz (what the
        fusion is fitted on) and scores.json. Raises ConfigError when the data is missing or a checkpoint belongs to
        another run.
    """
    torch.set_num_threads(1)
    folder = data_folder(data)
    speech = load_speech(folder, cache=runs)
    todo = parts(speech)
    print(
        f"voice: {len(speech)} clips of {len(set(speech.speakers))} speakers, {len(todo)} networks to train", flush=True
    )
    seen = {name: make() for name, (_, make) in VIEWS.items()}
    drawn, asked = {}, {}
    for name, view in seen.items():
        drawn[name] = torch.cat(
            [measured(speech, name, view, runs, seed, copy, resume=resume) for copy in range(copies)]
        )
        asked[name] = decisions(speech, name, view, runs, resume=resume)  # (decisions, measures)
    nets, answers = {}, {}
    for part in todo:
        ensembles = [
            trained(speech, drawn[view], part, view, runs, epochs=epochs, seed=seed, resume=resume)
            for view in part.views
        ]
        if len(part.test):
            inside = np.isin(speech.due_clip, part.test)
            said = [answer(ensemble, asked[view][inside]) for view, ensemble in zip(part.views, ensembles, strict=True)]
            answers[part.name] = (np.stack(said).mean(axis=0), speech.due_clip[inside])
        else:
            nets[part.name] = VoiceNet([seen[view] for view in part.views], ensembles).eval()
    command = f"python run_pipeline.py train voice --epochs {epochs} --seed {seed}"
    ship(speech, answers, nets, out, runs, command=command, seed=seed)


def measured(speech: Speech, name: str, view: nn.Module, runs: Path, seed: int, copy: int, *, resume: bool) -> Tensor:
    """(n, measures): one window of each clip, another for every copy; from the file of an earlier run if asked."""
    generator = torch.Generator().manual_seed(seed * 1009 + copy)
    batches = torch.arange(len(speech)).split(64)
    return _kept(
        runs / f"{name}-{seed}-{copy}.npy",
        (len(speech), VIEWS[name][0]),
        resume,
        lambda: torch.cat([view(draw(speech, clips, generator)) for clips in batches]),
    )


def decisions(speech: Speech, name: str, view: nn.Module, runs: Path, *, resume: bool) -> Tensor:
    """(decisions, measures): what the live task would be asked about the clips as they are."""

    def window(decision: int) -> npt.NDArray[np.float32]:
        mel = speech.columns(int(speech.due_clip[decision]), int(speech.due[decision]), VOICE_FRAMES)
        return voice_columns(mel, np.ones(mel.shape[1], bool))  # (2, 64, 300)

    batches = torch.arange(len(speech.due)).split(64)
    return _kept(
        runs / f"{name}-decisions.npy",
        (len(speech.due), VIEWS[name][0]),
        resume,
        lambda: torch.cat([view(torch.from_numpy(np.stack([window(int(i)) for i in batch]))) for batch in batches]),
    )


@torch.no_grad()
def _kept(kept: Path, shape: tuple[int, int], resume: bool, make: Callable[[], Tensor]) -> Tensor:
    if resume and kept.is_file():
        stored = np.load(kept, allow_pickle=False)
        if stored.shape == shape:
            return torch.from_numpy(stored)
    began_s, found = time.monotonic(), make()
    whole = kept.with_suffix(".new.npy")
    np.save(whole, found.numpy())
    whole.replace(kept)  # a killed run leaves whole files, never half of one
    print(f"voice: {kept.stem}, {len(found)} windows, {time.monotonic() - began_s:.0f} s", flush=True)
    return found


def trained(
    speech: Speech, drawn: Tensor, part: Part, view: str, runs: Path, *, epochs: int, seed: int, resume: bool
) -> MlpEnsemble:
    """The part's ensemble for this view, from its checkpoint if asked and there."""
    kept = runs / f"{part.name}-{view}.pt"
    run = {"seed": seed, "epochs": epochs, "windows": len(drawn), "clips": len(part.train)}
    if resume and kept.is_file():
        stored = torch.load(kept, weights_only=True)
        if stored["run"] != run:
            raise ConfigError(f"{kept}: made with {stored['run']}, now it is {run}. Start afresh without --resume.")
        ensemble = MlpEnsemble(drawn.shape[1], len(part.labels))
        ensemble.load_state_dict(stored["net"])
        return ensemble.eval()
    began_s = time.monotonic()
    ensemble, loss = fit(speech, drawn, part, epochs=epochs, seed=seed)
    print(
        f"{part.name:<10} {view}: {len(part.train)} clips  loss {loss:.3f}  {time.monotonic() - began_s:.0f} s",
        flush=True,
    )
    whole = kept.with_suffix(".new")
    torch.save({"net": ensemble.state_dict(), "run": run}, whole)
    whole.replace(kept)
    return ensemble


def fit(speech: Speech, drawn: Tensor, part: Part, *, epochs: int, seed: int) -> tuple[MlpEnsemble, float]:
    """Train one ensemble. drawn: (copies × n, measures). Returns it and the loss over its last epoch."""
    torch.manual_seed(seed)
    net = MlpEnsemble(drawn.shape[1], len(part.labels))
    rows = torch.from_numpy(part.train)
    clips = rows.repeat(len(drawn) // len(speech))
    x = drawn[torch.cat([rows + first for first in range(0, len(drawn), len(speech))])]  # (N, measures)
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
def answer(net: MlpEnsemble, measures: Tensor) -> npt.NDArray[np.float32]:
    """(B, labels) logits"""
    return np.asarray(net(measures)[0].numpy())


def known_labels(speech: Speech, labels: tuple[str, ...]) -> Tensor:
    """(n, labels) bool: which labels the clip's set has at all."""
    emodb = speech.of("emodb")
    known = np.zeros((len(speech), len(labels)), bool)
    for corpus in (emodb, ~emodb):
        known[corpus] = np.isin([FACE_CLASSES.index(label) for label in labels], speech.labels[corpus])
    return torch.from_numpy(known)


def cross_entropy(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Among the labels that the clip's set has: a set without fear does not teach that its speakers are never afraid."""
    logs = torch.log_softmax(logits.masked_fill(~known, -1e4), -1)  # (members, B, labels)
    even = known.float() / known.sum(1, keepdim=True)
    wanted = (1 - LABEL_SMOOTHING) * F.one_hot(labels, logits.shape[-1]) + LABEL_SMOOTHING * even
    return -(wanted * logs).sum(-1).mean()
