"""The fixed-lag smoother of labels: it removes flicker, reports changes after its lag, and counts time, not frames."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.perception.expression.smoothing import FixedLag

MS = 1_000_000


def probs(label: int, sure: float = 0.6) -> np.ndarray:
    return np.array([sure if i == label else (1 - sure) / 2 for i in range(3)], np.float32)


def smoothed_labels(labels: list[int], *, lag_ms: float, every_ms: float = 40.0, sure: float = 0.6) -> list[int]:
    smoother = FixedLag(3, lag_ms=lag_ms)
    return [
        int(smoother.update(probs(label, sure), round(i * every_ms * MS)).argmax()) for i, label in enumerate(labels)
    ]


def test_flicker_of_a_few_frames_is_stilled() -> None:
    answers = smoothed_labels([0] * 50 + [1, 0, 1, 1, 0] + [0] * 50, lag_ms=200)
    assert set(answers) == {0}


def test_change_is_reported_later_by_about_the_lag() -> None:
    change = [0] * 50 + [1] * 50

    def delay_ms(lag_ms: float, sure: float) -> float:
        return (smoothed_labels(change, lag_ms=lag_ms, sure=sure).index(1) - 50) * 40.0

    assert 400 <= delay_ms(400, 0.95) <= 480  # the lag, and no more than two frames of doubt
    assert 400 < delay_ms(400, 0.6) <= 800  # weak evidence must convince first
    assert 0 < delay_ms(0, 0.95) <= 400  # so must any, without a lag


def test_twice_the_rate_is_not_twice_the_evidence() -> None:
    slow, fast = FixedLag(3, lag_ms=0), FixedLag(3, lag_ms=0)
    for i in range(11):
        at_slow = slow.update(probs(2), i * 40 * MS)
    for i in range(21):
        at_fast = fast.update(probs(2), i * 20 * MS)
    assert at_fast == pytest.approx(at_slow, abs=0.02) and at_fast.sum() == pytest.approx(1)


def test_long_pause_and_a_restart_forget_what_was_before() -> None:
    smoother = FixedLag(3, lag_ms=0)
    for i in range(20):
        smoother.update(probs(0, 0.9), i * 40 * MS)
    assert smoother.update(probs(1), 10_000 * MS).argmax() == 1
    assert smoother.update(probs(2), 0).argmax() == 2


def test_same_moment_twice_counts_once() -> None:
    smoother = FixedLag(3, lag_ms=100)
    once = smoother.update(probs(0), 0)
    assert np.array_equal(smoother.update(probs(0), 0), once)
