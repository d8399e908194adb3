"""The training loop end to end on synthetic faces, and the shipped model on real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: scripts/setup train")

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.inference.manifest import Manifest  # noqa: E402
from pipeline.preprocessing import face_tensor  # noqa: E402
from pipeline.training.data.faces import FACE_CLASSES, load_faces, near_duplicate_groups, split_by_group  # noqa: E402
from pipeline.training.data.folder import data_folder  # noqa: E402
from pipeline.training.evaluation.classifier_figures import (  # noqa: E402
    expected_calibration_error,
    fit_temperature,
    macro_f1,
)
from pipeline.training.export.onnx_export import largest_difference  # noqa: E402
from pipeline.training.face.evaluate import evaluate_face, face_logits  # noqa: E402
from pipeline.training.face.export import export_face  # noqa: E402
from pipeline.training.face.load_checkpoint import face_net_from  # noqa: E402
from pipeline.training.face.net import FaceNet, MirroredFaceNet  # noqa: E402
from pipeline.training.face.train import augment, train  # noqa: E402

pytestmark = pytest.mark.timeout(400)  # half a minute of computing, and more beside other tests
SHIPPED = Path(__file__).resolve().parents[3] / "models" / "face-expression.onnx"


def synthetic_faces(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright bar across it; its height is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 7
    images = rng.integers(0, 160, (count, 48, 48), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 + 6 * label : 9 + 6 * label] |= 128
    return images, labels.astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "faces").mkdir()
    for part, count, seed in (("train48", 310, 0), ("publictest48", 35, 1)):
        images, labels = synthetic_faces(count, seed)
        np.savez(
            tmp_path / "faces" / f"fer2013_{part}.npz",
            images=images,
            labels=labels,
            classes=np.array(FACE_CLASSES),
        )
    return tmp_path


@pytest.fixture(scope="session")
def real_data() -> Path:
    try:
        folder = data_folder(None)
        load_faces(folder, "publictest48")
    except ConfigError as error:
        pytest.skip(f"needs FER2013: {error}")
    return folder


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["net"]
    return stored


def test_training_ships_a_model_with_its_manifest_and_figures(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.onnx"
    train(
        data=data, out=out, epochs=4, seed=1, runs=tmp_path / "runs", lr=0.02
    )  # eight steps are too few to recover from a rate of 0.1
    manifest = Manifest.read(out)
    assert manifest.labels == FACE_CLASSES and manifest.inputs[0].shape == ("n", 1, 48, 48)
    assert "--epochs 4 --seed 1" in manifest.made_by
    assert {"held_back_accuracy", "held_back_ece", "publictest_accuracy", "publictest_macro_f1"} <= set(
        manifest.metrics
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "runs" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[3] < losses[0]
    out.unlink()
    train(data=data, out=out, seed=1, runs=tmp_path / "runs", ship=True)  # no training, the same file loaded
    assert Manifest.read(out) == manifest
    with pytest.raises(ConfigError, match="Give --seed 1"):
        train(data=data, out=out, seed=2, runs=tmp_path / "runs", ship=True)


def test_two_workers_train_one_network(data: Path, tmp_path: Path) -> None:
    train(data=data, out=tmp_path / "face.onnx", epochs=1, seed=1, runs=tmp_path / "runs", workers=2)
    assert "--workers 2" in Manifest.read(tmp_path / "face.onnx").made_by


def test_training_continues_from_a_shipped_file_with_the_same_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, (images, _) = FaceNet().train(), synthetic_faces(64, 0)
    with torch.no_grad():
        for _ in range(20):
            net(torch.from_numpy(face_tensor(images)))  # updates the running statistics of the batch norms
    export_face(net, tmp_path / "face.onnx")
    loaded, faces = face_net_from(tmp_path / "face.onnx", images), torch.from_numpy(face_tensor(images))
    with torch.no_grad():
        assert torch.allclose(loaded(faces)[0], net.eval()(faces)[0], atol=1e-4)
        before = loaded(faces)[0]
        loaded.dropout.p = 0.0
        assert torch.allclose(loaded.train()(faces)[0], before, atol=1e-2)  # its norms have the statistics of faces
    with pytest.raises(ConfigError, match="--start needs the ONNX file of a face network"):
        face_net_from(tmp_path / "none.onnx", images)


def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    # Full precision: the only difference left is the order of float additions.
    monkeypatch.setattr("pipeline.training.face.train.bf16_is_fast", lambda: False)
    train(data=data, out=tmp_path / "whole.onnx", epochs=2, seed=1, runs=tmp_path / "whole")

    class PowerCut(Exception): ...

    def cut(*_: object, **__: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr("pipeline.training.face.train.Path.open", cut)  # the log line after the first epoch's checkpoint
        train(data=data, out=tmp_path / "cut.onnx", epochs=2, seed=1, runs=tmp_path / "cut")
    train(data=data, out=tmp_path / "cut.onnx", epochs=2, seed=1, resume=True, runs=tmp_path / "cut")

    whole, resumed = weights(tmp_path / "whole" / "last.pt"), weights(tmp_path / "cut" / "last.pt")
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-4) for name in whole)


def test_resuming_with_another_seed_is_refused(data: Path, tmp_path: Path) -> None:
    train(data=data, out=tmp_path / "face.onnx", epochs=1, seed=1, runs=tmp_path / "runs")
    with pytest.raises(ConfigError, match="--seed 1"):
        train(data=data, out=tmp_path / "face.onnx", epochs=2, seed=2, resume=True, runs=tmp_path / "runs")


def test_exported_network_answers_as_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FaceNet().train()
    with torch.no_grad():
        net(torch.randn(8, 1, 48, 48))  # updates the running statistics of the batch norms
    export_face(net, tmp_path / "face.onnx")
    assert largest_difference(MirroredFaceNet(net), tmp_path / "face.onnx", torch.randn(5, 1, 48, 48)) <= 1e-4


def test_network_with_nan_outputs_is_not_exported(tmp_path: Path) -> None:
    net = FaceNet()
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="differs from torch by nan"):
        export_face(net, tmp_path / "face.onnx")
    assert list(tmp_path.iterdir()) == []


def test_mirrored_face_gets_the_same_answer() -> None:
    torch.manual_seed(0)
    net, faces = MirroredFaceNet(FaceNet()).eval(), torch.randn(3, 1, 48, 48)
    with torch.no_grad():
        straight, mirrored = net(faces), net(faces.flip(3))
    assert torch.allclose(straight[0], mirrored[0], atol=1e-5) and torch.allclose(straight[1], mirrored[1], atol=1e-5)


def test_augmented_faces_stay_faces() -> None:
    grey = torch.from_numpy(synthetic_faces(64, 0)[0]).float()
    augmented = [augment(grey, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert augmented[0].shape == grey.shape and 0 <= augmented[0].min() and augmented[0].max() <= 255
    assert torch.equal(*augmented)  # the generator alone decides
    assert not torch.equal(augmented[0], grey)


def test_duplicates_are_never_on_both_sides_of_the_split() -> None:
    images, _ = synthetic_faces(40, 0)
    images = np.concatenate([images, images[:20, :, ::-1], (images[20:] * 0.8).astype(np.uint8)])  # mirrored, darker
    groups = near_duplicate_groups(images)
    train_rows, val_rows = split_by_group(groups, fraction=0.3, seed=0)
    assert len(np.unique(groups)) == 40
    assert sorted([*train_rows, *val_rows]) == list(range(80))
    assert not set(train_rows % 40) & set(val_rows % 40)


def test_missing_data_names_the_folder_and_the_variable(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SENSORIUM_DATA", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"absent.*SENSORIUM_DATA"):
        data_folder(None)
    with pytest.raises(ConfigError, match=r"fer2013_train48\.npz: not there"):
        load_faces(tmp_path, "train48")


def test_calibration_error_of_calibrated_and_of_overconfident_probabilities() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    assert expected_calibration_error(np.tile([0.7, 0.3], (100, 1)), labels) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(np.tile([0.95, 0.05], (100, 1)), labels) == pytest.approx(0.25)


def test_temperature_calibrates_overconfident_logits() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    calibrated = np.log(np.tile([0.7, 0.3], (100, 1))).astype(np.float32)
    assert fit_temperature(calibrated * 3, labels) == pytest.approx(3, rel=0.02)


def test_macro_f1_counts_a_rare_class_as_much_as_a_common_one() -> None:
    labels = np.array([0] * 98 + [1] * 2)
    assert macro_f1(np.zeros(100, np.int64), labels, classes=2) == pytest.approx((2 * 98 / 198) / 2)


def test_shipped_model_is_as_good_on_publictest_as_its_manifest_says(real_data: Path) -> None:
    measured = evaluate_face(SHIPPED, real_data)
    claimed = Manifest.read(SHIPPED).metrics
    assert measured["publictest_accuracy"] >= 0.67 and measured["publictest_macro_f1"] >= 0.62
    for name in ("publictest_accuracy", "publictest_macro_f1", "publictest_ece"):
        assert measured[name] == pytest.approx(claimed[name], abs=0.003)


def test_shipped_model_answers_a_batch_as_it_answers_each_face() -> None:
    images, _ = synthetic_faces(5, 0)
    together = face_logits(SHIPPED, images)
    alone = np.concatenate([face_logits(SHIPPED, image[None]) for image in images])
    assert together.shape == (5, 7) and face_tensor(images).shape == (5, 1, 48, 48)
    assert together == pytest.approx(alone, abs=1e-4)
