"""Public sets of clips: what their file names mean, and their way through the live task."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from emotion_sets import RATE_HZ, asset, speech, voice_model

from pipeline.errors import ConfigError
from pipeline.training.data import clip_sets
from pipeline.training.data.clip_sets import Clip, clips, crema_d, emodb, ravdess


def recorded(path: Path, samples: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def test_file_names_give_label_and_speaker() -> None:
    calm, song, angry = (
        Path(f"03-{kind}-{emotion}-01-02-01-12.wav") for kind, emotion in (("01", "02"), ("02", "05"), ("01", "05"))
    )
    assert ravdess(calm) == Clip(calm, "neutral", "actor 12") and ravdess(song) is None
    assert ravdess(angry) == Clip(angry, "angry", "actor 12")
    fear, bored = Path("03a01Aa.wav"), Path("03a01Lb.wav")
    assert emodb(fear) == Clip(fear, "fear", "speaker 03") and emodb(bored) is None
    sad = Path("1001_DFA_SAD_XX.flv")
    assert crema_d(sad) == Clip(sad, "sad", "actor 1001") and crema_d(Path("readme_a_b_c.wav")) is None


def test_clips_become_rows_of_the_opinions_of_the_live_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset("centerface"), asset("silero-vad")
    monkeypatch.setattr("pipeline.tasks.emotion.VoiceActivity.update", lambda self, frames: True)
    sound = np.concatenate([frame.data for frame in speech(0, 100)])
    recorded(tmp_path / "1001" / "1001_DFA_ANG_XX.wav", sound)
    recorded(tmp_path / "1002" / "1002_DFA_SAD_XX.wav", sound[: RATE_HZ // 4])  # too short for a decision
    rows = clip_sets.rows_of(
        clips(tmp_path, "crema-d"),
        made_by="test",
        options={"voice": str(voice_model(tmp_path, label="angry")), "embeddings": False},
    )
    assert list(rows.group) == ["actor 1001", "actor 1002"] and [rows.labels[i] for i in rows.label] == ["angry", "sad"]
    assert set(rows.modalities) == {"voice"}  # a .wav has no pictures
    voice = rows.modalities["voice"]
    assert (
        voice.present.tolist() == [True, False]
        and voice.values[0].argmax() == 0
        and voice.values[0].sum() == pytest.approx(1)
    )


def test_folder_without_clips_is_refused_with_an_example_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no clips of emodb\. Give the folder that holds files such as 03a01Wa\.wav"):
        clips(tmp_path, "emodb")
