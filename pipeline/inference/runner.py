"""Runs a built engine on a GPU: pinned staging, addresses set once, one stream and one context a thread, CUDA graphs.

Owns what happens between numpy arrays and the enqueue. Knows no TensorRT: a `Plan` is whatever has tensors and gives
contexts with TensorRT's five calls, so a test or a torch network can stand in for it.

Example:
    runner = Runner(plan, Cuda(0), profiles)
    runner.prepare({"face": (1, 1, 48, 48)})         # warm, poisoned, captured: the first real frame is not the slowest
    runner.run({"face": faces})["logits"]
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.errors import EngineError
from pipeline.inference.cuda import Bytes, Device
from pipeline.inference.profile import Profile, Shape

Array = np.ndarray[Any, Any]

MAX_GRAPHS = 24  # a lane; shapes beyond are enqueued plainly: each graph keeps memory of the driver's
POISON = 0xFF  # as float32 or float16 a NaN: an output that nobody wrote cannot pass for one


class ShapeError(EngineError):
    """The engine is well, and was not built for this shape."""


class Tensor(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    is_input: bool


class ExecutionContext(Protocol):
    """The calls of TensorRT's IExecutionContext that are used; each answers False when it could not."""

    def set_optimization_profile_async(self, index: int, stream: int) -> bool: ...
    def set_input_shape(self, name: str, shape: Shape) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def execute_async_v3(self, stream: int) -> bool: ...


class Plan(Protocol):
    """A deserialised engine, which threads share."""

    @property
    def tensors(self) -> Sequence[Tensor]: ...
    def context(self) -> ExecutionContext: ...


class _Slot(NamedTuple):
    """One tensor's memory, for the largest shape of any profile."""

    host: Bytes
    address: int


@dataclass
class _Lane:
    """What one thread runs in. contexts: a profile each. graphs: (profile, input shapes) → graph; None: capturing
    failed."""

    stream: int
    slots: dict[str, _Slot]
    contexts: list[ExecutionContext]
    shapes: list[dict[str, Shape]]  # as each context has them now
    graphs: dict[tuple[int, tuple[Shape, ...]], Any] = field(default_factory=dict)


