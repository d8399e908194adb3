"""What a start needs of an ONNX file is read without the package `onnx`, and says the same as `onnx` does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from pipeline.errors import ConfigError
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import METADATA_KEY, graph_sha256
from pipeline.inference.onnx_file import OnnxFile

ROOT = Path(__file__).resolve().parents[3]
MODELS = sorted((ROOT / "models").glob("*.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_reads_as_the_package_onnx_reads_it(path: Path) -> None:
    file, model = OnnxFile.read(path), onnx.load(str(path))
    assert [v.name for v in file.inputs] == [v.name for v in model.graph.input]
    shapes = [tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input]
    assert [v.shape for v in file.inputs] == shapes and all(v.dtype == "float32" for v in file.inputs)
    assert file.operators == {node.op_type for node in model.graph.node} and file.opset == model.opset_import[0].version
    assert file.graph_sha256 == graph_sha256(model) and METADATA_KEY in file.metadata


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_anywhere_is_a_config_error(tmp_path: Path, share: float) -> None:
    content = MODELS[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match=r"cut\.onnx: not an ONNX file, or cut short"):
        OnnxFile.read(tmp_path / "cut.onnx")


def test_a_process_of_the_live_graph_starts_without_the_package_onnx() -> None:
    program = (
        "import sys, pipeline.runtime.worker, pipeline.tasks.emotion, nodes.infer, pipeline.cli.doctor; "
        "print('onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


# --- files of others --------------------------------------------------------------------------------------------------


def external(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1, 4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_of(*nodes: onnx.NodeProto, weights: Sequence[onnx.TensorProto] = ()) -> onnx.ModelProto:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(list(nodes), "g", values[:1], values[1:], list(weights))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def in_a_weight() -> onnx.ModelProto:
    return model_of(onnx.helper.make_node("Add", ["x", "w"], ["y"]), weights=[external("../../../etc/passwd")])


def in_an_attribute() -> onnx.ModelProto:
    constant = onnx.helper.make_node("Constant", [], ["w"], value=external("/etc/passwd"))
    return model_of(constant, onnx.helper.make_node("Add", ["x", "w"], ["y"]))


def in_a_branch() -> onnx.ModelProto:
    branch = onnx.helper.make_graph([], "b", [], [], [external("w.bin")])
    return model_of(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def in_a_function() -> onnx.ModelProto:
    model = in_an_attribute()
    function = onnx.helper.make_function("d", "f", [], ["w"], [model.graph.node[0]], [])
    model.functions.append(function)
    del model.graph.node[0]
    return model


@pytest.mark.parametrize("make", [in_a_weight, in_an_attribute, in_a_branch, in_a_function])
def test_a_model_that_names_another_file_is_refused(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ConfigError, match=r"m\.onnx: the weights of w lie in another file"):
        OnnxFile.read(path)
    with pytest.raises(ConfigError, match=r"m\.onnx: the weights of w lie in another file"):
        load(path, backend="onnxruntime")


def test_two_graphs_and_field_numbers_that_others_read_differently_are_refused(tmp_path: Path) -> None:
    whole = model_of(onnx.helper.make_node("Relu", ["x"], ["y"])).SerializeToString()
    (tmp_path / "two.onnx").write_bytes(whole + whole)
    with pytest.raises(ConfigError, match=r"two\.onnx: not an ONNX file.*two graphs"):
        OnnxFile.read(tmp_path / "two.onnx")
    (tmp_path / "far.onnx").write_bytes(b"\xba\x80\x80\x80\x10\x00" + whole)  # 7, to those who take the lower 32 bits
    with pytest.raises(ConfigError, match=r"far\.onnx: not an ONNX file.*a field of the number"):
        OnnxFile.read(tmp_path / "far.onnx")


def test_a_hole_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "hole.onnx").open("wb") as file:
        file.truncate(4 << 30)
    with pytest.raises(ConfigError, match=r"hole\.onnx: it has 4096 MiB"):
        OnnxFile.read(tmp_path / "hole.onnx")
