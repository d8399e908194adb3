"""Every model of ours is parsed and built ahead of time by TensorRT-RTX, for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.errors import AssetError, ConfigError, EngineError
from pipeline.inference import cuda
from pipeline.inference.backends.tensorrt_rtx import CAPABILITIES, TensorrtRtx
from pipeline.inference.cache import Cache
from pipeline.inference.choose_backend import load
from pipeline.inference.nvidia import build, profiles_of, run_builder

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("TensorRT-RTX is not installed: scripts/setup trt-rtx", allow_module_level=True)

import tensorrt_rtx as trt

ROOT = Path(__file__).resolve().parents[3]
MODELS = sorted(
    path for path in (ROOT / "models").glob("*.onnx") if path.stem.rpartition(".")[2] not in ("fp16", "int8")
)
TARGETS = [(8, 0), (8, 6), (8, 9), (12, 0)]
L4 = {"name": "NVIDIA L4", "capability": [8, 9], "driver": "13.0"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_rtx_builds_every_model_for_all_targets(path: Path, precision: str, tmp_path: Path) -> None:
    from pipeline.training.export.precision import WRITERS

    model = tmp_path / path.name
    WRITERS[precision](path, model)
    assert len(build(trt, model, profiles_of(model, []), capabilities=TARGETS)) > 10_000


def test_rtx_builds_the_face_encoder_in_int8_for_all_targets(tmp_path: Path) -> None:
    from pipeline.training.export.precision import export

    try:
        result = export("face-expression", precision="int8", out=tmp_path / "face.int8.onnx")
    except AssetError as error:
        pytest.skip(str(error))
    assert result.agreement >= 0.98
    model = onnx.load(str(tmp_path / "face.int8.onnx"))
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 10
    assert build(trt, tmp_path / "face.int8.onnx", profiles_of(tmp_path / "face.int8.onnx", []), capabilities=TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"sm{target[0]}{target[1]}")
def test_rtx_builds_for_each_target_alone(target: tuple[int, int]) -> None:
    face = ROOT / "models" / "face-expression.onnx"
    assert build(trt, face, profiles_of(face, [{"face": (1, 1, 48, 48)}]), capabilities=[target])


def test_rtx_builds_the_face_detector_for_windows_and_pictures() -> None:
    from pipeline import assets
    from pipeline.perception.expression.faces import detector_shapes

    try:
        path = assets.path("centerface")
    except AssetError as error:
        pytest.skip(str(error))
    assert build(trt, path, profiles_of(path, detector_shapes(320)[:2]), capabilities=[(8, 9)])


def test_rtx_refuses_unknown_operators_by_their_names(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["y"], name="the_det"),
        helper.make_node("Unique", ["y"], ["z"], name="the_set"),
    ]
    x, z = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 3]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
    )
    model = helper.make_model(
        helper.make_graph(nodes, "odd", [x], [z]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(
        EngineError, match=r"odd\.onnx.*does not know the operators Det, Unique \(the_det, the_set\).*Export"
    ):
        build(trt, tmp_path / "odd.onnx", profiles_of(tmp_path / "odd.onnx", []), capabilities=[(8, 9)])


def test_rtx_refuses_a_gpu_that_it_does_not_serve_by_name() -> None:
    face = ROOT / "models" / "face-expression.onnx"
    with pytest.raises(EngineError, match=r"does not build for compute capability 9\.0"):
        build(trt, face, profiles_of(face, []), capabilities=[(9, 0)])
    assert "9.0" in TensorrtRtx.lacks(cuda.Gpu("NVIDIA H100", (9, 0), 0)) and not TensorrtRtx.lacks(
        cuda.Gpu("NVIDIA L4", (8, 9), 0)
    )


def test_rtx_knows_the_targets_that_we_say_it_knows() -> None:
    known = {name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert known == {f"SM{major}{minor}" for major, minor in CAPABILITIES}


def test_rtx_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ConfigError, match="not an ONNX file"):
        profiles_of(tmp_path / "text.onnx", [])


def test_rtx_two_processes_that_build_at_once_build_once_and_agree(tmp_path: Path) -> None:
    order = json.dumps(
        {"backend": "tensorrt_rtx", "model": str(ROOT / "models/face-expression.onnx"), "shapes": [], "gpu": L4}
    )
    environment = os.environ | {"SENSORIUM_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "pipeline.inference.build"]
    running = [subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write(order)
        process.stdin.close()
    assert [process.wait(90) for process in running] == [0, 0]
    face, gpu = ROOT / "models" / "face-expression.onnx", cuda.Gpu("NVIDIA L4", (8, 9), 0)
    cache = Cache(tmp_path / "engines")
    assert cache.get(TensorrtRtx.key(face, profiles_of(face, []), gpu, "13.0"))
    assert cache.get(TensorrtRtx.key(face, profiles_of(face, []), gpu, "12.9")) is None  # another driver
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 1


def test_rtx_builder_that_fails_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    face, h100 = str(ROOT / "models/face-expression.onnx"), L4 | {"capability": [9, 0]}
    order = {"backend": "tensorrt_rtx", "model": face, "shapes": [], "gpu": h100}
    with pytest.raises(
        EngineError, match=r"building failed: tensorrt_rtx .* does not build for compute capability 9\.0"
    ):
        run_builder(order)


def test_rtx_is_installed_and_a_machine_without_a_gpu_runs_on_onnx_runtime_and_ends_in_order() -> None:
    if not cuda.probe().missing:
        pytest.skip("this machine has a GPU")
    program = """
import logging, numpy as np
from pathlib import Path
from pipeline.inference.choose_backend import load
logging.basicConfig(level=logging.INFO, format="%(message)s")
engine = load(Path("models/face-expression.onnx"))
print(engine.description, engine.run({"face": np.zeros((1, 1, 48, 48), np.float32)})["logits"].shape)
import tensorrt_rtx
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "CPU, 1 thread (1, 7)" in done.stdout
    assert "tensorrt" not in done.stderr.lower() and "nvidia" not in done.stderr.lower()


def test_rtx_asked_for_by_name_without_a_gpu_says_the_fix() -> None:
    if not cuda.probe().missing:
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        ConfigError, match="backend 'tensorrt_rtx' cannot run here: no NVIDIA driver.*install its driver"
    ):
        load(ROOT / "models" / "face-expression.onnx", backend="tensorrt_rtx")
