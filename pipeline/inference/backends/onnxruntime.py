"""ONNX Runtime: on the CPU everywhere, and the reference of the other backends; on CUDA where that is installed."""

# Absolute imports: `onnxruntime` below is the package of that name, not this file.
from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.inference.engine import Engine, Tensors
from pipeline.installation import setup_command

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Onnxruntime(Engine):
    @classmethod
    def unusable(cls) -> str:
        if importlib.util.find_spec("onnxruntime") is None:
            return f"the Python package 'onnxruntime' is not installed. Install it with: {setup_command()}"
        return ""

    rank = 10

    def __init__(self, model_path: Path, *, threads: int, device: str = "auto") -> None:
        """device: "cpu", or "auto": CUDA where this build of ONNX Runtime has it and the driver sees a GPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # One thread: the other cores belong to the capture nodes, and results do not depend on how work was split.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning pool burns the core that a camera needs; at load, p50 without it was half.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if not model_path.is_file():
            raise ConfigError(f"{model_path}: no such model")
        try:
            self._session = onnxruntime.InferenceSession(str(model_path), options, providers=_providers(device))
        except Exception as error:  # the runtime's error classes are not public, and differ between versions
            raise ConfigError(f"{model_path}: ONNX Runtime refuses it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        where = (
            "CUDA" if self._session.get_providers()[0] == CUDA else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        )
        self.description = f"onnxruntime {onnxruntime.__version__}, {where}"

    @property
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        return {value.name: tuple(value.shape) for value in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


def _providers(device: str) -> list[str]:
    import onnxruntime

    if device == "auto" and CUDA in onnxruntime.get_available_providers():
        from pipeline.inference import cuda

        if not cuda.probe().missing:
            return [CUDA, CPU]
    return [CPU]
