"""The engines of one task: loaded alike, told about alike, closed together.

Example:
    engines = task.open_engines("auto", threads=1)                           # in a task's open(): its precision, log and metrics
    engine = engines.load(path, manifest.name, {"face": (1, 1, 48, 48)})     # metrics.facts["engine face-expression"] says on what
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.inference.engine import Engine, Shape, Shapes, Tensors, load
from pipeline.inference.manifest import Manifest, with_precision
from pipeline.metrics import Metrics


class Engines:
    def __init__(self, backend: str, *, precision: str, threads: int, log: logging.Logger, metrics: Metrics) -> None:
        self._backend, self._precision, self._threads, self._log, self._metrics = (
            backend,
            precision,
            threads,
            log,
            metrics,
        )
        self._open: list[Engine] = []

    def manifest(self, path: Path) -> Manifest:
        """Of the file that will run: its precision is part of what a prediction says it was made by."""
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
        """reduced: at the precision that was asked for; else fp32, of which alone there is a file. branches: the graph has
        an If, which TensorRT refuses, so it stays on ONNX Runtime, unless the backend is one of your own."""

        def tell(description: str) -> None:  # also from the thread that brings a built engine up
            self._metrics.facts[f"engine {name}"] = description

        def given() -> Iterator[Tensors]:
            from pipeline.perception import parity_samples

            return parity_samples.of(path)

        backend = "onnxruntime" if branches and self._backend in ("auto", "tensorrt", "tensorrt_rtx") else self._backend
        engine = load(
            path,
            backend=backend,
            precision=self._precision if reduced else "fp32",
            threads=self._threads,
            warm_up=warm_up,
            samples=given,
            tell=tell,
            log=self._log,
        )
        self._open.append(engine)
        return engine

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


def warm_up_shapes(manifest: Manifest) -> dict[str, Shape] | None:
    """One of each input; None where more than the first dimension is free."""
    shapes = {tensor.name: tensor.shape[1:] for tensor in manifest.inputs}
    sizes = {name: (1, *(size for size in shape if isinstance(size, int))) for name, shape in shapes.items()}
    return sizes if all(len(sizes[name]) == len(shape) + 1 for name, shape in shapes.items()) else None
