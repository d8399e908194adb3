"""Runs a task on every aligned set: AlignedSet → Prediction.

Example:
    emotion: {use: infer, task: emotion, inputs: [align], process: align, backend: auto}
    mood:    {use: infer, task: "mood:Mood", inputs: [align], options: {smoothing_ms: 500}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from pipeline.frame import AlignedSet, Prediction
from pipeline.inference.manifest import PRECISIONS
from pipeline.node import Arrival, Transform
from pipeline.task import find_task, make

if TYPE_CHECKING:
    from pipeline.recording.arrival_replay import Shed


class Infer(Transform):
    """task: of pipeline/tasks, or module:Name. backend: auto, a file of pipeline/inference/backends, or module:Name. precision: fp32,
    or fp16 or int8 where `export` made such a file of the model. options: of the task's constructor.
    replay: a recording: the sets that were shed in the recorded run are shed again. Set by `run_pipeline.py replay`, as
    replay_unclosed."""

    consumes: ClassVar[tuple[type, ...]] = (AlignedSet,)
    produces: ClassVar[type | None] = Prediction

    def __init__(
        self,
        *,
        task: str = "emotion",
        backend: str = "auto",
        precision: str = "fp32",
        options: dict[str, Any] | None = None,
        replay: str | None = None,
        replay_unclosed: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: found '{precision}', expected one of {', '.join(PRECISIONS)}")
        if backend != "auto":
            from pipeline.inference.load import named

            named(backend)
        self.task = make(task, options)
        self._backend, self.task.precision = backend, precision
        self._replay, self._unclosed = replay, replay_unclosed
        self._shed: Shed | None = None

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        """`options` are the task's. A task of somebody's own is imported in the node's process alone."""
        name = options.get("task", "emotion")
        yield "options", find_task(name) if isinstance(name, str) and ":" not in name else None

    def open(self) -> None:
        self.task.log, self.task.metrics = self.context.log, self.context.metrics
        self.task.open(self._backend)
        self.context.metrics.facts["model"] = self.task.model
        if self._replay:
            from pipeline.recording.arrival_replay import Shed, predicted

            self._shed = Shed(predicted(Path(self._replay), self.name, unclosed=self._unclosed))

    def process(self, arrival: Arrival) -> Iterable[Prediction]:
        aligned = arrival.message
        assert isinstance(aligned, AlignedSet)
        if self._shed is not None and self._shed.was(aligned.anchor_ns):
            self.context.metrics.drop(arrival.source, "shed in the recorded run too")
            return
        begin_ns = self.context.clock.now_ns()
        prediction = self.task.predict(aligned)
        timing_ns = {"wait": aligned.sent_ns - aligned.arrival_ns, "infer": self.context.clock.now_ns() - begin_ns}
        yield msgspec.structs.replace(prediction, timing_ns=prediction.timing_ns | timing_ns)

    def close(self) -> None:
        self.task.close()
