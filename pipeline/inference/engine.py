"""Runs an ONNX model, whichever runtime does the work.

Owns the interface of a backend and the choice between backends. Knows neither what a model is for nor where it came
from. A backend is one file of this package, or anybody's class, named as "module:Name"; nothing is registered.

    engine = load(Path("models/face-expression.onnx"), log=log)
    engine.run({"face": faces})["logits"]                  # (n, 7) float32
    engine.description                                     # "onnxruntime 1.27.0, CPU, 1 thread"
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import ConfigError
from pipeline.inference.manifest import PRECISIONS, Manifest, with_precision
from pipeline.installation import COMMAND
from pipeline.plugins import all_named, find

Tensors = dict[str, np.ndarray[Any, Any]]
Shape = tuple[int, ...]
Shapes = Sequence[Mapping[str, Shape]]  # each: a shape for every input that has a free size
Samples = Callable[[], Iterable[Tensors]]  # inputs of the model, in batches: what the parity gate compares engines on
PACKAGE = "pipeline.inference.backends"


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

    def close(self) -> None:  # noqa: B027  # what holds nothing has nothing to release
        """Release memory and threads."""


class Built(Engine):
    """A backend whose engines are built for this machine and for given shapes, which takes from seconds to minutes."""

    @abstractmethod
    def __init__(self, model_path: Path, *, threads: int = 1, shapes: Shapes = ()) -> None:
        """Load what `build` made, building it first where there is none. Raises EngineError."""

    @classmethod
    @abstractmethod
    def is_built(cls, model_path: Path, shapes: Shapes) -> bool: ...

    @classmethod
    @abstractmethod
    def build(cls, model_path: Path, shapes: Shapes, stopping: threading.Event | None = None) -> None:
        """Make the engine and keep it. Raises EngineError when the runtime refuses the model. stopping: give up."""

    @classmethod
    @abstractmethod
    def discard(cls, model_path: Path, shapes: Shapes) -> None:
        """Forget what was built: it failed."""

    @property
    @abstractmethod
    def approved(self) -> dict[str, Any]:
        """The figures with which this very engine passed the parity gate; empty: it has not."""

    @abstractmethod
    def approve(self, figures: dict[str, Any]) -> None: ...

    @abstractmethod
    def prepare(self, shapes: Shapes) -> None:
        """Run these shapes once, so that the first real frame is not the slowest."""


def load(
    model_path: Path,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    threads: int = 1,
    warm_up: Mapping[str, Shape] | Shapes | None = None,
    samples: Samples | None = None,
    tell: Callable[[str], None] = lambda description: None,
    log: logging.Logger | None = None,
) -> Engine:
    """A backend asked for by name never falls back: ConfigError says why it cannot run. "auto" logs what it chose and why
    it passed over the others; where the best one must be built first, ONNX Runtime serves meanwhile (switch.py).

    precision: fp32, or another file of the same model, made by `export`. warm_up: the shapes that will be run, one for
    every float32 input, run once with zeros, so that the first real frame is not the slowest; a GPU's engine is built for
    them. samples: what such an engine must agree with ONNX Runtime on. tell: called with the engine's description, again
    whenever it changes, from any thread.
    """
    log = log or logging.getLogger("engine")
    path = _of_precision(model_path, precision)
    shapes: Shapes = () if warm_up is None else [warm_up] if isinstance(warm_up, Mapping) else warm_up
    chosen = _best(log) if backend == "auto" else _usable(backend)
    if issubclass(chosen, Built):
        from pipeline.inference import switch

        bring = switch.in_background if backend == "auto" else switch.at_once
        engine = bring(chosen, path, threads=threads, shapes=shapes, samples=samples, tell=tell, log=log)
    else:
        engine = chosen(path, threads=threads)
        for wanted in shapes[
            :2
        ]:  # a processor needs one run to set up; the other sizes are for engines built for sizes
            engine.run({name: np.zeros(shape, np.float32) for name, shape in wanted.items()})
        tell(engine.description)
    log.info("%s runs on %s", path.name, engine.description)
    return engine


def _of_precision(model_path: Path, precision: str) -> Path:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: found '{precision}', expected one of {', '.join(PRECISIONS)}")
    path = with_precision(model_path, precision)
    if path == model_path:
        return path
    fix = f"Make it with: {COMMAND} export {model_path.stem} --precision {precision}"
    if not path.is_file():
        raise ConfigError(f"{path}: no such model. {fix}")
    if Manifest.read(path).made_from != Manifest.read(model_path).sha256:
        raise ConfigError(f"{path}: it was made from another {model_path.name}. {fix}")
    return path


def backends() -> dict[str, type[Engine]]:
    """The backends of this package by name, best first."""
    found = all_named(Engine, PACKAGE)  # type: ignore[type-abstract]
    return dict(sorted(found.items(), key=lambda item: -item[1].rank))


def best() -> tuple[str, type[Engine], list[str]]:
    """What `auto` takes here: its name, its class, and a line with reason and fix for each backend it passed over."""
    passed_over: list[str] = []
    for name, backend in backends().items():
        reason = backend.unusable()
        if not reason:
            return name, backend, passed_over
        passed_over.append(f"not on {name}: {reason}")
    raise ConfigError(f"no backend can run here: {'; '.join(passed_over)}")


_told: set[str] = set()  # what was passed over, said once a process and not once a model


def _best(log: logging.Logger) -> type[Engine]:
    _, chosen, passed_over = best()
    for line in passed_over:
        if line not in _told:
            _told.add(line)
            log.info("%s", line)
    return chosen


def named(backend: str) -> type[Engine]:
    """Whether it can run here or not. ConfigError with the nearest name where there is none of that name."""
    return find(backend, Engine, PACKAGE, what="backend")  # type: ignore[type-abstract]


def _usable(backend: str) -> type[Engine]:
    chosen = named(backend)
    reason = chosen.unusable()
    if reason:
        raise ConfigError(f"backend '{backend}' cannot run here: {reason}")
    return chosen
