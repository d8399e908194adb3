"""The joined graph of encoders and fusion gives the same results as three separate engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.training.export.fused import join

Array = np.ndarray
LABELS = 3


def saved(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], weights: dict[str, Array]
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", LABELS])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


def encoder(path: Path, name: str, size: int) -> Path:
    weight = np.random.default_rng(size).normal(size=(size, LABELS)).astype(np.float32)
    return saved(path, [helper.make_node("MatMul", [name, "w"], ["logits"])], {name: ["n", size]}, {"w": weight})


def fusion(path: Path, names: tuple[str, str, str] = ("face", "voice", "present")) -> Path:
    """Each opinion times its presence, added."""
    face, voice, present = names
    nodes = [
        helper.make_node("Squeeze", [face, "one"], ["f"]),
        helper.make_node("Squeeze", [voice, "one"], ["v"]),
        helper.make_node("Split", [present], ["pf", "pv"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["f", "pf"], ["wf"]),
        helper.make_node("Mul", ["v", "pv"], ["wv"]),
        helper.make_node("Add", ["wf", "wv"], ["logits"]),
    ]
    shapes: dict[str, list[int | str]] = {face: ["n", 1, LABELS], voice: ["n", 1, LABELS], present: ["n", 2]}
    return saved(path, nodes, shapes, {"one": np.array([1], np.int64)})


def log_softmax(logits: Array) -> Array:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_joined_graph_equals_three_engines_for_every_face(tmp_path: Path) -> None:
    face, voice = encoder(tmp_path / "f.onnx", "face", 4), encoder(tmp_path / "v.onnx", "voice", 5)
    join(face, voice, fusion(tmp_path / "u.onnx"), tmp_path / "joined.onnx")
    random = np.random.default_rng(0)
    faces, sound = random.normal(size=(3, 4)).astype(np.float32), random.normal(size=(1, 5)).astype(np.float32)
    present = np.array([[1, 1], [1, 0], [0.5, 0.2]], np.float32)
    run = {path: Onnxruntime(path, threads=1).run for path in (face, voice, tmp_path / "joined.onnx")}
    f, v = log_softmax(run[face]({"face": faces})["logits"]), log_softmax(run[voice]({"voice": sound})["logits"])
    joined = run[tmp_path / "joined.onnx"]({"face": faces, "voice": sound, "present": present})["logits"]
    assert np.allclose(joined, f * present[:, :1] + v * present[:, 1:], atol=1e-5)


def test_a_file_that_is_not_a_fusion_is_refused(tmp_path: Path) -> None:
    face = encoder(tmp_path / "f.onnx", "face", 4)
    with pytest.raises(ConfigError, match="expected face, voice and present"):
        join(face, face, face, tmp_path / "joined.onnx")
