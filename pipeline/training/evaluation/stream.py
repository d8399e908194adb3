"""How stable the predictions of a run are, from the file of --out; with the true changes also how late they are.

Example:
    python run_pipeline.py evaluate stream --model predictions.jsonl
    measure(lines, truth=[(0.0, "sad"), (9.5, "happy")])["delay_s"]       # [0.4]: reported 0.4 s after 9.5 s
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

UNSURE = "uncertain"


def evaluate_stream(model: Path, truth: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """Measure one run.

    Args:
        model: The predictions, as --out writes them.
        truth: A CSV of "seconds,label": when each expression began.
        out: A JSON file for the figures.

    Raises ConfigError for a file of another kind.
    """
    try:
        lines = [json.loads(line) for line in model.read_text(encoding="utf-8").splitlines() if line]
        changes = [line.split(",") for line in truth.read_text().splitlines() if line] if truth else []
        measured = measure(lines, truth=[(float(at), label.strip()) for at, label in changes])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{model}: {error}. Give a file that --out wrote, and a truth of lines such as 9.5,happy"
        ) from error
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def measure(lines: Iterable[Mapping[str, Any]], *, truth: Sequence[tuple[float, str]] = ()) -> dict[str, Any]:
    """Figures of a sequence of predictions.

    flips_per_min: changes of the label, without uncertain and unanswered predictions. uncertain, unanswered, disagree:
    share of the predictions. used: share by stream. delay_s: from each change of `truth` to the first prediction of its
    label; None: never predicted.
    """
    predictions = [line for line in lines if "label" in line]
    if not predictions:
        raise ConfigError("no predictions in it. Give a file that --out wrote")
    begin_ns, end_ns = predictions[0]["capture_ns"], predictions[-1]["capture_ns"]
    sure = [line["label"] for line in predictions if line["label"] not in (None, UNSURE)]
    flips = sum(a != b for a, b in pairwise(sure))
    streams = sorted({stream for line in predictions for stream in line["used"]})
    delays = []
    for (at, label), (until, _) in pairwise([*truth[1:], (math.inf, "")]):
        since = [(line["capture_ns"] - begin_ns) / 1e9 for line in predictions if line["label"] == label]
        delays.append(next((round(s - at, 3) for s in since if at <= s < until), None))
    count = len(predictions)
    return {
        "predictions": count,
        "seconds": round((end_ns - begin_ns) / 1e9, 3),
        "flips_per_min": round(flips * 60e9 / max(1, end_ns - begin_ns), 2),
        "uncertain": round(sum(line["label"] == UNSURE for line in predictions) / count, 4),
        "unanswered": round(sum(line["label"] is None for line in predictions) / count, 4),
        "disagree": round(sum(bool(line.get("disagree")) for line in predictions) / count, 4),
        "used": {stream: round(sum(stream in line["used"] for line in predictions) / count, 4) for stream in streams},
    } | ({"delay_s": delays} if truth else {})
