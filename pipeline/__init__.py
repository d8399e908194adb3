"""Sensorium: a streaming, real-time, multimodal perception pipeline. All that is public is exported here.

Example:
    import pipeline

    for prediction in pipeline.subscribe("emotion"):
        print(prediction.label, prediction.missing)

Subscribe to a running pipeline; write your own sensor (Source), processing step (Transform), output (Sink), task, sync
policy, lidar decoder or inference backend. What tests need is in pipeline.testing. Names that are not listed here may
change in any version (docs/stability.md).

Importing this package loads nothing: every name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

# OpenCV reads it once, when it is imported. A picture of 134 million pixels, more than any camera's, takes 400 MB;
# OpenCV by itself accepts eight times as many, and a file of a kilobyte may claim them.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

if TYPE_CHECKING:
    from pipeline.alignment.sync_policies import WAIT, Answer, Match, NoMatch, SyncPolicy
    from pipeline.clock import NS, Clock, LiveClock, ManualClock, PtsClock, SampleClock
    from pipeline.errors import (
        AssetError,
        ConfigError,
        DeviceError,
        DiffersError,
        EngineError,
        IncompleteError,
        SensoriumError,
        WireError,
    )
    from pipeline.frame import (
        AlignedSet,
        Arrival,
        Encoding,
        Frame,
        Health,
        Message,
        NodeHealth,
        Opinion,
        Prediction,
        Receipt,
        StreamInfo,
        Subject,
        silence,
    )
    from pipeline.inference.engine import Engine
    from pipeline.node import Context, Finding, Node, Sink, Source, Transform
    from pipeline.runtime.run_folder import page_address
    from pipeline.runtime.subscribe import Subscription, subscribe
    from pipeline.scene_state import FreeSpace, Obstacle, PathClearance, SceneState, Sector, Sound
    from pipeline.sensors.lidar.packet_decoder import PacketDecoder, Sweep
    from pipeline.task import Task

__all__ = [
    "NS",
    "WAIT",
    "AlignedSet",
    "Answer",
    "Arrival",
    "AssetError",
    "Clock",
    "ConfigError",
    "Context",
    "DeviceError",
    "DiffersError",
    "Encoding",
    "Engine",
    "EngineError",
    "Finding",
    "Frame",
    "FreeSpace",
    "Health",
    "IncompleteError",
    "LiveClock",
    "ManualClock",
    "Match",
    "Message",
    "NoMatch",
    "Node",
    "NodeHealth",
    "Obstacle",
    "Opinion",
    "PacketDecoder",
    "PathClearance",
    "Prediction",
    "PtsClock",
    "Receipt",
    "SampleClock",
    "SceneState",
    "Sector",
    "SensoriumError",
    "Sink",
    "Sound",
    "Source",
    "StreamInfo",
    "Subject",
    "Subscription",
    "Sweep",
    "SyncPolicy",
    "Task",
    "Transform",
    "WireError",
    "page_address",
    "silence",
    "subscribe",
]

# Where each name is defined.
_MODULES = {
    "pipeline.alignment.sync_policies": ("WAIT", "Answer", "Match", "NoMatch", "SyncPolicy"),
    "pipeline.clock": ("NS", "Clock", "LiveClock", "ManualClock", "PtsClock", "SampleClock"),
    "pipeline.errors": (
        "AssetError",
        "ConfigError",
        "DeviceError",
        "DiffersError",
        "EngineError",
        "IncompleteError",
        "SensoriumError",
        "WireError",
    ),
    "pipeline.frame": (
        "AlignedSet",
        "Arrival",
        "Encoding",
        "Frame",
        "Health",
        "Message",
        "NodeHealth",
        "Opinion",
        "Prediction",
        "Receipt",
        "StreamInfo",
        "Subject",
        "silence",
    ),
    "pipeline.inference.engine": ("Engine",),
    "pipeline.node": ("Context", "Finding", "Node", "Sink", "Source", "Transform"),
    "pipeline.runtime.run_folder": ("page_address",),
    "pipeline.runtime.subscribe": ("Subscription", "subscribe"),
    "pipeline.scene_state": ("FreeSpace", "Obstacle", "PathClearance", "SceneState", "Sector", "Sound"),
    "pipeline.sensors.lidar.packet_decoder": ("PacketDecoder", "Sweep"),
    "pipeline.task": ("Task",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
