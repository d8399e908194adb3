"""The verb `replay`: a config whose sources are replaced by a recording, and the report at the end of the run.

Example:
    session = ReplaySession(Path("rec.mcap"))
    config = load("configs/emotion-demo.yaml")
    summary = launch(replay_config(session, config, speed=0))
    report(session, config, summary, out=None)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DiffersError
from pipeline.frame import Prediction
from pipeline.node import Source
from pipeline.recording import fault_report
from pipeline.recording.diff import Difference, compare, read_predictions
from pipeline.recording.labels import Labels
from pipeline.recording.reader import Reader
from pipeline.recording.replay_session import ReplaySession
from pipeline.recording.writer import QUEUE_MESSAGES
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, resolve
from pipeline.runtime.graph import EVENTS

TOLERANCE = 1e-4  # on probabilities, where identical answers cannot be promised


def replay_config(session: ReplaySession, config: Config, *, speed: float, labels: bool = False) -> Config:
    """`config` with the recording in place of its sources, on one host; no message is dropped for a slow reader.

    Args:
        session: The recording, and what is replayed of it.
        config: As it was loaded.
        speed: 1: as fast as it happened; 0: as fast as the machine can.
        labels: Record the labels that are given on the page, in the recording.

    Raises:
        ConfigError: The recording lacks a stream, or a fault names none of the sources.
    """
    where = f"replay {session.path}"
    align, infer, record = (resolve(use, where) for use in ("align", "infer", "record"))
    kinds = {node.name: resolve(node.use, node.where) for node in config.nodes.values()}
    sources = [name for name, kind in kinds.items() if issubclass(kind, Source)]
    for fault in session.faults:
        if fault.stream not in sources:
            raise ConfigError(
                f"--fault {fault.stream}: no source of {config.path}. Sources there: {', '.join(sources)}"
            )
    nodes = {}
    for node in config.nodes.values():
        kind = kinds[node.name]
        if issubclass(kind, record):
            continue
        if issubclass(kind, Source):
            node = _replaced(node, "replay", _source_options(session, node, speed))
        elif issubclass(kind, align):
            node = _replayed_align(session, node, sources)
        elif issubclass(kind, infer) and session.repeats_shedding(config, node.name):
            options = {"path": str(session.path.absolute()), "unclosed": session.unclosed}
            node = _replaced(node, "infer_replay", options | {"node": node.use, "options": node.options})
        nodes[node.name] = dataclasses.replace(node, host="", optional=False)
    predicting = [name for name in nodes if kinds[name].produces is Prediction]
    if labels and predicting and any(issubclass(kinds[name], resolve("dashboard", where)) for name in nodes):
        inputs = tuple(InputConfig(name, QUEUE_MESSAGES) for name in [*predicting, HEALTH])
        label_options = {"path": str(session.path.absolute())}
        nodes["label-keys"] = NodeConfig("label-keys", "labels", where, inputs, options=label_options)
    return dataclasses.replace(config, nodes=nodes, hosts={}, replay=session.clock(speed))


def report(session: ReplaySession, config: Config, summary: dict[str, Any], out: Path | None) -> None:
    """Print how long the replay took, and whether its predictions are those of the recorded run.

    Args:
        session: What was replayed.
        config: As it was loaded, before `replay_config`.
        summary: Of the replay.
        out: The predictions of the replay, as `--out` writes them. None: they were not written.

    Raises:
        DiffersError: Predictions differ although they should not.
    """
    reasons = session.differs_because(config, summary)
    took_s = summary["seconds"]
    times = session.lasts_s / max(took_s, 0.01)
    print(f"  {session.lasts_s:.1f} s of recording in {took_s:.1f} s: {times:.2f} times as fast as it happened")
    differing = list(compare(session.recorded_predictions(), read_predictions(out))) if out else None
    if session.faults and out is not None:
        return report_faults(session, read_predictions(out))
    if not session.holds_predictions:
        print("  the recording holds no predictions to compare these with")
    elif reasons:
        print("  not identical to the recorded run because " + "; ".join(reasons))
        if differing is not None:
            most = max((d.max_probability for d in differing), default=0.0)
            print(f"  {_count(differing)}; probabilities differ by at most {most:.1e} (the promise: {TOLERANCE:g})")
    elif differing is None:
        print("  identical to the recorded run, as far as is known without its predictions (--out compares them)")
    elif differing:
        raise DiffersError(f"{_count(differing)}, and no known reason explains it: a bug. The first: {differing[0]}")
    else:
        print("  identical to the recorded run: every prediction, in every field but timing_ms and age_ns")


def report_faults(session: ReplaySession, with_faults: list[dict[str, Any]]) -> None:
    """Print what the faults did to alignment and predictions, beside the recorded run, and labels if there are any."""
    with Reader(session.path, unclosed=session.unclosed) as reader:
        labels = Labels.read(reader) if any(info.encoding == "label" for info in reader.streams.values()) else None
    for fault in session.faults:
        print(f"  fault: {fault}")
    print(fault_report.table(session.recorded_predictions(), with_faults, labels))


def _replaced(node: NodeConfig, use: str, options: dict[str, Any]) -> NodeConfig:
    """Another node in its place. Its input queues hold everything: what the recorded run dropped there is repeated."""
    inputs = tuple(dataclasses.replace(edge, queue=None) for edge in node.inputs)
    return dataclasses.replace(node, use=use, options=options, inputs=inputs)


def _source_options(session: ReplaySession, node: NodeConfig, speed: float) -> dict[str, Any]:
    absent = node.name not in session.streams
    if absent and not node.optional:
        streams = ", ".join(s for s in session.streams if s != HEALTH and not s.endswith(EVENTS))
        raise ConfigError(
            f"{session.path}: it has no stream '{node.name}', which {node.where} is. Streams there: {streams}"
        )
    return {
        "fault": next((str(fault) for fault in session.faults if fault.stream == node.name), None),
        "path": str(session.path.absolute()),
        "speed": speed,
        "from_ns": session.from_ns,
        "to_ns": session.to_ns,
        "unclosed": session.unclosed,
        "absent": absent,
        "realtime": False,  # so that nothing behind it drops a message
    }


def _replayed_align(session: ReplaySession, node: NodeConfig, sources: list[str]) -> NodeConfig:
    computed = any(edge.source not in session.streams and edge.source not in sources for edge in node.inputs)
    if session.realign and computed:
        # Such an input is not in the recording but computed from it: without arrival times, sets wait for proof.
        return dataclasses.replace(node, options={**node.options, "max_wait_ms": None})
    options = {
        "path": str(session.path.absolute()),
        "options": node.options,
        "realign": session.realign,
        "unclosed": session.unclosed,
        "from_ns": session.from_ns,
        "to_ns": session.to_ns,
        "faults": [str(fault) for fault in session.faults],
    }
    return _replaced(node, "align_replay", options)


def _count(differing: list[Difference]) -> str:
    return f"{len(differing)} predictions are not those of the recorded run"
