"""Fusion on the user's own data: trained on labelled rows, and run live on the modalities that the config names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")

from emotion_sets import aligned, camera, clip, opened, random_face_model  # noqa: E402

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.frame import Frame  # noqa: E402
from pipeline.inference.manifest import Manifest  # noqa: E402
from pipeline.recording import dataset  # noqa: E402
from pipeline.recording.dataset import Modality, Rows  # noqa: E402
from pipeline.training.data.rows import load_rows  # noqa: E402
from pipeline.training.fusion import evaluate, train  # noqa: E402

MOODS = ("calm", "tense", "glad")


def synthetic_rows(count: int = 360, *, width: int = 7, interacting: bool = True) -> Rows:
    """A face embedding and a belt's series, each a noisy view of one of three symbols in its own units, each missing
    now and then. interacting: the label is their sum, mod 3; else both show the label.
    """
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, count), random.integers(0, 3, count)
    label = (first + second) % 3 if interacting else first
    views = np.random.default_rng(9).normal(0, 1, (2, 3, width))

    def view(which: int, symbol: np.ndarray, kind: str, size: int, scale: float) -> Modality:
        values = (
            views[which][symbol][:, :size] * scale + 10 * scale + random.normal(0, 0.3 * scale, (count, size))
        ).astype(np.float32)
        present = random.random(count) > 0.1
        values[~present] = 0
        return Modality(kind, values, present, np.zeros(count, np.int64))  # type: ignore[arg-type]

    modalities = {
        "face": view(0, first, "embedding", width, 1.0),
        "belt": view(1, second if interacting else first, "series", 4, 50.0),
    }
    return Rows(
        MOODS,
        label.astype(np.int64),
        np.array([f"person {i % 8}" for i in range(count)]),
        np.arange(count, dtype=np.int64),
        modalities,
        "made up",
    )


@pytest.fixture(scope="module")
def face_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_face_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train fusion --data FOLDER --family cross --out FILE`, with few epochs."""
    folder = tmp_path_factory.mktemp("own")
    dataset.save(folder / "data", synthetic_rows())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "FOLDS", 2)
        train.train(data=folder / "data", family="cross", out=folder / "cross.onnx", epochs=25)
    return folder / "cross.onnx"


def test_trained_family_has_its_figures_on_unseen_groups(shipped: Path) -> None:
    manifest = Manifest.read(shipped)
    assert manifest.labels == MOODS and manifest.metrics["unseen_groups_accuracy"] > 0.55  # one modality alone: a third
    assert [tensor.name for tensor in manifest.inputs] == ["face", "belt", "present"]
    assert "--family cross --epochs 25 --seed 1" in manifest.made_by and "8 groups" in manifest.training_data


def test_own_fusion_runs_live_on_our_face_encoder_and_on_a_feature_stream(shipped: Path, face_model: Path) -> None:
    task = opened(face_model, voice="none", fusion=str(shipped), sources={"belt": "chest/belt"})
    _, image = next(clip(0, 1))
    belt = Frame("chest/belt", 1, 0, "series_f32", np.float32([500, 480, 510, 495]))
    both = task.predict(aligned(camera(0, image), belt))
    assert (
        both.labels == MOODS and both.label in (*MOODS, "uncertain") and both.probs.sum() == pytest.approx(1, abs=1e-5)
    )
    assert [(o.modality, o.stream, o.weight) for o in both.opinions] == [
        ("face", "webcam", 1.0),
        ("belt", "chest/belt", 1.0),
    ]
    assert both.used == ("webcam", "chest/belt") and len(both.subjects[0].probs) == 3

    without = task.predict(aligned(camera(1, image)))
    assert without.opinions[1].weight == 0 and without.opinions[1].reason == "nothing from 'chest/belt' in the set"
    assert without.used == ("webcam",) and not np.allclose(without.probs, both.probs)

    alone = task.predict(aligned(belt, anchor_ns=0))
    assert alone.used == ("chest/belt",) and alone.subjects == () and alone.label is not None
    torn = task.predict(aligned(Frame("chest/belt", 2, 0, "series_f32", np.float32([1, 2])), anchor_ns=0))
    assert (
        torn.label is None and torn.opinions[1].reason == "'chest/belt' has 2 numbers, the fusion takes 4 finite ones"
    )


def test_config_swaps_an_encoder_for_a_feature_stream(shipped: Path, face_model: Path) -> None:
    _, image = next(clip(0, 1))
    own = opened(face_model, voice="none", fusion=str(shipped))
    embedding = own._faces._engine.run({"face": np.zeros((1, 1, 48, 48), np.float32)})["embedding"][0]
    other = opened(face_model, voice="none", fusion=str(shipped), sources={"face": "openface"})
    streamed = Frame("openface", 1, 0, "series_f32", np.asarray(embedding, np.float32))
    answer = other.predict(aligned(camera(0, image), streamed))
    assert answer.opinions[0].stream == "openface" and answer.used == ("webcam", "openface")
    with pytest.raises(ConfigError, match="no modality 'bellt'. Did you mean 'belt'"):
        opened(face_model, voice="none", fusion=str(shipped), sources={"bellt": "x"})
    with pytest.raises(ConfigError, match="only a fusion made by train fusion --family"):
        opened(face_model, voice="none", sources={"belt": "x"})


def test_table_has_every_set_of_modalities_and_baselines(tmp_path: Path) -> None:
    dataset.save(tmp_path, synthetic_rows(200, interacting=False))
    table = evaluate.evaluate_fusion(data=tmp_path, family="stacked,average", epochs=4, out=tmp_path / "own.json")
    assert set(table["stacked"]) == {"face", "belt", "face + belt"} == set(table["logistic regression for this set"])
    assert "most frequent label (no training)" in table and (tmp_path / "own.svg").is_file()


def test_agreement_separates_pairs_of_one_label() -> None:
    assert (evaluate.agreement_auc(synthetic_rows(300, interacting=False), "coordinated", seed=1, epochs=8) or 0) > 0.7
    assert evaluate.area(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert evaluate.area(np.array([1.0, 1, 1, 1]), np.array([False, True, False, True])) == 0.5


def test_data_without_two_groups_and_unknown_families_are_refused(tmp_path: Path) -> None:
    rows = synthetic_rows(40)
    one = Rows(rows.labels, rows.label, np.full(40, "me"), rows.capture_ns, rows.modalities)
    with pytest.raises(ConfigError, match="40 labelled rows of 1 groups"):
        evaluate.labelled(one)
    dataset.save(tmp_path, rows)
    with pytest.raises(ConfigError, match="no fusion family called 'crosss'. Did you mean 'cross'"):
        train.train(data=tmp_path, family="crosss", out=tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="--family is for data of your own"):
        train.train(family="cross")


def test_votes_of_people_are_a_data_set_like_any_other(data_dir: Path) -> None:
    rows = load_rows(data_dir, "votes")
    assert len(rows) == 5885 and set(rows.modalities) == {"face", "voice"} and rows.modalities["face"].kind == "probs"


def test_a_constant_feature_does_not_dominate_the_others() -> None:
    """A ReLU embedding has values that are 0 in every training row, but not live."""
    present_rows = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 2.0], [0.0, 5.0, 2.0]])
    deviations = evaluate.spread(present_rows)
    assert deviations[1] == 2.0 and deviations[0] == deviations[2] == pytest.approx(2 / 30)
    assert evaluate.spread(torch.zeros(4, 3)).tolist() == [1, 1, 1]
