"""Engines: one suite for all backends that this machine has, and the choice between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.inference import choose_backend as loading
from pipeline.inference.choose_backend import backends, load
from pipeline.inference.engine import Engine, Tensors

USABLE = [name for name, backend in backends().items() if not backend.unusable()]


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """x (n, 3) → doubled (n, 3) and total (n,)."""
    two = numpy_helper.from_array(np.float32(2), "two")
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    x, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "doubled"))
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "doubling", [x], [doubled, total], [two, axis])
    path = tmp_path / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


class Idle(Engine):
    """A third party's backend: runs nothing, returns nothing."""

    def __init__(self, model_path: Path, *, threads: int) -> None:
        self.description = f"idle, {threads} threads"

    @classmethod
    def unusable(cls) -> str:
        return ""

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return {}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        return {}


class Absent(Idle):
    rank = 100

    @classmethod
    def unusable(cls) -> str:
        return "no driver. Install one"


@pytest.mark.parametrize("backend", USABLE)
def test_backend_returns_every_output_by_name(doubling: Path, backend: str) -> None:
    outputs = load(doubling, backend=backend).run({"x": np.array([[1, 2, 3], [4, 5, 6]], np.float32)})
    assert outputs["doubled"].tolist() == [[2, 4, 6], [8, 10, 12]] and outputs["total"].tolist() == [6, 15]


@pytest.mark.parametrize("backend", USABLE)
def test_outputs_stay_as_they_were_when_the_engine_runs_again(doubling: Path, backend: str) -> None:
    engine = load(doubling, backend=backend)
    first = engine.run({"x": np.ones((1, 3), np.float32)})["doubled"]
    engine.run({"x": np.zeros((1, 3), np.float32)})
    assert first.tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("backend", USABLE)
def test_backend_describes_its_inputs_and_what_it_runs_on(doubling: Path, backend: str) -> None:
    engine = load(doubling, backend=backend, warm_up={"x": (4, 3)})
    assert engine.inputs == {"x": ("n", 3)} and "1 thread" in engine.description


@pytest.mark.parametrize("backend", USABLE)
def test_broken_model_file_is_a_config_error_with_its_name(tmp_path: Path, backend: str) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"broken\.onnx"):
        load(tmp_path / "broken.onnx", backend=backend)
    with pytest.raises(ConfigError, match=r"absent\.onnx"):
        load(tmp_path / "absent.onnx", backend=backend)


def test_auto_logs_what_it_chose_and_why_it_passed_over_the_others(
    doubling: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "backends", lambda: {"absent": Absent, "idle": Idle})
    monkeypatch.setattr(loading, "_logged", set())
    with caplog.at_level(logging.INFO):
        assert isinstance(load(doubling), Idle)
        load(doubling)
    assert [record.message for record in caplog.records] == [
        "not on absent: no driver. Install one",
        "doubling.onnx runs on idle, 1 threads",
        "doubling.onnx runs on idle, 1 threads",
    ]


def test_auto_without_any_usable_backend_says_why(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "backends", lambda: {"absent": Absent})
    with pytest.raises(ConfigError, match="no driver"):
        load(doubling)


def test_backend_of_another_module_is_loaded_by_name(doubling: Path) -> None:
    assert load(doubling, backend=f"{__name__}:Idle", threads=2).description == "idle, 2 threads"


def test_backend_asked_for_by_name_never_falls_back(doubling: Path) -> None:
    with pytest.raises(ConfigError, match="Absent' cannot run here: no driver"):
        load(doubling, backend=f"{__name__}:Absent")


def test_unknown_backend_names_the_closest(doubling: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'onnxruntime'"):
        load(doubling, backend="onnx-runtime")
    with pytest.raises(ConfigError, match="Did you mean 'Absent'"):
        load(doubling, backend=f"{__name__}:Absentt")


def test_class_that_is_no_engine_is_refused(doubling: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a subclass of pipeline\.inference.engine\.Engine"):
        load(doubling, backend="pathlib:Path")
