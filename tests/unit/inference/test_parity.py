"""The parity gate refuses an engine with the figures, and lets through what rounding explains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.inference.engine import Engine, Tensors
from pipeline.inference.onnx_file import OnnxFile
from pipeline.inference.parity import compare
from pipeline.perception import parity_samples
from pipeline.preprocessing import FACE_PX

MODELS = sorted(path for path in (Path(__file__).resolve().parents[3] / "models").glob("*.onnx"))


class Scores(Engine):
    """logits = the input, times `scale`, plus `wrong`; in `flipped` of the rows the first two labels change places."""

    def __init__(self, *, scale: float = 1.0, wrong: float = 0.0, flipped: int = 0) -> None:
        self.scale, self.wrong, self.flipped, self.description = scale, wrong, flipped, "scores"

    @classmethod
    def unusable(cls) -> str:
        return ""

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return {"x": ("n", 3)}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        logits = inputs["x"] * np.float32(self.scale) + np.float32(self.wrong)
        logits[: self.flipped, [0, 1]] = logits[: self.flipped, [1, 0]]
        return {"logits": logits}


def sure(count: int = 256) -> list[Tensors]:
    return [{"x": np.tile(np.array([[4, 0, -1]], np.float32), (count, 1))}]


@pytest.mark.parametrize(
    ("precision", "engine", "refusal"),
    [
        ("fp32", Scores(), ""),
        ("fp32", Scores(scale=1.002), "output 'logits' differs by 0.002 of its largest value"),
        ("fp16", Scores(scale=1.002), ""),
        ("fp16", Scores(scale=1.05), "differs by 0.05"),
        ("int8", Scores(scale=1.15), ""),
        ("int8", Scores(scale=1.25), "differs by 0.25 of"),
        ("fp32", Scores(wrong=float("nan")), "differs by inf"),
    ],
)
def test_an_engine_is_held_to_the_bound_of_its_precision(precision: str, engine: Engine, refusal: str) -> None:
    reason = compare(engine, Scores(), sure(), precision=precision).refusal
    assert refusal in reason and bool(reason) == bool(refusal)


@pytest.mark.parametrize(("precision", "flipped", "passes"), [("int8", 2, True), ("int8", 3, False)])
def test_labels_must_agree_where_the_answer_is_sure(precision: str, flipped: int, passes: bool) -> None:
    near = [
        {"x": np.tile(np.array([[1.2, 1.0, -9]], np.float32), (256, 1))}
    ]  # sure enough, and close enough to pass by value
    result = compare(Scores(flipped=flipped), Scores(), near, precision=precision)
    assert (result.refusal == "") is passes and result.agreement == 1 - flipped / 256
    if not passes:
        assert result.refusal == "labels agree in 98.8% of 256 sure samples, at least 99.0% are needed"


def test_labels_that_a_rounding_decides_are_not_counted() -> None:
    tied = [{"x": np.tile(np.array([[1.01, 1.0, -9]], np.float32), (256, 1))}]
    result = compare(Scores(flipped=256), Scores(), tied, precision="fp16")
    assert (result.sure, result.refusal) == (0, "")


def test_the_margin_is_that_of_the_calibrated_probabilities() -> None:
    near = [{"x": np.tile(np.array([[1.5, 1.0, -9]], np.float32), (256, 1))}]
    flipped = Scores(flipped=256)
    assert compare(flipped, Scores(), near, precision="fp16", temperature=1.0).sure == 256
    assert compare(flipped, Scores(), near, precision="fp16", temperature=20.0).sure == 0


def test_too_few_samples_prove_nothing() -> None:
    assert "only 255 samples" in compare(Scores(), Scores(), sure(255), precision="fp32").refusal


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_shipped_model_has_at_least_256_samples_that_are_the_same_every_time(path: Path) -> None:
    try:
        assets.path("demo-clip"), assets.path("centerface")
    except AssetError as error:
        pytest.skip(str(error))
    first, again = list(parity_samples.of(path)), list(parity_samples.of(path))
    names = [value.name for value in OnnxFile.read(path).inputs]
    assert sum(len(batch[names[0]]) for batch in first) >= 256 and all(
        sorted(batch) == sorted(names) for batch in first
    )
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in names)


def test_faces_to_compare_on_are_varied_and_of_full_contrast() -> None:
    try:
        faces = np.concatenate(
            [batch["face"] for batch in parity_samples.of(MODELS[0].with_name("face-expression.onnx"))]
        )
    except AssetError as error:
        pytest.skip(str(error))
    assert faces.shape == (256, 1, FACE_PX, FACE_PX) and np.unique(faces.reshape(256, -1), axis=0).shape[0] == 256
    assert np.isclose(faces.std(axis=(2, 3)), 1, atol=0.01).mean() > 0.9
