"""The base class of tasks: a task turns an AlignedSet into a Prediction.

One file a task in pipeline/tasks/, with a class named like it; a task of your own is "module:Name".

Example:
    class Mood(Task):
        labels = ("good", "bad")
        def __init__(self, *, smoothing_ms: float = 300.0): ...      # its options in the YAML, under `options:`
        def open(self, backend): self.model = "mood@1"
        def predict(self, aligned): return self.prediction(aligned, probs, used=("camera",))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.frame import AlignedSet, Opinion, Prediction, Receipt, Subject
from pipeline.metrics import Metrics
from pipeline.perception.model_loader import Engines
from pipeline.plugins import construct, find

UNCERTAIN = "uncertain"  # the label of an answer whose largest probability is below the task's threshold


class Task:
    """The constructor's keyword arguments are the options; models wait for `open()`.

    Predictions depend on the aligned sets alone: any state advances by the frames' seq and capture_ns, so that a replay
    gives the predictions of the live run.
    """

    name: ClassVar[str] = ""  # of the predictions; the class's name in small letters when left empty
    labels: tuple[str, ...] = ()
    model: str = ""  # "face-expression@1a2b3c4d", known after open()
    precision: str = "fp32"  # of the models that come in others: "fp16", "int8"
    _engines: Engines | None = None

    @cached_property
    def log(self) -> logging.Logger:
        """In a pipeline the node's logger, set before open(); in a program of its own, one named like the task."""
        return logging.getLogger(self.name or type(self).__name__.lower())

    @cached_property
    def metrics(self) -> Metrics:
        """In a pipeline the node's counters, set before open(); in a program of its own, the task's."""
        return Metrics()

    def open(self, backend: str) -> None:
        """Load the models. `backend` as in inference.engine.load. Raises ConfigError with the fix."""

    def predict(self, aligned: AlignedSet) -> Prediction:
        """The answer to one aligned set; `prediction` builds it."""
        raise TypeError(f"{type(self).__name__} does not define predict()")

    def open_engines(self, backend: str, *, threads: int) -> Engines:
        """For open(): loads this task's models, reports them in its log and metrics, and closes them with it."""
        self._engines = Engines(backend, precision=self.precision, threads=threads, log=self.log, metrics=self.metrics)
        return self._engines

    def close(self) -> None:
        """Release the models."""
        if self._engines is not None:
            self._engines.close()

    def prediction(
        self,
        aligned: AlignedSet,
        probs: npt.NDArray[np.float32] | None,
        *,
        subjects: Sequence[Subject] = (),
        used: Sequence[str] = (),
        bad: dict[str, str] | None = None,
        speaking: bool | None = None,
        opinions: Sequence[Opinion] = (),
        disagree: bool = False,
        agreement: float | None = None,
        uncertain_below: float = 0.0,
    ) -> Prediction:
        """The answer to `aligned`, with the receipts of its streams.

        Args:
            aligned: The set that is answered.
            probs: (n,) in the order of `labels`. None: no evidence, so uniform and no label.
            subjects: The faces or objects, each with its own answer.
            used: The streams that counted.
            bad: Stream → why its frames cannot be used; it counts as missing, and its receipt says so.
            speaking: Whether a voice is active; None: no microphone.
            opinions: The answers of single modalities behind `probs`.
            disagree: Two of the opinions are certain of different labels.
            agreement: -1 to 1: how well the modalities fit together; None where the fusion has no such output.
            uncertain_below: The label is "uncertain" where no probability reaches this (0 to 1).
        """
        bad = bad or {}
        uniform = np.full(len(self.labels), 1 / max(1, len(self.labels)), np.float32)
        label = None if probs is None else self.labels[int(np.argmax(probs))]
        if probs is not None and float(np.max(probs)) < uncertain_below:
            label = UNCERTAIN
        return Prediction(
            task=self.name or type(self).__name__.lower(),
            capture_ns=aligned.anchor_ns,
            labels=self.labels,
            probs=uniform if probs is None else probs,
            label=label,
            model=self.model,
            subjects=tuple(subjects),
            used=tuple(stream for stream in used if stream not in bad),
            missing=(*aligned.missing, *(stream for stream in bad if stream not in aligned.missing)),
            receipts=tuple(_refused(receipt, bad.get(receipt.stream)) for receipt in aligned.receipts),
            speaking=speaking,
            opinions=tuple(opinions),
            disagree=disagree,
            agreement=agreement,
        )


def _refused(receipt: Receipt, reason: str | None) -> Receipt:
    return receipt if reason is None else msgspec.structs.replace(receipt, state="bad", reason=reason)


def find_task(name: str) -> type[Task]:
    """The class of the task `name`. Raises ConfigError for an unknown one, with the nearest."""
    return find(name, Task, "pipeline.tasks", what="task")


def make(name: str, options: dict[str, Any] | None = None) -> Task:
    """The task called `name`, not yet open. Raises ConfigError for an unknown name or option, with the nearest."""
    return construct(find_task(name), options or {}, f"options of task '{name}'")
