"""TensorRT and TensorRT-RTX, whose Python interfaces are the same: parse, build, deserialise, run.

`parse` and `build` need no GPU where the runtime builds ahead of time (TensorRT-RTX); everything below `Engine` needs
one. Nothing of NVIDIA's is imported before the driver has reported a GPU.

Example:
    content = build(trt, Path("models/face-expression.onnx"), profiles, capabilities=[(8, 9)])
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import ConfigError, EngineError
from pipeline.inference import cuda
from pipeline.inference.cache import Cache, Key
from pipeline.inference.engine import BuiltEngine, Shape, Shapes, Tensors
from pipeline.inference.manifest import precision_of
from pipeline.inference.onnx_file import OnnxFile
from pipeline.inference.profile import Profile, derive
from pipeline.inference.runner import ExecutionContext, Runner, Tensor
from pipeline.installation import PACKAGE, setup_command

log = logging.getLogger("engines")

BUILD_TIMEOUT_S = 1800
# TF32 rounds the inputs of float32 products to 10 bits: an fp32 engine would then not give ONNX Runtime's answers.
FLAGS = "no TF32"


def build(
    trt: Any, model_path: Path, profiles: Sequence[Profile], *, capabilities: Sequence[tuple[int, int]] = ()
) -> bytes:
    """The serialised engine. capabilities: the GPUs to build for, ahead of time; none: for the one that is here.

    Raises EngineError with the operators that the parser refuses, or with the builder's last message.
    """
    messages = _listener(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(trt, model_path, network, messages)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if any(size < 0 for i in range(network.num_inputs) for size in network.get_input(i).shape):
        for ranges in (profile.ranges for profile in profiles):
            profile = builder.create_optimization_profile()
            for name, (least, best, most) in ranges.items():
                profile.set_shape(name, least, best, most)
            if not profile or config.add_optimization_profile(profile) < 0:
                raise EngineError(f"{model_path}: {trt.__name__} refuses the profile {ranges}: {messages.last()}")
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            known = getattr(trt.ComputeCapability, f"SM{capability[0]}{capability[1]}", None)
            if known is None or not config.set_compute_capability(known, index):
                raise EngineError(
                    f"{trt.__name__} {trt.__version__} does not build for compute capability {_dotted(capability)}"
                )
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{model_path}: {trt.__name__} {trt.__version__} cannot build it: {messages.last()}")
    return bytes(engine)


def parse(trt: Any, model_path: Path, network: Any, messages: Any) -> None:
    """Fill `network` from the ONNX file. Raises EngineError with the names of what the parser does not know."""
    parser = trt.OnnxParser(network, messages)
    if parser.parse(model_path.read_bytes()):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    unknown = sorted({error.node_operator() for error in errors if error.code() == trt.ErrorCode.UNSUPPORTED_NODE})
    runtime = f"{trt.__name__} {trt.__version__}"
    if unknown:
        where = ", ".join(filter(None, (error.node_name() for error in errors)))
        raise EngineError(
            f"{model_path}: {runtime} does not know the operator{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(unknown)} ({where or 'unnamed nodes'}). Export the model without, or set backend: onnxruntime"
        )
    reasons = "; ".join(error.desc() for error in errors) or messages.last()
    raise EngineError(f"{model_path}: {runtime} refuses it: {reasons}")


@functools.cache
def _listener_class(trt: Any) -> type:
    class Listener(trt.ILogger):  # type: ignore[misc,name-defined]
        """Keeps TensorRT's errors, for the exception that follows; passes its warnings on to our log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            elif severity == trt.ILogger.WARNING:
                log.debug("%s: %s", trt.__name__, message.strip())

        def last(self) -> str:
            return self.errors[-1] if self.errors else "no reason given"

    return Listener


def _listener(trt: Any) -> Any:
    return _listener_class(trt)()


class _Plan:
    """A deserialised engine, with its runtime, which must outlive it."""

    def __init__(self, trt: Any, content: bytes) -> None:
        self._messages = _listener(trt)
        self._runtime = trt.Runtime(self._messages)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} does not take the built engine: {self._messages.last()}"
            )
        self.tensors = [self._tensor(trt, self._engine.get_tensor_name(i)) for i in range(self._engine.num_io_tensors)]

    def _tensor(self, trt: Any, name: str) -> Tensor:
        kind = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
        return Tensor(name, kind, self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def context(self) -> ExecutionContext:
        context: ExecutionContext | None = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"no execution context: {self._messages.last()}")
        return context


