"""How a built engine is run on a GPU, watched on one made of numpy arrays (fake_gpu.py)."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_gpu import FakeGpu, FakePlan
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import EngineError
from pipeline.inference.profile import derive
from pipeline.inference.runner import Runner, ShapeError


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """x (n, 3) → doubled (n, 3) and total (n,)."""
    constants = [
        numpy_helper.from_array(np.float32(2), "two"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    x, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "doubled"))
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "doubling", [x], [doubled, total], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(tmp_path / "d.onnx")
    )
    return tmp_path / "d.onnx"


class Stage:
    def __init__(self, path: Path) -> None:
        self.gpu = FakeGpu()
        self.plan = FakePlan(path, self.gpu)
        self.runner = Runner(self.plan, self.gpu, derive({"x": ("n", 3)}), logging.getLogger("runner"))

    def double(self, rows: int, value: float = 1.0) -> np.ndarray:
        return self.runner.run({"x": np.full((rows, 3), value, np.float32)})["doubled"]


@pytest.fixture
def stage(doubling: Path) -> Stage:
    return Stage(doubling)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 20])
def test_any_batch_is_answered_row_by_row(stage: Stage, rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    answers = stage.runner.run({"x": x})
    assert np.array_equal(answers["doubled"], 2 * x) and np.allclose(answers["total"], x.sum(axis=1))


def test_an_answer_depends_on_its_own_input_alone(stage: Stage) -> None:
    stage.double(4, value=7.0)
    assert stage.double(3, value=1.0).tolist() == [[2, 2, 2]] * 3
    assert stage.gpu.at(next(iter(stage.plan.contexts[0].addresses.values()))).view(np.float32)[9:12].tolist() == [
        0,
        0,
        0,
    ]


def test_outputs_stay_as_they_were_when_it_runs_again(stage: Stage) -> None:
    first = stage.double(1, value=1.0)
    stage.double(1, value=5.0)
    assert first.tolist() == [[2, 2, 2]]


def test_one_graph_serves_every_batch_that_is_filled_up_to_the_same_size(stage: Stage) -> None:
    for rows in (3, 4, 3, 4):
        stage.double(rows)
    assert (
        stage.gpu.calls.count("begin_capture") == 1
        and stage.runner.graph_launches == 4
        and stage.runner.plain_enqueues == 0
    )


def test_addresses_are_set_once_whatever_is_run(stage: Stage) -> None:
    stage.double(1)
    once = [context.address_calls for context in stage.plan.contexts]
    for rows in (2, 8, 3):
        stage.double(rows)
    assert [context.address_calls for context in stage.plan.contexts] == once == [3]


def test_a_prepared_shape_is_neither_warmed_nor_captured_when_the_first_frame_comes(stage: Stage) -> None:
    stage.runner.prepare({"x": (1, 3)})
    before = stage.gpu.calls.count("begin_capture")
    for rows in (1, 2, 3, 8):
        stage.double(rows)
    assert (before, stage.gpu.calls.count("begin_capture")) == (4, 4) and stage.runner.graph_launches == 4


def test_the_thread_that_prepared_gives_its_lane_to_the_thread_that_runs(stage: Stage) -> None:
    preparing = threading.Thread(target=lambda: stage.runner.prepare({"x": (1, 3)}))
    preparing.start()
    preparing.join()
    stage.double(1)
    assert len(stage.plan.contexts) == 1 and len(stage.gpu.entered) == 2


def test_each_thread_has_a_context_and_a_stream_of_its_own(stage: Stage) -> None:
    answers: dict[int, list[float]] = {}
    both = threading.Barrier(2)

    def run(value: float) -> None:
        both.wait()
        for _ in range(20):
            answers.setdefault(int(value), []).append(float(stage.double(1, value=value)[0, 0]))

    threads = [threading.Thread(target=run, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {1: [2.0] * 20, 2: [4.0] * 20}
    assert len(stage.plan.contexts) == 2 and all(len(context.threads) == 1 for context in stage.plan.contexts)


@pytest.mark.parametrize("call", ["begin_capture", "end_capture", "launch"])
def test_where_no_graph_can_be_captured_it_is_enqueued_plainly(
    stage: Stage, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.gpu.fails.add(call)
    assert stage.double(2).tolist() == [[2, 2, 2]] * 2 and stage.runner.plain_enqueues == 1
    assert f"enqueued plainly instead: {call}: the GPU's driver answers 719" in caplog.text
    stage.double(2)
    assert stage.gpu.calls.count("begin_capture") == 1  # it is not tried for every frame


def test_a_graph_that_answers_otherwise_is_not_used(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage.gpu, "launch", lambda graph, stream: None)  # replays nothing: the poison stays
    assert stage.double(2).tolist() == [[2, 2, 2]] * 2
    assert "answers otherwise in doubled, total" in caplog.text and stage.runner.graph_launches == 0


def test_an_output_that_the_engine_left_unwritten_is_an_error(stage: Stage) -> None:
    stage.plan.forgets.add("total")
    with pytest.raises(EngineError, match="left total unwritten"):
        stage.double(1)


@pytest.mark.parametrize(
    "call", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]
)
def test_every_answer_of_the_runtime_is_checked(stage: Stage, call: str) -> None:
    stage.plan.refuses.add(call)
    with pytest.raises(EngineError):
        stage.double(1)


@pytest.mark.parametrize("call", ["upload", "synchronise"])
def test_every_answer_of_the_driver_is_checked(stage: Stage, call: str) -> None:
    stage.gpu.fails.add(call)
    with pytest.raises(EngineError, match="719"):
        stage.double(1)


def test_a_failure_while_it_runs_is_an_error_and_not_an_old_answer(stage: Stage) -> None:
    stage.double(1)
    stage.gpu.fails.add("launch")
    with pytest.raises(EngineError, match="launch"):
        stage.double(1)


def test_a_shape_that_it_was_not_built_for_says_what_it_was_built_for(stage: Stage) -> None:
    with pytest.raises(ShapeError, match=r"x \(1, 3\) to \(8, 3\)"):
        stage.runner.run({"x": np.zeros((1, 4), np.float32)})


def test_pictures_of_two_sizes_take_their_own_profiles_and_one_between_them_a_third() -> None:
    profiles = derive({"x": ("n", 1, "h", "w")}, [{"x": (1, 1, 4, 4)}, {"x": (1, 1, 8, 6)}])
    assert len(profiles) == 3 and [p.admits({"x": (2, 1, 8, 6)}) for p in profiles] == [False, True, True]
    assert [p.admits({"x": (1, 1, 6, 5)}) for p in profiles] == [False, False, True]


@pytest.mark.parametrize(("free", "hint"), [(("n", 3), (1, 4)), (("n", 3), (1, 3, 3)), ((2, 3), (1, 3))])
def test_a_hint_that_is_no_shape_of_the_model_is_refused(free: tuple[int | str, ...], hint: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is no case of"):
        derive({"x": free}, [{"x": hint}])
