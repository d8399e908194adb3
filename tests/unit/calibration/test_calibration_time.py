"""Sound against picture, lidar against picture: a signed number with its interval, or "unknown" with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.time_scenes import flashes, talk, turning
from calibration.time.answer import Answer
from calibration.time.audio_video import AudioVideo
from calibration.time.claps import match
from calibration.time.lag import Series, find_lag
from calibration.time.mouth_voice import Mouth, Voice, compare
from calibration.time.turning import turning_answer


def test_twenty_flashes_give_the_offset_to_three_milliseconds_and_its_interval():
    for seed in (1, 2, 3):
        pictures, microphone, true_ms = flashes(seed)
        offset = match(pictures.events(), microphone.events())
        assert abs(offset.offset_ms - true_ms) < 3 and offset.events >= 18
        assert offset.interval_ms[0] < true_ms < offset.interval_ms[1]


def test_hands_that_clap_give_it_to_a_few_milliseconds():
    pictures, microphone, true_ms = flashes(1, hands=True)
    offset = match(pictures.events(), microphone.events())
    assert abs(offset.offset_ms - true_ms) < 10 and offset.interval_ms[0] < true_ms < offset.interval_ms[1]


def test_claps_in_a_regular_beat_are_unknown():
    pictures, microphone, _ = flashes(1, regular=True)
    assert "regular beat" in match(pictures.events(), microphone.events()).unknown


def test_flashes_without_sound_are_unknown():
    pictures, microphone, _ = flashes(1, silent=True)
    assert "needed" in match(pictures.events(), microphone.events()).unknown


def test_a_talking_mouth_gives_the_offset_to_forty_milliseconds():
    mouth, voice, true_ms = talk(3)
    lag = compare(mouth, voice)
    assert lag.unknown or abs(lag.offset_ms - true_ms) <= 40
    assert not lag.unknown or "chance" in lag.unknown


def test_a_mouth_and_somebody_elses_voice_are_unknown():
    mouth, voice, _ = talk(0, unrelated=True)
    assert compare(mouth, voice).unknown


def test_a_silent_microphone_and_a_missing_face_are_unknown_each_with_its_reason():
    mouth, voice, _ = talk(0, seconds=6)
    silent = Voice()
    silent.add(np.zeros(160_000, np.float32), 0, 10_000_000_000)
    assert compare(mouth, silent).unknown == "the microphone is silent"
    assert "no face" in compare(Mouth(), voice).unknown


def test_turning_gives_camera_against_lidar_with_its_sign():
    camera, lidar, true_ms = turning(1, seconds=10)
    answer = turning_answer(camera, lidar)
    assert abs(answer.offset_ms - true_ms) < 8


def test_a_rig_that_does_not_turn_is_unknown():
    camera, lidar, _ = turning(0, seconds=6, still=True)
    assert "hardly turned" in turning_answer(camera, lidar).unknown


def test_the_sign_is_what_is_added_to_the_second_signal():
    times = np.arange(0, 20, 0.02)
    values = np.convolve(np.random.default_rng(0).normal(size=len(times)), np.hanning(9), "same")
    assert find_lag(Series(times, values), Series(times - 0.12, values)).offset_ms == pytest.approx(120, abs=3)


def test_unrelated_signals_never_have_a_lag():
    def wave(seed):
        times = np.arange(0, 20, 1 / 30)
        return Series(times, np.convolve(np.random.default_rng(seed).normal(size=len(times)), np.hanning(9), "same"))

    assert all(find_lag(wave(seed), wave(seed + 100)).unknown for seed in range(10))


def test_a_signal_that_repeats_itself_is_unknown():
    times = np.arange(0, 20, 1 / 30)
    wave = Series(times, np.sin(2 * np.pi * 3 * times))
    assert find_lag(wave, wave).unknown


@pytest.mark.parametrize(
    ("offset_ms", "words"),
    [
        (30.0, "leads the picture by 30 ms; people do not notice"),
        (-100.0, "lags the picture by 100 ms; people do not notice"),
        (60.0, "people notice that"),
        (-150.0, "mostly accept it"),
        (120.0, "people object to that"),
    ],
)
def test_a_number_is_compared_with_what_people_notice(offset_ms, words):
    assert words in str(Answer(offset_ms, 1.0, (offset_ms - 2, offset_ms + 2), "20 claps or flashes"))


def test_a_session_without_events_is_unknown_and_says_what_to_do():
    answer = AudioVideo(None).answer()
    assert answer.unknown and "clap" in answer.check().next_step
