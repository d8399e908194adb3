"""Chooses a backend and loads a model with it.

Example:
    engine = load(Path("models/face-expression.onnx"), log=log)
    engine.run({"face": faces})["logits"]                  # (n, 7) float32
    engine.description                                     # "onnxruntime 1.27.0, CPU, 1 thread"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError
from pipeline.inference.bring_up import at_once, in_background
from pipeline.inference.engine import BuiltEngine, Engine, Samples, Shape, Shapes
from pipeline.inference.manifest import PRECISIONS, Manifest, with_precision
from pipeline.inference.onnx_file import OnnxFile
from pipeline.installation import COMMAND
from pipeline.plugins import all_named, find

PACKAGE = "pipeline.inference.backends"


def load(
    model_path: Path,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    threads: int = 1,
    warm_up: Mapping[str, Shape] | Shapes | None = None,
    samples: Samples | None = None,
    report: Callable[[str], None] = lambda description: None,
    log: logging.Logger | None = None,
) -> Engine:
    """A model, ready to run.

    A backend asked for by name never falls back: ConfigError says why it cannot run. "auto" logs what it chose and why
    it passed over the others; where the best one must be built first, ONNX Runtime serves meanwhile (bring_up.py).

    Args:
        backend: "auto", a file of the package `backends`, or "module:Name".
        precision: fp32, or another file of the same model, made by `export`.
        threads: On a processor.
        warm_up: The shapes that will be run, one for every float32 input, run once with zeros, so that the first real
            frame is not the slowest; a GPU's engine is built for them.
        samples: What such an engine must agree with ONNX Runtime on.
        report: Called with the engine's description, again whenever it changes, from any thread.
        log: Default: the log "engine".
    """
    log = log or logging.getLogger("engine")
    path = _of_precision(model_path, precision)
    OnnxFile.read(path)  # refuses a file that names others
    shapes: Shapes = () if warm_up is None else [warm_up] if isinstance(warm_up, Mapping) else warm_up
    chosen = _best(log) if backend == "auto" else _usable(backend)
    if issubclass(chosen, BuiltEngine):
        bring = in_background if backend == "auto" else at_once
        engine = bring(chosen, path, threads=threads, shapes=shapes, samples=samples, report=report, log=log)
    else:
        engine = chosen(path, threads=threads)
        # A processor needs one run to set up; the other sizes are for engines that are built for sizes.
        for inputs in shapes[:2]:
            engine.run({name: np.zeros(shape, np.float32) for name, shape in inputs.items()})
        report(engine.description)
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
    """The backends of the package `backends` by name, best first."""
    by_name = all_named(Engine, PACKAGE)  # type: ignore[type-abstract]
    return dict(sorted(by_name.items(), key=lambda item: -item[1].rank))


def best() -> tuple[str, type[Engine], list[str]]:
    """What `auto` takes here: its name, its class, and a line with reason and fix for each backend that was passed
    over, but for those whose hardware this machine does not have."""
    passed_over: list[str] = []
    for name, backend in backends().items():
        reason = backend.unusable()
        if not reason:
            return name, backend, passed_over
        if backend.has_hardware():
            passed_over.append(f"not on {name}: {reason}")
    raise ConfigError(f"no backend can run here: {'; '.join(passed_over)}")


_logged: set[str] = set()  # what was passed over: once a process and not once a model


def _best(log: logging.Logger) -> type[Engine]:
    _, chosen, passed_over = best()
    for line in passed_over:
        if line not in _logged:
            _logged.add(line)
            log.info("%s", line)
    return chosen


def named(backend: str) -> type[Engine]:
    """A backend's class, whether it can run here or not. ConfigError with the nearest name where there is none of that
    name."""
    return find(backend, Engine, PACKAGE, what="backend")  # type: ignore[type-abstract]


def _usable(backend: str) -> type[Engine]:
    chosen = named(backend)
    reason = chosen.unusable()
    if reason:
        raise ConfigError(f"backend '{backend}' cannot run here: {reason}")
    return chosen
