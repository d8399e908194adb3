"""Bad sound in the degradation table: how loud the noise is, and which moments an outage or a shift leaves."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.fusion.degradation_sound import Moment, noisy, until


def test_noise_is_as_far_below_the_speech_as_was_asked() -> None:
    at = np.arange(32_000)
    speech = (0.2 * np.sin(at / 5) * (at % 16_000 < 8_000)).astype(np.float32)  # half of it is silence
    added = noisy(speech, 10, seed=1) - speech
    assert 10 * np.log10(0.2**2 / 2 / (added**2).mean()) == pytest.approx(10, abs=0.5)


def test_sound_that_came_too_late_is_not_part_of_the_answer() -> None:
    happy, sad = np.log(np.float32([0.8, 0.1, 0.1])), np.log(np.float32([0.1, 0.8, 0.1]))
    told = [Moment(1_000, happy, 1.0), Moment(2_000, sad, 0.5), Moment(3_000, sad, 0.5)]
    assert until(told, 3_000)[0].argmax() == 1 and until(told, 3_000)[1] == pytest.approx(2 / 3)
    assert until(told, 1_999)[0] == pytest.approx(happy, abs=1e-5)
    nothing, weight = until(told, 999)
    assert weight == 0 and np.exp(nothing) == pytest.approx(1 / 7)
