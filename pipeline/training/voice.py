"""Trains the voice-expression networks, from the clips to the shipped ONNX files, top to bottom.

    python run_pipeline.py train voice --epochs 10 --seed 7           # stop it at any time; go on with --resume

Two networks ship: one with seven labels that heard RAVDESS and EmoDB, and one with EmoDB's four labels that heard EmoDB
alone, for its licence. For each, five more hear everybody but a fifth of the speakers, and what these say of the fifth they
never heard gives the figures, the temperature and the fusion's evidence; yet another hears RAVDESS alone and is judged on
EmoDB. No part chooses an epoch or anything else by what it is judged on: fixed schedules, the averaged weights at the end.
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
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.features import VOICE_FRAMES, voice_columns
from pipeline.training import voice_ship
from pipeline.training.datasets import FACE_CLASSES, data_folder
from pipeline.training.nets import VoiceAnalysis, VoiceNet
from pipeline.training.speech import Speech, load_speech
from pipeline.training.voice_windows import draw

COPIES = 12                # windows drawn of each clip
BATCH = 128
PEAK_LR = 2e-3
WEIGHT_DECAY = 0.3
LABEL_SMOOTHING = 0.2      # acted speech is understood by people in two cases of three
FOLDS = 5

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One network to train: on the clips `train`, with these labels, to be asked about the clips `test`."""

    name: str
    labels: tuple[str, ...]
    train: Ints
    test: Ints


def parts(speech: Speech) -> list[Part]:
    """The networks that ship come last."""
    emodb, fold = speech.of("emodb"), np.zeros(len(speech), np.int64)
    for corpus in (emodb, ~emodb):
        # Names in order, so that odd and even RAVDESS actors, men and women, are in every fold.
        fold[corpus] = np.unique(speech.speakers[corpus], return_inverse=True)[1] % FOLDS
    everybody, rows = np.ones(len(speech), bool), np.flatnonzero

    def folds(name: str, labels: tuple[str, ...], who: npt.NDArray[np.bool_]) -> list[Part]:
        return [Part(f"{name}-{k}", labels, rows(who & (fold != k)), rows(who & (fold == k))) for k in np.unique(fold[who])]

    found = folds("voice", FACE_CLASSES, everybody)
    if emodb.any():
        four = tuple(label for i, label in enumerate(FACE_CLASSES) if (speech.labels[emodb] == i).any())
        found += folds("emodb", four, emodb)
        found += [Part("ravdess", FACE_CLASSES, rows(~emodb), rows(emodb))] if (~emodb).any() else []
        found += [Part("emodb", four, rows(emodb), rows(emodb)[:0])]
    return [*found, Part("voice", FACE_CLASSES, rows(everybody), rows(everybody)[:0])]


def train(*, data: Path | None = None, out: Path = voice_ship.MODEL, epochs: int = 10, seed: int = 7, resume: bool = False,
          runs: Path = Path("runs/voice"), copies: int = COPIES) -> None:
    """Measure windows of every clip, train every part on them, and ship `out` and, beside it, …-emodb.onnx.

    runs: the folder of what was measured and trained so far (what --resume goes on from), out_of_fold.npz (what the fusion is
    fitted on) and scores.json. Raises ConfigError when the data is missing or a checkpoint belongs to another run.
    """
    torch.set_num_threads(1)
    folder = data_folder(data)
    speech = load_speech(folder, cache=runs)
    todo = parts(speech)
    print(f"voice: {len(speech)} clips of {len(set(speech.speakers))} speakers, {len(todo)} networks to train", flush=True)
    drawn = torch.cat([measured(speech, runs / f"measured-{seed}-{copy}.npy", seed * 1009 + copy, resume=resume)
                       for copy in range(copies)])                           # (copies × n, MEASURES), clip after clip
    asked = decisions(speech, runs / "decisions.npy", resume=resume)         # (decisions, MEASURES)
    nets, answers = {}, {}
    for part in todo:
        net = trained(speech, drawn, part, runs / f"{part.name}.pt", epochs=epochs, seed=seed, resume=resume)
        if len(part.test):
            inside = np.isin(speech.due_clip, part.test)
            answers[part.name] = (answer(net, asked[inside]), speech.due_clip[inside])
        else:
            nets[part.name] = net
    command = f"python run_pipeline.py train voice --epochs {epochs} --seed {seed}"
    voice_ship.ship(speech, answers, nets, out, runs, command=command, seed=seed)


@torch.no_grad()
def measured(speech: Speech, kept: Path, seed: int, *, resume: bool) -> Tensor:
    """(n, MEASURES): one window of each clip, another for every seed; from the file of an earlier run if asked."""
    analysis, generator = VoiceAnalysis(), torch.Generator().manual_seed(seed)
    batches = torch.arange(len(speech)).split(64)
    return _kept(kept, len(speech), lambda: torch.cat([analysis(draw(speech, clips, generator)) for clips in batches]), resume)


