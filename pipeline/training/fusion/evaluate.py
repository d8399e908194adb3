"""Trains and judges fusion on labelled data of one's own: a folder that `export … --dataset` or an adapter wrote.

    python run_pipeline.py evaluate fusion --data FOLDER                              every family, every set of modalities
    python run_pipeline.py train fusion --data FOLDER --family cross --out my.onnx    one of them, for `fusion: my.onnx`
    python run_pipeline.py evaluate fusion --data MOSEI --format cmu-csd              a public set as its users have it

Folds by group (speaker or session), so that a figure is about people who were never met; beside the families stand what
needs no training and a logistic regression made for each set of modalities alone. Probabilities of a modality are taken as
its opinion, embeddings and series are standardised with the training rows' figures, which travel inside the ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, nearest
from pipeline.recording.dataset import Rows
from pipeline.training.data.rows import OWN_FORMAT, load_rows
from pipeline.training.data.votes import folds
from pipeline.training.evaluation.classifier_figures import fit_temperature
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.fusion.evaluate_votes import logistic
from pipeline.training.fusion.families import FAMILIES, subsets
from pipeline.training.fusion.fit import Examples, Recipe, answer, fit
from pipeline.training.fusion.nets import Fused, FusionNet
from pipeline.training.fusion.state import Modality

FOLDS = 5
MIN_PROBABILITY = 1e-4
Floats = npt.NDArray[np.floating]
Table = dict[str, dict[str, Scores]]


class Standardised(nn.Module):
    """A fusion network that takes features as they were measured. means, deviations: per modality (width,)."""

    def __init__(self, net: FusionNet, means: Sequence[Tensor], deviations: Sequence[Tensor]) -> None:
        super().__init__()
        self.net, self.modalities, self.pairs, self.coordinates = net, net.modalities, net.pairs, net.coordinates
        for i, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"deviation_{i}", deviation)

    def forward(self, features: Sequence[Tensor], present: Tensor, offset_s: Tensor) -> Fused:
        moved = [(x - getattr(self, f"mean_{i}")) / getattr(self, f"deviation_{i}") for i, x in enumerate(features)]
        fused: Fused = self.net(moved, present, offset_s)
        return fused


def labelled(rows: Rows) -> tuple[Examples, npt.NDArray[np.int64]]:
    """The rows that have a label, and each one's group as a number. Probabilities become logarithms."""
    known = np.flatnonzero(rows.label >= 0)
    groups = np.unique(rows.group[known], return_inverse=True)[1].astype(np.int64)
    if len(known) == 0 or not rows.modalities or len(np.unique(groups)) < 2:
        raise ConfigError(
            f"data set: {len(known)} labelled rows of {len(np.unique(groups))} groups with {len(rows.modalities)} "
            "modalities; at least one modality and two groups (speakers, sessions) are needed, one to learn from "
            "and one to judge on. Label more rows, or give each speaker a group."
        )
    modalities, features = [], []
    for name, given in rows.modalities.items():
        opinion = given.kind == "probs" and given.dim == len(rows.labels)
        modalities.append(Modality(name, given.dim, opinion=opinion))
        values = given.values[known]
        features.append(np.log(np.maximum(values, MIN_PROBABILITY)) if opinion else values)
    present = np.stack([m.present[known] for m in rows.modalities.values()], 1).astype(np.float32)
    offset_s = np.stack([m.offset_ns[known] for m in rows.modalities.values()], 1) / 1e9
    return Examples.of(modalities, features, rows.label[known], present, offset_s.astype(np.float32)), groups


