"""The emotion task with a voice: who is fused with whom, what poor evidence counts, and what the prediction reports.

A small voice network with known answers stands in for the trained one, and voice activity is fixed; the face model is
random.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from emotion_sets import LABELS, MS, aligned, asset, camera, clip, opened, speech, voice_model

from pipeline.errors import AssetError, ConfigError
from pipeline.frame import Frame, Prediction
from pipeline.perception.expression.quality import face_quality, voice_quality
from pipeline.perception.expression.speaker import Speaker
from pipeline.tasks.emotion import Emotion


class FixedActivity:
    """Voice activity with the answer that the test gives it."""

    def __init__(self, speaking: bool) -> None:
        self.speaking = speaking

    def update(self, frames: Sequence[Frame]) -> bool | None:
        return self.speaking if frames else None


Open = Callable[..., Emotion]


@pytest.fixture
def with_voice(face_model: Path, tmp_path: Path) -> Open:
    def open_task(label: str = "angry", *, speaking: bool = True, fusion: str = "average", **kind: Any) -> Emotion:
        task = opened(face_model, voice=str(voice_model(tmp_path, label=label, **kind)), fusion=fusion)
        task._activity = FixedActivity(speaking)  # type: ignore[assignment]
        return task

    return open_task


def watch(task: Emotion, images: Sequence[np.ndarray[Any, Any]], **sound: Any) -> list[Prediction]:
    """Two seconds of pictures and sound, 24 sets a second with the last second of sound, as in the demo."""
    answers = []
    for i in range(48):
        last = 50 + int(i * 1000 / 24 / 20)
        frame = camera(i, images[i % len(images)])
        answers.append(task.predict(aligned(frame, *speech(last - 50, 50, **sound), anchor_ns=frame.capture_ns)))
    return answers


@pytest.fixture(scope="module")
def face() -> np.ndarray[Any, Any]:
    return next(clip(0, 1))[1]


def test_voice_moves_the_answer_while_somebody_speaks_and_both_are_used(
    with_voice: Open, face: np.ndarray[Any, Any]
) -> None:
    silent = watch(with_voice(speaking=False), [face])[-1]
    spoken = watch(with_voice(speaking=True), [face])[-1]
    assert silent.used == ("webcam",) and spoken.used == ("webcam", "mic")
    angry = LABELS.index("angry")
    assert spoken.probs[angry] > silent.probs[angry] + 0.3 and spoken.probs.sum() == pytest.approx(1, abs=1e-5)
    assert spoken.subjects[0].voice == "own" and silent.subjects[0].voice == ""
    voice = spoken.opinions[1]
    assert (voice.modality, voice.stream, voice.weight) == ("voice", "mic", 1.0) and max(voice.probs) == voice.probs[
        angry
    ]
    assert silent.opinions[1].weight == 0 and silent.opinions[1].reason == "nobody speaks"
    assert spoken.record()["opinions"][1]["probs"]["angry"] == pytest.approx(voice.probs[angry], abs=1e-5)


def test_without_speech_the_answer_is_the_faces_to_the_bit(
    with_voice: Open, face_model: Path, face: np.ndarray[Any, Any]
) -> None:
    plain = watch(opened(face_model, voice="none"), [face])
    quiet = watch(with_voice(speaking=False), [face])
    assert all(np.array_equal(a.probs, b.probs) for a, b in zip(plain, quiet, strict=True))


def test_camera_away_the_voice_answers_alone(with_voice: Open) -> None:
    task = with_voice("sad")
    for last in range(50, 150, 2):
        prediction = task.predict(aligned(*speech(last - 50, 50), missing=("webcam",), anchor_ns=last * 20 * MS))
    assert prediction.label == "sad" and prediction.used == ("mic",) and prediction.missing == ("webcam",)
    assert prediction.subjects == ()


def test_run_that_loses_camera_then_microphone_keeps_predicting_and_recovers(
    with_voice: Open, face: np.ndarray[Any, Any]
) -> None:
    task, predictions = with_voice("sad"), []
    for i in range(120):  # five seconds: both, no camera, both, no microphone, both
        last, seeing, listening = 50 + int(i * 1000 / 24 / 20), not 24 <= i < 48, not 72 <= i < 96
        frames = ([camera(i, face)] if seeing else []) + (speech(last - 50, 50) if listening else [])
        missing = tuple(name for name, here in (("webcam", seeing), ("mic", listening)) if not here)
        predictions.append(
            task.predict(aligned(*frames, missing=missing, anchor_ns=i * 1001 * 1_000_000 * 1000 // 24000))
        )
    assert all(p.label is not None for p in predictions)
    assert [predictions[i].used for i in (23, 47, 71, 95, 119)] == [
        ("webcam", "mic"),
        ("mic",),
        ("webcam", "mic"),
        ("webcam",),
        ("webcam", "mic"),
    ]
    assert (
        predictions[47].missing == ("webcam",)
        and predictions[95].missing == ("mic",)
        and predictions[119].missing == ()
    )
    assert (
        predictions[47].label == "sad"
        and predictions[119].probs[LABELS.index("sad")] > predictions[95].probs[LABELS.index("sad")]
    )


def test_voice_fades_after_the_last_word_and_says_so(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    task = with_voice()
    watch(task, [face])
    task._activity = FixedActivity(False)  # type: ignore[assignment]
    weights, reasons = [], []
    for i in range(48, 110):
        last = 50 + int(i * 1000 / 24 / 20)
        opinion = task.predict(aligned(camera(i, face), *speech(last - 50, 50))).opinions[1]
        weights.append(opinion.weight)
        reasons.append(opinion.reason)
    assert weights[0] == 1 and weights[-1] == 0 and weights == sorted(weights, reverse=True)
    assert any(0.3 < w < 0.7 for w in weights) and "nobody has spoken for 1" in " ".join(reasons)


def test_same_sets_give_the_same_predictions(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    first, second = watch(with_voice(), [face]), watch(with_voice(), [face])
    assert [p.record() for p in first] == [p.record() for p in second]


def test_two_sure_opinions_that_differ_are_reported(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    task = with_voice("angry")
    known = task.predict(aligned(camera(0, face))).label
    task._faces._temperature = 0.02  # sure of whatever it answers
    prediction = watch(task, [face])[-1]
    assert known != "angry" and prediction.disagree and prediction.record()["disagree"] is True
    assert len(prediction.opinions) == 2


def test_unsure_answer_is_called_uncertain(face_model: Path, face: np.ndarray[Any, Any]) -> None:
    task = opened(face_model, uncertain_below=0.99)
    prediction = task.predict(aligned(camera(0, face)))
    assert prediction.label == "uncertain" and prediction.probs.sum() == pytest.approx(1, abs=1e-5)


def test_smoothed_label_says_how_much_later_it_is(face_model: Path, face: np.ndarray[Any, Any]) -> None:
    task = opened(face_model, lag_ms=200)
    for i in range(10):
        prediction = task.predict(aligned(camera(i, face)))
    assert prediction.record()["timing_ms"]["lag"] == 200 and prediction.probs.sum() == pytest.approx(1, abs=1e-5)


def test_clipped_and_noisy_sound_counts_less_and_says_why(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    clipped = watch(with_voice(), [face], gain=30.0)[-1].opinions[1]
    noisy = watch(with_voice(), [face], gain=0.05, noise=0.05)[-1].opinions[1]
    assert clipped.weight < 0.2 and "clipped" in clipped.reason
    assert noisy.weight < 0.6 and "noisy" in noisy.reason


def test_blurred_face_counts_less_and_says_why(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    blurred = watch(with_voice(), [cv2.GaussianBlur(face, (0, 0), 24)])[-1].opinions[0]
    sharp = watch(with_voice(), [face])[-1].opinions[0]
    assert sharp.weight == 1 and sharp.reason == ""
    assert blurred.weight < 0.3 and "blurred" in blurred.reason


def test_dark_and_small_faces_count_less() -> None:
    crop = np.random.default_rng(0).integers(60, 200, (48, 48)).astype(np.uint8)
    assert face_quality(crop, side_px=100) == (1.0, "")
    assert "dark" in face_quality((crop // 10).astype(np.uint8), side_px=100)[1]
    weight, reason = face_quality(crop, side_px=10)
    assert 0 < weight < 0.2 and reason == "small: 10 px"


def test_sound_that_is_missing_is_no_evidence() -> None:
    assert voice_quality(np.zeros(48_000, np.float32), np.zeros(48_000, bool)) == (0.0, "too little sound")


def faces_talking(who: int, frames: int = 48) -> tuple[Speaker, list[float]]:
    """Two drawn faces; the mouth of one moves with the level, both heads shake."""
    random = np.random.default_rng(1)
    plain = [random.integers(0, 255, (48, 48)).astype(np.uint8) for _ in range(2)]
    speaker, levels = Speaker(), []
    for i in range(frames):
        loud = (i // 4) % 2 == 1
        levels.append(-20.0 if loud else -60.0)
        crops = {}
        for id, face in enumerate(plain):
            moved = face.copy()
            moved[::3] = random.integers(0, 255, (16, 48))  # the whole head, all the time
            if id == who and loud:
                moved[30:46, 10:38] = random.integers(0, 255, (16, 28))
            crops[id + 1] = moved
        speaker.update(crops, level_db=levels[-1], capture_ns=i * 42 * MS)
    return speaker, levels


@pytest.mark.parametrize("who", [0, 1])
def test_voice_belongs_to_the_face_whose_mouth_moves_with_it(who: int) -> None:
    assert faces_talking(who)[0].owner() == who + 1


def test_voice_belongs_to_nobody_when_no_mouth_moves_with_it() -> None:
    assert faces_talking(-1)[0].owner() is None


def test_voice_of_a_crowd_is_shared_and_the_prediction_says_so(with_voice: Open) -> None:
    image = cv2.imread(str(asset("five-faces")))
    prediction = watch(with_voice(), [image])[-1]
    assert {s.voice for s in prediction.subjects} == {"shared"}
    assert "shared by 5 faces" in prediction.opinions[1].reason


def test_voice_of_one_face_does_not_touch_the_others(with_voice: Open) -> None:
    image = cv2.imread(str(asset("five-faces")))
    task = with_voice()
    watch(task, [image])
    alone = {id: tuple(float(x) for x in state.probs) for id, state in task._faces._states.items()}
    smallest = min(task._tracker._tracks, key=lambda t: t.face.side_px).id
    task._speaker.owner = lambda: smallest  # type: ignore[method-assign]
    prediction = task.predict(aligned(camera(48, image), *speech(98, 52), anchor_ns=49 * 42 * MS))
    voices = {s.id: s.voice for s in prediction.subjects}
    assert voices.pop(smallest) == "own" and set(voices.values()) == {""}
    for subject in prediction.subjects:
        assert (subject.probs == pytest.approx(alone[subject.id], abs=1e-3)) == (subject.id != smallest)
    assert prediction.used == ("webcam",) and "another face's mouth" in prediction.opinions[1].reason


def test_another_encoder_is_a_file_named_in_the_config(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    """Here one that takes plain samples, and knows four labels only."""
    task = with_voice("sad", labels=("angry", "happy", "neutral", "sad"), shape=(16_000,), name="samples")
    opinion = watch(task, [face])[-1].opinions[1]
    assert opinion.probs[LABELS.index("sad")] > 0.5
    assert opinion.probs[LABELS.index("fear")] == pytest.approx(1 / 7, abs=1e-5)  # it says nothing of fear


def test_licence_of_the_voice_is_logged_at_the_start(with_voice: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        task = with_voice()
    assert "not for commercial use" in caplog.text
    assert "not for commercial use" in task.metrics.facts["licence stand-in"]
    assert "stand-in@" in task.model


def test_voice_model_of_another_kind_and_missing_models_are_refused(
    with_voice: Open,
    face_model: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="expected one input, 'voice'"):
        with_voice(shape=(5,), name="text")
    with pytest.raises(AssetError, match="train voice"):
        Emotion(model=str(face_model), voice=str(tmp_path / "none.onnx")).open("auto")
    with pytest.raises(AssetError, match="train fusion"):
        Emotion(
            model=str(face_model), voice=str(voice_model(tmp_path, label="sad")), fusion=str(tmp_path / "none.onnx")
        ).open("auto")


def test_voice_without_a_trained_fusion_does_not_take_part(
    face_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    centerface, vad = asset("centerface"), asset("silero-vad")
    monkeypatch.setattr("pipeline.assets.path", lambda name: {"centerface": centerface, "silero-vad": vad}[name])
    monkeypatch.setattr("pipeline.installation.MODELS", tmp_path)
    with caplog.at_level(logging.WARNING):
        task = opened(face_model, voice=str(voice_model(tmp_path, label="sad")))
    assert task._voice is None and "train fusion" in caplog.text and "+" not in task.model


def test_embeddings_are_sent_only_when_asked_for(face_model: Path, face: np.ndarray[Any, Any]) -> None:
    silent, asked = opened(face_model, voice="none"), opened(face_model, voice="none", embeddings=True)
    assert silent.predict(aligned(camera(0, face))).opinions == ()
    opinion = asked.predict(aligned(camera(0, face))).opinions[0]
    assert opinion.modality == "face" and opinion.embedding.shape == (7,) and opinion.embedding.dtype == np.float32
    assert len(asked.predict(aligned(camera(1, face))).record()["opinions"][0]["embedding"]) == 7


def test_an_opinion_has_no_embedding_in_its_record_unless_asked(with_voice: Open, face: np.ndarray[Any, Any]) -> None:
    record = watch(with_voice(), [face])[-1].record()
    assert [o["modality"] for o in record["opinions"]] == ["face", "voice"]
    assert all("embedding" not in o for o in record["opinions"])


def test_embeddings_of_a_network_that_has_none_are_refused(face_model: Path, tmp_path: Path) -> None:
    voice = voice_model(tmp_path, label="sad")
    with pytest.raises(ConfigError, match="stand-in.*no output 'embedding'.*voice: none"):
        opened(face_model, voice=str(voice), fusion="average", embeddings=True)
