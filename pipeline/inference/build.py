"""Builds one engine into the cache, in a process of its own.

Example:
    echo '{"backend": "tensorrt_rtx", "model": "models/face-expression.onnx", "shapes": [{"face": [1, 1, 48, 48]}]}' |
        python -m pipeline.inference.build

`gpu` {"name", "capability", "driver"} in the order stands for one that is not here, for a runtime that builds ahead of
time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import SensoriumError
from pipeline.inference import cuda
from pipeline.inference.cache import Cache
from pipeline.inference.nvidia import NvidiaEngine, build, profiles_of
from pipeline.plugins import find

NICE = 10  # the live run comes first


def execute(order: dict[str, Any]) -> bytes:
    backend = find(order["backend"], NvidiaEngine, "pipeline.inference.backends", what="backend")  # type: ignore[type-abstract]
    model = Path(order["model"])
    shapes = [{name: tuple(shape) for name, shape in hint.items()} for hint in order["shapes"]]
    profiles = profiles_of(model, shapes)
    if "gpu" in order:
        gpu = cuda.Gpu(order["gpu"]["name"], tuple(order["gpu"]["capability"]), 0)
        driver = order["gpu"]["driver"]
    else:
        gpu, driver = cuda.probe().devices[0], cuda.probe().driver
    trt = importlib.import_module(backend.package)
    key = backend.key(model, profiles, gpu, driver)
    return Cache().build(key, lambda: build(trt, model, profiles, capabilities=backend.for_gpu(gpu)))


def main() -> int:
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        execute(json.load(sys.stdin))
    except SensoriumError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