def network(
    examples: Examples, labels: int, family: str, recipe: Recipe, *, seed: int, coordinate: bool = False
) -> Standardised:
    """A family fitted on these examples, with their mean and deviation in it."""
    means, deviations = [], []
    for i, (modality, x) in enumerate(zip(examples.modalities, examples.features, strict=True)):
        there = x[:, 0][examples.present[:, i] > 0]  # (rows there, width)
        measured = not modality.opinion and len(there) > 1
        means.append(there.mean(0) if measured else torch.zeros(modality.width))
        deviations.append(spread(there) if measured else torch.ones(modality.width))
    torch.manual_seed(seed)
    net = FusionNet(examples.modalities, labels, family=family, layers=1, coordinate=coordinate)
    moved = tuple(
        (x - mean) / deviation for x, mean, deviation in zip(examples.features, means, deviations, strict=True)
    )
    fit(
        net,
        Examples(examples.modalities, moved, examples.present, examples.offset_s, examples.labels),
        recipe,
        seed=seed,
    )
    return Standardised(net, means, deviations).eval()


def spread(there: Tensor) -> Tensor:
    """(n, width) → (width,) standard deviations, none below a tenth of their mean.

    A ReLU embedding has numbers that were 0 in every row: divided by their own deviation, the first one that is not 0 live would be
    a million deviations large, and drown all others.
    """
    deviations = there.std(0)
    least = 0.1 * deviations.mean()
    return deviations.clamp_min(float(least)) if least > 0 else torch.ones_like(deviations)


def judge(rows: Rows, families: Sequence[str], *, seed: int, epochs: int) -> tuple[Table, dict[str, float]]:
    """method → set of modalities that is present → scores, on groups that fitted nothing; and family → temperature."""
    examples, groups = labelled(rows)
    labels = examples.labels.numpy()
    splits = list(folds(groups, count=min(FOLDS, len(np.unique(groups))), seed=seed))
    names = [m.name for m in examples.modalities]
    sets = {
        " + ".join(chosen): chosen
        for chosen in ([n for n, inside in zip(names, member, strict=True) if inside] for member in subsets(len(names)))
    }
    table: Table = {}
    temperatures: dict[str, float] = {}

    def add(method: str, present: str, logits: Floats) -> None:
        table.setdefault(method, {})[present] = score(logits, labels, groups, seed=seed)

    for method, by_set in untrained(examples, sets, len(rows.labels)).items():
        for present, logits in by_set.items():
            add(method, present, logits)
    for present, chosen in sets.items():
        x = flat(examples, chosen)
        logits = np.zeros((len(labels), len(rows.labels)))
        for train, test in splits:
            mean, deviation = x[train].mean(0), x[train].std(0) + 1e-6
            logits[test] = logistic((x[train] - mean) / deviation, labels[train], len(rows.labels))(
                (x[test] - mean) / deviation
            )
        add("logistic regression for this set", present, logits)
    for family in families:
        by_present = {present: np.zeros((len(labels), len(rows.labels)), np.float32) for present in sets}
        for train, test in splits:
            net = network(examples.take(train), len(rows.labels), family, Recipe(epochs=epochs), seed=seed)
            for present, chosen in sets.items():
                by_present[present][test] = answer(net, examples.take(test).with_only(*chosen))
        whole = by_present[list(sets)[-1]]
        temperatures[family] = fit_temperature(whole, labels)
        # Each fold's probabilities are judged at the temperature that the other folds chose.
        scale = np.ones((len(labels), 1))
        for train, test in splits:
            scale[test] = fit_temperature(whole[train], labels[train])
        for present, logits in by_present.items():
            add(family, present, logits / scale)
        print(f"{family}: " + "  ".join(f"{p} {table[family][p].accuracy:.1%}" for p in sets), flush=True)
    return table, temperatures


def flat(examples: Examples, chosen: Sequence[str]) -> Floats:
    """(n, numbers) of the chosen modalities side by side, zeros for what is absent, and whether each is there."""
    parts = []
    for i, (modality, x) in enumerate(zip(examples.modalities, examples.features, strict=True)):
        if modality.name in chosen:
            here = examples.present[:, i : i + 1].numpy()
            parts += [np.where(here > 0, x[:, 0].numpy(), 0.0), here]
    return np.concatenate(parts, 1)


