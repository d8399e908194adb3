"""Stability of a run's predictions: how often the label flips, how long nothing was certain, how late a change is
reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.training.evaluation.stream import evaluate_stream, measure


def run(labels: list[str | None], every_s: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"label": label, "capture_ns": 5_000_000_000 + round(i * every_s * 1e9), "used": ["camera"] if label else []}
        for i, label in enumerate(labels)
    ]


def test_flips_are_counted_between_certain_predictions_only() -> None:
    measured = measure([*run(["sad", "uncertain", "sad", None, "happy", "happy", "sad"]), {"summary": True}])
    assert measured["flips_per_min"] == 20.0  # two in six seconds
    assert measured["uncertain"] == measured["unanswered"] == round(1 / 7, 4)
    assert measured["used"] == {"camera": round(6 / 7, 4)} and "delay_s" not in measured


def test_delay_of_a_change_ends_when_its_label_is_first_predicted() -> None:
    measured = measure(run(["sad"] * 10 + ["happy"] * 10), truth=[(0, "sad"), (8.5, "happy"), (15, "angry")])
    assert measured["delay_s"] == [1.5, None]


def test_file_that_no_run_wrote_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("not json\n")
    (tmp_path / "b.jsonl").write_text('{"summary": true}\n')
    for name in ("a.jsonl", "b.jsonl", "none.jsonl"):
        with pytest.raises(ConfigError, match="--out wrote"):
            evaluate_stream(tmp_path / name)
