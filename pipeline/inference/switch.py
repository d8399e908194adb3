"""From ONNX Runtime to a built engine while frames keep flowing, and back when that fails.

    build → parity → warm (each shape plainly, then captured) → run → error → build again, at most twice → refused

The engine is brought up by a thread of its own, built in a process of its own. Until it runs, and from the very call in
which it fails, ONNX Runtime answers; no frame waits for either. Every change is told: a line in the log, and the
description, which the page and a recording of its health show.

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
from pipeline.inference.engine import Built, Engine, Samples, Shapes, Tensors
from pipeline.inference.manifest import METADATA_KEY, Manifest, full_precision, precision_of
from pipeline.inference.onnx_file import OnnxFile
from pipeline.inference.parity import MIN_SAMPLES, Verdict, compare
from pipeline.inference.runner import ShapeError

State = Literal["build", "parity", "warm", "run", "error", "refused"]
REBUILDS = 2
_one_build = threading.Lock()  # a task loads five models at once, and its frames want the other core
DOING: dict[State, str] = {"build": "is being built", "parity": "is being compared", "warm": "is being warmed"}


def in_background(
    backend: type[Built],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    tell: Callable[[str], None],
    log: logging.Logger,
) -> Engine:
    """For `auto`: an engine that answers at once."""
    return _Switching(backend, path, threads=threads, shapes=shapes, samples=samples, tell=tell, log=log)


def at_once(
    backend: type[Built],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    tell: Callable[[str], None],
    log: logging.Logger,
) -> Engine:
    """For a backend asked for by name: it runs, or ConfigError says why it does not."""
    if not backend.is_built(path, shapes):
        log.info(
            "%s: building for %s, which takes from seconds to minutes; the next start finds it built",
            path.name,
            backend.__name__,
        )
        tell(f"{backend.__name__} is being built")
    try:
        engine = bring_up(backend, path, threads=threads, shapes=shapes, samples=samples, log=log)
    except EngineError as error:
        raise ConfigError(f"{error}. Or set backend: auto") from error
    tell(engine.description)
    return engine


def bring_up(
    backend: type[Built],
    path: Path,
    *,
    threads: int,
    shapes: Shapes,
    samples: Samples | None,
    log: logging.Logger,
    enter: Callable[[State], None] = lambda state: None,
    stopping: threading.Event | None = None,
) -> Built:
    """build → parity → warm. Raises EngineError for an engine that cannot be built, differs, or cannot be warmed."""
    enter("build")
    if not backend.is_built(path, shapes):
        with _one_build:
            backend.build(path, shapes, stopping)
    engine = backend(path, threads=threads, shapes=shapes)
    try:
        if not engine.approved:
            enter("parity")
            verdict = judge(engine, path, samples)
            log.info("%s on %s: %s", path.name, engine.description, verdict)
            if verdict.refusal:
                raise EngineError(f"{path.name} on {engine.description} is refused: {verdict.refusal}")
            engine.approve(verdict.figures())
        enter("warm")
        engine.prepare(shapes)
    except BaseException:
        engine.close()
        raise
    return engine


def judge(engine: Engine, path: Path, samples: Samples | None, *, precision: str = "") -> Verdict:
    """Against ONNX Runtime on the CPU with the model's fp32 file. precision: default: what the file's name says."""
    reference_path = full_precision(path)
    reference = Onnxruntime(reference_path, threads=1, device="cpu")
    manifest = Manifest.read(path) if METADATA_KEY in OnnxFile.read(path).metadata else None
    temperature = manifest.temperature if manifest else 1.0
    log_probs = manifest is not None and any("log-probabilities" in output.meaning for output in manifest.outputs)
    batches = samples() if samples is not None else noise(reference)
    return compare(
        engine,
        reference,
        batches,
        precision=precision or precision_of(path),
        temperature=temperature,
        log_probs=log_probs,
    )


def noise(engine: Engine, *, seed: int = 0) -> list[Tensors]:
    """For a model that nobody made samples for: seeded normal noise, a free size taken for 1."""
    random = np.random.default_rng(seed)
    shapes = {name: tuple(s if isinstance(s, int) else 1 for s in shape) for name, shape in engine.inputs.items()}
    return [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(MIN_SAMPLES)
    ]


class _Switching(Engine):
    """state: where the built engine is on its way. Runs in one thread; the way there is another's."""

    def __init__(
        self,
        backend: type[Built],
        path: Path,
        *,
        threads: int,
        shapes: Shapes,
        samples: Samples | None,
        tell: Callable[[str], None],
        log: logging.Logger,
        on_cpu: Engine | None = None,
    ) -> None:
        self._backend, self._path, self._threads, self._shapes = backend, path, threads, shapes
        self._samples, self._tell, self._log = samples, tell, log
        self._title = getattr(backend, "title", backend.__name__)
        # The fp32 file: the reduced one may be slower on a CPU, and it is this one's answers that are aimed at.
        self._on_cpu = on_cpu or Onnxruntime(full_precision(path), threads=threads, device="cpu")
        for wanted in shapes[:2]:
            self._on_cpu.run({name: np.zeros(shape, np.float32) for name, shape in wanted.items()})
        self._built: Built | None = None
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

    def _fail(self, built: Built, error: EngineError) -> None:
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
        said = DOING.get(state, "failed and is built anew" if state == "error" else f"was refused: {self._why}")
        built = self._built
        self.description = (
            built.description if built is not None else f"{self._on_cpu.description} ({self._title} {said})"
        )
        self._tell(self.description)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)
        if self._built is not None:
            self._built.close()
            self._built = None
