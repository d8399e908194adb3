"""Does a person's resting face or voice, taken off, help? Judged on people whom nothing was fitted on.

    python run_pipeline.py evaluate baseline                                      our voice network's out-of-fold clips
    python run_pipeline.py evaluate baseline --data ../shared/data --format votes     what people saw and heard of 72 actors
    python run_pipeline.py evaluate baseline --data CREMA-D --format crema-d      one's own clips, with faces

Of each speaker, one clip labelled neutral (about three seconds) is the rest; all others are judged with and without it. The
average person's rest and how much of the difference is taken off are fitted on the other folds' speakers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.perception.expression.resting import moved
from pipeline.recording.dataset import Modality as Given
from pipeline.recording.dataset import Rows
from pipeline.training.data.datasets import FACE_CLASSES, load_rows
from pipeline.training.data.votes import folds
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import REPEATS, Scores, markdown, score
from pipeline.training.fusion import train as fusion

NEUTRAL = "neutral"
FOLDS = 5
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST = 1e-4

Floats = npt.NDArray[np.floating]


def evaluate_baseline(
    *,
    data: Path | None = None,
    format: str = "aligned",
    seed: int = 1,
    out: Path = Path("runs/fusion/baseline.json"),
    voice_rows: Path = fusion.VOICE_ROWS,
) -> dict[str, dict[str, Scores]]:
    """modality → before and after → scores. Without `data`, the voice network's out-of-fold clips. Prints the table and what
    it means; `out`: JSON, and a picture beside it."""
    rows = voice_clips(voice_rows) if data is None else load_rows(data, format)
    table: dict[str, dict[str, Scores]] = {}
    for name, given in rows.modalities.items():
        if given.kind == "probs" and given.dim == len(rows.labels):
            table[name] = judge(rows, name, seed=seed)
    if not table:
        raise ConfigError(
            "baseline: no modality of these data has opinions about the labels. Give data with some: --format votes"
        )
    print(markdown(table))
    write(table, out, title="A resting face or voice taken off")
    return table


def voice_clips(path: Path) -> Rows:
    said, labels, speakers = fusion.voice_opinions(path)
    here = np.ones(len(labels), bool)
    return Rows(
        FACE_CLASSES,
        labels,
        speakers,
        np.arange(len(labels), dtype=np.int64),
        {"voice": Given("probs", np.exp(said), here, np.zeros(len(labels), np.int64))},
        str(path),
    )


def judge(rows: Rows, name: str, *, seed: int) -> dict[str, Scores]:
    """Before and after, on every speaker's clips but the one that was the rest."""
    if NEUTRAL not in rows.labels:
        raise ConfigError(f"baseline: no label '{NEUTRAL}' in these data, so nobody is known to rest")
    given, neutral = rows.modalities[name], rows.labels.index(NEUTRAL)
    usable = np.flatnonzero(given.present & (rows.label >= 0))
    said = np.log(np.maximum(given.values[usable], LEAST))
    label, (people, speaker) = rows.label[usable], np.unique(rows.group[usable], return_inverse=True)
    random, rests, resting = (
        np.random.default_rng(seed),
        np.zeros((len(people), said.shape[1])),
        np.zeros(len(usable), bool),
    )
    known = np.zeros(len(people), bool)
    for person in range(len(people)):
        own = np.flatnonzero((speaker == person) & (label == neutral))
        if len(own):
            one = random.choice(own)
            rests[person], resting[one], known[person] = said[one], True, True
    judged = np.flatnonzero(~resting & known[speaker])
    if known.sum() < 2:
        raise ConfigError(f"baseline: {known.sum()} speakers with a clip labelled neutral; at least two are needed")
    before, after, chosen = said[judged], np.zeros((len(judged), said.shape[1])), []
    for train, test in folds(speaker[judged], count=min(FOLDS, int(known.sum())), seed=seed):
        others = np.unique(speaker[judged][train])
        average = rests[others].mean(0)
        losses = [
            nll(moved(before[train], rests[speaker[judged][train]], average, s), label[judged][train])
            for s in STRENGTHS
        ]
        chosen.append(STRENGTHS[int(np.argmin(losses))])
        after[test] = moved(before[test], rests[speaker[judged][test]], average, chosen[-1])
    shown = {
        "before": score(before, label[judged], speaker[judged], seed=seed),
        "after": score(after, label[judged], speaker[judged], seed=seed),
    }
    low, high = gain(before, after, label[judged], speaker[judged], seed=seed)
    print(
        f"{name}: {known.sum()} speakers, {len(judged)} clips; strength chosen on the other folds: {', '.join(map(str, chosen))}; "
        f"accuracy {shown['after'].accuracy - shown['before'].accuracy:+.1%} (95 % over speakers: {low:+.1%} to {high:+.1%}): "
        + ("it helps" if low > 0 else "not shown to help, so it stays off")
    )
    return shown


def nll(log_probs: Floats, label: npt.NDArray[np.int64]) -> float:
    return -float(log_probs[np.arange(len(label)), label].mean())


def gain(
    before: Floats, after: Floats, label: npt.NDArray[np.int64], speaker: npt.NDArray[np.int64], *, seed: int
) -> tuple[float, float]:
    """95 % interval of the gain in accuracy; speakers are drawn with replacement, with all of their clips."""
    better = (after.argmax(1) == label).astype(float) - (before.argmax(1) == label)
    people, random = np.unique(speaker), np.random.default_rng(seed)
    total, count = (np.array([f(better[speaker == one]) for one in people]) for f in (np.sum, len))
    drawn = random.integers(0, len(people), (REPEATS, len(people)))
    low, high = np.percentile(total[drawn].sum(1) / count[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
