"""Sensorium: a streaming, real-time, multimodal perception pipeline.

Example:
    import pipeline
    for prediction in pipeline.subscribe("emotion"):
        print(prediction.label, prediction.missing)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.runtime.subscribe import subscribe

__all__ = ["subscribe"]


def __getattr__(name: str) -> object:
    if name != "subscribe":
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    from pipeline.runtime.subscribe import subscribe  # when asked for: it loads numpy and ZeroMQ

    return subscribe
