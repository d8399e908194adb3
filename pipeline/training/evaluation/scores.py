"""Figures of a classifier with 95 % intervals by bootstrap over speakers, not over clips.

Example:
    scores = score(logits, labels, speakers, seed=1)
    scores.accuracy, scores.interval["accuracy"]         # 0.77, (0.75, 0.79)
    print(markdown({"hybrid": {"bounds": scores}}))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.probabilities import softmax
from pipeline.training.evaluation.classifier_figures import expected_calibration_error, macro_f1

REPEATS = 500
NAMES = ("accuracy", "uar", "macro_f1", "log_loss", "ece")


@dataclass(frozen=True)
class Scores:
    """Figures from 0 to 1, except the log-loss (nats).

    uar: unweighted average recall. interval: name → (2.5 %, 97.5 %) over speakers.
    """

    accuracy: float
    uar: float
    macro_f1: float
    log_loss: float
    ece: float
    count: int
    interval: dict[str, tuple[float, float]]

    def record(self) -> dict[str, Any]:
        return (
            {name: round(getattr(self, name), 5) for name in NAMES}
            | {"count": self.count}
            | {"interval_95": {name: [round(v, 5) for v in bounds] for name, bounds in self.interval.items()}}
        )


def score(
    logits: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    speakers: npt.NDArray[Any],
    *,
    seed: int,
    repeats: int = REPEATS,
) -> Scores:
    """Scores of (n, classes) calibrated logits; speakers are resampled with replacement, each with all their clips."""
    probs = np.asarray(softmax(logits.astype(np.float64)), np.float64)
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(speakers == name) for name in np.unique(speakers)]
    resampled = []
    for _ in range(repeats if len(rows) > 1 else 0):
        resample = np.concatenate([rows[i] for i in random.integers(0, len(rows), len(rows))])
        resampled.append(_figures(probs[resample], labels[resample]))
    interval = {}
    if resampled:
        low, high = np.percentile(np.array(resampled), [2.5, 97.5], axis=0)
        interval = {name: (float(a), float(b)) for name, a, b in zip(NAMES, low, high, strict=True)}
    return Scores(*_figures(probs, labels), len(labels), interval)


def _figures(probs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> tuple[float, float, float, float, float]:
    predicted, classes = probs.argmax(1), probs.shape[1]
    count_by_class = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    recall = right[count_by_class > 0] / count_by_class[count_by_class > 0]
    loss = -np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-12)).mean()
    return (
        float((predicted == labels).mean()),
        float(recall.mean()),
        macro_f1(predicted, labels, classes=classes),
        float(loss),
        expected_calibration_error(probs, labels),
    )


def clip_means(
    logits: npt.NDArray[np.floating], clip: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """(rows, labels) mean log-probability over the decisions of each clip."""
    logs = np.log(np.maximum(softmax(logits.astype(np.float64)), 1e-7))
    return np.stack([logs[clip == row].mean(axis=0) for row in rows]).astype(np.float32)


def markdown(table: Mapping[str, Mapping[str, Scores]]) -> str:
    """A markdown table with one row for each method and situation; accuracy with its interval."""
    lines = [
        "| method | present | accuracy (95 %) | UAR | macro-F1 | log-loss | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, row in table.items():
        for situation, s in row.items():
            low, high = s.interval.get("accuracy", (float("nan"),) * 2)
            lines.append(
                f"| {method} | {situation} | {s.accuracy:.1%} ({low:.1%} to {high:.1%}) | {s.uar:.1%} | "
                f"{s.macro_f1:.1%} | {s.log_loss:.3f} | {s.ece:.1%} |"
            )
    return "\n".join(lines)
