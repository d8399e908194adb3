"""Names in recordings and event logs of earlier versions → the names of today. Files are translated when they are read.

YAML keys in them are renamed by plugins.RENAMED; a config that a user writes is refused with the old key instead.

Example:
    current_reason("time went back")        # "timestamp before the last one"
    current_event_line(b'["Told","camera",0,…]')   # b'["arrival","camera",0,…]'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.frame import Health
from pipeline.plugins import RENAMED

# Why a message was dropped, in the counters of a run. Version 0.1 → today.
DROP_REASONS = {
    "time went back": "timestamp before the last one",
    "sooner than ever before": "earlier than its rate predicts",
    "behind an anchor already made": "late: its set was already sent",
    "not asked for": "not an input",
    "too many anchors waiting": "too many anchors pending",
    "a newer one came": "replaced by a newer frame",
    "overwritten in the ring": "overwritten in shared memory",
}
# How a line of an event log begins. The rest of the line is the same. Version 0.1 → today.
EVENT_LINE_STARTS = {
    b'["Rules"': b'["config"',
    b'["Told"': b'["arrival"',
    b'["Sent"': b'["set"',
    b'["Finished"': b'["finish"',
}


def current_event_line(line: bytes) -> bytes:
    """A line of an event log."""
    start, comma, rest = line.partition(b",")
    current = EVENT_LINE_STARTS.get(start)
    return line if current is None else current + comma + rest


def current_reason(reason: str) -> str:
    return DROP_REASONS.get(reason, reason)


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
            current[current_reason(key)] = value
    return current
