"""Where the training data is. It is never part of the repository: docs/data.md says what goes there."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError


def data_folder(data: Path | None) -> Path:
    """The folder with the training data: `data`, else SENSORIUM_DATA, else ../shared/data beside the repository.

    Raises ConfigError when it is not there.
    """
    named = data or (Path(os.environ["SENSORIUM_DATA"]) if os.environ.get("SENSORIUM_DATA") else None)
    folder = named or Path(__file__).resolve().parents[3].parent / "shared" / "data"
    if not folder.is_dir():
        raise ConfigError(
            f"training data: no folder {folder}. Name it with --data DIR, or SENSORIUM_DATA=DIR in the environment."
        )
    return folder
