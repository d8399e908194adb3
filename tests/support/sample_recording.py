"""The sample session, for tests that need a real recording; undecided only by an idle control."""

from __future__ import annotations

from pathlib import Path

import pytest
from idle_control import IdleControl

from pipeline.cli.sample import cached_sample
from pipeline.errors import AssetError, ConfigError


def sample_recording() -> Path:
    """Skips where the clip or a model cannot be fetched, or the machine cannot decide; any other failure counts."""
    control = IdleControl()
    try:
        with control:
            return cached_sample()
    except AssetError as error:
        pytest.skip(str(error))
    except ConfigError as error:
        if not control.undecided:
            raise
        pytest.skip(f"{control.undecided}. What failed: {error}")
