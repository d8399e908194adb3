"""Loads the engines of one task: the same way, with their description in its metrics, and closed together.

Example:
    engines = task.open_engines("auto", threads=1)          # in a task's open(): its precision, log and metrics
    engine = engines.load(path, manifest.name, {"face": (1, 1, 48, 48)})
                                                            # metrics.facts["engine face-expression"]: what it runs on
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.inference.choose_backend import best, load, named
from pipeline.inference.engine import Engine, Shape, Shapes, Tensors
from pipeline.inference.manifest import Manifest, with_precision
from pipeline.metrics import Metrics


class Engines:
    """The engines of one task.

    Args:
        backend: As load() takes it.
        precision: "fp32", or "fp16" or "int8" for the models that have such a file.
        threads: CPU threads of each engine.
        log: Of the task.
        metrics: Of the task: each engine's description is a fact of it.
    """

    def __init__(self, backend: str, *, precision: str, threads: int, log: logging.Logger, metrics: Metrics) -> None:
        self._backend, self._precision, self._threads = backend, precision, threads
        self._log, self._metrics = log, metrics
        self._open: list[Engine] = []

    def manifest(self, path: Path) -> Manifest:
        """Of the file that will run: its precision is part of the model id in a prediction."""
        reduced = with_precision(path, self._precision)
        return Manifest.read(reduced if reduced.is_file() else path)

    def load(
        self,
        path: Path,
        name: str,
        warm_up: Mapping[str, Shape] | Shapes | None,
        *,
        reduced: bool = True,
        branches: bool = False,
    ) -> Engine:
        """reduced: at the task's precision; else fp32, for a model that has no other file. branches: the graph has an
        If, which some backends refuse; ONNX Runtime runs it then."""

        def report(description: str) -> None:  # also from the thread that brings a built engine up
            self._metrics.facts[f"engine {name}"] = description

        def samples() -> Iterator[Tensors]:
            from pipeline.perception import parity_samples

            return parity_samples.of(path)

        engine = load(
            path,
            backend=self._backend_for_branches() if branches else self._backend,
            precision=self._precision if reduced else "fp32",
            threads=self._threads,
            warm_up=warm_up,
            samples=samples,
            report=report,
            log=self._log,
        )
        self._open.append(engine)
        return engine

    def _backend_for_branches(self) -> str:
        chosen = best()[1] if self._backend == "auto" else named(self._backend)
        return self._backend if chosen.runs_branches else "onnxruntime"

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


def warm_up_shapes(manifest: Manifest) -> dict[str, Shape] | None:
    """One of each input; None where more than the first dimension is free."""
    shapes = {tensor.name: tensor.shape[1:] for tensor in manifest.inputs}
    sizes = {name: (1, *(size for size in shape if isinstance(size, int))) for name, shape in shapes.items()}
    return sizes if all(len(sizes[name]) == len(shape) + 1 for name, shape in shapes.items()) else None
