"""A session's neutral: the rest of a person is taken off, and whether that helps is measured on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_emotion import LABELS, PERIOD_NS, aligned, camera, clip, opened, weights  # noqa: F401

from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.resting import Resting
from pipeline.recording.dataset import Modality, Rows

MS = 1_000_000
AVERAGE = np.log(np.float32([0.1, 0.1, 0.8]))
SULLEN = np.log(np.float32([0.5, 0.1, 0.4]))  # somebody whose rest looks like the first label


def test_after_three_seconds_a_persons_rest_is_the_average_persons() -> None:
    resting = Resting(AVERAGE, seconds=3.0, strength=1.0)
    told = [resting.update(SULLEN, i * 100 * MS) for i in range(40)]
    assert all(np.array_equal(one, SULLEN) for one in told[:30]) and resting.known
    assert np.exp(told[30]) == pytest.approx(np.exp(AVERAGE), abs=1e-5)
    angrier = resting.update(np.log(np.float32([0.9, 0.05, 0.05])), 5000 * MS)
    assert angrier.argmax() == 0 and np.exp(angrier).sum() == pytest.approx(1, abs=1e-5)


def test_time_in_which_nothing_was_seen_is_no_rest() -> None:
    resting = Resting(AVERAGE, seconds=3.0)
    for second in range(10):  # one glimpse a second
        resting.update(SULLEN, second * 1000 * MS)
        resting.update(SULLEN, second * 1000 * MS)  # and the same picture twice
    assert not resting.known


def test_task_moves_a_faces_answers_only_once_its_rest_is_known(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neutral_"):
        opened(weights, voice="none", baseline_s=3.0)
    copy = tmp_path / "random.onnx"
    copy.write_bytes(weights.read_bytes())
    told = {f"neutral_{label}": float(np.log(0.7 if label == "neutral" else 0.05)) for label in LABELS}
    replace(Manifest.read(weights), metrics=told).write(copy)
    _, image = next(clip(0, 1))
    plain, rested = opened(copy, voice="none"), opened(copy, voice="none", baseline_s=1.0)
    pairs = [(plain.predict(aligned(camera(i, image))), rested.predict(aligned(camera(i, image)))) for i in range(40)]
    assert np.allclose(pairs[20][0].probs, pairs[20][1].probs, atol=1e-5)
    neutral = LABELS.index("neutral")
    assert pairs[39][1].probs[neutral] > 10 * pairs[39][0].probs[neutral]


def test_baseline_is_judged_on_speakers_that_fitted_nothing() -> None:
    baseline = pytest.importorskip("pipeline.training.evaluation.baseline", reason="needs torch: scripts/setup train")
    random = np.random.default_rng(0)
    label, person = random.integers(0, 3, 600), np.arange(600) % 20
    habit = random.normal(0, 1.5, (20, 3))[person]  # everybody is read with a bias of their own
    logits = habit + 2.0 * np.eye(3)[label] + random.normal(0, 0.5, (600, 3))
    probs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    given = Modality("probs", probs, np.ones(600, bool), np.zeros(600, np.int64))
    rows = Rows(
        ("happy", "sad", "neutral"), label, np.array([f"p{i}" for i in person]), np.arange(600), {"voice": given}
    )
    shown = baseline.judge(rows, "voice", seed=1)
    assert shown["after"].accuracy > shown["before"].accuracy + 0.1 and shown["after"].count == 600 - 20
