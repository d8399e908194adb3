"""Judges fusion on human votes: can one network be as good as a model made for each situation, whoever is missing?

    python run_pipeline.py evaluate votes --seed 1           # table, JSON file and picture

Folds by actor. For each family one network answers with both senses, without the voice and without the face; beside it
stand logistic regressions, each trained for one situation alone, and rules that need no training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.training.data.folder import data_folder
from pipeline.training.data.votes import VOTE_CLASSES, Votes, folds, load_votes
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.fusion.families import FAMILIES
from pipeline.training.fusion.fit import Examples, Recipe, answer, fit
from pipeline.training.fusion.nets import FusionNet
from pipeline.training.fusion.state import Modality

FOLDS = 10
SITUATIONS = {"both": ("face", "voice"), "face": ("face",), "voice": ("voice",)}  # name → what is present
RIDGE = 1e-3
RECIPE = Recipe(epochs=12, batch=256, rate=1e-2, distil=0.0)
DEFAULT_FAMILIES = ("hybrid", *(name for name in FAMILIES if name != "hybrid"))

Floats = npt.NDArray[np.floating]
MODALITIES = (Modality("face", len(VOTE_CLASSES), opinion=True), Modality("voice", len(VOTE_CLASSES), opinion=True))


def examples(votes: Votes) -> Examples:
    return Examples.of(MODALITIES, (votes.opinions("face"), votes.opinions("voice")), votes.labels)


def network(family: str, *, seed: int, **options: Any) -> FusionNet:
    torch.manual_seed(seed)
    return FusionNet(MODALITIES, len(VOTE_CLASSES), family=family, layers=1, **options)


def evaluate_votes(
    *,
    data: Path | None = None,
    families: Sequence[str] = DEFAULT_FAMILIES,
    seed: int = 1,
    out: Path = Path("runs/fusion/votes.json"),
) -> dict[str, dict[str, Scores]]:
    """method → situation → scores. Prints the table; `out`: a JSON file, and a picture beside it."""
    torch.set_num_threads(1)  # these are small: a second thread costs more than it brings
    votes = load_votes(data_folder(data))
    told = examples(votes)
    table: dict[str, dict[str, Scores]] = {}

    def add(method: str, situation: str, logits: Floats) -> None:
        table.setdefault(method, {})[situation] = score(logits, votes.labels, votes.actors, seed=seed)

    splits = list(folds(votes.actors, count=FOLDS, seed=seed))
    for name, rule in untrained_rules(votes).items():
        add(name, "both", rule)
    for situation, senses in SITUATIONS.items():
        x = np.concatenate([part for sense in senses for part in (votes.opinions(sense), shares(votes, sense))], 1)
        logits = np.zeros((len(told), len(VOTE_CLASSES)))
        for train, test in splits:
            logits[test] = logistic(x[train], votes.labels[train])(x[test])
        add("logistic regression for this situation", situation, logits)
    for family, options in [(f, {}) for f in families] + [("hybrid", {"translate": True})]:
        by_situation = {situation: np.zeros((len(told), len(VOTE_CLASSES)), np.float32) for situation in SITUATIONS}
        for train, test in splits:
            net = network(family, seed=seed, **options)
            fit(net, told.take(train), RECIPE, seed=seed)
            for situation, senses in SITUATIONS.items():
                by_situation[situation][test] = answer(net, told.take(test).with_only(*senses))
        for situation, found in by_situation.items():
            add(f"{family}, missing embedding translated" if options else family, situation, found)
        print(
            f"{family}: " + "  ".join(f"{s} {table[list(table)[-1]][s].accuracy:.1%}" for s in SITUATIONS), flush=True
        )
    print(markdown(table))
    write(table, out, title="Human votes")
    return table


def shares(votes: Votes, sense: str) -> Floats:
    return np.asarray(np.exp(votes.opinions(sense)))


def untrained_rules(votes: Votes) -> dict[str, Floats]:
    """No training: the mean of the two opinions, their product, and what ten people said who had both."""
    face, voice = votes.opinions("face"), votes.opinions("voice")
    return {
        "mean of the votes (no training)": np.log((np.exp(face) + np.exp(voice)) / 2),
        "product of the votes (no training)": face + voice,
        "people who saw and heard (no training)": votes.opinions("both"),
    }


def logistic(x: Floats, y: npt.NDArray[np.int64], classes: int = len(VOTE_CLASSES)) -> Callable[[Floats], Floats]:
    """Multinomial logistic regression with a little ridge, to convergence. Returns x -> logits."""
    inputs, labels = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(inputs @ weight + bias, labels) + RIDGE * (weight**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    w, b = weight.detach().numpy(), bias.detach().numpy()
    return lambda x: np.asarray(x @ w + b)
