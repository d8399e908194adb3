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


class RunnerHarness:
    def __init__(self, path: Path) -> None:
        self.gpu = FakeGpu()
        self.plan = FakePlan(path, self.gpu)
        self.runner = Runner(self.plan, self.gpu, derive({"x": ("n", 3)}), logging.getLogger("runner"))

    def double(self, rows: int, value: float = 1.0) -> np.ndarray:
        return self.runner.run({"x": np.full((rows, 3), value, np.float32)})["doubled"]


@pytest.fixture
def harness(doubling: Path) -> RunnerHarness:
    return RunnerHarness(doubling)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 20])
def test_any_batch_is_answered_row_by_row(harness: RunnerHarness, rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    answers = harness.runner.run({"x": x})
    assert np.array_equal(answers["doubled"], 2 * x) and np.allclose(answers["total"], x.sum(axis=1))


def test_an_answer_depends_on_its_own_input_alone(harness: RunnerHarness) -> None:
    harness.double(4, value=7.0)
    assert harness.double(3, value=1.0).tolist() == [[2, 2, 2]] * 3
    assert harness.gpu.at(next(iter(harness.plan.contexts[0].addresses.values()))).view(np.float32)[9:12].tolist() == [
        0,
        0,
        0,
    ]


def test_outputs_stay_as_they_were_when_it_runs_again(harness: RunnerHarness) -> None:
    first = harness.double(1, value=1.0)
    harness.double(1, value=5.0)
    assert first.tolist() == [[2, 2, 2]]


def test_one_graph_serves_every_batch_that_is_filled_up_to_the_same_size(harness: RunnerHarness) -> None:
    for rows in (3, 4, 3, 4):
        harness.double(rows)
    assert (
        harness.gpu.calls.count("begin_capture") == 1
        and harness.runner.graph_launches == 4
        and harness.runner.plain_enqueues == 0
    )


def test_addresses_are_set_once_whatever_is_run(harness: RunnerHarness) -> None:
    harness.double(1)
    once = [context.address_calls for context in harness.plan.contexts]
    for rows in (2, 8, 3):
        harness.double(rows)
    assert [context.address_calls for context in harness.plan.contexts] == once == [3]


def test_a_prepared_shape_is_neither_warmed_nor_captured_when_the_first_frame_comes(harness: RunnerHarness) -> None:
    harness.runner.prepare({"x": (1, 3)})
    before = harness.gpu.calls.count("begin_capture")
    for rows in (1, 2, 3, 8):
        harness.double(rows)
    assert (before, harness.gpu.calls.count("begin_capture")) == (4, 4) and harness.runner.graph_launches == 4


def test_the_thread_that_prepared_gives_its_lane_to_the_thread_that_runs(harness: RunnerHarness) -> None:
    preparing = threading.Thread(target=lambda: harness.runner.prepare({"x": (1, 3)}))
    preparing.start()
    preparing.join()
    harness.double(1)
    assert len(harness.plan.contexts) == 1 and len(harness.gpu.entered) == 2


def test_each_thread_has_a_context_and_a_stream_of_its_own(harness: RunnerHarness) -> None:
    answers: dict[int, list[float]] = {}
    both = threading.Barrier(2)

    def run(value: float) -> None:
        both.wait()
        for _ in range(20):
            answers.setdefault(int(value), []).append(float(harness.double(1, value=value)[0, 0]))

    threads = [threading.Thread(target=run, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {1: [2.0] * 20, 2: [4.0] * 20}
    assert len(harness.plan.contexts) == 2 and all(len(context.threads) == 1 for context in harness.plan.contexts)


@pytest.mark.parametrize("call", ["begin_capture", "end_capture", "launch"])
def test_where_no_graph_can_be_captured_it_is_enqueued_plainly(
    harness: RunnerHarness, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness.gpu.fails.add(call)
    assert harness.double(2).tolist() == [[2, 2, 2]] * 2 and harness.runner.plain_enqueues == 1
    assert f"enqueued plainly instead: {call}: the GPU's driver answers 719" in caplog.text
    harness.double(2)
    assert harness.gpu.calls.count("begin_capture") == 1  # it is not tried for every frame


def test_a_graph_that_answers_otherwise_is_not_used(
    harness: RunnerHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(harness.gpu, "launch", lambda graph, stream: None)  # replays nothing: the poison stays
    assert harness.double(2).tolist() == [[2, 2, 2]] * 2
    assert "answers otherwise in doubled, total" in caplog.text and harness.runner.graph_launches == 0


def test_an_output_that_the_engine_left_unwritten_is_an_error(harness: RunnerHarness) -> None:
    harness.plan.forgets.add("total")
    with pytest.raises(EngineError, match="left total unwritten"):
        harness.double(1)


@pytest.mark.parametrize(
    "call", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]
)
def test_every_answer_of_the_runtime_is_checked(harness: RunnerHarness, call: str) -> None:
    harness.plan.refuses.add(call)
    with pytest.raises(EngineError):
        harness.double(1)


@pytest.mark.parametrize("call", ["upload", "synchronise"])
def test_every_answer_of_the_driver_is_checked(harness: RunnerHarness, call: str) -> None:
    harness.gpu.fails.add(call)
    with pytest.raises(EngineError, match="719"):
        harness.double(1)


def test_a_failure_while_it_runs_is_an_error_and_not_an_old_answer(harness: RunnerHarness) -> None:
    harness.double(1)
    harness.gpu.fails.add("launch")
    with pytest.raises(EngineError, match="launch"):
        harness.double(1)


def test_a_shape_that_it_was_not_built_for_says_what_it_was_built_for(harness: RunnerHarness) -> None:
    with pytest.raises(ShapeError, match=r"x \(1, 3\) to \(8, 3\)"):
        harness.runner.run({"x": np.zeros((1, 4), np.float32)})


def test_pictures_of_two_sizes_take_their_own_profiles_and_one_between_them_a_third() -> None:
    profiles = derive({"x": ("n", 1, "h", "w")}, [{"x": (1, 1, 4, 4)}, {"x": (1, 1, 8, 6)}])
    assert len(profiles) == 3 and [p.admits({"x": (2, 1, 8, 6)}) for p in profiles] == [False, True, True]
    assert [p.admits({"x": (1, 1, 6, 5)}) for p in profiles] == [False, False, True]


@pytest.mark.parametrize(("free", "hint"), [(("n", 3), (1, 4)), (("n", 3), (1, 3, 3)), ((2, 3), (1, 3))])
def test_a_hint_that_is_no_shape_of_the_model_is_refused(free: tuple[int | str, ...], hint: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is no case of"):
        derive({"x": free}, [{"x": hint}])
