"""Trains one fusion family on labelled data of the user's own, and exports it.

Example:
    # then, in the YAML: fusion: my.onnx
    python run_pipeline.py train fusion --data FOLDER --family cross --out my.onnx
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.training.data.rows import load_rows
from pipeline.training.evaluation.scores import markdown
from pipeline.training.fusion.evaluate import Table, agreement_auc, judge, known_families, labelled, network
from pipeline.training.fusion.fit import Recipe, export_fusion

# Below this AUC the agreement is not reported: it would mislead more than help (docs/emotion.md).
MIN_AGREEMENT_AUC = 0.70


def train_family(*, data: Path, format: str, out: Path, family: str, seed: int, epochs: int) -> Table:
    """Cross-validate one family, then train it on all rows and export it with its manifest. Returns the scores."""
    torch.set_num_threads(1)
    (name,) = known_families(family)
    rows = load_rows(data, format)
    table, temperatures = judge(rows, [name], seed=seed, epochs=epochs)
    print(markdown(table))
    all_modalities, *singles = list(table[name])[::-1]
    fused = table[name][all_modalities].accuracy
    best_single = max((table[name][m] for m in singles if " + " not in m), key=lambda s: s.accuracy, default=None)
    if best_single is not None and fused <= best_single.accuracy:
        print(
            f"fusion: {fused:.1%} with everything is not above {best_single.accuracy:.1%}, the best single "
            "modality: on these data fusion does not help"
        )
    auc = agreement_auc(rows, name, seed=seed, epochs=epochs)
    with_agreement = auc is not None and auc >= MIN_AGREEMENT_AUC
    if auc is not None:
        print(
            f"agreement: AUC {auc:.3f} for pairs of one label against pairs of two, on unseen groups: "
            + ("reported live" if with_agreement else f"below {MIN_AGREEMENT_AUC}, so it is left out")
        )
    examples, groups = labelled(rows)
    net = network(examples, len(rows.labels), name, Recipe(epochs=epochs), seed=seed, coordinate=with_agreement)
    export_fusion(net, out)
    metrics = {
        f"unseen_groups_{k}": round(float(getattr(table[name][all_modalities], k)), 4)
        for k in ("accuracy", "uar", "macro_f1", "log_loss", "ece")
    }
    if auc is not None:
        metrics["agreement_auc"] = round(auc, 4)
    graph = onnx.load(str(out)).graph
    meanings = {
        m.name: "opinion: natural log-probabilities of the labels"
        if m.opinion
        else f"{rows.modalities[m.name].kind}: as the data set has it"
        for m in net.modalities
    }
    meanings |= {
        "present": "weight of each modality in this order, 0 = absent, 1 = present, good quality",
        "offset_s": "capture time less the anchor's, in seconds",
    }
    Manifest(
        name=out.stem,
        task="emotion",
        inputs=tuple(TensorInfo(v.name, _shape(v), "float32", meanings[v.name]) for v in graph.input),
        outputs=tuple(
            TensorInfo(
                v.name, _shape(v), "float32", "divide by the temperature, then softmax" if v.name == "logits" else ""
            )
            for v in graph.output
        ),
        labels=rows.labels,
        temperature=temperatures[name],
        training_data=f"{data.name}: {len(examples)} labelled rows of {len(np.unique(groups))} groups",
        licence="that of the data it was trained on",
        made_by=f"python run_pipeline.py train fusion --data {data} --format {format} --family {name} "
        f"--epochs {epochs} --seed {seed}",
        metrics=metrics,
    ).write(out)
    print(f"{out}: {metrics}", flush=True)
    return table


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
