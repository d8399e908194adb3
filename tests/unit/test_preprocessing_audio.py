"""log_mel gives the same columns wherever a stream is cut; voice_tensor removes the gain and marks what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.preprocessing import VOICE_FRAMES, complete_columns, log_mel, voice_tensor

RATE_HZ = 16_000


def tone(hz: float, *, seconds: float, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def murmur(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose level rises and falls like syllables."""
    noise = np.random.default_rng(seed).normal(0, 0.2, int(seconds * RATE_HZ))
    return (noise * (1.1 + np.sin(2 * np.pi * 4 * np.arange(len(noise)) / RATE_HZ))).astype(np.float32)


def test_a_column_every_10_ms_and_higher_tones_in_higher_bands() -> None:
    low, high = log_mel(tone(200, seconds=1)), log_mel(tone(3000, seconds=1))
    assert low.shape == (64, 100) and low.dtype == np.float32
    assert low[:, 50].argmax() < high[:, 50].argmax()


def test_ten_times_the_amplitude_is_a_hundred_times_the_power() -> None:
    quiet, loud = log_mel(tone(1000, seconds=1, amplitude=0.05)), log_mel(tone(1000, seconds=1, amplitude=0.5))
    band = loud[:, 50].argmax()
    assert loud[band, 50] - quiet[band, 50] == pytest.approx(np.log(100), abs=0.01)


def test_a_stretch_of_a_stream_gives_the_columns_of_the_whole() -> None:
    sound = murmur(4.0)
    whole, stretch = log_mel(sound), log_mel(sound[16_000:48_000])
    assert stretch[:, 3:] == pytest.approx(whole[:, 103:300], abs=1e-3)


def test_what_comes_later_changes_no_column() -> None:
    sound = murmur(2.0)
    changed = sound.copy()
    changed[16_000:] = 0.5
    assert np.array_equal(log_mel(sound)[:, :100], log_mel(changed)[:, :100])


def test_digital_silence_is_finite() -> None:
    assert np.isfinite(log_mel(np.zeros(16_000, np.float32))).all()


def test_less_than_one_window_is_refused() -> None:
    with pytest.raises(ValueError, match="639"):
        log_mel(np.zeros(639, np.float32))


def test_a_column_is_complete_when_all_samples_of_its_window_are_valid() -> None:
    valid = np.ones(16_000, bool)
    valid[8_000:8_100] = False
    columns = complete_columns(valid)
    assert columns.shape == (100,)
    assert np.flatnonzero(~columns).tolist() == [0, 1, 2, 50, 51, 52, 53]  # the first three look back at nothing


def test_tensor_is_the_same_at_any_gain() -> None:
    sound, valid = murmur(3.0), np.ones(48_000, bool)
    assert voice_tensor(sound, valid) == pytest.approx(voice_tensor(sound * 0.3, valid), abs=0.01)


def test_tensor_takes_the_last_3_s() -> None:
    sound, valid = murmur(5.0), np.ones(80_000, bool)
    assert np.array_equal(voice_tensor(sound, valid), voice_tensor(sound[-48_000:], valid[-48_000:]))


def test_a_short_sound_is_right_aligned_and_the_rest_is_invalid() -> None:
    tensor = voice_tensor(murmur(1.0), np.ones(16_000, bool))
    assert tensor.shape == (2, 64, VOICE_FRAMES) and tensor.dtype == np.float32
    assert not tensor[:, :, :200].any()
    assert tensor[1, :, 203:].all() and tensor[0, :, 203:].max() > 0.9


def test_invalid_samples_change_nothing() -> None:
    sound, valid = murmur(3.0), np.ones(48_000, bool)
    valid[10_000:20_000] = False
    other = sound.copy()
    other[10_000:20_000] = 0.9
    assert np.array_equal(voice_tensor(sound, valid), voice_tensor(other, valid))
    assert not voice_tensor(sound, np.zeros(48_000, bool)).any()


def test_nothing_below_60_db_reaches_the_network() -> None:
    valid = np.ones(48_000, bool)
    speech = np.concatenate([np.zeros(24_000, np.float32), tone(500, seconds=1.5, amplitude=0.5)])
    hiss = np.random.default_rng(0).normal(0, 1e-5, 48_000).astype(np.float32)
    assert not voice_tensor(speech + hiss, valid)[0, :, :150].any()
