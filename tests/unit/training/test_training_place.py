"""Training of the place network: folds, augmentation, frozen blocks, and the exported file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: scripts/setup train")

from pipeline import assets  # noqa: E402
from pipeline.errors import AssetError, ConfigError  # noqa: E402
from pipeline.inference.backends.onnxruntime import Onnxruntime  # noqa: E402
from pipeline.inference.manifest import Manifest  # noqa: E402
from pipeline.preprocessing import PLACE_PX, place_tensor  # noqa: E402
from pipeline.training.place import (  # noqa: E402
    evaluate,
    export,
    train,
)
from pipeline.training.place.data import INTEL, MEANT, PLACES, Places, folds, load_places, vary  # noqa: E402
from pipeline.training.place.net import PlaceNet, start_net  # noqa: E402


def synthetic_places(count: int) -> Places:
    """Soft noise, a picture each, in three classes."""
    random = np.random.default_rng(4)
    images = [
        cv2.GaussianBlur(random.integers(0, 256, (60, 60, 3)).astype(np.uint8), (0, 0), 1.5) for _ in range(count)
    ]
    return Places(images, np.arange(count) % 3)


def random_net(classes: int = 3) -> PlaceNet:
    torch.manual_seed(0)
    return PlaceNet(classes).eval()


def test_folds_test_every_picture_once_with_classes_spread_and_copies_together() -> None:
    places = synthetic_places(60)
    copies = [cv2.convertScaleAbs(image[:, ::-1], alpha=0.8) for image in places.images[:10]]  # mirrored and darker
    places = Places(places.images + copies, np.concatenate([places.labels, places.labels[:10]]))
    parts = folds(places, seed=1)
    fold_of = {int(row): number for number, (_, test_rows) in enumerate(parts) for row in test_rows}
    assert len(fold_of) == 70 and all(not set(rows) & set(test_rows) for rows, test_rows in parts)
    assert all(fold_of[row] == fold_of[60 + row] for row in range(10))
    assert all(np.bincount(places.labels[test_rows], minlength=3).min() >= 3 for _, test_rows in parts)
    assert [test_rows.tolist() for _, test_rows in folds(places, seed=1)] == [
        test_rows.tolist() for _, test_rows in parts
    ]


def test_variations_depend_on_the_generator_alone_and_are_pictures() -> None:
    image = synthetic_places(1).images[0]
    a, b, c = (vary(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (
        np.array_equal(a, b)
        and a.dtype == np.uint8
        and a.ndim == 3
        and not np.array_equal(place_tensor(a), place_tensor(c))
    )


def test_training_lowers_the_loss_and_leaves_the_early_blocks_as_they_were() -> None:
    places, net = synthetic_places(64), random_net()
    early = np.random.default_rng(0).normal(0, 1, (2, 64, 192, 8, 8)).astype(np.float16)
    early[:, :, :3] += 3 * np.eye(3)[places.labels][None, :, :, None, None].astype(np.float16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained = train.fine_tune(net, list(early), places.labels, np.arange(64), epochs=6, seed=1, name="test")
    after = trained.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and not any(name.startswith(PlaceNet.frozen) for name in changed)
    assert not any("running" in name for name in changed)  # ImageNet's statistics stay
    losses = [
        float(torch.nn.functional.cross_entropy(train.predict(n, early[0])[0], torch.from_numpy(places.labels)))
        for n in (random_net(), trained)
    ]
    assert losses[1] < losses[0]


def test_exported_network_answers_as_torch_does_in_any_batch(tmp_path: Path) -> None:
    net = random_net(15)
    export.export_place(net, tmp_path / "place.onnx")
    pictures = np.stack([place_tensor(image) for image in synthetic_places(3).images])
    engine = Onnxruntime(tmp_path / "place.onnx", threads=1, device="cpu")
    with torch.no_grad():
        logits, embedding = net(torch.from_numpy(pictures))
    together = engine.run({"place": pictures})
    assert together["logits"] == pytest.approx(logits.numpy(), abs=1e-4)
    assert together["embedding"] == pytest.approx(embedding.numpy(), abs=1e-4)
    assert engine.run({"place": pictures[1:2]})["logits"][0] == pytest.approx(together["logits"][1], abs=1e-5)


def test_start_weights_fill_every_layer_but_the_head_and_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="not the weights of an EfficientNet-Lite0.*models pull efficientnet-lite0"):
        start_net(15, tmp_path / "other.pth")
    try:
        net = start_net(15, assets.path("efficientnet-lite0"))
    except AssetError as error:
        pytest.skip(str(error))
    embedding = net(torch.from_numpy(np.stack([place_tensor(image) for image in synthetic_places(2).images])))[1]
    assert 0.1 < float(embedding.detach().mean()) < 2  # random or misplaced weights die out or explode
    assert float(net.head.weight.detach().abs().max()) == 0


def test_missing_class_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bedroom: no pictures.*SENSORIUM_DATA"):
        load_places(tmp_path, PLACES)


def test_intel_answer_is_the_group_with_the_most_probability_and_a_glacier_is_a_mountain() -> None:
    probs = np.full((3, 15), 1e-4)
    probs[0, PLACES.index("insidecity")] = probs[0, PLACES.index("tallbuilding")] = 0.3  # together more than the street
    probs[0, PLACES.index("street")] = 0.39
    probs[1, PLACES.index("mountain")] = probs[2, PLACES.index("bedroom")] = 0.9  # a room: means none of the six
    probs[2, PLACES.index("coast")] = 0.05
    labels = np.array([INTEL.index("buildings"), INTEL.index("glacier"), INTEL.index("sea")])
    manifest = Manifest("m", "place", (), (), PLACES, 1.0, "", "", "")
    figures = evaluate.intel_of(np.log(probs).astype(np.float32), labels, manifest)
    assert figures["intel_accuracy"] == 1 and figures["intel_accuracy_of_all_labels"] == pytest.approx(1 / 3)
    assert sorted(name for names in MEANT.values() for name in names) == sorted(
        set(PLACES) - {"bedroom", "kitchen", "livingroom", "office", "store", "opencountry"}
    )


def test_picture_size_suits_the_padding_of_the_start_weights() -> None:
    assert PLACE_PX % 32 == 1