class NvidiaEngine(BuiltEngine):
    """What the two backends share. A subclass names the package, the extra that brings it, and the GPUs it serves."""

    package: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    runs_branches = False  # TensorRT refuses an If

    @classmethod
    @abstractmethod
    def lacks(cls, gpu: cuda.Gpu) -> str:
        """Why this GPU is not served, with the fix; "" when it is. Asked when there is a driver and the package."""

    @classmethod
    def has_hardware(cls) -> bool:
        return cuda.probe().has_driver

    @classmethod
    def unusable(cls) -> str:
        gpus = cuda.probe()
        if gpus.missing:
            return gpus.missing
        for package, name in ((cls.package, cls.title), ("cuda.bindings", "cuda-bindings")):
            if not _installed(package):
                return f"{name} is not installed. Install it with: {setup_command(cls.extra)}"
        return cls.lacks(gpus.devices[0])

    @classmethod
    def version(cls) -> str:
        trt = importlib.import_module(cls.package)
        return str(trt.__version__)

    @classmethod
    def key(cls, model_path: Path, profiles: Sequence[Profile], gpu: cuda.Gpu, driver: str) -> Key:
        return Key(
            onnx_sha256=OnnxFile.read(model_path).graph_sha256,
            backend=cls.package,
            version=cls.version(),
            gpu=gpu.name,
            capability=_dotted(gpu.capability),
            driver=driver,
            precision=precision_of(model_path),
            profiles=json.dumps([[sorted(p.ranges.items()), sorted(p.batched)] for p in profiles]),
            flags=FLAGS,
        )

    @classmethod
    def here(cls, model_path: Path, shapes: Shapes) -> tuple[Key, tuple[Profile, ...]]:
        gpus = cuda.probe()
        profiles = profiles_of(model_path, shapes)
        return cls.key(model_path, profiles, gpus.devices[0], gpus.driver), profiles

    @classmethod
    def is_built(cls, model_path: Path, shapes: Shapes) -> bool:
        return Cache().get(cls.here(model_path, shapes)[0]) is not None

    @classmethod
    def build(cls, model_path: Path, shapes: Shapes, stopping: threading.Event | None = None) -> None:
        """In a process of its own: a build takes all of a core for minutes, and a crash there is no crash here."""
        order = {
            "backend": cls.__module__.rpartition(".")[2],
            "model": str(model_path),
            "shapes": list(map(dict, shapes)),
        }
        run_builder(order, stopping)

    @classmethod
    def discard(cls, model_path: Path, shapes: Shapes) -> None:
        Cache().discard(cls.here(model_path, shapes)[0])

    @classmethod
    def for_gpu(cls, gpu: cuda.Gpu) -> tuple[tuple[int, int], ...]:
        """The compute capabilities to build for; none: it builds for the GPU that is there."""
        return ()

    def __init__(self, model_path: Path, *, threads: int = 1, shapes: Shapes = ()) -> None:
        if not model_path.is_file():
            raise ConfigError(f"{model_path}: no such model")
        self._cache = Cache()
        self._key, profiles = self.here(model_path, shapes)
        content = self._cache.get(self._key)
        if content is None:
            self.build(model_path, shapes)
            content = self._cache.get(self._key)
        if content is None:
            raise EngineError(f"{model_path}: it was built, and is not in {self._cache.folder}. Is the disk full?")
        trt = importlib.import_module(self.package)
        self._plan = _Plan(trt, content)
        self._device = cuda.Cuda(0)
        self._runner = Runner(self._plan, self._device, profiles, log)
        self._inputs = {value.name: value.shape for value in OnnxFile.read(model_path).inputs}
        self.description = f"{self.title} {trt.__version__}, {self._key.gpu}, {self._key.precision}"

    @property
    def approved(self) -> dict[str, Any]:
        return self._cache.parity_figures(self._key)

    def approve(self, figures: dict[str, Any]) -> None:
        self._cache.approve(self._key, figures)

    def prepare(self, shapes: Shapes) -> None:
        self._runner.prepare(*shapes)

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return self._inputs

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        return self._runner.run(inputs)

    def close(self) -> None:
        self._runner.close()


def profiles_of(model_path: Path, shapes: Sequence[Mapping[str, Shape]]) -> tuple[Profile, ...]:
    inputs = {value.name: value.shape for value in OnnxFile.read(model_path).inputs}
    try:
        return derive(inputs, shapes)
    except ValueError as error:
        raise ConfigError(f"{model_path}: {error}") from error


def run_builder(order: dict[str, Any], stopping: threading.Event | None = None) -> None:
    """`python -m pipeline.inference.build` with this order. Raises EngineError with its last line of output."""
    command = [sys.executable, "-P", "-m", "pipeline.inference.build"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    }
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
    errors: list[str] = []

    def communicate() -> None:
        errors.append(process.communicate(json.dumps(order))[1])

    exchange = threading.Thread(target=communicate, name="build", daemon=True)
    exchange.start()
    waited_s = 0.0
    while exchange.is_alive():
        exchange.join(0.1)
        waited_s += 0.1
        if waited_s > BUILD_TIMEOUT_S or (stopping is not None and stopping.is_set()):
            process.kill()
    if process.returncode:
        lines = [line for line in "".join(errors).splitlines() if line.strip()]
        why = lines[-1] if lines and process.returncode > 0 else f"it ended with signal {-process.returncode}"
        raise EngineError(f"{order['model']}: building failed: {why.removeprefix('error: ')}")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
