"""Exports recordings as an aligned, labelled data set (dataset.py): a row for each prediction that a recording holds.

    python run_pipeline.py export anna.mcap ben.mcap FOLDER --dataset        # each recording is a group of its own

A modality's values in a row are the embedding in the prediction's opinion, where it was recorded (`embeddings: true`),
else its probabilities. The label is the one that holds at the prediction's moment; without one the row is unlabelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError
from pipeline.frame import Opinion, Prediction
from pipeline.recording import dataset
from pipeline.recording.dataset import UNLABELLED, Kind, Modality, Rows
from pipeline.recording.labels import Labels
from pipeline.recording.mcap import schemas
from pipeline.recording.reader import Reader

EMBEDDINGS_FIX = "record with --set 'nodes.emotion.options={embeddings: true}'"


def export_dataset(
    recordings: Sequence[Path],
    folder: Path,
    *,
    labels: str | None = None,
    task: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write the data set of some recordings; the rows of each are one group, named like its file.

    Args:
        recordings: Recordings with predictions and labels.
        folder: Where the data set goes.
        labels: The stream of labels. None: the only one there is.
        task: The stream of predictions. None: the only one there is.
        say: Called with each line of the report.

    Raises:
        ConfigError: A recording has no predictions or no labels, or the recordings' labels or modalities differ.
    """
    parts = []
    for path in recordings:
        with Reader(path) as reader:
            parts.append(rows_of(reader, labels=labels, task=task, group=path.stem))
    if len({part.group[0] for part in parts if len(part)}) < len(parts):
        raise ConfigError("export: two recordings have the same file name, and would be one group. Rename one")
    known = parts[0].labels
    for path, part in zip(recordings, parts, strict=True):
        if part.labels != known:
            raise ConfigError(
                f"{path}: its labels are {', '.join(part.labels)}; those of {recordings[0]} are {', '.join(known)}"
            )
    try:
        rows = dataset.concatenate(parts)
    except ValueError as error:
        raise ConfigError(
            f"export: {error}. Were they recorded with the same models, and all with `embeddings: true`?"
        ) from error
    dataset.save(folder, rows)
    _report(folder, rows, say)


def rows_of(reader: Reader, *, labels: str | None, task: str | None, group: str) -> Rows:
    """One recording's rows. Raises ConfigError as export_dataset does."""
    truth = Labels.read(reader, labels)
    predictions = [m for _, m, _ in reader.messages([_task(reader, task)]) if isinstance(m, Prediction)]
    if not predictions:
        raise ConfigError(
            f"{reader.path}: it has no predictions. Record a graph that predicts, such as configs/emotion-demo.yaml"
        )
    answers = predictions[0].labels
    # In the task's order where the task knows all labels, so that a network trained on them fits the task.
    names = answers if set(truth.names) <= set(answers) else truth.names
    at = [truth.at(p.capture_ns) for p in predictions]
    opinions: dict[str, list[tuple[int, Opinion, int]]] = {}
    for row, prediction in enumerate(predictions):
        skew_ns = {receipt.stream: receipt.skew_ns for receipt in prediction.receipts}
        for opinion in prediction.opinions:
            opinions.setdefault(opinion.modality, []).append((row, opinion, skew_ns.get(opinion.stream, 0)))
    if not opinions:
        raise ConfigError(
            f"{reader.path}: its predictions hold no opinions of single modalities. To train on it, {EMBEDDINGS_FIX}"
        )
    return Rows(
        tuple(names),
        np.array([names.index(label) if label else UNLABELLED for label in at], np.int64),
        np.full(len(predictions), group),
        np.array([p.capture_ns for p in predictions], np.int64),
        {name: _modality(name, len(predictions), of_modality, reader.path) for name, of_modality in opinions.items()},
        f"export --dataset of {reader.path.name}, by {predictions[0].model}",
    )


def _task(reader: Reader, task: str | None) -> str:
    predicting = [name for name in reader.streams if schemas.PREDICTION in reader.kinds(name)]
    if task is None and len(predicting) == 1:
        return predicting[0]
    if task in predicting:
        return str(task)
    if not predicting:
        raise ConfigError(
            f"{reader.path}: it has no predictions. Record a graph that predicts, such as configs/emotion-demo.yaml"
        )
    raise ConfigError(f"{reader.path}: several streams of predictions: {', '.join(predicting)}. Say which: --task NAME")


def _modality(name: str, rows: int, opinions: Sequence[tuple[int, Opinion, int]], path: Path) -> Modality:
    kind: Kind = "embedding" if any(o.embedding.size for _, o, _ in opinions) else "probs"
    present = [
        (row, o.embedding if kind == "embedding" else np.array(o.probs, np.float32), skew_ns)
        for row, o, skew_ns in opinions
        if o.weight > 0 and (o.embedding.size if kind == "embedding" else o.probs)
    ]
    dims = {len(values) for _, values, _ in present}
    if len(dims) > 1:
        raise ConfigError(
            f"{path}: '{name}' has {kind}s of {', '.join(map(str, sorted(dims)))} numbers. "
            "Export recordings of one model at a time"
        )
    modality = Modality(
        kind, np.zeros((rows, *(dims or {0})), np.float32), np.zeros(rows, bool), np.zeros(rows, np.int64)
    )
    for row, values, skew_ns in present:
        modality.values[row], modality.present[row], modality.offset_ns[row] = values, True, skew_ns
    return modality


def _report(folder: Path, rows: Rows, say: Callable[[str], None]) -> None:
    counts = Counter(rows.labels[i] for i in rows.label if i != UNLABELLED)
    say(f"  {folder}: {len(rows)} rows of {len(set(rows.group))} recordings, {counts.total()} labelled")
    say(f"  {', '.join(f'{label} {n}' for label, n in counts.most_common()) or 'no row has a label'}")
    for name, modality in rows.modalities.items():
        kind = "embeddings" if modality.kind == "embedding" else f"probabilities (for embeddings, {EMBEDDINGS_FIX})"
        say(f"  {name:<8} {modality.dim:>4} numbers, present in {modality.present.mean():.0%} of the rows: {kind}")
