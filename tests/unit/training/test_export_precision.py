"""A model in another precision is a separate file, written only if it passes the parity gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline import assets
from pipeline.errors import AssetError, ConfigError
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.inference.onnx_file import OnnxFile
from pipeline.inference.parity import ParityResult
from pipeline.training.export import precision as export

FACE = Path(__file__).resolve().parents[3] / "models" / "face-expression.onnx"


@pytest.fixture
def face(tmp_path: Path) -> Path:
    try:
        assets.path("demo-clip"), assets.path("centerface")
    except AssetError as error:
        pytest.skip(str(error))
    (tmp_path / FACE.name).write_bytes(FACE.read_bytes())
    return tmp_path / FACE.name


def test_fp16_is_half_the_size_and_keeps_float32_outside(face: Path) -> None:
    result = export.export(str(face), precision="fp16")
    exported = face.with_name("face-expression.fp16.onnx")
    assert result.refusal == "" and result.agreement == 1 and exported.stat().st_size < 0.52 * face.stat().st_size
    assert {value.dtype for value in (*OnnxFile.read(exported).inputs, *OnnxFile.read(exported).outputs)} == {"float32"}
    manifest = Manifest.read(exported)
    assert (manifest.precision, manifest.made_from) == (
        "fp16",
        Manifest.read(face).sha256,
    ) and manifest.name == "face-expression-fp16"
    engine = load(face, precision="fp16")
    assert engine.run({"face": np.zeros((1, 1, 48, 48), np.float32)})["logits"].dtype == np.float32


def test_int8_is_a_quarter_of_the_size(face: Path) -> None:
    result = export.export(str(face), precision="int8")
    exported = face.with_name("face-expression.int8.onnx")
    assert (
        result.agreement >= 0.98
        and exported.stat().st_size < 0.3 * face.stat().st_size
        and Manifest.read(exported).precision == "int8"
    )


def test_what_the_gate_refuses_is_not_written(face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        export, "judge_file", lambda *args: ParityResult(256, {"logits": 0.5}, 200, 0.9, "labels agree in 90.0%")
    )
    with pytest.raises(ConfigError, match=r"face-expression\.fp16\.onnx is not written: labels agree in 90"):
        export.export(str(face), precision="fp16")
    assert [path.name for path in face.parent.iterdir()] == [face.name]


def test_a_precision_that_was_never_exported_says_how(face: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"no such model. Make it with: python run_pipeline.py export face-expression --precision int8",
    ):
        load(face, precision="int8")
    with pytest.raises(ConfigError, match="expected one of fp32, fp16, int8"):
        load(face, precision="bf16")


def test_a_file_of_an_earlier_model_is_refused(face: Path) -> None:
    exported = face.with_name("face-expression.fp16.onnx")
    exported.write_bytes(face.read_bytes())
    with pytest.raises(ConfigError, match=r"made from another face-expression\.onnx. Make it with"):
        load(face, precision="fp16")


def test_layer_normalisation_stays_one_operator_in_fp16(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 8]) for name in "xy")
    scale = onnx.numpy_helper.from_array(np.ones(8, np.float32), "scale")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("LayerNormalization", ["x", "scale"], ["y"])], "norm", [x], [y], [scale]
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9),
        str(tmp_path / "n.onnx"),
    )
    export.WRITERS["fp16"](tmp_path / "n.onnx", tmp_path / "n16.onnx")
    nodes = onnx.load(str(tmp_path / "n16.onnx")).graph.node
    norm = next(node for node in nodes if node.op_type == "LayerNormalization")
    assert sorted(node.op_type for node in nodes) == ["Cast", "Cast", "LayerNormalization"] and norm.input[0] != "x"
