"""`run CONFIG --out P.jsonl --metrics PORT`: what these options add to a config; the summary is the last line of --out.

Example:
    config = with_out(config, "p.jsonl", host="")
    add_summary("p.jsonl", launch(config))
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.frame import Prediction
from pipeline.private_file import LineFile
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, resolve

QUEUE_DEPTH = 2000  # a disk may pause for seconds: up to a minute of predictions may wait


def with_out(config: Config, path: str, host: str) -> Config:
    """The config with that node. Raises ConfigError where no node sends predictions, or the file cannot be written."""
    predicting = [n for n in config.nodes.values() if resolve(n.use, n.where).produces is Prediction]
    if not predicting:
        raise ConfigError(f"--out {path}: no node of {config.path} sends predictions. Add one that does, such as infer")
    here = [n.name for n in predicting if n.host == host]
    if not here:  # another host predicts: this one writes the summary only
        try:
            LineFile(Path(path)).close()
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error
        return config
    name = "out" if "out" not in config.nodes else "--out"
    inputs = tuple(InputConfig(source, QUEUE_DEPTH) for source in here)
    console = next((n.process or n.name for n in config.nodes.values() if n.use == "console" and n.host == host), "")
    out = NodeConfig(name, "jsonl", f"--out {path}", inputs, process=console, host=host, options={"path": path})
    return dataclasses.replace(config, nodes={**config.nodes, name: out})


def with_metrics(config: Config, port: int, host: str) -> Config:
    """The config with a node that serves /healthz and /metrics at this port."""
    name = "metrics" if "metrics" not in config.nodes else "--metrics"
    node = NodeConfig(
        name, "metrics", f"--metrics {port}", (InputConfig(HEALTH, None),), host=host, options={"port": port}
    )
    return dataclasses.replace(config, nodes={**config.nodes, name: node})


def add_summary(path: str, summary: dict[str, Any]) -> None:
    """Append the summary. Raises ConfigError where that fails: a script must not mistake a partial file for a whole
    one.
    """
    try:
        with Path(path).open("a") as file:
            file.write(json.dumps(summary) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {path}: the summary could not be written: {error.strerror}") from error
