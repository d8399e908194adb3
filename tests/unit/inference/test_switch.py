"""build → parity → warm → run → error → build again: ONNX Runtime answers wherever the built engine cannot, and people are told."""

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
from pipeline.inference import engine as engines
from pipeline.inference.engine import Built, Engine, Shapes, Tensors, load
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


class Rehearsed(Built):
    """A backend on the fake GPU. Its class variables are the test's to set."""

    rank = 100
    title = "Rehearsed"
    built = False
    builds = 0
    build_error = ""
    wrong = 0.0
    verdict: dict[str, Any] = {}
    may_build: threading.Event
    made: list[Rehearsed]

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
        self.description = "Rehearsed 1.0"
        self.made.append(self)

    @property
    def approved(self) -> dict[str, Any]:
        return self.verdict

    def approve(self, figures: dict[str, Any]) -> None:
        type(self).verdict = figures

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
def backend() -> type[Rehearsed]:
    class Fresh(Rehearsed):
        may_build = threading.Event()
        made: list[Rehearsed] = []

    Fresh.may_build.set()
    return Fresh


@pytest.fixture
def auto(
    monkeypatch: pytest.MonkeyPatch, backend: type[Rehearsed], doubling: Path
) -> Callable[..., tuple[Engine, list[str]]]:
    monkeypatch.setattr(engines, "backends", lambda: {"rehearsed": backend})
    told: list[str] = []

    def start() -> tuple[Engine, list[str]]:
        return load(doubling, warm_up=SHAPES, tell=told.append, log=LOG), told

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
    auto: Any, backend: type[Rehearsed]
) -> None:
    backend.may_build.clear()
    engine, told = auto()
    assert double(engine) == 2.0 and engine.state == "build"
    assert told[-1].startswith("onnxruntime ") and told[-1].endswith("(Rehearsed is being built)")
    backend.may_build.set()
    until(lambda: engine.state == "run")
    assert double(engine) == 2.0 and backend.made[0].runner.graph_launches > 0 and told[-1] == "Rehearsed 1.0"


def test_every_state_on_the_way_is_told_in_its_order(
    auto: Any, backend: type[Rehearsed], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine, told = auto()
        until(lambda: engine.state == "run")
    said = [text.partition("(")[2].rstrip(")") for text in dict.fromkeys(told)]
    assert said == ["Rehearsed is being built", "Rehearsed is being compared", "Rehearsed is being warmed", ""]
    assert "d.onnx: from the next frame on Rehearsed 1.0" in caplog.text
    assert "256 samples: largest relative difference 0.0e+00, labels agree in 100.0%" in caplog.text


def test_an_engine_that_was_approved_before_is_not_compared_again(auto: Any, backend: type[Rehearsed]) -> None:
    backend.built, backend.verdict = True, {"samples": 256}
    engine, told = auto()
    until(lambda: engine.state == "run")
    assert backend.builds == 0 and not any("compared" in text for text in told)


def test_an_engine_that_answers_otherwise_is_refused_with_the_figures(
    auto: Any, backend: type[Rehearsed], caplog: pytest.LogCaptureFixture
) -> None:
    backend.wrong = 0.5
    engine, told = auto()
    until(lambda: engine.state == "refused")
    assert double(engine) == 2.0 and "refused: output 'logits' differs by 0.0" in told[-1]
    assert "stays on ONNX Runtime" in caplog.text and backend.verdict == {}


def test_an_engine_that_cannot_be_built_leaves_onnx_runtime_with_the_reason(
    auto: Any, backend: type[Rehearsed]
) -> None:
    backend.build_error = "d.onnx: tensorrt 11 does not know the operator Unique (the_unique)"
    engine, told = auto()
    until(lambda: engine.state == "refused")
    assert double(engine) == 2.0 and "does not know the operator Unique" in told[-1] and backend.builds == 1


def test_the_frame_on_which_it_fails_is_answered_and_the_engine_is_built_again(
    auto: Any, backend: type[Rehearsed], caplog: pytest.LogCaptureFixture
) -> None:
    engine, told = auto()
    until(lambda: engine.state == "run")
    backend.may_build.clear()
    backend.made[0].gpu.fails.add("synchronise")
    assert double(engine, 3.0) == 6.0
    assert "failed while it ran (synchronise: the GPU's driver answers 719" in caplog.text
    assert [text for text in told if "failed and is built anew" in text]
    assert "release" in backend.made[0].gpu.calls
    backend.may_build.set()
    until(lambda: engine.state == "run")
    assert double(engine) == 2.0 and backend.builds == 2 and len(backend.made) == 2


def test_what_fails_again_and_again_is_given_up(auto: Any, backend: type[Rehearsed]) -> None:
    engine, told = auto()
    for _ in range(3):
        until(lambda: engine.state == "run")
        backend.made[-1].gpu.fails.add("synchronise")
        assert double(engine) == 2.0
    until(lambda: engine.state == "refused")
    assert "it failed 3 times" in told[-1] and double(engine) == 2.0 and backend.builds == 3


def test_a_shape_outside_what_was_built_is_answered_by_onnx_runtime_and_costs_the_engine_nothing(
    monkeypatch: pytest.MonkeyPatch, backend: type[Rehearsed], tmp_path: Path
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "w"]) for name in ("x", "logits"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["logits"])], "relu", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(tmp_path / "r.onnx")
    )
    monkeypatch.setattr(engines, "backends", lambda: {"rehearsed": backend})
    backend.verdict = {"samples": 256}
    engine = load(tmp_path / "r.onnx", warm_up=SHAPES, log=LOG)
    until(lambda: engine.state == "run")
    assert engine.run({"x": np.ones((1, 5), np.float32)})["logits"].shape == (1, 5) and engine.state == "run"


def test_by_name_it_is_built_before_the_first_frame(
    doubling: Path, backend: type[Rehearsed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find", lambda *args, **options: backend)
    told: list[str] = []
    engine = load(doubling, backend="rehearsed", warm_up=SHAPES, tell=told.append, log=LOG)
    assert isinstance(engine, Rehearsed) and told[-1] == "Rehearsed 1.0" and backend.verdict["samples"] == 256


@pytest.mark.parametrize(("fault", "said"), [("build_error", "no memory"), ("wrong", "differs by")])
def test_by_name_it_never_falls_back(
    doubling: Path, backend: type[Rehearsed], monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setattr(engines, "find", lambda *args, **options: backend)
    setattr(backend, fault, "no memory" if fault == "build_error" else 0.5)
    with pytest.raises(ConfigError, match=f"{said}.*Or set backend: auto"):
        load(doubling, backend="rehearsed", warm_up=SHAPES, log=LOG)


def test_closing_gives_up_a_build_and_frees_what_runs(auto: Any, backend: type[Rehearsed]) -> None:
    engine, _ = auto()
    until(lambda: engine.state == "run")
    engine.close()
    assert "release" in backend.made[0].gpu.calls
