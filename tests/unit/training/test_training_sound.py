"""Training of the sound-event network end to end on synthetic clips, and the shipped file in the live detector."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: scripts/setup train")

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.inference.backends.onnxruntime import Onnxruntime  # noqa: E402
from pipeline.inference.manifest import Manifest  # noqa: E402
from pipeline.perception import parity_samples  # noqa: E402
from pipeline.perception.sound_events import MODEL, OTHER, SoundEventDetector  # noqa: E402
from pipeline.training.data.folder import data_folder  # noqa: E402
from pipeline.training.export.onnx_export import MAX_DIFFERENCE, largest_difference  # noqa: E402
from pipeline.training.mlp_ensemble import MlpEnsemble  # noqa: E402
from pipeline.training.sound import train as training  # noqa: E402
from pipeline.training.sound.clips import FOLDS, LABELS, clips_of, fold_of, load_sounds  # noqa: E402
from pipeline.training.sound.evaluate import evaluate_sound, play  # noqa: E402
from pipeline.training.sound.export import export_sound  # noqa: E402
from pipeline.training.sound.net import SoundAnalysis, SoundNet  # noqa: E402

RATE_HZ = 16_000


def write(path: Path, sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In each of four folds a clip of every class: a tone of its own pitch, and two speakers."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    at = np.arange(2 * RATE_HZ) / RATE_HZ
    for fold in range(1, FOLDS + 1):
        for i, label in enumerate(LABELS[:-1]):
            tone = 0.3 * np.sin(2 * np.pi * 150 * 1.4**i * at) + random.normal(0, 0.01, len(at))
            write(
                folder / f"sounds/esc10/{label}/{fold}-{100 + i}-A.ogg", tone
            )  # the content decides the format, not the name
    for speaker in ("03", "08"):
        write(
            folder / f"speech/emodb/angry/{speaker}a01Wa.wav",
            random.normal(0, 0.1, 2 * RATE_HZ) * (np.sin(2 * np.pi * 3 * at) > 0),
        )
    return folder


def test_clips_name_their_fold_and_the_recording_they_were_cut_from(data: Path) -> None:
    clips = clips_of(data)
    assert len(clips) == 42 and {label for _, label, _ in clips} == set(LABELS)
    assert fold_of("1-187207") == 1 and fold_of("emodb-03") == 4 and fold_of("emodb-08") == 1
    assert {recording for _, label, recording in clips if label == OTHER} == {"emodb-03", "emodb-08"}


def test_folder_without_clips_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no clips. Put ESC-10 there, a folder a class"):
        clips_of(tmp_path)


def test_cache_is_used_for_the_same_files_only(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_sounds(data, cache=tmp_path, speeds=(1.0,))
    again = load_sounds(data, cache=tmp_path, speeds=(1.0,))
    assert capsys.readouterr().out.count("reading 42 clips") == 1 and np.array_equal(first.mel, again.mel)
    assert first.decisions(0).tolist() == [100, 150, 200]


def test_training_ships_a_model_that_the_live_task_and_evaluate_can_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "COPIES", 1)
    out = tmp_path / "sound-events.onnx"
    training.train(data=data, out=out, epochs=2, runs=tmp_path)
    manifest = Manifest.read(out)
    assert (
        manifest.labels == LABELS
        and manifest.made_by.endswith("--epochs 2 --seed 7")
        and "CC BY 3.0" in manifest.licence
    )
    assert {"esc10_clip_accuracy", "esc10_window_ece", "unknown_sound_windows_reported"} <= set(manifest.metrics)
    printed = capsys.readouterr().out
    assert "ESC-10, fold 4, not used for any choice" in printed and "trained without rain" in printed
    assert "ESC-10, RECORDINGS IT WAS TRAINED ON" in evaluate_sound(model=out, data=data, out=tmp_path / "e.json")


def test_missing_fold_is_refused(data: Path, tmp_path: Path) -> None:
    for path in data.glob("sounds/esc10/*/[123]-*.ogg"):
        target = tmp_path / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    with pytest.raises(ConfigError, match=r"folds \[1, 2, 3\]; all of 1 to 4"):
        training.train(data=tmp_path, out=tmp_path / "x.onnx", runs=tmp_path)


def test_exported_network_answers_as_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    analysis = SoundAnalysis()
    windows = torch.from_numpy(np.concatenate([batch["sound"] for batch in parity_samples.of(MODEL)])[::16])
    net = SoundNet(analysis, MlpEnsemble(analysis(windows).shape[1], len(LABELS))).eval()
    export_sound(net, tmp_path / "net.onnx")
    assert largest_difference(net, tmp_path / "net.onnx", windows) <= MAX_DIFFERENCE


def test_features_are_finite_with_few_or_no_valid_columns() -> None:
    windows = torch.zeros(3, 2, 64, 300)
    windows[1, :, :, -97:], windows[2, 1] = 1, 1  # a second of sound; three seconds without any
    assert torch.isfinite(SoundAnalysis()(windows)).all()


@pytest.mark.skipif(not MODEL.is_file(), reason=f"no {MODEL}")
def test_shipped_model_knows_its_own_clips_and_its_folds_reached_88_percent(data_dir: Path) -> None:
    """These clips are training data: they check the live path. The figures of the folds, in the manifest, show the
    accuracy on unseen clips.
    """
    clips = [c for c in clips_of(data_folder(data_dir)) if c[1] != OTHER][::16]
    engine, manifest = Onnxruntime(MODEL, threads=1), Manifest.read(MODEL)
    right = 0
    for path, label, _ in clips:
        log_probs, _ = play(SoundEventDetector(engine, manifest), path)
        right += bool(log_probs) and manifest.labels[int(np.mean(log_probs, axis=0).argmax())] == label
    assert right >= 0.95 * len(clips)
    assert manifest.metrics["esc10_clip_accuracy"] >= 0.88
