"""The place task on aligned sets, the tensor it looks at, the folds it was measured by, and the shipped model.

The task's own tests run a tiny network with fixed weights in place of the trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nodes.infer import Infer
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import AlignedSet, Frame, Receipt
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.installation import MODELS
from pipeline.node import Arrival, Context
from pipeline.preprocessing import PLACE_PX, place_tensor
from pipeline.task import make
from pipeline.tasks.place import Place

MS = 1_000_000
LABELS = ("bright", "dim", "flat")
SHIPPED = MODELS / "place.onnx"
shipped = pytest.mark.skipif(
    not SHIPPED.is_file(), reason="models/place.onnx is not there: run_pipeline.py train place"
)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """place (n, 1, 225, 225) → logits (n, 3): 6 × the mean level for "bright", its opposite for "dim", 0 for "flat"."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["place"], ["level"]),
        helper.make_node("Flatten", ["level"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    place = helper.make_tensor_value_info("place", TensorProto.FLOAT, ["n", 1, PLACE_PX, PLACE_PX])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(
        nodes, "level", [place], [out], [numpy_helper.from_array(np.array([[6, -6, 0]], np.float32), "matrix")]
    )
    path = tmp_path_factory.mktemp("models") / "level.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    Manifest(
        name="level",
        task="place",
        inputs=(TensorInfo("place", ("n", 1, PLACE_PX, PLACE_PX), "float32", ""),),
        outputs=(TensorInfo("logits", ("n", 3), "float32", ""),),
        labels=LABELS,
        temperature=1.5,
        training_data="none",
        licence="Apache-2.0",
        made_by="this test",
    ).write(path)
    return path


def opened(model: Path, **options: Any) -> Place:
    task = Place(model=str(model), **{"smoothing_ms": 0, **options})
    task.open("onnxruntime")
    return task


def picture(level: int, *, at_ms: int, encoding: str = "bgr8") -> Frame:
    """A picture of one grey level with a little contrast, taken `at_ms`."""
    image = np.full((120, 160, 3), level, np.uint8)
    image[:60] = min(255, level + 20)
    data = image if encoding == "bgr8" else cv2.imencode(".jpg", image)[1].ravel()
    return Frame("front", at_ms // 10, at_ms * MS, encoding, data)  # type: ignore[arg-type]


def aligned(*frames: Frame, missing: tuple[str, ...] = (), at_ms: int | None = None) -> AlignedSet:
    receipts = [Receipt(frame.stream, "exact", (frame.seq,)) for frame in frames] + [
        Receipt(stream, "late") for stream in missing
    ]
    at_ns = frames[0].capture_ns if at_ms is None else at_ms * MS
    return AlignedSet(
        "front", at_ns, {f.stream: (f,) for f in frames}, tuple(receipts), missing, arrival_ns=5 * MS, sent_ns=7 * MS
    )


# --- what the network sees


def test_a_colour_picture_and_its_grey_copy_are_the_same_place() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    grey = cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)
    tensor = place_tensor(colour)
    assert tensor.shape == (1, PLACE_PX, PLACE_PX) and tensor.dtype == np.float32
    assert np.array_equal(tensor, place_tensor(grey)) and np.array_equal(
        tensor, place_tensor(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    )


@pytest.mark.parametrize("shape", [(100, 100, 3), (375, 1242, 3), (720, 1280, 3), (1280, 720, 3), (16, 16, 3)])
def test_any_size_becomes_a_square_from_black_to_white(shape: tuple[int, ...]) -> None:
    black, white = (place_tensor(np.full(shape, level, np.uint8)) for level in (0, 255))
    assert black.shape == (1, PLACE_PX, PLACE_PX) and black == pytest.approx(-127 / 128) and white == pytest.approx(1)


def test_the_sides_of_a_wide_picture_are_left_out_and_nothing_of_one_that_is_three_to_two() -> None:
    wide = np.zeros((200, 600, 3), np.uint8)
    wide[:, :145] = wide[:, 455:] = 255  # the crop is 300 wide: columns 150 to 449
    assert place_tensor(wide).max() < -0.9
    usual = np.zeros((200, 300, 3), np.uint8)
    usual[:, :20] = usual[:, 280:] = 255
    assert place_tensor(usual)[0, :, 2].min() > 0.9 and place_tensor(usual)[0, :, -3].min() > 0.9


# --- the task


def test_place_is_reported_with_its_receipt_and_used_stream(weights: Path) -> None:
    prediction = opened(weights).predict(aligned(picture(220, at_ms=100)))
    assert (prediction.task, prediction.label, prediction.used, prediction.missing) == (
        "place",
        "bright",
        ("front",),
        (),
    )
    assert (
        prediction.labels == LABELS
        and prediction.probs.dtype == np.float32
        and prediction.probs.sum() == pytest.approx(1)
    )
    assert prediction.receipts == (Receipt("front", "exact", (10,)),) and prediction.model.startswith("level@")
    assert prediction.opinions[0].weight == 1 and prediction.opinions[0].reason == ""


def test_probabilities_are_those_of_the_logits_over_the_temperature(weights: Path) -> None:
    image = picture(220, at_ms=0).data
    logits = np.array([6, -6, 0]) * place_tensor(image).mean() / 1.5
    expected = np.exp(logits) / np.exp(logits).sum()
    assert opened(weights).predict(aligned(picture(220, at_ms=0))).probs == pytest.approx(expected, abs=1e-5)


def test_between_two_looks_the_answer_is_held_and_says_how_old_it_is(weights: Path) -> None:
    task = opened(weights, every_ms=200)
    assert task.predict(aligned(picture(220, at_ms=0))).label == "bright"
    held = task.predict(aligned(picture(60, at_ms=150)))
    assert held.label == "bright" and held.opinions[0].reason == "held: looked 150 ms before this picture"
    assert task.predict(aligned(picture(60, at_ms=200))).label == "dim"


def test_covered_lens_gives_no_label_and_counts_as_missing(weights: Path) -> None:
    task = opened(weights, every_ms=0)
    task.predict(aligned(picture(220, at_ms=0)))
    covered = Frame(
        "front", 1, 100 * MS, "bgr8", np.random.default_rng(0).integers(0, 12, (120, 160, 3)).astype(np.uint8)
    )
    prediction = task.predict(aligned(covered))
    assert (prediction.label, prediction.used, prediction.missing) == (None, (), ("front",))
    assert prediction.receipts[0].state == "bad" and prediction.receipts[0].reason == "picture is dark: covered lens?"
    assert prediction.probs == pytest.approx(1 / 3)


def test_torn_jpeg_is_refused_and_a_whole_one_read(weights: Path) -> None:
    whole = picture(220, at_ms=0, encoding="jpeg")
    torn = msgspec.structs.replace(whole, data=whole.data[:60].copy())
    assert opened(weights).predict(aligned(whole)).label == "bright"
    assert "JPEG" in opened(weights).predict(aligned(torn)).receipts[0].reason


def test_set_without_a_camera_has_no_label_and_holds_no_older_one(weights: Path) -> None:
    task = opened(weights)
    task.predict(aligned(picture(220, at_ms=0)))
    prediction = task.predict(aligned(missing=("front",), at_ms=100))
    assert prediction.label is None and prediction.missing == ("front",) and prediction.used == ()


def test_smoothing_follows_the_time_between_pictures_and_a_second_time_over_begins_afresh(weights: Path) -> None:
    slow = opened(weights, smoothing_ms=1000, every_ms=0)
    slow.predict(aligned(picture(220, at_ms=0)))
    bright = slow.predict(aligned(picture(40, at_ms=100))).probs[0]
    dim = opened(weights).predict(aligned(picture(40, at_ms=0))).probs[0]
    before = opened(weights).predict(aligned(picture(220, at_ms=0))).probs[0]
    assert bright == pytest.approx(before + (1 - np.exp(-0.1)) * (dim - before), abs=1e-5)
    assert slow.predict(aligned(picture(40, at_ms=50))).probs[0] == pytest.approx(dim, abs=1e-6)


def test_the_same_sets_give_the_same_predictions(weights: Path) -> None:
    def run() -> list[bytes]:
        task = opened(weights, smoothing_ms=500, every_ms=90)
        return [
            msgspec.json.encode(task.predict(aligned(picture(40 + 7 * i, at_ms=33 * i))).record()) for i in range(20)
        ]

    assert run() == run()


def test_infer_runs_it_by_its_name(weights: Path) -> None:
    node = Infer(task="place", options={"model": str(weights)}, backend="onnxruntime")
    node.context = Context("place")
    node.open()
    (prediction,) = node.process(Arrival("align", aligned(picture(220, at_ms=0)), 8 * MS))
    assert prediction.task == "place" and prediction.label == "bright"
    with pytest.raises(ConfigError, match="Did you mean 'every_ms'"):
        make("place", {"every": 1})


def test_it_runs_in_fp32_where_the_other_models_of_a_run_are_asked_for_in_fp16(weights: Path) -> None:
    task = Place(model=str(weights))
    task.precision = "fp16"
    task.open("onnxruntime")
    assert task.predict(aligned(picture(220, at_ms=0))).label == "bright"


def test_a_model_of_something_else_and_one_that_is_not_there_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"none\.onnx.*train place"):
        opened(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match=r"inputs are \['face'\].*train place"):
        opened(MODELS / "face-expression.onnx")


# --- what ships


@shipped
def test_shipped_model_gives_the_colour_picture_the_probabilities_of_its_grey_copy() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (200, 300, 3)).astype(np.uint8), (0, 0), 3)
    task = opened(SHIPPED)
    colour = task.predict(aligned(Frame("front", 0, 0, "bgr8", image))).probs
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert np.array_equal(opened(SHIPPED).predict(aligned(Frame("front", 0, 0, "bgr8", grey))).probs, colour)
    assert len(task.labels) == 15 and colour.sum() == pytest.approx(1, abs=1e-5)


@shipped
def test_shipped_model_is_as_good_on_intel_as_its_card_says(data_dir: Path) -> None:
    """A fifth of the pictures, evenly: the whole set is what `evaluate place` measures."""
    if not (data_dir / "scenes" / "intel").is_dir():
        pytest.skip(f"no scenes/intel in {data_dir}")
    from pipeline.training.place import evaluate
    from pipeline.training.place.data import INTEL, load_places

    places = load_places(data_dir / "scenes" / "intel", INTEL)
    logits = evaluate.place_logits(SHIPPED, places.images[::5])
    measured = evaluate.intel_of(logits, places.labels[::5], Manifest.read(SHIPPED))
    claimed = Manifest.read(SHIPPED).metrics
    assert claimed["cv_accuracy"] >= 0.91 and claimed["intel_accuracy"] >= 0.844
    assert measured["intel_accuracy"] == pytest.approx(claimed["intel_accuracy"], abs=0.04)
