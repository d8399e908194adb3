"""Names in recordings of earlier versions → the names of today. Recordings are not rewritten; they are translated on reading.

The lines of event logs are translated in pipeline/alignment/event_log.py, because a log is also a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.alignment.aligner import NOT_AN_INPUT, SET_ALREADY_SENT, TOO_MANY_PENDING
from pipeline.alignment.stream_buffer import BACK_IN_TIME, EARLIER_THAN_PREDICTED
from pipeline.frame import Health
from pipeline.plugins import RENAMED
from pipeline.transport.drop_reasons import OVERWRITTEN, REPLACED

# Why a message was dropped, in the counters of a run. Version 0.1 → today.
OLD_REASONS = {
    "time went back": BACK_IN_TIME,
    "sooner than ever before": EARLIER_THAN_PREDICTED,
    "behind an anchor already made": SET_ALREADY_SENT,
    "not asked for": NOT_AN_INPUT,
    "too many anchors waiting": TOO_MANY_PENDING,
    "a newer one came": REPLACED,
    "overwritten in the ring": OVERWRITTEN,
}


def current_options(options: Any) -> Any:
    """The options of a node, with the YAML keys that were renamed since."""
    if isinstance(options, Mapping):
        return {RENAMED.get(key, key): current_options(value) for key, value in options.items()}
    if isinstance(options, list):
        return [current_options(value) for value in options]
    return options


def current_about(about: dict[str, Any]) -> dict[str, Any]:
    """`about` of a recording: the options of the nodes in it."""
    if not isinstance(nodes := about.get("nodes"), dict):
        return about
    return about | {"nodes": {name: _node(node) for name, node in nodes.items()}}


def current_note(note: Any) -> Any:
    """The notes "summary" and "finished": the reasons of their counters. Other notes stay as they are."""
    if not isinstance(note, dict) or not isinstance(dropped := note.get("dropped"), dict):
        return note
    return note | {"dropped": _reasons(dropped)}


def current_health(health: Health) -> Health:
    """The reasons of the counters of every node."""
    nodes = tuple(msgspec.structs.replace(node, dropped=_reasons(node.dropped)) for node in health.nodes)
    return msgspec.structs.replace(health, nodes=nodes)


def _node(node: Any) -> Any:
    if not isinstance(node, dict) or "options" not in node:
        return node
    return node | {"options": current_options(node["options"])}


def _reasons(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counters nested by node and input: a reason is the key of a number."""
    current: dict[str, Any] = {}
    for key, value in counts.items():
        if isinstance(value, Mapping):
            current[key] = _reasons(value)
        else:
            current[OLD_REASONS.get(key, key)] = value
    return current
