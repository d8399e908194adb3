"""build → parity → warm → run → error → build again: ONNX Runtime answers meanwhile, and every state is reported."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_gpu import FakeGpu, FakePlan
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ConfigError, EngineError
from pipeline.inference import choose_backend as loading
from pipeline.inference.choose_backend import load
from pipeline.inference.engine import BuiltEngine, Engine, Shapes, Tensors
from pipeline.inference.nvidia import profiles_of
from pipeline.inference.runner import Runner

LOG = logging.getLogger("engine")
SHAPES = [{"x": (1, 3)}]


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """x (n, 3) → logits (n, 3), twice x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "logits"))
    two = numpy_helper.from_array(np.float32(2), "two")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["logits"])], "doubling", [x], [y], [two])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(tmp_path / "d.onnx")
    )
    return tmp_path / "d.onnx"


class FakeBackend(BuiltEngine):
    """A backend on the fake GPU. Its class variables are the test's to set."""

    rank = 100
    title = "FakeBackend"
    built = False
    builds = 0
    build_error = ""
    wrong = 0.0
    parity_figures: dict[str, Any] = {}
    may_build: threading.Event
    instances: list[FakeBackend]

    @classmethod
    def unusable(cls) -> str:
        return ""

    @classmethod
    def is_built(cls, model_path: Path, shapes: Shapes) -> bool:
        return cls.built

    @classmethod
    def build(cls, model_path: Path, shapes: Shapes, stopping: threading.Event | None = None) -> None:
        cls.builds += 1
        cls.may_build.wait(10)
        if cls.build_error:
            raise EngineError(cls.build_error)
        cls.built = True

    @classmethod
    def discard(cls, model_path: Path, shapes: Shapes) -> None:
        cls.built = False

    def __init__(self, model_path: Path, *, threads: int = 1, shapes: Shapes = ()) -> None:
        if not self.built:
            self.build(model_path, shapes)
        self.gpu = FakeGpu()
        self.runner = Runner(
            FakePlan(model_path, self.gpu, wrong=self.wrong), self.gpu, profiles_of(model_path, shapes)
        )
        self.description = "FakeBackend 1.0"
        self.instances.append(self)

    @property
    def approved(self) -> dict[str, Any]:
        return self.parity_figures

    def approve(self, figures: dict[str, Any]) -> None:
        type(self).parity_figures = figures

    def prepare(self, shapes: Shapes) -> None:
        self.runner.prepare(*shapes)

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return {"x": ("n", 3)}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        return self.runner.run(inputs)

    def close(self) -> None:
        self.runner.close()


@pytest.fixture
def backend() -> type[FakeBackend]:
    class Fresh(FakeBackend):
        may_build = threading.Event()
        instances: list[FakeBackend] = []

    Fresh.may_build.set()
    return Fresh


@pytest.fixture
def auto(
    monkeypatch: pytest.MonkeyPatch, backend: type[FakeBackend], doubling: Path
) -> Callable[..., tuple[Engine, list[str]]]:
    monkeypatch.setattr(loading, "backends", lambda: {"fake": backend})
    reports: list[str] = []

    def start() -> tuple[Engine, list[str]]:
        return load(doubling, warm_up=SHAPES, report=reports.append, log=LOG), reports

    return start


def double(engine: Engine, value: float = 1.0) -> float:
    return float(engine.run({"x": np.full((2, 3), value, np.float32)})["logits"][1, 2])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


def test_onnx_runtime_answers_while_the_engine_is_built_and_the_page_says_so(
    auto: Any, backend: type[FakeBackend]
) -> None:
    backend.may_build.clear()
    engine, reports = auto()
    assert double(engine) == 2.0 and engine.state == "build"
    assert reports[-1].startswith("onnxruntime ") and reports[-1].endswith("(FakeBackend is being built)")
    backend.may_build.set()
    until(lambda: engine.state == "run")
    assert double(engine) == 2.0 and backend.instances[0].runner.graph_launches > 0 and reports[-1] == "FakeBackend 1.0"


