"""A GPU of numpy arrays: memory at addresses, streams that run when they are waited for, graphs that replay, and an
execution context that computes with ONNX Runtime, so that a runner can be tested without a GPU."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipeline.errors import EngineError
from pipeline.inference.runner import Tensor

Array = np.ndarray[Any, Any]
Work = Callable[[], None]


class FakeGpu:
    """fails: names of calls that answer with an error. entered: the threads that made the context theirs."""

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.calls: list[str] = []
        self.entered: set[int] = set()
        self._numbers = itertools.count(0x1000, 0x1000)
        self._memory: dict[int, Array] = {}
        self._queues: dict[int, list[Work]] = {}
        self._capturing: dict[int, list[Work]] = {}
        self._capture_thread: dict[int, int] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise EngineError(f"{name}: the GPU's driver answers 719 (launch failed)")

    def enter(self) -> None:
        self.entered.add(threading.get_ident())

    def stream(self) -> int:
        assert threading.get_ident() in self.entered, "a thread used the GPU without its context"
        number = next(self._numbers)
        self._queues[number] = []
        return number

    def pinned(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    def memory(self, size: int) -> int:
        address = next(self._numbers)
        self._memory[address] = np.zeros(size, np.uint8)
        return address

    def at(self, address: int) -> Array:
        return self._memory[address]

    def enqueue(self, stream: int, work: Work) -> None:
        if stream in self._capturing:
            assert self._capture_thread[stream] == threading.get_ident()
            self._capturing[stream].append(work)
        else:
            self._queues[stream].append(work)

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        self.enqueue(stream, lambda: self._memory[address][:size].fill(byte))

    def upload(self, address: int, source: Array, stream: int) -> None:
        self._call("upload")
        self.enqueue(stream, lambda: np.copyto(self._memory[address][: len(source)], source))

    def download(self, target: Array, address: int, stream: int) -> None:
        self.enqueue(stream, lambda: np.copyto(target, self._memory[address][: len(target)]))

    def synchronise(self, stream: int) -> None:
        self._call("synchronise")
        queue = self._queues[stream]
        while queue:
            queue.pop(0)()

    def begin_capture(self, stream: int) -> None:
        self._call("begin_capture")
        assert not self._queues[stream], "captured while work was still waiting"
        self._capturing[stream] = []
        self._capture_thread[stream] = threading.get_ident()

    def end_capture(self, stream: int) -> list[Work]:
        captured = self._capturing.pop(stream)
        self._call("end_capture")
        return captured

    def launch(self, graph: list[Work], stream: int) -> None:
        self._call("launch")
        self._queues[stream] += graph

    def release(self) -> None:
        self._call("release")


class FakePlan:
    """An "engine" of an ONNX file: TensorRT's calls, ONNX Runtime's answers. refuses: calls that answer False.
    forgets: outputs that it leaves unwritten. wrong: what it adds to every output."""

    def __init__(self, path: Path, gpu: FakeGpu, *, wrong: float = 0.0) -> None:
        self.gpu, self.wrong = gpu, wrong
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.refuses: set[str] = set()
        self.forgets: set[str] = set()
        self.contexts: list[FakeContext] = []
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.tensors = [
            Tensor(value.name, np.dtype(kinds[value.type]), is_input)
            for values, is_input in ((self.session.get_inputs(), True), (self.session.get_outputs(), False))
            for value in values
        ]

    def context(self) -> FakeContext:
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, plan: FakePlan) -> None:
        self._plan = plan
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = -1
        self.threads: set[int] = set()
        self.address_calls = 0

    def _answer(self, call: str) -> bool:
        return call not in self._plan.refuses

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return self._answer("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.shapes[name] = tuple(shape)
        return self._answer("set_input_shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        batch = next(iter(self.shapes.values()))[0]
        declared = next(value.shape for value in self._plan.session.get_outputs() if value.name == name)
        return tuple(size if isinstance(size, int) else batch for size in declared)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address_calls += 1
        self.addresses[name] = address
        return self._answer("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        if not self._answer("execute_async_v3"):
            return False
        self.threads.add(threading.get_ident())
        shapes = dict(self.shapes)
        self._plan.gpu.enqueue(stream, lambda: self._compute(shapes))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        plan = self._plan
        inputs = {t.name: self._array(t, shapes[t.name]).copy() for t in plan.tensors if t.is_input}
        names = [t.name for t in plan.tensors if not t.is_input]
        for tensor, value in zip(
            [t for t in plan.tensors if not t.is_input], plan.session.run(names, inputs), strict=True
        ):
            if tensor.name not in plan.forgets:
                self._array(tensor, value.shape)[...] = value + np.asarray(plan.wrong, value.dtype)

    def _array(self, tensor: Tensor, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape)) * tensor.dtype.itemsize
        return self._plan.gpu.at(self.addresses[tensor.name])[:size].view(tensor.dtype).reshape(shape)
