"""From ONNX Runtime to a built engine while frames keep flowing, and back when that fails.

    build → parity → warm (each shape plainly, then captured) → run → error → build again, at most twice → refused

The engine is brought up by a thread of its own, built in a process of its own. Until it runs, and from the very call in
which it fails, ONNX Runtime answers; no frame waits for either. Every change is reported: a line in the log, and the
description, which the page and a recording of its health show.

Example:
    engine = in_background(Tensorrt, path, threads=1, shapes=[{"face": (1, 1, 48, 48)}], samples=samples, …)
    engine.state, engine.description        # "build", "onnxruntime 1.27.0, CPU, 1 thread (TensorRT is being built)"
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConfigError, EngineError, SensoriumError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.engine import BuiltEngine, Engine, Samples, Shapes, Tensors
from pipeline.inference.manifest import full_precision
from pipeline.inference.parity import compare_with_reference
from pipeline.inference.runner import ShapeError

State = Literal["build", "parity", "warm", "run", "error", "refused"]
REBUILDS = 2
_one_build = threading.Lock()  # a task loads five models at once, and its frames need the other core
DOING: dict[State, str] = {"build": "is being built", "parity": "is being compared", "warm": "is being warmed"}


def in_background(
    backend: type[BuiltEngine],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    report: Callable[[str], None],
    log: logging.Logger,
) -> Engine:
    """For `auto`: an engine that answers at once."""
    return _FallbackEngine(backend, path, threads=threads, shapes=shapes, samples=samples, report=report, log=log)


def at_once(
    backend: type[BuiltEngine],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    report: Callable[[str], None],
    log: logging.Logger,
) -> Engine:
    """For a backend asked for by name: it runs, or ConfigError says why it does not."""
    if not backend.is_built(path, shapes):
        log.info(
            "%s: building for %s, which takes from seconds to minutes; the next start finds it built",
            path.name,
            backend.__name__,
        )
        report(f"{backend.__name__} is being built")
    try:
        engine = bring_up(backend, path, threads=threads, shapes=shapes, samples=samples, log=log)
    except EngineError as error:
        raise ConfigError(f"{error}. Or set backend: auto") from error
    report(engine.description)
    return engine


def bring_up(
    backend: type[BuiltEngine],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    log: logging.Logger,
    enter: Callable[[State], None] = lambda state: None,
    stopping: threading.Event | None = None,
) -> BuiltEngine:
    """build → parity → warm. Raises EngineError for an engine that cannot be built, differs, or cannot be warmed."""
    enter("build")
    if not backend.is_built(path, shapes):
        with _one_build:
            backend.build(path, shapes, stopping)
    engine = backend(path, threads=threads, shapes=shapes)
    try:
        if not engine.approved:
            enter("parity")
            parity = compare_with_reference(engine, path, samples)
            log.info("%s on %s: %s", path.name, engine.description, parity)
            if parity.refusal:
                raise EngineError(f"{path.name} on {engine.description} is refused: {parity.refusal}")
            engine.approve(parity.figures())
        enter("warm")
        engine.prepare(shapes)
    except BaseException:
        engine.close()
        raise
    return engine


class _FallbackEngine(Engine):
    """ONNX Runtime until the built engine runs, and from the call in which it fails. state: of the built engine. `run`
    is called from one thread; another one brings the engine up."""

    def __init__(
        self,
        backend: type[BuiltEngine],
        path: Path,
        *,
        threads: int,
        shapes: Shapes,
        samples: Samples | None,
        report: Callable[[str], None],
        log: logging.Logger,
        on_cpu: Engine | None = None,
    ) -> None:
        self._backend, self._path, self._threads, self._shapes = backend, path, threads, shapes
        self._samples, self._report, self._log = samples, report, log
        self._title = getattr(backend, "title", backend.__name__)
        # The fp32 file: the reduced one may be slower on a CPU, and parity is with this one's answers.
        self._on_cpu = on_cpu or Onnxruntime(full_precision(path), threads=threads, device="cpu")
        for inputs in shapes[:2]:
            self._on_cpu.run({name: np.zeros(shape, np.float32) for name, shape in inputs.items()})
        self._built: BuiltEngine | None = None
        self._rebuilds, self._why = 0, ""
        self._unserved: set[str] = set()
        self._stopping = threading.Event()
        self._enter("build")
        self._begin()

    @classmethod
    def unusable(cls) -> str:
        return "it is what `auto` does, not a backend"

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return self._on_cpu.inputs

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        built = self._built
        if built is None:
            return self._on_cpu.run(inputs)
        try:
            return built.run(inputs)
        except ShapeError as error:
            if str(error) not in self._unserved:
                self._unserved.add(str(error))
                self._log.info("%s: ONNX Runtime answers where %s", self._path.name, error)
        except EngineError as error:
            self._fail(built, error)
        return self._on_cpu.run(inputs)

    def _fail(self, built: BuiltEngine, error: EngineError) -> None:
        self._built = None
        self._enter("error")
        self._log.warning(
            "%s: %s failed while it ran (%s): ONNX Runtime goes on from this frame", self._path.name, self._title, error
        )
        try:
            built.close()
            self._backend.discard(self._path, self._shapes)
        except SensoriumError as worse:
            self._log.debug("while closing it: %s", worse)
        if self._rebuilds >= REBUILDS:
            self._refuse(f"it failed {self._rebuilds + 1} times, last: {error}")
            return
        self._rebuilds += 1
        self._begin()

    def _begin(self) -> None:
        # A daemon: a process that ends does not wait for a build; the builder's own process is killed by close().
        self._thread = threading.Thread(target=self._bring_up, name=f"build {self._path.stem}", daemon=True)
        self._thread.start()

    def _bring_up(self) -> None:
        try:
            built = bring_up(
                self._backend,
                self._path,
                threads=self._threads,
                shapes=self._shapes,
                samples=self._samples,
                log=self._log,
                enter=self._enter,
                stopping=self._stopping,
            )
        except Exception as error:  # whatever the runtime throws, the frames go on
            if not self._stopping.is_set():
                self._refuse(str(error) or type(error).__name__)
            return
        if self._stopping.is_set():
            built.close()
            return
        self._built = built
        self._enter("run")
        self._log.info("%s: from the next frame on %s", self._path.name, built.description)

    def _refuse(self, why: str) -> None:
        self._why = why
        self._enter("refused")
        self._log.warning("%s stays on ONNX Runtime: %s", self._path.name, why)

    def _enter(self, state: State) -> None:
        self.state = state
        note = DOING.get(state, "failed and is built again" if state == "error" else f"was refused: {self._why}")
        built = self._built
        self.description = (
            built.description if built is not None else f"{self._on_cpu.description} ({self._title} {note})"
        )
        self._report(self.description)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)
        if self._built is not None:
            self._built.close()
            self._built = None
