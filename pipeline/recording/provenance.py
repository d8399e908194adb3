"""How a recording came to be: the graph and the machine that it holds, and what its recorder dropped.

A replay compares `graph` and `machine` with its own, to say why predictions may differ from the recorded ones.

Example:
    about = description(config)                               # for Writer(about=…)
    dropped_by_recorder(reader.about, reader.notes, reader.counts)           # {"camera": 3}
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.credentials import without_credentials
from pipeline.runtime.config import Config
from pipeline.transport.drop_reasons import EDGE_REASONS

# Versions that the last digits of a prediction may depend on.
PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless")
DEFAULT_RECORDER = "record"  # the recorder's node name in recordings that do not say it


def description(config: Config) -> dict[str, Any]:
    """What `about` holds of a run: the graph, without passwords, and the machine.

    `run` is a random id that the parts of a recording share.
    """
    nodes = {
        n.name: {"use": n.use, "inputs": [e.source for e in n.inputs], "options": without_credentials(n.options)}
        for n in config.nodes.values()
    }
    return {"run": secrets.token_hex(8), "config": config.path, "nodes": nodes, "machine": machine()}


def machine() -> dict[str, str]:
    """CPU and versions: with others the last digits of a prediction may differ."""
    versions = {"cpu": _cpu(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def dropped_by_recorder(
    about: dict[str, Any], notes: dict[str, list[Any]], counts: Mapping[str, int]
) -> dict[str, int]:
    """Stream → messages that were sent to the recorder and are not in the file.

    As the run's summary counted them, or, where the run did not end in order, as the recorder last wrote.

    Args:
        about: Of the recording.
        notes: Of the recording.
        counts: The messages in its files, by stream. A recorder that was killed had received more than it had written.
    """
    if not notes.get("summary"):
        finished = {stream: d for note in notes.get("finished", []) for stream, d in note["dropped"].items()}
        return {stream: sum(reasons.values()) for stream, reasons in finished.items()}
    summary, recorder = notes["summary"][-1], about.get("recorder", DEFAULT_RECORDER)
    reasons = summary.get("dropped", {}).get(recorder, {})
    dropped = {stream: sum(of_stream.values()) for stream, of_stream in reasons.items()}
    if summary.get("restarts", {}).get(recorder):
        for stream, received in summary.get("received", {}).get(recorder, {}).items():
            own = sum(count for reason, count in reasons.get(stream, {}).items() if reason not in EDGE_REASONS)
            unwritten = received - own - counts.get(stream, 0)
            dropped[stream] = dropped.get(stream, 0) + max(0, unwritten)
    return dropped


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or os.uname().machine
