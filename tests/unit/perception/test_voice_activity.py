"""Voice activity and the window of sound: each sample once, gaps counted, real speech detected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.frame import Frame
from pipeline.inference.choose_backend import load
from pipeline.inference.engine import Tensors
from pipeline.perception.expression.voice_activity import HOP, SAMPLE_RATE_HZ, VoiceActivity
from pipeline.preprocessing import audio_window

MS = 1_000_000
CHUNK = 320  # samples in 20 ms


def chunks(samples: np.ndarray[Any, Any], first_seq: int = 0, rate_hz: int = SAMPLE_RATE_HZ) -> list[Frame]:
    """`samples` as a microphone sends them: 20 ms a frame, stamped from 0."""
    size = rate_hz // 50
    return [
        Frame(
            "microphone",
            first_seq + i,
            (first_seq + i) * 20 * MS,
            "pcm_f32",
            samples[i * size : (i + 1) * size],
            20 * MS,
        )
        for i in range(len(samples) // size)
    ]


def windows(frames: Sequence[Frame], length: int = 50) -> list[Sequence[Frame]]:
    """The frames of the last second, at every other chunk."""
    return [frames[max(0, end - length) : end] for end in range(2, len(frames) + 1, 2)]


class FakeNetwork:
    """An engine that records its inputs, and takes loud hops for speech."""

    description = "fake"

    def __init__(self) -> None:
        self.hops: list[np.ndarray[Any, Any]] = []
        self.states: list[float] = []

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        self.hops.append(inputs["input"][0])
        self.states.append(float(inputs["state"].max()))
        prob = 0.9 if np.abs(inputs["input"][0, 64:]).max() > 0.5 else 0.1
        return {"output": np.full((1, 1), prob, np.float32), "stateN": inputs["state"] + 1}


def test_each_sample_of_overlapping_windows_is_processed_once_with_its_context() -> None:
    network = FakeNetwork()
    activity = VoiceActivity(network)  # type: ignore[arg-type]
    samples = np.arange(40 * CHUNK, dtype=np.float32) / 1e6
    for window in windows(chunks(samples)):
        activity.update(window)
    hops = len(samples) // HOP
    assert np.array_equal(np.concatenate([hop[64:] for hop in network.hops]), samples[: hops * HOP])
    assert np.array_equal(network.hops[3][:64], samples[3 * HOP - 64 : 3 * HOP])
    assert network.states == list(range(hops))


def test_gap_starts_over_and_is_counted() -> None:
    network = FakeNetwork()
    activity = VoiceActivity(network)  # type: ignore[arg-type]
    frames = chunks(np.zeros(20 * CHUNK, np.float32))
    activity.update([*frames[:8], *frames[9:]])
    assert activity.gaps == 1 and network.states == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    activity.update(frames)
    assert activity.gaps == 1 and len(network.states) == 11


def test_microphone_that_starts_again_at_zero_is_processed() -> None:
    network = FakeNetwork()
    activity = VoiceActivity(network)  # type: ignore[arg-type]
    activity.update(chunks(np.zeros(8 * CHUNK, np.float32), first_seq=100))
    later = [
        Frame("microphone", seq, (200 + seq) * 20 * MS, "pcm_f32", np.zeros(CHUNK, np.float32), 20 * MS)
        for seq in range(8)
    ]
    activity.update(later)
    assert len(network.states) == 10


def test_speaking_begins_after_64_ms_and_outlasts_a_pause_between_words() -> None:
    activity = VoiceActivity(FakeNetwork())  # type: ignore[arg-type]
    loud, quiet = np.ones(HOP, np.float32), np.zeros(HOP, np.float32)
    pattern = [quiet, loud, quiet, loud, loud, *[quiet] * 6, loud, *[quiet] * 12]  # one loud hop is a knock
    speaking = []
    for seq, hop in enumerate(pattern):
        frame = Frame("microphone", seq, seq * 32 * MS, "pcm_f32", hop, 32 * MS)
        speaking.append(activity.update([frame]))
    assert speaking == [False] * 4 + [True] * 15 + [False] * 5


def test_unknown_without_a_microphone_or_at_another_rate(caplog: pytest.LogCaptureFixture) -> None:
    activity = VoiceActivity(FakeNetwork())  # type: ignore[arg-type]
    assert activity.update([]) is None
    for window in windows(chunks(np.zeros(20 * 960, np.float32), rate_hz=48_000)):
        assert activity.update(window) is None
    assert caplog.text.count("sample_rate_hz: 16000") == 1


def test_real_speech_is_detected_and_its_silence_too(data_dir: Path) -> None:
    try:
        engine = load(assets.path("silero-vad"))
    except AssetError as error:
        pytest.skip(str(error))
    clip = data_dir / "speech" / "ravdess" / "03-01-05-01-01-01-01.flac"
    if not clip.is_file():
        pytest.skip(f"{clip} is not there")
    with av.open(str(clip)) as opened:  # 16 kHz, mono, 16 bits
        speech = np.concatenate([f.to_ndarray().ravel() for f in opened.decode(audio=0)]).astype(np.float32) / 2**15
    silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
    activity = VoiceActivity(engine)
    speaking = []
    for window in windows(chunks(np.concatenate([silence, speech, silence, silence]))):
        speaking.append(activity.update(window))
    per_second = 25
    assert not any(speaking[:per_second]) and not speaking[-1]
    assert sum(map(bool, speaking)) * 40 >= 800  # ms


# --- preprocessing.audio_window


def test_window_of_sound_is_exact_to_the_sample() -> None:
    samples = np.arange(100 * CHUNK, dtype=np.float32)
    anchor_ns = 1_500 * MS + 62_500 * 3  # three samples later
    window, present = audio_window(tuple(chunks(samples)), anchor_ns, before_ns=1_000 * MS, sample_rate_hz=16_000)
    assert np.array_equal(window, samples[8_003:24_003]) and present.all()


def test_wandering_stamps_neither_tear_nor_double_a_sample() -> None:
    samples = np.arange(100 * CHUNK, dtype=np.float32)
    wander_ns = np.random.default_rng(1).integers(-500_000, 500_000, 100)
    frames = tuple(
        Frame("microphone", f.seq, f.capture_ns + int(wander_ns[f.seq]), "pcm_f32", f.data, f.duration_ns)
        for f in chunks(samples)
    )
    window, present = audio_window(frames, 1_500 * MS, before_ns=1_000 * MS, sample_rate_hz=16_000)
    assert present.all() and np.array_equal(np.diff(window), np.ones(15_999))
    assert abs(window[0] - 8_000) <= 3


def test_missing_chunk_is_a_gap_of_its_length_and_the_rest_stays_in_place() -> None:
    samples = np.arange(1, 50 * CHUNK + 1, dtype=np.float32)
    frames = tuple(frame for frame in chunks(samples) if frame.seq not in (10, 11))
    window, present = audio_window(frames, 1_000 * MS, before_ns=1_000 * MS, sample_rate_hz=16_000)
    gap = slice(10 * CHUNK, 12 * CHUNK)
    assert (~present).sum() == 2 * CHUNK and not present[gap].any() and not window[gap].any()
    assert np.array_equal(window[present], samples[present])


def test_no_sound_is_a_mask_without_a_sample() -> None:
    window, present = audio_window(None, 0, before_ns=20 * MS, sample_rate_hz=16_000)
    assert len(window) == 320 and not present.any()
