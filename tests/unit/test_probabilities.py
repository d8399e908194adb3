"""softmax and log_softmax: shape, precision, scale."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.probabilities import log_softmax, softmax


def test_probabilities_sum_to_one_over_the_last_axis_in_the_precision_of_the_logits():
    logits = np.random.default_rng(0).normal(0, 3, (4, 5, 7))
    for dtype in (np.float32, np.float64):
        probs = softmax(logits.astype(dtype))
        assert probs.dtype == dtype and probs.shape == logits.shape
        assert probs.sum(axis=-1) == pytest.approx(np.ones((4, 5)), abs=1e-6)


def test_a_higher_temperature_makes_the_answer_less_certain_and_keeps_its_order():
    logits = np.float32([3.0, 1.0, 0.0])
    sharp, soft = softmax(logits), softmax(logits, temperature=2.0)
    assert soft == pytest.approx(softmax(logits / 2.0)) and sharp.max() > soft.max()
    assert list(np.argsort(sharp)) == list(np.argsort(soft))


def test_huge_logits_do_not_overflow():
    assert softmax(np.float32([1e30, 0.0])).tolist() == [1.0, 0.0]
    assert log_softmax(np.float32([0.0, -500.0])).tolist() == [0.0, -500.0]


def test_log_softmax_is_the_logarithm_of_softmax():
    logits = np.random.default_rng(1).normal(0, 2, (3, 4))
    assert log_softmax(logits, temperature=1.7) == pytest.approx(np.log(softmax(logits, temperature=1.7)))
