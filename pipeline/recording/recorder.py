"""A graph and a recorder of it: what `record` adds to a config, what it asks before, and what it says at the end.

Example:
    config = with_recorder(load("configs/emotion-demo.yaml"), Path("out.mcap"), Wanted())
    print(told(Path("out.mcap"), launch(config)))
"""

from __future__ import annotations

import dataclasses
import os
import platform
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.clock import NS
from pipeline.errors import ConfigError, nearest
from pipeline.frame import AlignedSet, Prediction
from pipeline.node import Source
from pipeline.recording.part import part_path, refuse_existing, repair
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer
from pipeline.rig.rig import found
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, instantiate, resolve
from pipeline.runtime.graph import EVENTS

RECORDER = "record"
KEPT = 4000  # messages of a stream that may wait for the disk, as long as they are small (inbox.MAX_BYTES)
# Versions on which the numbers of an answer may hang.
PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless")


@dataclass(frozen=True)
class Wanted:
    """streams: of which nodes; empty: all. jpeg: whose pictures are kept as JPEG. consent: who agreed to what, in words."""

    streams: tuple[str, ...] = ()
    jpeg: tuple[str, ...] = ()
    consent: str = ""
    features_only: bool = False
    compression: str = "lz4"
    split_mb: float | None = None
    split_s: float | None = None


def with_recorder(config: Config, path: Path, wanted: Wanted, host: str = "") -> Config:
    """`config` with one more node. Raises ConfigError where consent is missing, or the file is there already."""
    refuse_existing(path)
    if any(resolve(node.use, node.where).__name__ == "Record" for node in config.nodes.values()):
        raise ConfigError(f"{config.path}: it records already: it has a node of its own for it. Use: run {config.path}")
    known = list(_streams(config, host))
    for name in (*wanted.streams, *wanted.jpeg):
        if name not in known:
            raise ConfigError(f"record: no stream '{name}'. Streams here: {', '.join(known)}.{nearest(name, known)}")
    chosen = [name for name in known if not wanted.streams or name in wanted.streams]
    if wanted.features_only:
        config = _with_embeddings(config)
        chosen = [name for name in chosen if name not in config.nodes or not _is_source(config, name)]
    _ask_consent(config, chosen, wanted)
    name = RECORDER if RECORDER not in config.nodes else f"{RECORDER}-out"
    told = [
        o for node in config.nodes.values() for o in (node.options, node.options.get("options") or {})
    ]  # a task has its own
    # One that is not there is missed by the node that reads it, or is written by another of this very run.
    rigs = sorted({str(rig.absolute()) for o in told if o.get("rig") and (rig := found(o["rig"])).exists()})
    told_before = about(config) | {"recorder": name, "kept_as": dict.fromkeys(wanted.jpeg, "JPEG")}
    if wanted.consent:
        told_before["consent"] = wanted.consent
    options = {
        "path": str(path.absolute()),
        "jpeg": list(wanted.jpeg),
        "features_only": wanted.features_only,
        "compression": wanted.compression,
        "split_mb": wanted.split_mb,
        "split_s": wanted.split_s,
        "rigs": rigs,
        "about": told_before,
    }
    inputs = tuple(InputConfig(stream, KEPT) for stream in chosen)
    recorder = NodeConfig(name, "record", f"record {path}", inputs, host=host, options=options)
    return dataclasses.replace(config, nodes={**config.nodes, name: recorder})


def about(config: Config) -> dict[str, Any]:
    """What a recording says of how it came to be: the graph, and the machine, which a replay compares with its own."""
    nodes = {
        n.name: {"use": n.use, "inputs": [e.source for e in n.inputs], "options": n.options}
        for n in config.nodes.values()
    }
    return {"run": secrets.token_hex(8), "config": config.path, "nodes": nodes, "machine": machine()}


