"""ONNX Runtime gives the results of torch on every model that ships; operators that cannot run in torch are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: scripts/setup train")

from pipeline import assets  # noqa: E402
from pipeline.errors import AssetError, EngineError  # noqa: E402
from pipeline.inference.backends.onnxruntime import Onnxruntime  # noqa: E402
from pipeline.inference.manifest import METADATA_KEY, Manifest  # noqa: E402
from pipeline.inference.onnx_file import OnnxFile  # noqa: E402
from pipeline.perception import parity_samples  # noqa: E402
from pipeline.probabilities import softmax  # noqa: E402
from pipeline.training.export.onnx_to_torch import TorchModel  # noqa: E402

OURS = sorted(p for p in (Path(__file__).resolve().parents[3] / "models").glob("*.onnx") if "." not in p.stem)
MAX_DIFFERENCE = 1e-4
BATCHES = 12  # of 72: torch takes its time


def differences(path: Path) -> dict[str, float]:
    """By output: the largest difference relative to the largest value; of logits also that of the probabilities."""
    torch.set_num_threads(1)
    model, engine = TorchModel(path), Onnxruntime(path, threads=1, device="cpu")
    apart: dict[str, float] = {}
    for _, inputs in zip(range(BATCHES), parity_samples.of(path), strict=False):
        theirs, ours = model.run(inputs), engine.run(inputs)
        pairs = {name: (ours[name], theirs[name]) for name in ours}
        if "logits" in ours:
            pairs["probabilities"] = (softmax(ours["logits"]), softmax(theirs["logits"]))
        if METADATA_KEY in OnnxFile.read(path).metadata:
            for output in Manifest.read(path).outputs:  # the tails of log-probabilities do not matter
                if "log-probabilities" in output.meaning:
                    del pairs[output.name]
        for name, (a, b) in pairs.items():
            apart[name] = max(apart.get(name, 0.0), float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)))
    return apart


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_onnx_runtime_answers_as_torch_does(path: Path) -> None:
    try:
        apart = differences(path)
    except AssetError as error:
        pytest.skip(str(error))
    assert apart and max(apart.values()) <= MAX_DIFFERENCE, apart


def test_the_face_detector_answers_as_in_torch_too() -> None:
    try:
        apart = differences(assets.path("centerface"))
    except AssetError as error:
        pytest.skip(str(error))
    assert max(apart.values()) <= MAX_DIFFERENCE, apart


def test_unsupported_operators_are_named() -> None:
    try:
        path = assets.path("silero-vad")
    except AssetError as error:
        pytest.skip(str(error))
    with pytest.raises(EngineError, match="cannot run in torch: operators If"):
        TorchModel(path)