@torch.no_grad()
def decisions(speech: Speech, kept: Path, *, resume: bool) -> Tensor:
    """(decisions, MEASURES): what the live task would be asked about the clips as they are."""
    analysis = VoiceAnalysis()

    def window(decision: int) -> npt.NDArray[np.float32]:
        mel = speech.columns(int(speech.due_clip[decision]), int(speech.due[decision]), VOICE_FRAMES)
        return voice_columns(mel, np.ones(mel.shape[1], bool))                                      # (2, 64, 300)

    batches = torch.arange(len(speech.due)).split(64)
    return _kept(kept, len(speech.due), lambda: torch.cat(
        [analysis(torch.from_numpy(np.stack([window(int(i)) for i in batch]))) for batch in batches]), resume)


def _kept(kept: Path, count: int, make: Callable[[], Tensor], resume: bool) -> Tensor:
    if resume and kept.is_file():
        stored = np.load(kept, allow_pickle=False)
        if stored.shape == (count, VoiceAnalysis.MEASURES):
            return torch.from_numpy(stored)
    began_s, found = time.monotonic(), make()
    whole = kept.with_suffix(".new.npy")
    np.save(whole, found.numpy())
    whole.replace(kept)                                  # a killed run leaves whole files, never half of one
    print(f"voice: {len(found)} windows measured, {time.monotonic() - began_s:.0f} s", flush=True)
    return found


def trained(speech: Speech, drawn: Tensor, part: Part, kept: Path, *, epochs: int, seed: int, resume: bool) -> VoiceNet:
    """The part's network, from its checkpoint if asked and there."""
    run = {"seed": seed, "epochs": epochs, "windows": len(drawn), "clips": len(part.train)}
    if resume and kept.is_file():
        stored = torch.load(kept, weights_only=True)
        if stored["run"] != run:
            raise ConfigError(f"{kept}: made with {stored['run']}, now it is {run}. Start afresh without --resume.")
        net = VoiceNet(len(part.labels))
        net.load_state_dict(stored["net"])
        return net.eval()
    net = fit(speech, drawn, part, epochs=epochs, seed=seed)
    whole = kept.with_suffix(".new")
    torch.save({"net": net.state_dict(), "run": run}, whole)
    whole.replace(kept)
    return net


def fit(speech: Speech, drawn: Tensor, part: Part, *, epochs: int, seed: int) -> VoiceNet:
    """Train one part. drawn: (copies × n, MEASURES)."""
    torch.manual_seed(seed)
    net = VoiceNet(len(part.labels))
    rows = torch.from_numpy(part.train)
    clips = rows.repeat(len(drawn) // len(speech))
    x = drawn[torch.cat([rows + first for first in range(0, len(drawn), len(speech))])]              # (N, MEASURES)
    net.middle.copy_(x.mean(0))
    net.spread.copy_(x.std(0) + 1e-4)
    target = torch.tensor([part.labels.index(label) if label in part.labels else -1 for label in FACE_CLASSES])[speech.labels][clips]
    known = known_labels(speech, part.labels)[clips]                                                 # (N, labels)
    rare = 1 / torch.bincount(target, minlength=len(part.labels))[target].float()                    # each label equally often
    # Norms and biases are not decayed: pulling a scale towards zero regularises nothing.
    decayed = [p for p in net.parameters() if p.dim() > 1]
    kept = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}])
    steps, losses, began_s = max(1, len(x) // BATCH), [], time.monotonic()
    net.train()
    for epoch in range(epochs):
        order = torch.multinomial(rare, steps * BATCH, replacement=True)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = PEAK_LR * (1 - (epoch * steps + step) / (epochs * steps))
            batch = order[step * BATCH : (step + 1) * BATCH]
            logits = net.answers(net.embed(x[batch]))                                                # (members, B, labels)
            loss = cross_entropy(logits, target[batch], known[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    print(f"{part.name:<10} {len(rows)} clips  loss {np.mean(losses[-steps:]):.3f}  {time.monotonic() - began_s:.0f} s", flush=True)
    return net.eval()


@torch.no_grad()
def answer(net: VoiceNet, measures: Tensor) -> npt.NDArray[np.float32]:
    """(B, labels) logits"""
    return np.asarray(net.answers(net.embed(measures)).mean(0).numpy())


def known_labels(speech: Speech, labels: tuple[str, ...]) -> Tensor:
    """(n, labels) bool: which labels the clip's set has at all."""
    emodb = speech.of("emodb")
    known = np.zeros((len(speech), len(labels)), bool)
    for corpus in (emodb, ~emodb):
        known[corpus] = np.isin([FACE_CLASSES.index(label) for label in labels], speech.labels[corpus])
    return torch.from_numpy(known)


def cross_entropy(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Among the labels that the clip's set has: a set without fear does not teach that its speakers are never afraid."""
    logs = torch.log_softmax(logits.masked_fill(~known, -1e4), -1)                                   # (members, B, labels)
    even = known.float() / known.sum(1, keepdim=True)
    wanted = (1 - LABEL_SMOOTHING) * F.one_hot(labels, logits.shape[-1]) + LABEL_SMOOTHING * even
    return -(wanted * logs).sum(-1).mean()
