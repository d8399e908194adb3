"""The verb `record`: a config with a recorder node, and the report at the end of the run.

Example:
    options = RecordOptions(consent="Ada agreed")
    config = with_recorder(load("configs/emotion-live.yaml"), Path("out.mcap"), options)
    print(finish_recording(Path("out.mcap"), launch(config)))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.clock import NS
from pipeline.errors import ConfigError, nearest
from pipeline.frame import AlignedSet, Prediction
from pipeline.installation import COMMAND
from pipeline.node import Source
from pipeline.recording.part import close_unclosed, part_path, refuse_existing, repair
from pipeline.recording.provenance import DEFAULT_RECORDER, description, dropped_by_recorder
from pipeline.recording.reader import Reader
from pipeline.recording.writer import QUEUE_MESSAGES, Writer
from pipeline.rig.rig_file import locate_rig
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, resolve
from pipeline.runtime.graph import EVENTS


@dataclass(frozen=True)
class RecordOptions:
    """The options of `record`.

    Args:
        streams: The streams to record. Empty: all.
        jpeg: The streams whose pictures are recorded as JPEG: a tenth of the size, and a replay is then not identical.
        consent: Who agreed to what, in words (consent.py).
        features_only: Record embeddings and predictions; no picture, sound or points.
        compression: Of the file's chunks: none, lz4 or zstd. Default lz4: fast enough for live video on one core.
        split_mb: Begin another file after this size (MB). null: never.
        split_s: Begin another file after this time (s). null: never.
    """

    streams: tuple[str, ...] = ()
    jpeg: tuple[str, ...] = ()
    consent: str = ""
    features_only: bool = False
    compression: str = "lz4"
    split_mb: float | None = None
    split_s: float | None = None


def with_recorder(config: Config, path: Path, options: RecordOptions, host: str = "") -> Config:
    """`config` with a recorder node added, which writes `path`.

    Raises ConfigError when a stream is unknown, the config records already, or the file exists.
    """
    refuse_existing(path)
    recorder = resolve("record", f"record {path}")
    if any(resolve(node.use, node.where) is recorder for node in config.nodes.values()):
        raise ConfigError(f"{config.path}: it records already, with a node of its own. Use: run {config.path}")
    known = list(_streams(config, host))
    for name in (*options.streams, *options.jpeg):
        if name not in known:
            raise ConfigError(f"record: no stream '{name}'. Streams here: {', '.join(known)}.{nearest(name, known)}")
    streams = [name for name in known if not options.streams or name in options.streams]
    if options.features_only:
        config = _with_embeddings(config)
        streams = [name for name in streams if name not in config.nodes or not _is_source(config, name)]
    name = DEFAULT_RECORDER if DEFAULT_RECORDER not in config.nodes else f"{DEFAULT_RECORDER}-out"
    about = description(config) | {"recorder": name, "kept_as": dict.fromkeys(options.jpeg, "JPEG")}
    node_options = {
        "path": str(path.absolute()),
        "jpeg": list(options.jpeg),
        "features_only": options.features_only,
        "compression": options.compression,
        "split_mb": options.split_mb,
        "split_s": options.split_s,
        "rigs": _rig_files(config),
        "consent": options.consent,
        "about": about,
    }
    inputs = tuple(InputConfig(stream, QUEUE_MESSAGES) for stream in streams)
    node = NodeConfig(name, "record", f"record {path}", inputs, host=host, options=node_options)
    return dataclasses.replace(config, nodes={**config.nodes, name: node})


def _streams(config: Config, host: str) -> Iterator[str]:
    """The streams that can be recorded: sources, predictions, the aligners' event logs, health.

    Not the aligned sets: the event log holds them without a second copy of every picture.
    """
    for node in config.nodes.values():
        kind = resolve(node.use, node.where)
        if node.host == host and kind.produces not in (None, AlignedSet):
            yield node.name
        if node.host == host and kind.publishes_events:
            yield node.name + EVENTS
    yield HEALTH


def _is_source(config: Config, name: str) -> bool:
    node = config.nodes[name]
    return issubclass(resolve(node.use, node.where), Source)


def _with_embeddings(config: Config) -> Config:
    """Predictions of expressions hold the embeddings that they were made from."""
    nodes = {}
    for node in config.nodes.values():
        if resolve(node.use, node.where).produces is Prediction and node.options.get("task", "emotion") == "emotion":
            options = {**node.options.get("options", {}), "embeddings": True}
            node = dataclasses.replace(node, options={**node.options, "options": options})
        nodes[node.name] = node
    return dataclasses.replace(config, nodes=nodes)


def _rig_files(config: Config) -> list[str]:
    """The rig files that nodes, or the tasks in them, name.

    One that does not exist is reported by the node that reads it.
    """
    of_nodes = [o for node in config.nodes.values() for o in (node.options, node.options.get("options") or {})]
    paths = [locate_rig(options["rig"]) for options in of_nodes if options.get("rig")]
    return sorted({str(path.absolute()) for path in paths if path.exists()})


def finish_recording(path: Path, summary: dict[str, Any]) -> str:
    """Store the run's summary in the recording, for `verify`. Returns a report of what was recorded, for people.

    Where the recorder was killed in the run and went on in another part, the part before it is closed here.
    """
    try:
        for part in _parts(path) if summary.get("restarts") else ():
            close_unclosed(part)
        with Writer.resumed(path) as writer:
            writer.note("summary", summary)
    except (ConfigError, OSError) as error:
        return f"  {error}"
    with Reader(path, unclosed=True) as reader:
        first_ns, last_ns = reader.span_ns
        streams = ", ".join(f"{stream} {count}" for stream, count in reader.counts.items())
        dropped = {
            s: n for s, n in dropped_by_recorder(reader.about, reader.notes, reader.counts).items() if s != HEALTH
        }
        files = f"{reader.path}" if not part_path(path, 1).exists() else f"{reader.path} and the parts after it"
        size = f"{files}: {reader.size_bytes / 1e6:.1f} MB, {(last_ns - first_ns) / NS:.1f} s"
        missing = ", ".join(f"{count} of {stream}" for stream, count in dropped.items()) or "none"
        unclosed = (
            "" if reader.closed else f"\n  Not closed. Write a closed copy with: {COMMAND} record --repair {path}"
        )
        return f"  {size}\n  recorded: {streams}\n  dropped by the recorder: {missing}{unclosed}"


def repair_recording(path: Path) -> str:
    """Write a closed copy, NAME.repaired.mcap, of a recording and all its parts, whose writer was killed.

    Returns a line a file, for people.
    """
    copy, lines = path.with_name(f"{path.stem}.repaired{path.suffix}"), []
    for number, part in enumerate(_parts(path)):
        out = part_path(copy, number)
        messages, torn_bytes = repair(part, out)
        torn = f", without {torn_bytes} torn bytes at the end" if torn_bytes else ""
        lines.append(f"{out}: closed, with {messages} messages{torn}; {part} is as it was.")
    lines.append(f"See what is missing: {COMMAND} verify {copy}")
    return "\n".join(lines)


def _parts(path: Path) -> Iterator[Path]:
    number = 0
    while number == 0 or part_path(path, number).exists():
        yield part_path(path, number)
        number += 1