def untrained(examples: Examples, sets: dict[str, list[str]], labels: int) -> dict[str, dict[str, Floats]]:
    """Rules that learn nothing: one label for all, and the mean and the product of the opinions there are."""
    count = torch.bincount(examples.labels, minlength=labels).numpy() + 0.5
    found: dict[str, dict[str, Floats]] = {
        "most frequent label (no training)": {list(sets)[-1]: np.tile(np.log(count / count.sum()), (len(examples), 1))}
    }
    opinions = {
        m.name: (x[:, 0].numpy(), examples.present[:, i : i + 1].numpy())
        for i, (m, x) in enumerate(zip(examples.modalities, examples.features, strict=True))
        if m.opinion
    }
    for present, chosen in sets.items():
        if not set(chosen) <= set(opinions):
            continue
        here = np.stack([opinions[name][1] for name in chosen])  # (M, n, 1)
        says = np.stack([np.where(h > 0, opinions[name][0], 0.0) for name, h in zip(chosen, here, strict=True)])
        mean = (here * np.exp(says)).sum(0) / np.maximum(here.sum(0), 1e-6)
        anybody = here.sum(0) > 0
        found.setdefault("average (no training)", {})[present] = np.log(
            np.where(anybody, np.maximum(mean, 1e-6), 1 / labels)
        )
        found.setdefault("product (no training)", {})[present] = (here * says).sum(0)
    return found


def agreement_auc(rows: Rows, family: str, *, seed: int, epochs: int) -> float | None:
    """How often the agreement of two modalities of one label is above that of two labels, in groups never met. None: there
    are no two modalities. Partners are drawn within the test groups; the mean over the pairs of modalities counts."""
    examples, groups = labelled(rows)
    if len(examples.modalities) < 2:
        return None
    random, told, same = np.random.default_rng(seed), [], []
    for train, test in folds(groups, count=min(FOLDS, len(np.unique(groups))), seed=seed):
        net = network(examples.take(train), len(rows.labels), family, Recipe(epochs=epochs), seed=seed, coordinate=True)
        held = examples.take(test)
        for first, second in net.pairs:
            partner = torch.from_numpy(random.permutation(len(held)))
            mixed = [x[partner] if i == second else x for i, x in enumerate(held.features)]
            present = held.present.clone()
            present[:, second] = held.present[partner, second]
            with torch.no_grad():
                fits = net(mixed, present, held.offset_s).agreement[:, net.pairs.index((first, second))].numpy()
            both = (present[:, first] * present[:, second] > 0).numpy()
            told.append(fits[both])
            same.append((held.labels == held.labels[partner]).numpy()[both])
    return area(np.concatenate(told), np.concatenate(same))


def area(scores: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    """Under the receiver operating curve: the chance that a positive's score is above a negative's; ties count half."""
    if positive.all() or not positive.any():
        return None
    _, at, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[at]
    positives = int(positive.sum())
    return float((rank[positive].sum() - positives * (positives + 1) / 2) / (positives * (len(scores) - positives)))


def evaluate_fusion(
    *,
    data: Path,
    format: str = OWN_FORMAT,
    family: str = ",".join(FAMILIES),
    seed: int = 1,
    epochs: int = 30,
    out: Path = Path("runs/fusion/own.json"),
) -> Table:
    """format: as in data/rows.py. family: names with commas between; all unless said otherwise. Prints the table;
    `out`: JSON, and a picture beside it."""
    torch.set_num_threads(1)
    table, _ = judge(load_rows(data, format), known_families(family), seed=seed, epochs=epochs)
    print(markdown(table))
    write(table, out, title=str(data.name))
    if (
        "coordinated" in table
        and (auc := agreement_auc(load_rows(data, format), "coordinated", seed=seed, epochs=epochs)) is not None
    ):
        print(f"agreement: AUC {auc:.3f} for pairs of one label against pairs of two, on groups never met")
    return table


def known_families(family: str) -> list[str]:
    names = [name.strip() for name in family.split(",")]
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(
                f"--family: no fusion family called '{name}'.{nearest(name, FAMILIES)} There are: {', '.join(FAMILIES)}"
            )
    return names
