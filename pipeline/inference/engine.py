"""Runs an ONNX model, whichever runtime does the work.

Owns the interface of a backend and the choice between backends. Knows neither what a model is for nor where it came
from. A backend is one file of this package, or anybody's class, named as "module:Name"; nothing is registered.

    engine = load(Path("models/face-expression.onnx"), log=log)
    engine.run({"face": faces})["logits"]                  # (n, 7) float32
    engine.description                                     # "onnxruntime 1.27.0, CPU, 1 thread"
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import ConfigError
from pipeline.named import all_named, find

Tensors = dict[str, np.ndarray[Any, Any]]
Shape = tuple[int, ...]
PACKAGE = "pipeline.inference"


class Engine(ABC):
    """One model, loaded and ready. Not safe to share between threads."""

    # `auto` takes the usable backend with the highest rank: faster hardware ranks above what runs everywhere.
    rank: ClassVar[int] = 0
    description: str  # for people: runtime, version, device, threads

    @classmethod
    @abstractmethod
    def unusable(cls) -> str:
        """Why this backend cannot run here, with the fix; "" when it can. Must not crash where there is no driver."""

    @abstractmethod
    def __init__(self, model_path: Path, *, threads: int) -> None:
        """Load the model. Raises ConfigError when the runtime refuses the file."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        """Name → shape of each input; a size that is free is a name or None."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        """Every output by name. The arrays are the caller's to keep."""


def load(
    model_path: Path,
    *,
    backend: str = "auto",
    threads: int = 1,
    warm_up: Mapping[str, Shape] | None = None,
    log: logging.Logger | None = None,
) -> Engine:
    """A backend asked for by name never falls back: ConfigError says why it cannot run. "auto" logs what it chose.

    warm_up: a shape per float32 input, run once with zeros, so that the first real frame is not the slowest.
    """
    log = log or logging.getLogger("engine")
    chosen, passed_over = _best() if backend == "auto" else (_named(backend), "")
    engine = chosen(model_path, threads=threads)
    log.info("%s runs on %s%s", model_path.name, engine.description, passed_over)
    if warm_up:
        engine.run({name: np.zeros(shape, np.float32) for name, shape in warm_up.items()})
    return engine


def backends() -> dict[str, type[Engine]]:
    """The backends of this package by name, best first."""
    found = all_named(Engine, PACKAGE)  # type: ignore[type-abstract]
    return dict(sorted(found.items(), key=lambda item: -item[1].rank))


def _best() -> tuple[type[Engine], str]:
    passed_over = ""
    for name, backend in backends().items():
        reason = backend.unusable()
        if not reason:
            return backend, passed_over
        passed_over += f"; not {name}: {reason}"
    raise ConfigError(f"no backend can run here{passed_over}")


def _named(backend: str) -> type[Engine]:
    chosen = find(backend, Engine, PACKAGE, what="backend")  # type: ignore[type-abstract]
    reason = chosen.unusable()
    if reason:
        raise ConfigError(f"backend '{backend}' cannot run here: {reason}")
    return chosen
