"""Detectors: what their tensors say, by real ONNX files whose answers are planted; and the errors of those that fit no
layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from detector_graphs import BGR, COLOURS, constant, squares

from pipeline import assets
from pipeline.errors import ConfigError
from pipeline.metrics import Metrics
from pipeline.perception.model_loader import Engines
from pipeline.perception.objects.detections import COCO, Candidates, Detection, layout_of, read_detections, suppressed
from pipeline.perception.objects.detector import Detector
from pipeline.preprocessing import letterbox

LOG = logging.getLogger("test")
SIZE = 416
CAR, PERSON = COCO.index("car"), COCO.index("person")
# Left, top, right, bottom in the network's input: two cars that overlap but little, and a person.
PLANTED = [(CAR, 0.9, (40, 60, 140, 120)), (CAR, 0.8, (120, 60, 240, 130)), (PERSON, 0.7, (300, 20, 330, 100))]


@pytest.fixture
def engines():
    engines = Engines("onnxruntime", precision="fp32", threads=1, log=LOG, metrics=Metrics())
    yield engines
    engines.close()


def picture(width: int = SIZE, height: int = SIZE) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def agree(detections: list[Detection], factor: float = 1.0, within_px: float = 0.01) -> None:
    assert [(d.label, round(d.score, 3)) for d in detections] == [(COCO[kind], score) for kind, score, _ in PLANTED]
    for detection, (_, _, box) in zip(detections, PLANTED, strict=True):
        left, top, right, bottom = (v * factor for v in box)
        np.testing.assert_allclose(detection.box_px, (left, top, right - left, bottom - top), atol=within_px * factor)


# ---- YOLOX


def yolox_output() -> np.ndarray:
    """PLANTED as yolox_head.py has its targets: offset from the cell's corner and log size, in strides; a near copy of
    each, less sure, for suppression."""
    rows = np.zeros((52**2 + 26**2 + 13**2, 85), np.float32)
    for kind, score, (left, top, right, bottom) in PLANTED:
        x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        for stride, first, sure in ((8, 0, score), (16, 52**2, score - 0.2)):
            column, row = int(x / stride), int(y / stride)
            at = first + row * (SIZE // stride) + column
            rows[at, :4] = x / stride - column, y / stride - row, np.log(width / stride), np.log(height / stride)
            rows[at, 4], rows[at, 5 + kind] = 0.95, sure / 0.95
    return rows[None]


def test_yolox_boxes_are_those_that_were_planted(tmp_path: Path, engines: Engines) -> None:
    path = constant(tmp_path / "yolox.onnx", {"output": yolox_output()}, size=(1, 3, SIZE, SIZE))
    detector = Detector.load(str(path), engines, LOG)
    assert detector is not None and detector.layout == "yolox"
    agree(detector.find(picture()))


def test_boxes_come_back_in_the_pixels_of_a_wide_picture(tmp_path: Path, engines: Engines) -> None:
    path = constant(tmp_path / "yolox.onnx", {"output": yolox_output()}, size=(1, 3, SIZE, SIZE))
    detector = Detector.load(str(path), engines, LOG)
    assert detector is not None
    agree(detector.find(picture(1248, 400)), factor=3)


def test_a_network_that_looks_finds_the_squares_where_they_are(tmp_path: Path, engines: Engines) -> None:
    option = {"file": str(squares(tmp_path / "squares.onnx")), "labels": list(COLOURS), "min_score": 0.7}
    detector = Detector.load(option, engines, LOG)
    assert detector is not None and detector.layout == "yolox"
    image = picture(256, 192)  # halved on its way in, so squares of 64 px
    image[40:104, 24:88], image[104:168, 136:200] = BGR["blue"], BGR["red"]
    boxes = {d.label: d.box_px for d in detector.find(image)}
    assert set(boxes) == {"blue", "red"}
    np.testing.assert_allclose(boxes["blue"], (24, 40, 64, 64), atol=0.1)
    np.testing.assert_allclose(boxes["red"], (136, 104, 64, 64), atol=0.1)
    assert detector.find(picture(256, 192)) == []


# ---- NanoDet


def nanodet_rows() -> tuple[np.ndarray, np.ndarray, list[int]]:
    """PLANTED as nanodet_plus_head.py has its targets: distances from the cell's own point to the sides, in strides,
    each a distribution over 0 … 7; stride 32 reaches far enough for all."""
    counts = [52**2, 26**2, 13**2, 7**2]
    scores, logits = np.full((sum(counts), 80), 0.01, np.float32), np.zeros((sum(counts), 32), np.float32)
    for kind, score, (left, top, right, bottom) in PLANTED:
        column, row = round((left + right) / 64), round((top + bottom) / 64)
        at = 52**2 + 26**2 + row * 13 + column
        scores[at, kind] = score
        for side, distance in enumerate((column * 32 - left, row * 32 - top, right - column * 32, bottom - row * 32)):
            low, share = divmod(distance / 32, 1)
            bins = np.full(8, -20.0)
            bins[int(low)], bins[int(low) + 1] = np.log(max(1 - share, 1e-9)), np.log(max(share, 1e-9))
            logits[at, side * 8 : side * 8 + 8] = bins
    return scores, logits, counts


def test_nanodet_boxes_are_those_that_were_planted(tmp_path: Path, engines: Engines) -> None:
    scores, logits, _ = nanodet_rows()
    path = constant(tmp_path / "nanodet.onnx", {"output": np.hstack([scores, logits])[None]}, size=(1, 3, SIZE, SIZE))
    detector = Detector.load(str(path), engines, LOG)
    assert detector is not None and detector.layout == "nanodet"
    agree(detector.find(picture()))


def test_nanodet_in_a_pair_of_tensors_a_level_is_the_same_in_any_order(tmp_path: Path, engines: Engines) -> None:
    scores, logits, counts = nanodet_rows()
    ends = np.cumsum(counts)[:-1]
    parts = {f"cls_{i}": part[None] for i, part in enumerate(np.split(scores, ends))}
    parts |= {f"dis_{i}": part[None] for i, part in enumerate(np.split(logits, ends))}
    shuffled = {name: parts[name] for name in ("dis_3", "cls_0", "cls_2", "dis_0", "cls_3", "dis_1", "dis_2", "cls_1")}
    detector = Detector.load(str(constant(tmp_path / "zoo.onnx", shuffled, size=(1, 3, SIZE, SIZE))), engines, LOG)
    assert detector is not None and detector.layout == "nanodet"
    agree(detector.find(picture()))


# ---- SSD


def test_ssd_of_tensorflow_counts_classes_as_coco_does(tmp_path: Path, engines: Engines) -> None:
    """bytes of any size in; top, left, bottom, right as shares out; car is 3, person 1, and 77 (cell phone) label
    67."""
    boxes = np.array([(top, left, bottom, right) for _, _, (left, top, right, bottom) in PLANTED], np.float32) / SIZE
    outputs = {
        "detection_boxes:0": np.vstack([boxes, boxes[:1]])[None],
        "detection_classes:0": np.array([[3, 3, 1, 77]], np.float32),
        "detection_scores:0": np.array([[0.9, 0.8, 0.7, 0.6]], np.float32),
        "num_detections:0": np.array([3], np.float32),
    }
    path = constant(tmp_path / "ssd.onnx", outputs, size=(1, "height", "width", 3), dtype=np.uint8)
    detector = Detector.load({"file": str(path), "input_px": [300, 300]}, engines, LOG)
    assert detector is not None and detector.layout == "ssd"
    agree(detector.find(picture()))
    outputs["num_detections:0"] = np.array([4], np.float32)
    again = Detector.load({"file": str(constant(path, outputs, size=(1, 300, 300, 3), dtype=np.uint8))}, engines, LOG)
    assert again is not None and again.find(picture())[-1].label == "cell phone" == COCO[67]


def test_ssd_as_trained_is_decoded_from_its_priors(tmp_path: Path, engines: Engines) -> None:
    """Liu et al. 2016: offsets are (g − d) / (0.1·size) and log(size ratio) / 0.2 against the prior."""
    priors = np.random.default_rng(0).uniform(0.2, 0.8, (50, 4)).astype(np.float32)
    offsets, logits = np.zeros((50, 4), np.float32), np.zeros((50, 81), np.float32)
    logits[:, 0] = 12.0  # background
    for i, (kind, score, (left, top, right, bottom)) in enumerate(PLANTED):
        x, y, width, height = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / SIZE
        px, py, pw, ph = priors[i * 7]
        offsets[i * 7] = (x - px) / pw / 0.1, (y - py) / ph / 0.1, np.log(width / pw) / 0.2, np.log(height / ph) / 0.2
        logits[i * 7, 0], logits[i * 7, 1 + kind] = -20, np.log(score)
        logits[i * 7, 1 : 1 + kind] = logits[i * 7, 2 + kind :] = np.log((1 - score) / 79)
    outputs = {"conf": logits[None], "loc": offsets[None], "priors": priors[None]}
    detector = Detector.load(str(constant(tmp_path / "raw.onnx", outputs, size=(1, 3, SIZE, SIZE))), engines, LOG)
    assert detector is not None and detector.layout == "ssd_raw"
    agree(detector.find(picture()))


# ---- what they share


def test_of_boxes_on_one_thing_the_surest_stays_and_another_class_beside_it() -> None:
    boxes = np.array([(0, 0, 100, 100), (5, 5, 105, 105), (3, 0, 100, 100), (np.nan, 0, 1, 1)], np.float32)
    scores = np.array([(0.6, 0.1), (0.9, 0.1), (0.1, 0.5), (0.9, 0)], np.float32)
    selected = suppressed(Candidates(boxes, scores), min_score=0.35, overlap=0.5)
    assert [(kind, round(score, 3)) for kind, score, _ in selected] == [(0, 0.9), (1, 0.5)]


def test_letterbox_keeps_proportions_and_says_its_scale() -> None:
    image = np.zeros((100, 400, 3), np.uint8)
    image[:, 200:] = (10, 20, 30)
    tensor, scale = letterbox(image, (200, 200), rgb=True, mean=(30, 20, 10), std=(2, 1, 1))
    assert tensor.shape == (1, 3, 200, 200) and scale == 0.5
    np.testing.assert_allclose(tensor[0, :, 25, 50], (-15, -20, -10))  # black, RGB less the mean
    np.testing.assert_allclose(tensor[0, :, 25, 150], 0)
    np.testing.assert_allclose(tensor[0, :, 150, 50], ((114 - 30) / 2, 94, 104))  # the border


def test_outputs_in_no_layout_are_listed_with_what_was_expected(tmp_path: Path, engines: Engines) -> None:
    path = constant(tmp_path / "odd.onnx", {"dets": np.zeros((1, 3549, 40), np.float32)}, size=(1, 3, SIZE, SIZE))
    with pytest.raises(ConfigError, match=r"odd\.onnx: .*none of the layouts.*dets 1 × 3549 × 40.*3549 × 85.*labels:"):
        Detector.load(str(path), engines, LOG)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"file": "x.onnx", "layuot": "ssd"}, "unknown key 'layuot'.*Did you mean 'layout'"),
        ({"file": "x.onnx", "layout": "yolo"}, r"detector\.layout: found 'yolo'.*yolox"),
        ({"layout": "ssd"}, r"detector\.file: missing"),
        ({"file": "x.onnx", "std": [0, 1, 1]}, "std above 0"),
        ("nowhere.onnx", r"nowhere\.onnx: no such model"),
        ("yolox-tyni", "no asset called 'yolox-tyni'.*Did you mean 'yolox-tiny'"),
    ],
)
def test_a_wrong_description_is_refused_with_the_fix(option: object, message: str, engines: Engines) -> None:
    with pytest.raises(ConfigError, match=message):
        Detector.load(option, engines, LOG)  # type: ignore[arg-type]


def test_layouts_are_recognised_by_shapes_alone() -> None:
    def layout(**shapes: tuple[int, ...]) -> str:
        return layout_of(shapes, input_px=(320, 320), classes=80)

    assert layout(output=(1, 2100, 85)) == "yolox"
    assert layout(output=(1, 2100, 112)) == "nanodet"  # the first NanoDet, of 3 levels
    assert layout(output=(1, 2125, 112)) == "nanodet"
    assert layout(bboxes=(1, 200, 4), labels=(1, 200), scores=(1, 200)) == "ssd"


def test_the_pinned_detector_is_not_fetched_unasked_and_the_log_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    monkeypatch.delenv("SENSORIUM_ASSETS", raising=False)
    monkeypatch.setattr(assets, "_fetch", lambda *args: pytest.fail("fetched"))
    monkeypatch.setattr(assets, "MODELS", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Detector.load("auto", engines, LOG) is None
    assert "models pull yolox-nano" in caplog.text
    assert Detector.load("none", engines, LOG) is None


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-tiny"])
def test_a_pinned_detector_is_of_a_known_layout(name: str, engines: Engines) -> None:
    if assets.local(assets.entry(name)) is None:
        pytest.skip(f"{name} is not here: {assets.PULL} {name}")
    detector = Detector.load(name, engines, LOG)
    assert detector is not None and (detector.layout, detector.input_px, len(detector.labels)) == (
        "yolox",
        (416, 416),
        80,
    )
    assert detector.find(picture(1242, 375)) == []


def test_an_engine_built_for_a_detector_has_pictures_to_be_compared_on(tmp_path: Path) -> None:
    from pipeline.perception import parity_samples

    path = constant(tmp_path / "yolox.onnx", {"output": yolox_output()}, size=(1, 3, 64, 96))
    samples = list(parity_samples.of(path))
    assert len(samples) >= 256 and {tensors["images"].shape for tensors in samples} == {(1, 3, 64, 96)}
    assert 20 < np.mean([tensors["images"].std() for tensors in samples])


# ---- boxes of another program


def test_boxes_are_read_from_json_and_from_kitti_labels() -> None:
    text = json.dumps(
        [{"label": "car", "box_px": [1, 2, 30, 40], "score": 0.5}, {"label": "dog", "box_px": [5, 6, 7, 8]}]
    )
    assert read_detections(text) == [Detection("car", 0.5, (1, 2, 30, 40)), Detection("dog", 1.0, (5, 6, 7, 8))]
    line = "Car 0.00 0 -1.59 556.06 185.21 714.24 334.53 1.49 1.60 3.83 0.21 1.67 9.30 -1.57"
    (car,) = read_detections(f"{line}\nDontCare -1 -1 -10 601.42 168.24 663.17 184.06 -1 -1 -1 -1000 -1000 -1000 -10\n")
    assert car.label == "car" and car.box_px == pytest.approx((556.06, 185.21, 158.18, 149.32))
    assert read_detections("[]") == read_detections("") == []


@pytest.mark.parametrize(
    "text",
    [
        '[{"label": "car"}]',
        "[1]",
        "[{",
        "a car",
        '[{"label": "x", "box_px": [0, 0, 0, 5]}]',
        '[{"label": "x", "box_px": [0, 0, NaN, 5]}]',
    ],
)
def test_malformed_boxes_are_refused_with_a_quote(text: str) -> None:
    with pytest.raises(ValueError, match="found|area"):
        read_detections(text)
