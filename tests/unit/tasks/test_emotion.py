"""The emotion task on aligned sets: what it uses, what it says is missing, and the shipped model on the demo clip.

All but the last test run a small network with random weights in place of the trained one.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from emotion_sets import LABELS, MS, PERIOD_NS, aligned, asset, camera, clip, opened, silence
from onnx import numpy_helper

from nodes.infer import Infer
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import AlignedSet, Prediction, Receipt
from pipeline.installation import MODELS
from pipeline.node import Arrival, Context
from pipeline.perception.expression.smoothing import towards
from pipeline.probabilities import softmax
from pipeline.task import Task, make
from pipeline.tasks.emotion import Emotion

SHIPPED = MODELS / "face-expression.onnx"


@pytest.fixture
def task(face_model: Path) -> Emotion:
    return opened(face_model)


def test_face_in_the_picture_gives_probabilities_and_a_subject(task: Emotion) -> None:
    _, image = next(clip(0, 1))
    prediction = task.predict(aligned(camera(4, image)))
    (subject,) = prediction.subjects
    assert prediction.used == ("webcam",) and prediction.missing == () and prediction.labels == LABELS
    assert prediction.label == LABELS[int(np.argmax(prediction.probs))] and prediction.capture_ns == 4 * PERIOD_NS
    assert prediction.probs.dtype == np.float32 and prediction.probs.sum() == pytest.approx(1, abs=1e-5)
    assert subject.id == 1 and subject.probs == pytest.approx(prediction.probs.tolist()) and subject.score > 0.5
    left, top, width, height = subject.box_px
    assert 300 < left < 350 and 30 < top < 80 and 200 < width < 250 and 250 < height < 310
    face_model = prediction.model.partition(" + ")[0]  # voice and fusion, where they ship, are named after it
    assert face_model.startswith("random@") and len(face_model) == len("random@") + 8


def test_picture_without_a_face_was_used_but_gives_no_label(task: Emotion) -> None:
    grey = np.full((360, 640, 3), 128, np.uint8)
    prediction = task.predict(aligned(camera(0, grey)))
    assert prediction.label is None and prediction.subjects == () and prediction.used == ("webcam",)
    assert prediction.probs == pytest.approx(1 / 7)


def test_covered_lens_is_bad_and_missing_and_the_face_keeps_its_id(task: Emotion) -> None:
    dark = np.random.default_rng(0).integers(0, 12, (360, 640, 3)).astype(np.uint8)
    pictures = list(clip(0, 20))
    for i, image in pictures[:5]:
        before = task.predict(aligned(camera(i, image)))
    for i, _ in pictures[5:15]:
        covered = task.predict(aligned(camera(i, dark)))
        assert covered.label is None and covered.used == () and covered.missing == ("webcam",)
        assert covered.receipts[0].state == "bad" and covered.receipts[0].reason == "picture is dark: covered lens?"
    after = task.predict(aligned(camera(15, pictures[15][1])))
    assert after.subjects[0].id == before.subjects[0].id and after.used == ("webcam",)


def test_torn_jpeg_is_bad_and_a_whole_one_is_as_good_as_raw(face_model: Path) -> None:
    import cv2

    _, image = next(clip(0, 1))
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
    torn = opened(face_model).predict(aligned(camera(0, jpeg[:100].copy(), "jpeg")))
    assert torn.missing == ("webcam",) and "JPEG" in torn.receipts[0].reason
    whole = opened(face_model).predict(aligned(camera(0, jpeg, "jpeg")))
    raw = opened(face_model).predict(aligned(camera(0, image)))
    assert whole.subjects[0].box_px == pytest.approx(raw.subjects[0].box_px, abs=2)


def test_missing_stream_stays_missing_with_its_receipt(task: Emotion) -> None:
    _, image = next(clip(0, 1))
    prediction = task.predict(aligned(camera(0, image), missing=("mic",)))
    assert prediction.missing == ("mic",) and prediction.used == ("webcam",) and prediction.speaking is None
    assert prediction.receipts[1] == Receipt("mic", "late", reason="nothing until the deadline")


def test_microphone_shows_who_speaks_but_is_not_used_for_the_expression(task: Emotion) -> None:
    _, image = next(clip(0, 1))
    prediction = task.predict(aligned(camera(0, image), *silence(0, 50)))
    assert prediction.speaking is False and prediction.used == ("webcam",)


def test_sound_alone_gives_speaking_and_no_label(task: Emotion) -> None:
    prediction = task.predict(aligned(*silence(0, 50), missing=("webcam",), anchor_ns=1_000 * MS))
    assert prediction.label is None and prediction.speaking is False and prediction.used == ()


def test_same_frame_in_two_sets_gives_the_same_answer(task: Emotion) -> None:
    (_, first), (_, second) = clip(0, 2)
    task.predict(aligned(camera(0, first)))
    once = task.predict(aligned(camera(1, second)))
    again = task.predict(aligned(camera(1, second)))
    assert np.array_equal(once.probs, again.probs) and once.subjects == again.subjects


def test_same_sets_give_the_same_predictions(face_model: Path) -> None:
    def run() -> list[bytes]:
        task = opened(face_model)
        sets = [aligned(camera(i, image), *silence(2 * i, 50)) for i, image in clip(200, 30)]
        return [msgspec.json.encode(task.predict(each).record()) for each in sets]

    assert run() == run()


def test_five_faces_are_five_subjects_and_the_largest_answers(face_model: Path) -> None:
    import cv2

    image = cv2.imread(str(asset("five-faces")))
    prediction = opened(face_model).predict(aligned(camera(0, image)))
    largest = max(prediction.subjects, key=lambda s: s.box_px[2] * s.box_px[3])
    assert len({s.id for s in prediction.subjects}) == 5
    assert prediction.probs.tolist() == pytest.approx(largest.probs)


def test_smoothing_depends_on_time_and_not_on_the_number_of_frames() -> None:
    sure, other = softmax(np.array([[5.0, 0.0]])), softmax(np.array([[0.0, 5.0]]))
    once = towards(sure, other, 300 * MS, 300 * MS)
    thrice = sure
    for _ in range(3):
        thrice = towards(thrice, other, 100 * MS, 300 * MS)
    assert thrice == pytest.approx(once, abs=1e-6) and once.sum() == pytest.approx(1)
    assert towards(sure, other, MS, 0) == pytest.approx(other, abs=1e-6)


def test_altered_model_is_refused(face_model: Path, tmp_path: Path) -> None:
    model = onnx.load(str(face_model))
    matrix = numpy_helper.to_array(model.graph.initializer[0]).copy()
    matrix[0, 0] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(matrix, "matrix"))
    onnx.save(model, str(tmp_path / "altered.onnx"))
    with pytest.raises(ConfigError, match=r"altered\.onnx.*hash"):
        Emotion(model=str(tmp_path / "altered.onnx")).open("auto")


def test_model_that_is_not_there_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"none\.onnx.*train face"):
        Emotion(model=str(tmp_path / "none.onnx")).open("auto")


# --- the node


class Echo(Task):
    """A third party's task."""

    labels = ("yes", "no")

    def __init__(self, *, loud: bool = False) -> None:
        self.model = "echo@loud" if loud else "echo@quiet"

    def predict(self, aligned: AlignedSet) -> Prediction:
        return self.prediction(aligned, np.array([0.25, 0.75], np.float32), used=tuple(aligned.frames))


