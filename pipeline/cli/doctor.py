"""`doctor`: what works on this machine, and how to fix the rest. Opens each device only briefly.

Example:
    for section, finding in examine(): print(section, finding.works, finding.what, finding.fix)
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pipeline import assets
from pipeline.errors import SensoriumError
from pipeline.inference import choose_backend, cuda
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.node import Finding, Node
from pipeline.plugins import all_named


def examine(*, gpu: bool = False) -> Iterator[tuple[str, Finding]]:
    """(section, finding), in the order to print them. gpu: also what is missing for a GPU, where there is none."""
    yield "system", Finding(True, f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    if sys.platform != "linux":
        yield (
            "system",
            Finding(None, f"{platform.system()} uses the portable transport, which was tested on Linux only"),
        )
    for name, node in all_named(Node, "nodes").items():
        for finding in node.doctor():
            yield name, finding
    yield from (("inference", finding) for finding in _inference(gpu))
    for asset in assets.entries():
        if asset.used_for == "run":
            yield "models", _asset(asset)
    for model in sorted(MODELS.glob("*.onnx")):
        yield "models", _model(model)


def _inference(gpu: bool) -> Iterator[Finding]:
    gpus = cuda.probe()
    for device in gpus.devices:
        capability = ".".join(map(str, device.capability))
        what = f"{device.name}, compute capability {capability}, {device.memory_mib} MiB"
        yield Finding(True, f"{what}; the driver supports CUDA {gpus.driver}")
    if not gpus.devices:
        yield Finding(True, f"GPU: none found; ONNX Runtime is used{'' if gpu else ' (doctor --gpu: what one needs)'}")
    for name, backend in choose_backend.backends().items():
        reason = backend.unusable()
        if gpu or backend.has_hardware():
            yield Finding(not reason, name if reason else f"{name} {_version(name)}".strip(), reason)


def _asset(asset: assets.Asset) -> Finding:
    try:
        path = assets.local(asset)
    except SensoriumError as error:
        return Finding(False, asset.name, str(error))
    what = f"{asset.name}, runs on {_backend(asset.name)}" if asset.file.endswith(".onnx") else asset.name
    return Finding(path is not None, what, "" if path else f"not fetched yet: {assets.PULL} {asset.name}")


def _backend(model: str) -> str:
    """What `auto` chooses for it. Voice activity stays on the CPU: tasks/emotion.py says why."""
    return "onnxruntime" if model == "silero-vad" else choose_backend.best()[0]


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
