"""What a start needs of an ONNX file is read without the package `onnx`, and says the same as `onnx` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from pipeline.errors import ConfigError
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
