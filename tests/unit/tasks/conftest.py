"""What several tests of the emotion task share."""

from __future__ import annotations

from pathlib import Path

import pytest
from emotion_sets import random_face_model


@pytest.fixture(scope="session")
def face_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small face network with random weights."""
    return random_face_model(tmp_path_factory.mktemp("models"))
