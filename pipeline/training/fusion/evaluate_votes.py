"""Evaluates fusion on human votes: is one network as good as a model for each situation, whichever modality is absent?

Example:
    python run_pipeline.py evaluate votes --seed 1           # table, JSON file and chart

Folds by actor. For each family one network predicts with both modalities, without the voice and without the face. The
baselines are logistic regressions, one for each situation, and rules without training.
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
from pipeline.training.fusion.fit import Examples, Recipe, fit, predict
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
    """Print and return method → situation → scores; write them to `out` and a chart beside it."""
    torch.set_num_threads(1)  # the networks are small: a second thread costs more than it gains
    votes = load_votes(data_folder(data))
    all_votes = examples(votes)
    table: dict[str, dict[str, Scores]] = {}

    def add(method: str, situation: str, logits: Floats) -> None:
        table.setdefault(method, {})[situation] = score(logits, votes.labels, votes.actors, seed=seed)

    splits = list(folds(votes.actors, count=FOLDS, seed=seed))
    for name, rule in untrained_rules(votes).items():
        add(name, "both", rule)
    for situation, senses in SITUATIONS.items():
        x = np.concatenate([part for sense in senses for part in (votes.opinions(sense), shares(votes, sense))], 1)
        logits = np.zeros((len(all_votes), len(VOTE_CLASSES)))
        for train, test in splits:
            logits[test] = logistic(x[train], votes.labels[train])(x[test])
        add("logistic regression for this situation", situation, logits)
    for family, options in [(f, {}) for f in families] + [("hybrid", {"translate": True})]:
        by_situation = {
            situation: np.zeros((len(all_votes), len(VOTE_CLASSES)), np.float32) for situation in SITUATIONS
        }
        for train, test in splits:
            net = network(family, seed=seed, **options)
            fit(net, all_votes.take(train), RECIPE, seed=seed)
            for situation, senses in SITUATIONS.items():
                by_situation[situation][test] = predict(net, all_votes.take(test).with_only(*senses))
        for situation, logits_of_situation in by_situation.items():
            add(f"{family}, missing embedding translated" if options else family, situation, logits_of_situation)
        print(
            f"{family}: " + "  ".join(f"{s} {table[list(table)[-1]][s].accuracy:.1%}" for s in SITUATIONS), flush=True
        )
    print(markdown(table))
    write(table, out, title="Human votes")
    return table


def shares(votes: Votes, sense: str) -> Floats:
    return np.asarray(np.exp(votes.opinions(sense)))


def untrained_rules(votes: Votes) -> dict[str, Floats]:
    """Baselines without training: mean and product of the two opinions, and the votes of ten people with both."""
    face, voice = votes.opinions("face"), votes.opinions("voice")
    return {
        "mean of the votes (no training)": np.log((np.exp(face) + np.exp(voice)) / 2),
        "product of the votes (no training)": face + voice,
        "people with face and voice (no training)": votes.opinions("both"),
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
