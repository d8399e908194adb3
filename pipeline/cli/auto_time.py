"""`run CONFIG --auto-time`: adds a node that measures the time offset between sound and picture.

Example:
    config = with_auto_time(config, host="")
"""

from __future__ import annotations

import dataclasses

from pipeline.errors import ConfigError
from pipeline.rig.time_correction import time_correction
from pipeline.runtime.config import Config, InputConfig, NodeConfig

NAME = "auto-time"
# Pictures may be dropped while a face is searched for; several seconds of sound may wait, so that none is lost.
PICTURE_QUEUE, SOUND_QUEUE = 8, 200


def with_auto_time(config: Config, host: str) -> Config:
    """The config with that node. Raises ConfigError where this host has no camera or no microphone."""
    here = [node for node in config.nodes.values() if node.host == host]
    cameras = [node for node in here if node.use == "camera"]
    microphones = [node for node in here if node.use == "microphone"]
    if not cameras or not microphones:
        missing = "camera" if not cameras else "microphone"
        raise ConfigError(
            f"--auto-time: {config.path} has no {missing}{f' on host {host!r}' if host else ''}; it compares the two"
        )
    camera, microphone = cameras[0], microphones[0]
    offset_ms, rig = microphone.options.get("offset_ms"), microphone.options.get("rig")
    in_use = time_correction(microphone.name, offset_ms=offset_ms, rig=rig)
    node = NodeConfig(
        NAME,
        "auto_time",
        "--auto-time",
        (InputConfig(camera.name, PICTURE_QUEUE), InputConfig(microphone.name, SOUND_QUEUE)),
        host=host,
        options={"camera": camera.name, "microphone": microphone.name, "in_use_ms": in_use.offset_ns / 1e6},
    )
    return dataclasses.replace(config, nodes={**config.nodes, NAME: node})
