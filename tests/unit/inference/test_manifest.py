"""A model's manifest travels in its file, and a file that is not what was exported is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.errors import ConfigError
from pipeline.inference.manifest import METADATA_KEY, Manifest, TensorInfo

MANIFEST = Manifest(
    name="doubler",
    task="test",
    inputs=(TensorInfo("x", ("n", 2), "float32", "anything"),),
    outputs=(TensorInfo("y", ("n", 2), "float32", "twice x"),),
    labels=("low", "high"),
    temperature=1.5,
    training_data="none",
    licence="Apache-2.0",
    made_by="tests/unit/inference/test_manifest.py",
    windows_ms={"x": 1000},
    metrics={"held_back_accuracy": 0.5},
)


def write_model(path: Path, *, factor: float = 2.0) -> None:
    """An ONNX file that multiplies its input; no manifest in it."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "factor"], ["y"])],
        "doubler",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), str(path))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx")
    written = MANIFEST.write(tmp_path / "m.onnx")
    assert Manifest.read(tmp_path / "m.onnx") == written
    assert written == replace(MANIFEST, sha256=written.sha256) and len(written.sha256) == 64
    assert written.id == f"doubler@{written.sha256[:8]}"


def test_writing_again_replaces_the_manifest_and_keeps_the_hash(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx")
    first = MANIFEST.write(tmp_path / "m.onnx")
    second = replace(MANIFEST, temperature=2.0).write(tmp_path / "m.onnx")
    assert Manifest.read(tmp_path / "m.onnx").temperature == 2.0
    assert second.sha256 == first.sha256


def test_an_altered_weight_is_noticed(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx")
    MANIFEST.write(tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(3.0, np.float32), "factor"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match="changed since it was exported"):
        Manifest.read(tmp_path / "m.onnx")


def test_a_file_without_manifest_says_how_to_get_one(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"m\.onnx: an ONNX file without a manifest.*Manifest\.write"):
        Manifest.read(tmp_path / "m.onnx")


def test_a_missing_file_and_a_file_of_another_kind_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        Manifest.read(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ConfigError, match="not an ONNX file"):
        Manifest.read(tmp_path / "text.onnx")


WHOLE = json.dumps(asdict(MANIFEST))


@pytest.mark.parametrize(
    "stored",
    [
        *("{", "[]", '{"name": "x"}', "3.5", "[" * 100_000),
        WHOLE.replace('"temperature": ', '"temperature": -'),
        WHOLE.replace('"labels": [', '"labels": [1, '),
        WHOLE.replace('"shape": [', '"shape": [0.5, '),
        WHOLE.replace('"sha256": "', '"sha256": 7, "x": "'),
    ],
)
def test_a_broken_manifest_is_a_config_error(tmp_path: Path, stored: str) -> None:
    write_model(tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    onnx.helper.set_model_props(model, {METADATA_KEY: stored})
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match=r"m\.onnx: its manifest (cannot be read|has a temperature of -)"):
        Manifest.read(tmp_path / "m.onnx")


def test_a_manifest_of_other_inputs_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx")
    replace(MANIFEST, inputs=(TensorInfo("picture", ("n", 2), "float32", ""),)).write(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="picture"):
        Manifest.read(tmp_path / "m.onnx")
