"""Sound events: when the network runs, the answer when there is nothing to report, and real barks and rain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.frame import AlignedSet, Frame, Receipt
from pipeline.inference.engine import Tensors
from pipeline.inference.manifest import Manifest
from pipeline.perception.sound_events import MODEL, SoundEventDetector
from pipeline.task import make

MS = 1_000_000
CHUNK = 320  # samples in 20 ms

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason=f"no {MODEL}: python run_pipeline.py train sound")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest.read(MODEL)


def chunks(samples: np.ndarray[Any, Any], *, first_seq: int = 0, rate_hz: int = 16_000) -> list[Frame]:
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


def hiss(seconds: float, level: float = 0.1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(0, level, round(seconds * 16_000)).astype(np.float32)


class Net:
    """An engine that records its inputs and returns a chosen answer."""

    description = "net"

    def __init__(self, manifest: Manifest, label: str = "rain", sure: float = 5.0) -> None:
        self.inputs: list[np.ndarray[Any, Any]] = []
        self.logits = np.zeros((1, len(manifest.labels)), np.float32)
        self.logits[0, manifest.labels.index(label)] = sure

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        self.inputs.append(inputs["sound"])
        return {"logits": self.logits}


def run(detector: SoundEventDetector, frames: list[Frame]) -> list[tuple[str, ...]]:
    """The events after every chunk, each passed with the chunks of the second before it."""
    return [
        tuple(s.label for s in detector.update(frames[max(0, i - 50) : i + 1], frames[i].end_ns))
        for i in range(len(frames))
    ]


def test_decides_twice_a_second_from_the_first_second_on(manifest: Manifest) -> None:
    net = Net(manifest)
    events = run(SoundEventDetector(net, manifest), chunks(hiss(3.0)))  # type: ignore[arg-type]
    assert len(net.inputs) == 5  # after 1, 1.5, 2, 2.5 and 3 s
    assert events[48] == () and events[49] == ("rain",)
    assert net.inputs[0][0, 1, 0].sum() == 97 and net.inputs[-1][0, 1, 0].sum() == 297  # valid columns


def test_the_answer_does_not_depend_on_how_often_it_is_updated(manifest: Manifest) -> None:
    frames, often, seldom = chunks(hiss(4.0)), Net(manifest), Net(manifest)
    run(SoundEventDetector(often, manifest), frames)  # type: ignore[arg-type]
    detector = SoundEventDetector(seldom, manifest)  # type: ignore[arg-type]
    for end in range(25, len(frames) + 1, 25):
        detector.update(frames[end - 25 : end], frames[end - 1].end_ns)
    assert len(often.inputs) == len(seldom.inputs) and all(map(np.array_equal, often.inputs, seldom.inputs))


def test_silence_and_a_quiet_room_are_not_judged(manifest: Manifest) -> None:
    for level in (0.0, 0.001):  # digital silence; a microphone's hiss, 60 dB below full scale
        net = Net(manifest)
        detector = SoundEventDetector(net, manifest)  # type: ignore[arg-type]
        assert run(detector, chunks(hiss(2.0, level)))[-1] == ("silence",)
        assert not net.inputs and detector.reason.startswith("silence: -")


def test_unsure_answer_is_other_with_the_reason(manifest: Manifest) -> None:
    detector = SoundEventDetector(Net(manifest, sure=1.0), manifest)  # type: ignore[arg-type]
    assert run(detector, chunks(hiss(2.0)))[-1] == ("other",)
    assert "most like rain" in detector.reason


def test_a_microphone_without_frames_is_reported_after_two_seconds_and_back_at_once(manifest: Manifest) -> None:
    detector = SoundEventDetector(Net(manifest), manifest)  # type: ignore[arg-type]
    frames = chunks(hiss(4.0))
    run(detector, frames)
    assert detector.update(None, 5_400 * MS) and not detector.update(None, 5_600 * MS) and detector.reason == "no sound"
    later = [
        Frame("microphone", 300 + i, (300 + i) * 20 * MS, "pcm_f32", f.data, 20 * MS) for i, f in enumerate(frames)
    ]
    assert run(detector, later)[-1] == ("rain",)


def test_gap_in_the_stream_is_masked_not_filled(manifest: Manifest) -> None:
    net = Net(manifest)
    frames = [f for f in chunks(hiss(3.0)) if not 50 <= f.seq < 60]
    run(SoundEventDetector(net, manifest), frames)  # type: ignore[arg-type]
    mask = net.inputs[-1][0, 1, 0]
    assert not mask[100:123].any() and mask[123:].all() and mask[3:100].all()


def test_another_rate_is_refused_in_words(manifest: Manifest) -> None:
    detector = SoundEventDetector(Net(manifest), manifest)  # type: ignore[arg-type]
    assert run(detector, chunks(hiss(2.0), rate_hz=8_000))[-1] == () and detector.reason == "not at 16 kHz"


# --- the task, with the shipped network


def aligned(frames: list[Frame], at: int) -> AlignedSet:
    window = tuple(frames[max(0, at - 49) : at + 1])
    receipt = Receipt("microphone", "exact", tuple(f.seq for f in window))
    return AlignedSet("microphone", frames[at].end_ns, {"microphone": window}, (receipt,))


def test_task_says_silence_names_its_model_and_refuses_another_rate() -> None:
    task = make("sounds")
    task.open("onnxruntime")
    quiet = chunks(np.zeros(32_000, np.float32))
    answers = [task.predict(aligned(quiet, i)) for i in range(len(quiet))]
    assert answers[0].label is None and not answers[0].used and answers[-1].label == "silence"
    assert answers[-1].used == ("microphone",) and answers[-1].model.startswith("sound-events@")
    assert answers[-1].probs.sum() == pytest.approx(1)
    slow = chunks(np.zeros(32_000, np.float32), rate_hz=8_000)
    refused = task.predict(aligned(slow, 60))
    assert (
        refused.missing == ("microphone",) and refused.receipts[0].reason == "not at 16 kHz" and refused.label is None
    )
    deaf = task.predict(AlignedSet("", 0, {}, (), ("microphone",)))
    assert deaf.label is None and deaf.missing == ("microphone",) and deaf.surroundings is not None
    task.close()


def sound(path: Path) -> np.ndarray[Any, Any]:
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    resampler = av.AudioResampler("flt", "mono", 16_000)
    with av.open(str(path)) as opened:
        return np.concatenate([out.to_ndarray()[0] for f in opened.decode(audio=0) for out in resampler.resample(f)])


def test_real_clips_get_their_labels_and_speech_is_no_event(data_dir: Path) -> None:
    """It was trained on these events, so this shows that the live path works, not how good it is. The speaker is
    unknown to it."""
    task = make("sounds")
    task.open("onnxruntime")
    for name in ("dog_bark", "rain", "rooster", "clock_tick"):
        folder = data_dir / "sounds" / "esc10" / name
        path = sorted(folder.glob("4-*.ogg"))[0] if folder.is_dir() else folder / "4-….ogg"
        frames = chunks(sound(path))
        before = task.predict(aligned(frames, 10))
        assert before.label is None or before.label == "silence"
        predictions = [task.predict(aligned(frames, i)) for i in range(len(frames))]
        labels = {p.label for p in predictions[100:]}
        assert name in labels and labels <= {name, "other", "silence"}
        assert all(
            s.label == name for p in predictions for s in p.surroundings.sounds if s.label not in ("other", "silence")
        )  # type: ignore[union-attr]
        task.close()
        task = make("sounds")
        task.open("onnxruntime")
    frames = chunks(sound(data_dir / "speech" / "ravdess" / "03-01-05-02-01-01-15.flac"))
    assert {task.predict(aligned(frames, i)).label for i in range(len(frames))} <= {None, "other", "silence"}
    task.close()