class Runner:
    """Raises EngineError when a call of the runtime or the driver fails: the engine is then of no more use."""

    def __init__(
        self, plan: Plan, device: Device, profiles: Sequence[Profile], log: logging.Logger | None = None
    ) -> None:
        self._plan, self._device, self._profiles = plan, device, tuple(profiles)
        self._log = log or logging.getLogger("runner")
        self._inputs = [tensor for tensor in plan.tensors if tensor.is_input]
        self._outputs = [tensor for tensor in plan.tensors if not tensor.is_input]
        self._here = threading.local()
        self._spare: list[_Lane] = []
        self._lock = threading.Lock()
        self.plain_enqueues = self.graph_launches = 0

    def prepare(self, *shapes: Mapping[str, Shape]) -> None:
        """Warm and capture these shapes with every size of batch, in a lane that the next thread to run takes over."""
        lane = self._lane()
        for each in shapes:
            index, _ = self._placed(each)
            for filled in self._profiles[index].batches(each):
                self._captured(lane, index, filled)
        self._here.lane = None
        with self._lock:
            self._spare.append(lane)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Batches larger than the largest profile are run in turns. The outputs are the caller's to keep."""
        shapes = {tensor.name: np.shape(inputs[tensor.name]) for tensor in self._inputs}
        most = max((profile.largest()[name][0] for profile in self._profiles for name in profile.batched), default=0)
        count = next((shapes[name][0] for name in self._batched), 0)
        if not most or count <= most:
            return self._run(inputs, shapes)
        turns = [
            {name: value[at : at + most] if name in self._batched else value for name, value in inputs.items()}
            for at in range(0, count, most)
        ]
        parts = [self._run(turn, {name: np.shape(turn[name]) for name in shapes}) for turn in turns]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @property
    def _batched(self) -> frozenset[str]:
        return self._profiles[0].batched

    def _run(self, inputs: Mapping[str, Array], shapes: Mapping[str, Shape]) -> dict[str, Array]:
        lane = self._lane()
        index, filled = self._placed(shapes)
        for tensor in self._inputs:
            # Zeros fill the batch up, not the last frame's faces: an answer depends on its own input alone.
            staged = _view(lane.slots[tensor.name].host, filled[tensor.name], tensor.dtype)
            rows = shapes[tensor.name][0] if tensor.name in self._batched else None
            staged[:rows] = inputs[tensor.name]
            if rows is not None:
                staged[rows:] = 0
        graph = self._captured(lane, index, filled)
        if graph is not None:
            self._device.launch(graph, lane.stream)
            self.graph_launches += 1
        else:
            self._enqueue(lane, index, filled)
            self.plain_enqueues += 1
        self._device.synchronise(lane.stream)
        asked, run = (next((of[name][0] for name in self._batched), None) for of in (shapes, filled))
        answers = self._answers(lane, index)
        return {name: (value[:asked] if value.shape[:1] == (run,) else value).copy() for name, value in answers.items()}

    def _placed(self, shapes: Mapping[str, Shape]) -> tuple[int, dict[str, Shape]]:
        for index, profile in enumerate(self._profiles):
            if profile.admits(shapes):
                return index, profile.filled(shapes)
        reach = "; ".join(", ".join(f"{n} {lo} to {hi}" for n, (lo, _, hi) in p.ranges.items()) for p in self._profiles)
        raise ShapeError(f"no profile of this engine admits {dict(shapes)}; it was built for {reach}")

    # --- lanes ------------------------------------------------------------------------------------------------------

    def _lane(self) -> _Lane:
        lane = getattr(self._here, "lane", None)
        if lane is None:
            self._device.enter()
            with self._lock:
                lane = self._spare.pop() if self._spare else None
            self._here.lane = lane = lane or self._new_lane()
        return lane

    def _new_lane(self) -> _Lane:
        device, stream = self._device, self._device.stream()
        contexts: list[ExecutionContext] = []
        sizes: dict[str, int] = {}
        for index, profile in enumerate(self._profiles):
            context = self._plan.context()
            _check(context.set_optimization_profile_async(index, stream), f"profile {index} could not be chosen")
            for name, shape in profile.largest().items():
                _check(context.set_input_shape(name, shape), f"input '{name}' does not take the shape {shape}")
            for tensor in self._plan.tensors:
                shape = tuple(context.get_tensor_shape(tensor.name))
                if any(size < 0 for size in shape):
                    raise EngineError(f"output '{tensor.name}': its shape {shape} is not known before it runs")
                sizes[tensor.name] = max(sizes.get(tensor.name, 1), int(np.prod(shape)) * tensor.dtype.itemsize)
            contexts.append(context)
        slots = {name: _Slot(device.pinned(size), device.memory(size)) for name, size in sizes.items()}
        for context in contexts:
            for name, slot in slots.items():  # once: a graph holds these addresses for good
                _check(context.set_tensor_address(name, slot.address), f"tensor '{name}' does not take its address")
        device.synchronise(stream)
        return _Lane(stream, slots, contexts, [profile.largest() for profile in self._profiles])

    # --- one run ------------------------------------------------------------------------------------------------------

    def _enqueue(self, lane: _Lane, index: int, shapes: dict[str, Shape]) -> None:
        """Inputs up, the network, outputs down: on the lane's stream, nothing waited for."""
        context, stream = lane.contexts[index], lane.stream
        if lane.shapes[index] != shapes:
            for name, shape in shapes.items():
                _check(context.set_input_shape(name, shape), f"input '{name}' does not take the shape {shape}")
            lane.shapes[index] = dict(shapes)
        for tensor in self._inputs:
            slot = lane.slots[tensor.name]
            self._device.upload(slot.address, slot.host[: _size(shapes[tensor.name], tensor)], stream)
        _check(context.execute_async_v3(stream), "the engine could not be enqueued")
        for tensor in self._outputs:
            slot = lane.slots[tensor.name]
            self._device.download(
                slot.host[: _size(tuple(context.get_tensor_shape(tensor.name)), tensor)], slot.address, stream
            )

    def _captured(self, lane: _Lane, index: int, shapes: dict[str, Shape]) -> Any:
        """The graph of these shapes, captured on their first use; None where they are enqueued plainly."""
        key = (index, tuple(shapes.values()))
        if key in lane.graphs:
            graph, same = lane.graphs[key], lane.shapes[index] == shapes
            if graph is not None and not same:
                # A context remembers one set of shapes, and the outputs' are asked of it.
                for name, shape in shapes.items():
                    _check(
                        lane.contexts[index].set_input_shape(name, shape),
                        f"input '{name}' does not take the shape {shape}",
                    )
                lane.shapes[index] = dict(shapes)
            return graph
        if len(lane.graphs) >= MAX_GRAPHS:
            return None
        lane.graphs[key] = None
        # Once plainly: the first enqueue of a shape may allocate and compile, which a capture does not allow.
        self._poison(lane)
        self._enqueue(lane, index, shapes)
        self._device.synchronise(lane.stream)
        plain = {name: value.copy() for name, value in self._answers(lane, index).items()}
        unwritten = [
            name for name, value in plain.items() if np.all(value.reshape(-1).view(np.uint8) == POISON) and value.size
        ]
        if unwritten:
            raise EngineError(f"the engine left {', '.join(unwritten)} unwritten for {shapes}")
        lane.graphs[key] = self._capture(lane, index, shapes, plain)
        return lane.graphs[key]

    def _capture(self, lane: _Lane, index: int, shapes: dict[str, Shape], plain: Mapping[str, Array]) -> Any:
        """A graph whose answer is the plain one's; None, and a line in the log, where there is none."""
        try:
            self._device.begin_capture(lane.stream)
            try:
                self._enqueue(lane, index, shapes)
            except BaseException:
                self._end_broken_capture(lane)
                raise
            graph = self._device.end_capture(lane.stream)
            self._poison(lane)
            self._device.launch(graph, lane.stream)
            self._device.synchronise(lane.stream)
        except EngineError as error:
            self._log.warning("no CUDA graph for %s, enqueued plainly instead: %s", shapes, error)
            return None
        answers = self._answers(lane, index)
        wrong = [
            name for name, value in plain.items() if not np.allclose(answers[name], value, 1e-3, 1e-4, equal_nan=True)
        ]
        if wrong:
            self._log.warning(
                "the CUDA graph for %s answers otherwise in %s: enqueued plainly instead", shapes, ", ".join(wrong)
            )
            return None
        return graph

    def _end_broken_capture(self, lane: _Lane) -> None:
        try:
            self._device.end_capture(lane.stream)
        except EngineError:
            pass  # it is broken, and the first error says why

    def _poison(self, lane: _Lane) -> None:
        for tensor in self._outputs:
            slot = lane.slots[tensor.name]
            slot.host[:] = POISON
            self._device.fill(slot.address, POISON, slot.host.nbytes, lane.stream)

    def _answers(self, lane: _Lane, index: int) -> dict[str, Array]:
        """Views of the staging memory: overwritten by the next run."""
        context = lane.contexts[index]
        return {
            tensor.name: _view(lane.slots[tensor.name].host, tuple(context.get_tensor_shape(tensor.name)), tensor.dtype)
            for tensor in self._outputs
        }

    def close(self) -> None:
        self._spare.clear()
        self._here = threading.local()
        self._device.release()


def _check(done: bool, what: str) -> None:
    if not done:
        raise EngineError(what)


def _size(shape: Shape, tensor: Tensor) -> int:
    return int(np.prod(shape)) * tensor.dtype.itemsize


def _view(memory: Bytes, shape: Shape, dtype: np.dtype[Any]) -> Array:
    return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
