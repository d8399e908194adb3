"""What this installation brings along: its models, its configs, and the command that starts it.

In a checkout models/ and configs/ lie beside the package `pipeline`; a wheel holds them inside of it.

Example:
    installation.shipped("emotion-live.yaml", installation.CONFIGS)     # found from any folder
    f"Train it with: {installation.COMMAND} train face"
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IS_WHEEL = (PACKAGE / "configs").is_dir()
ROOT = PACKAGE if IS_WHEEL else PACKAGE.parent
MODELS, CONFIGS = ROOT / "models", ROOT / "configs"
# The command that hints name. The console script `sensorium` sets the variable, also for the processes it starts.
COMMAND = os.environ.get("SENSORIUM_COMMAND") or ("sensorium" if IS_WHEEL else "python run_pipeline.py")


def shipped(path: str | Path, folder: Path) -> Path:
    """`path` where there is such a file; else the one in `folder` that it names, alone or with its folder."""
    path = Path(path)
    if not path.exists():
        for candidate in (ROOT / path, folder / path):
            if candidate.parent == folder and candidate.is_file():
                return candidate
    return path


def model_path(name: str) -> Path:
    """name: of a model that comes with Sensorium, with or without .onnx, or a path that ends with it."""
    return shipped(name, MODELS) if name.endswith(".onnx") else MODELS / f"{name}.onnx"


def setup_command(extra: str = "") -> str:
    """What installs the packages of an extra, or those of the core."""
    if IS_WHEEL:
        # With an extra, pip takes the installed version. Without one it would ask an index, where the name is not ours.
        return f"pip install 'sensorium[{extra}]'" if extra else "pip install --force-reinstall SENSORIUM.whl"
    return f"scripts/setup {extra}".rstrip()
