"""`models list`, `models pull`, `models info`: the models that come along, and those that are fetched.

Example:
    print_models()
    print_manifests(["face-expression"])
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pipeline import assets
from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND, MODELS, model_path


def print_models() -> None:
    """One line for each: its name, its licence, and whether it is on this machine."""
    ours = [Manifest.read(model) for model in sorted(MODELS.glob("*.onnx"))]
    width = max(len(name) for name in (*(m.id for m in ours), *(a.name for a in assets.entries())))
    for manifest in ours:
        print(f"  {manifest.id:<{width}} ours; {manifest.licence}")
    for asset in assets.entries():
        state = "here" if assets.local(asset) else "not fetched"
        print(f"  {asset.name:<{width}} {asset.licence}; {state}; {asset.what}")


def print_manifests(names: Sequence[str]) -> None:
    """The manifests as JSON: inputs, outputs, labels, figures, how it was made."""
    if not names:
        raise ConfigError(f"models info: of which model? To list them: {COMMAND} models list")
    for name in names:
        print(json.dumps(dataclasses.asdict(Manifest.read(model_path(name))), indent=2))
