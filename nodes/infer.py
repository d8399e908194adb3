"""Runs a task on every aligned set: AlignedSet → Prediction.

Example:
    emotion: {use: infer, task: emotion, inputs: [align], process: align, backend: auto}
    mood:    {use: infer, task: "mood:Mood", inputs: [align], options: {smoothing_ms: 500}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from pipeline.frame import AlignedSet, Prediction
from pipeline.inference.manifest import PRECISIONS
from pipeline.node import Arrival, Transform
from pipeline.task import find_task, make


class Infer(Transform):
    """Runs a task: its models and whatever it remembers between sets.

    Args:
        task: A file of pipeline/tasks (emotion, scene, objects, …), or module:Name.
        backend: What runs the models: a file of pipeline/inference/backends, or module:Name. Default auto: the first
            that works on this machine and gives the same answers as ONNX Runtime.
        precision: fp32; or fp16 or int8, if `export` has written such a file of the model. Default fp32: the precision
            of all published figures.
        options: The options of the task's constructor.
    """

    consumes: ClassVar[tuple[type, ...]] = (AlignedSet,)
    produces: ClassVar[type | None] = Prediction

    def __init__(
        self,
        *,
        task: str = "emotion",
        backend: str = "auto",
        precision: str = "fp32",
        options: dict[str, Any] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: found '{precision}', expected one of {', '.join(PRECISIONS)}")
        if backend != "auto":
            from pipeline.inference.choose_backend import named

            named(backend)
        self.task = make(task, options)
        self._backend, self.task.precision = backend, precision

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        """`options` are the task's. A user's own task is imported in the process of the node only."""
        name = options.get("task", "emotion")
        yield "options", find_task(name) if isinstance(name, str) and ":" not in name else None

    def open(self) -> None:
        self.task.log, self.task.metrics = self.context.log, self.context.metrics
        self.task.open(self._backend)
        self.context.metrics.facts["model"] = self.task.model

    def process(self, arrival: Arrival) -> Iterable[Prediction]:
        aligned = arrival.message
        assert isinstance(aligned, AlignedSet)
        begin_ns = self.context.clock.now_ns()
        prediction = self.task.predict(aligned)
        timing_ns = {"wait": aligned.sent_ns - aligned.arrival_ns, "infer": self.context.clock.now_ns() - begin_ns}
        yield msgspec.structs.replace(prediction, timing_ns=prediction.timing_ns | timing_ns)

    def close(self) -> None:
        self.task.close()
