"""`run CONFIG --out P.jsonl`: a graph and beside it a node that writes its predictions; the run's summary is the last line.

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
from pipeline.runtime.config import Config, InputConfig, NodeConfig, resolve

KEEP = 2000  # a disk may pause for seconds: a minute of predictions may wait for it


def with_out(config: Config, path: str, host: str) -> Config:
    """ConfigError where nothing makes predictions."""
    predicting = [n for n in config.nodes.values() if resolve(n.use, n.where).produces is Prediction]
    if not predicting:
        raise ConfigError(f"--out {path}: no node of {config.path} makes predictions. Add one that does, such as infer")
    here = [n.name for n in predicting if n.host == host]
    if not here:  # they are made on another host: this one writes its summary alone
        try:
            Path(path).write_text("")
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error
        return config
    name = "out" if "out" not in config.nodes else "--out"
    inputs = tuple(InputConfig(source, KEEP) for source in here)
    console = next((n.process or n.name for n in config.nodes.values() if n.use == "console" and n.host == host), "")
    out = NodeConfig(name, "jsonl", f"--out {path}", inputs, process=console, host=host, options={"path": path})
    return dataclasses.replace(config, nodes={**config.nodes, name: out})


def add_summary(path: str, summary: dict[str, Any]) -> None:
    """ConfigError where it cannot be written: the run is over then, and a script that waits for it must hear."""
    try:
        with Path(path).open("a") as file:
            file.write(json.dumps(summary) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {path}: the summary could not be written: {error.strerror}") from error
