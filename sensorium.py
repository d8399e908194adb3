"""Sensorium's public surface under its own name, and where the command `sensorium` begins.

import sensorium

for prediction in sensorium.subscribe("emotion"):
    print(prediction.label)

All that `pipeline` exports is here. `pipeline`, `nodes` and `calibration` are common names: if somebody else's module
of such a name is imported in place of ours, this module says which file it is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline import *  # noqa: F403

HERE = Path(__file__).resolve().parent
OURS = ("pipeline", "nodes", "calibration", "run_pipeline")


def __getattr__(name: str) -> object:
    if name.startswith("__") and name != "__all__":  # what the import system asks every module for
        raise AttributeError(f"module 'sensorium' has no attribute '{name}'")
    if problem := shadowed("pipeline"):
        raise ImportError(problem)
    import pipeline

    return getattr(pipeline, name)


def __dir__() -> list[str]:
    import pipeline

    return [*globals(), *pipeline.__all__]


def shadowed(*names: str) -> str:
    """One line that names the file and the fix where a module of these names would not be ours; else ""."""
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # imported already, by somebody who made it up
            spec = None
        places = [spec.origin] if spec and spec.origin else [*(spec.submodule_search_locations or ())] if spec else []
        if not places:
            return f"Sensorium's module '{name}' is missing beside {HERE / 'sensorium.py'}. Install Sensorium again"
        file = Path(places[0] or "").resolve()
        if HERE / f"{name}.py" != file and HERE / name not in (file, file.parent):
            return (
                f"{file} is imported in place of Sensorium's own '{name}'. Rename it, or take its folder off the "
                "Python path (PYTHONPATH, or the folder of the script that is run)"
            )
    return ""


def main() -> int:
    if problem := shadowed(*OURS):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    os.environ["SENSORIUM_COMMAND"] = "sensorium"  # what hints tell the user to type
    try:
        import run_pipeline

        return run_pipeline.main()
    except KeyboardInterrupt:  # while it was still being loaded
        return 130


if __name__ == "__main__":
    sys.exit(main())
