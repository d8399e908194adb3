"""What works on this machine and what to do about the rest. Opens nothing for longer than it takes to look.

Example:
    for finding in examine(): print(finding.works, finding.what, finding.fix)
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pipeline import assets
from pipeline.errors import SensoriumError
from pipeline.inference import cuda, load
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.node import Finding, Node
from pipeline.plugins import all_named


def examine() -> Iterator[tuple[str, Finding]]:
    """(section, finding), in the order to print them."""
    yield "system", Finding(True, f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    if sys.platform != "linux":
        yield "system", Finding(None, f"{platform.system()} takes the portable path, which was tested on Linux only")
    for name, node in all_named(Node, "nodes").items():
        for finding in node.doctor():
            yield name, finding
    gpus = cuda.probe()
    for gpu in gpus.devices:
        device = f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory_mib} MiB"
        yield "inference", Finding(True, f"{device}; the driver supports CUDA {gpus.driver}")
    for name, backend in load.backends().items():
        if not backend.has_hardware():
            continue  # without the hardware there is nothing to install
        reason = backend.unusable()
        yield "inference", Finding(not reason, f"{name} {_version(name)}".strip() if not reason else name, reason)
    for asset in assets.entries():
        if asset.used_for == "run":
            yield "models", _asset(asset)
    for model in sorted(MODELS.glob("*.onnx")):
        yield "models", _model(model)


def _asset(asset: assets.Asset) -> Finding:
    try:
        here = assets.local(asset)
    except SensoriumError as error:
        return Finding(False, asset.name, str(error))
    what = f"{asset.name}, runs on {_backend(asset.name)}" if asset.file.endswith(".onnx") else asset.name
    return Finding(here is not None, what, "" if here else f"not fetched yet: {assets.PULL} {asset.name}")


def _backend(model: str) -> str:
    """What `auto` takes for it. Voice activity stays on the processor: tasks/emotion.py says why."""
    return "onnxruntime" if model == "silero-vad" else load.best()[0]


def _model(model: Path) -> Finding:
    try:
        manifest = Manifest.read(model)
    except SensoriumError as error:
        return Finding(False, model.name, str(error))
    return Finding(True, f"{manifest.id} ({model.name}), runs on {_backend(manifest.name)}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