def test_task_of_another_module_runs_with_its_options_and_reports_its_times() -> None:
    node = Infer(task=f"{__name__}:Echo", options={"loud": True})
    node.context = Context("emotion")
    node.open()
    (prediction,) = node.process(Arrival("align", aligned(*silence(0, 1)), 8 * MS))
    assert isinstance(prediction, Prediction)
    assert (prediction.task, prediction.label, prediction.model) == ("echo", "no", "echo@loud")
    assert prediction.timing_ns["wait"] == 2 * MS and prediction.timing_ns["infer"] >= 0


def test_unknown_task_and_unknown_option_name_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'emotion'"):
        Infer(task="emotions")
    with pytest.raises(ConfigError, match="Did you mean 'smoothing_ms'"):
        Infer(options={"smoothing": 100})
    with pytest.raises(ConfigError, match="at least 1"):
        make("emotion", {"max_faces": 0})


def test_engine_of_each_model_is_a_fact_of_the_node(face_model: Path) -> None:
    asset("centerface"), asset("silero-vad")
    node = Infer(options={"model": str(face_model)}, backend="onnxruntime")
    node.context = Context("emotion")
    node.open()
    facts = node.context.metrics.facts
    assert {"engine random", "engine centerface", "engine silero-vad"} <= set(facts)
    assert all(text.startswith("onnxruntime ") for name, text in facts.items() if name.startswith("engine"))


# --- the shipped model


@pytest.mark.skipif(
    not SHIPPED.is_file(), reason="models/face-expression.onnx is not there: run_pipeline.py train face"
)
def test_woman_of_the_demo_clip_turns_happy_and_is_not_happy_before() -> None:
    task = opened(SHIPPED)
    labels = [(i * PERIOD_NS / 1e9, task.predict(aligned(camera(i, image))).label) for i, image in clip(0, 472, step=2)]
    late = [label for at_s, label in labels if 12 <= at_s < 19 and label]
    early = [label for at_s, label in labels if at_s < 8 and label]
    assert sum(label is not None for _, label in labels) >= 232
    assert late.count("happy") / len(late) >= 0.95
    assert early.count("happy") / len(early) <= 0.05
