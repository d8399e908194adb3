"""Degraded sound: level of the noise, and the moments that an outage or a delay leaves."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.fusion.degradation_sound import Moment, noisy, opinion_until


def test_noise_is_as_far_below_the_speech_as_was_asked() -> None:
    at = np.arange(32_000)
    speech = (0.2 * np.sin(at / 5) * (at % 16_000 < 8_000)).astype(np.float32)  # half of it is silence
    added = noisy(speech, 10, seed=1) - speech
    assert 10 * np.log10(0.2**2 / 2 / (added**2).mean()) == pytest.approx(10, abs=0.5)


def test_moments_after_the_time_are_left_out() -> None:
    happy, sad = np.log(np.float32([0.8, 0.1, 0.1])), np.log(np.float32([0.1, 0.8, 0.1]))
    moments = [Moment(1_000, happy, 1.0), Moment(2_000, sad, 0.5), Moment(3_000, sad, 0.5)]
    assert opinion_until(moments, 3_000)[0].argmax() == 1 and opinion_until(moments, 3_000)[1] == pytest.approx(2 / 3)
    assert opinion_until(moments, 1_999)[0] == pytest.approx(happy, abs=1e-5)
    nothing, weight = opinion_until(moments, 999)
    assert weight == 0 and np.exp(nothing) == pytest.approx(1 / 7)