def test_every_state_is_reported_in_its_order(
    auto: Any, backend: type[FakeBackend], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine, reports = auto()
        until(lambda: engine.state == "run")
    states = [text.partition("(")[2].rstrip(")") for text in dict.fromkeys(reports)]
    assert states == ["FakeBackend is being built", "FakeBackend is being compared", "FakeBackend is being warmed", ""]
    assert "d.onnx: from the next frame on FakeBackend 1.0" in caplog.text
    assert "256 samples: largest relative difference 0.0e+00, labels agree in 100.0%" in caplog.text


def test_an_engine_that_was_approved_before_is_not_compared_again(auto: Any, backend: type[FakeBackend]) -> None:
    backend.built, backend.parity_figures = True, {"samples": 256}
    engine, reports = auto()
    until(lambda: engine.state == "run")
    assert backend.builds == 0 and not any("compared" in text for text in reports)


def test_an_engine_that_answers_otherwise_is_refused_with_the_figures(
    auto: Any, backend: type[FakeBackend], caplog: pytest.LogCaptureFixture
) -> None:
    backend.wrong = 0.5
    engine, reports = auto()
    until(lambda: engine.state == "refused")
    until(lambda: "stays on ONNX Runtime" in caplog.text)
    assert double(engine) == 2.0 and "refused: output 'logits' differs by 0.0" in reports[-1]
    assert backend.parity_figures == {}


def test_an_engine_that_cannot_be_built_leaves_onnx_runtime_with_the_reason(
    auto: Any, backend: type[FakeBackend]
) -> None:
    backend.build_error = "d.onnx: tensorrt 11 does not know the operator Unique (the_unique)"
    engine, reports = auto()
    until(lambda: engine.state == "refused")
    assert double(engine) == 2.0 and "does not know the operator Unique" in reports[-1] and backend.builds == 1


def test_the_frame_on_which_it_fails_is_answered_and_the_engine_is_built_again(
    auto: Any, backend: type[FakeBackend], caplog: pytest.LogCaptureFixture
) -> None:
    engine, reports = auto()
    until(lambda: engine.state == "run")
    backend.may_build.clear()
    backend.instances[0].gpu.fails.add("synchronise")
    assert double(engine, 3.0) == 6.0
    assert "failed while it ran (synchronise: the GPU's driver answers 719" in caplog.text
    assert [text for text in reports if "failed and is built again" in text]
    assert "release" in backend.instances[0].gpu.calls
    backend.may_build.set()
    until(lambda: engine.state == "run")
    assert double(engine) == 2.0 and backend.builds == 2 and len(backend.instances) == 2


def test_an_engine_that_fails_three_times_is_refused(auto: Any, backend: type[FakeBackend]) -> None:
    engine, reports = auto()
    for _ in range(3):
        until(lambda: engine.state == "run")
        backend.instances[-1].gpu.fails.add("synchronise")
        assert double(engine) == 2.0
    until(lambda: engine.state == "refused")
    assert "it failed 3 times" in reports[-1] and double(engine) == 2.0 and backend.builds == 3


def test_a_shape_outside_what_was_built_is_answered_by_onnx_runtime_and_costs_the_engine_nothing(
    monkeypatch: pytest.MonkeyPatch, backend: type[FakeBackend], tmp_path: Path
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "w"]) for name in ("x", "logits"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["logits"])], "relu", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(tmp_path / "r.onnx")
    )
    monkeypatch.setattr(loading, "backends", lambda: {"fake": backend})
    backend.parity_figures = {"samples": 256}
    engine = load(tmp_path / "r.onnx", warm_up=SHAPES, log=LOG)
    until(lambda: engine.state == "run")
    assert engine.run({"x": np.ones((1, 5), np.float32)})["logits"].shape == (1, 5) and engine.state == "run"


def test_by_name_it_is_built_before_the_first_frame(
    doubling: Path, backend: type[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find", lambda *args, **options: backend)
    reports: list[str] = []
    engine = load(doubling, backend="fake", warm_up=SHAPES, report=reports.append, log=LOG)
    assert (
        isinstance(engine, FakeBackend)
        and reports[-1] == "FakeBackend 1.0"
        and backend.parity_figures["samples"] == 256
    )


@pytest.mark.parametrize(("fault", "message"), [("build_error", "no memory"), ("wrong", "differs by")])
def test_by_name_it_never_falls_back(
    doubling: Path, backend: type[FakeBackend], monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(loading, "find", lambda *args, **options: backend)
    setattr(backend, fault, "no memory" if fault == "build_error" else 0.5)
    with pytest.raises(ConfigError, match=f"{message}.*Or set backend: auto"):
        load(doubling, backend="fake", warm_up=SHAPES, log=LOG)


def test_closing_gives_up_a_build_and_frees_what_runs(auto: Any, backend: type[FakeBackend]) -> None:
    engine, _ = auto()
    until(lambda: engine.state == "run")
    engine.close()
    assert "release" in backend.instances[0].gpu.calls
