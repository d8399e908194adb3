"""Cross-validates every fusion family on labelled data of the user's own, or on a public data set.

Example:
    # every family, every set of modalities
    python run_pipeline.py evaluate fusion --data FOLDER
    python run_pipeline.py evaluate fusion --data MOSEI --format cmu-csd           # a public data set

FOLDER is what `export … --dataset` wrote. Folds are by group (speaker or session), so that the figures are for unseen
people. The baselines are rules without training, and a logistic regression for each set of modalities. Probabilities of
a modality are its opinion; embeddings and series are standardised with the statistics of the training rows, which are
part of the ONNX file.
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
from pipeline.training.fusion.fit import Examples, Recipe, fit, predict
from pipeline.training.fusion.nets import Fused, FusionNet
from pipeline.training.fusion.state import Modality

FOLDS = 5
MIN_PROBABILITY = 1e-4
Floats = npt.NDArray[np.floating]
Table = dict[str, dict[str, Scores]]


class Standardised(nn.Module):
    """A fusion network with its standardisation. means, deviations: per modality (width,)."""

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
    """The rows that have a label, and the number of their group. Probabilities become logarithms."""
    known = np.flatnonzero(rows.label >= 0)
    groups = np.unique(rows.group[known], return_inverse=True)[1].astype(np.int64)
    if len(known) == 0 or not rows.modalities or len(np.unique(groups)) < 2:
        raise ConfigError(
            f"data set: {len(known)} labelled rows of {len(np.unique(groups))} groups with {len(rows.modalities)} "
            "modalities; at smallest one modality and two groups (speakers, sessions) are needed, one to learn from "
            "and one to judge on. Label more rows, or give each speaker a group."
        )
    modalities, features = [], []
    for name, modality_rows in rows.modalities.items():
        opinion = modality_rows.kind == "probs" and modality_rows.dim == len(rows.labels)
        modalities.append(Modality(name, modality_rows.dim, opinion=opinion))
        values = modality_rows.values[known]
        features.append(np.log(np.maximum(values, MIN_PROBABILITY)) if opinion else values)
    present = np.stack([m.present[known] for m in rows.modalities.values()], 1).astype(np.float32)
    offset_s = np.stack([m.offset_ns[known] for m in rows.modalities.values()], 1) / 1e9
    return Examples.of(modalities, features, rows.label[known], present, offset_s.astype(np.float32)), groups


def network(
    examples: Examples, labels: int, family: str, recipe: Recipe, *, seed: int, coordinate: bool = False
) -> Standardised:
    """A family trained on these examples, with their mean and deviation inside."""
    means, deviations = [], []
    for i, (modality, x) in enumerate(zip(examples.modalities, examples.features, strict=True)):
        present_rows = x[:, 0][examples.present[:, i] > 0]  # (rows present_rows, width)
        standardise = not modality.opinion and len(present_rows) > 1
        means.append(present_rows.mean(0) if standardise else torch.zeros(modality.width))
        deviations.append(spread(present_rows) if standardise else torch.ones(modality.width))
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


def spread(present_rows: Tensor) -> Tensor:
    """(n, width) → (width,) standard deviations, none below a tenth of their mean.

    A ReLU embedding has values that were 0 in every row: divided by their own deviation, the first non-zero one in live
    data would be a million deviations large, and dominate all others.
    """
    deviations = present_rows.std(0)
    smallest = 0.1 * deviations.mean()
    return deviations.clamp_min(float(smallest)) if smallest > 0 else torch.ones_like(deviations)


def judge(rows: Rows, families: Sequence[str], *, seed: int, epochs: int) -> tuple[Table, dict[str, float]]:
    """method → set of present modalities → scores, on groups that are not in the training rows; and family →
    temperature.
    """
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

    for method, by_set in baselines(examples, sets, len(rows.labels)).items():
        for present, logits in by_set.items():
            add(method, present, logits)
    for present, chosen in sets.items():
        x = concatenated(examples, chosen)
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
                by_present[present][test] = predict(net, examples.take(test).with_only(*chosen))
        whole = by_present[list(sets)[-1]]
        temperatures[family] = fit_temperature(whole, labels)
        # The probabilities of a fold are evaluated with the temperature of the other folds.
        scale = np.ones((len(labels), 1))
        for train, test in splits:
            scale[test] = fit_temperature(whole[train], labels[train])
        for present, logits in by_present.items():
            add(family, present, logits / scale)
        print(f"{family}: " + "  ".join(f"{p} {table[family][p].accuracy:.1%}" for p in sets), flush=True)
    return table, temperatures


def concatenated(examples: Examples, chosen: Sequence[str]) -> Floats:
    """(n, numbers): the selected modalities concatenated, zeros for absent ones, and a presence flag of each."""
    parts = []
    for i, (modality, x) in enumerate(zip(examples.modalities, examples.features, strict=True)):
        if modality.name in chosen:
            here = examples.present[:, i : i + 1].numpy()
            parts += [np.where(here > 0, x[:, 0].numpy(), 0.0), here]
    return np.concatenate(parts, 1)


def baselines(examples: Examples, sets: dict[str, list[str]], labels: int) -> dict[str, dict[str, Floats]]:
    """Baselines without training: the most frequent label, and mean and product of the present opinions."""
    count = torch.bincount(examples.labels, minlength=labels).numpy() + 0.5
    rules: dict[str, dict[str, Floats]] = {
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
        log_probs = np.stack([np.where(h > 0, opinions[name][0], 0.0) for name, h in zip(chosen, here, strict=True)])
        mean = (here * np.exp(log_probs)).sum(0) / np.maximum(here.sum(0), 1e-6)
        any_present = here.sum(0) > 0
        rules.setdefault("average (no training)", {})[present] = np.log(
            np.where(any_present, np.maximum(mean, 1e-6), 1 / labels)
        )
        rules.setdefault("product (no training)", {})[present] = (here * log_probs).sum(0)
    return rules


def agreement_auc(rows: Rows, family: str, *, seed: int, epochs: int) -> float | None:
    """AUC of the agreement: pairs of one label against pairs of two labels, in unseen groups.

    Partners are drawn within the test groups; the mean over the pairs of modalities counts. None with a single
    modality.
    """
    examples, groups = labelled(rows)
    if len(examples.modalities) < 2:
        return None
    random, agreements, same = np.random.default_rng(seed), [], []
    for train, test in folds(groups, count=min(FOLDS, len(np.unique(groups))), seed=seed):
        net = network(examples.take(train), len(rows.labels), family, Recipe(epochs=epochs), seed=seed, coordinate=True)
        held = examples.take(test)
        for first, second in net.pairs:
            partner = torch.from_numpy(random.permutation(len(held)))
            mixed = [x[partner] if i == second else x for i, x in enumerate(held.features)]
            present = held.present.clone()
            present[:, second] = held.present[partner, second]
            with torch.no_grad():
                agreement = net(mixed, present, held.offset_s).agreement[:, net.pairs.index((first, second))].numpy()
            both = (present[:, first] * present[:, second] > 0).numpy()
            agreements.append(agreement[both])
            same.append((held.labels == held.labels[partner]).numpy()[both])
    return area(np.concatenate(agreements), np.concatenate(same))


def area(scores: Floats, positive: npt.NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the probability that a positive has a higher score than a negative; ties count half."""
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
    """Print the table; write it to `out`, and a chart beside it.

    Args:
        data: The folder or file of the data set.
        format: As in data.rows.load_rows.
        family: Names separated by commas; default: all.
        seed: Of the folds and of the training.
        epochs: Of every network.
        out: The JSON file.
    """
    torch.set_num_threads(1)
    table, _ = judge(load_rows(data, format), known_families(family), seed=seed, epochs=epochs)
    print(markdown(table))
    write(table, out, title=str(data.name))
    if (
        "coordinated" in table
        and (auc := agreement_auc(load_rows(data, format), "coordinated", seed=seed, epochs=epochs)) is not None
    ):
        print(f"agreement: AUC {auc:.3f} for pairs of one label against pairs of two, on unseen groups")
    return table


def known_families(family: str) -> list[str]:
    names = [name.strip() for name in family.split(",")]
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(
                f"--family: no fusion family called '{name}'.{nearest(name, FAMILIES)} There are: {', '.join(FAMILIES)}"
            )
    return names