def machine() -> dict[str, str]:
    """CPU and versions: another of them may give other last digits."""
    found = {"cpu": _cpu(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def repaired(path: Path) -> str:
    """Close a file, and all its parts, whose writer was killed; what was kept, for people."""
    lines, part = [], 0
    while part == 0 or part_path(path, part).exists():
        kept, torn_bytes = repair(part_path(path, part))
        cut = f", {torn_bytes} torn bytes cut off" if torn_bytes else ""
        lines.append(
            f"{part_path(path, part)}: closed, {kept} messages kept{cut}. See what is missing: run_pipeline.py verify {path}"
        )
        part += 1
    return "\n".join(lines)


def told(path: Path, summary: dict[str, Any]) -> str:
    """What was recorded, for people. The books of the whole run are kept beside it: `verify` balances them."""
    try:
        with Writer.resumed(path) as writer:
            writer.note("summary", summary)
    except (ConfigError, OSError) as error:
        return f"  {error}"
    with Reader(path, unclosed=True) as reader:
        first_ns, last_ns = reader.span_ns
        streams = ", ".join(f"{stream} {count}" for stream, count in reader.counts.items())
        lost = {s: n for s, n in dropped_by_recorder(reader.about, reader.notes).items() if s != HEALTH}
        files = f"{reader.path}" if not part_path(path, 1).exists() else f"{reader.path} and the parts after it"
        kept = f"{files}: {reader.size_bytes / 1e6:.1f} MB, {(last_ns - first_ns) / NS:.1f} s"
        missing = ", ".join(f"{count} of {stream}" for stream, count in lost.items()) or "none"
        unclosed = "" if reader.closed else f"\n  It is not closed: python run_pipeline.py record --repair {path}"
        return f"  {kept}\n  recorded: {streams}\n  dropped by the recorder: {missing}{unclosed}"


def dropped_by_recorder(about: dict[str, Any], notes: dict[str, list[Any]]) -> dict[str, int]:
    """Stream → messages that it was sent and that are not in the file, by the books of the run, or else by its own last word."""
    if notes.get("summary"):
        books = notes["summary"][-1].get("dropped", {}).get(about.get("recorder", RECORDER), {})
    else:
        books = {stream: reasons for note in notes.get("finished", []) for stream, reasons in note["dropped"].items()}
    return {stream: sum(reasons.values()) for stream, reasons in books.items()}


def _streams(config: Config, host: str) -> Iterator[str]:
    """What there is to record: sources, predictions, what aligners were told and decided, health. Not the aligned sets:
    they are in what the aligner decided, without a second copy of every picture."""
    for node in config.nodes.values():
        kind = resolve(node.use, node.where)
        if node.host == host and kind.produces not in (None, AlignedSet):
            yield node.name
        if node.host == host and kind.journals:
            yield node.name + EVENTS
    yield HEALTH


def _is_source(config: Config, name: str) -> bool:
    node = config.nodes[name]
    return issubclass(resolve(node.use, node.where), Source)


def _ask_consent(config: Config, chosen: list[str], wanted: Wanted) -> None:
    if wanted.consent:
        return
    for name in chosen:
        if name in config.nodes and _is_source(config, name):
            node = config.nodes[name]
            made = instantiate(node.use, node.options, where=node.where)
            if isinstance(made, Source) and made.is_live:
                raise ConfigError(
                    f"record: '{name}' sees or hears whoever is there. Ask them, and say so: --consent \"Ada and Bo agreed, "
                    'for the demo, until May" (it is kept in the file); or record no picture and no sound: --features-only'
                )


def _with_embeddings(config: Config) -> Config:
    """Opinions carry the embeddings behind them where a task can give them."""
    nodes = {}
    for node in config.nodes.values():
        if resolve(node.use, node.where).produces is Prediction and node.options.get("task", "emotion") == "emotion":
            options = {**node.options.get("options", {}), "embeddings": True}
            node = dataclasses.replace(node, options={**node.options, "options": options})
        nodes[node.name] = node
    return dataclasses.replace(config, nodes=nodes)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or os.uname().machine
