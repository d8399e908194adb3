"""The verb `verify`: prints the audit of a recording, and says whether every message is accounted for.

Example:
    report(Path("rec.mcap"), plot=Path("timeline.svg"))
    report_event_log(Path("events.jsonl"), config=Path("mine.yaml"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.alignment import event_log
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.recording.timeline import draw
from pipeline.recording.verify import Audit
from pipeline.runtime.config import HEALTH, load
from pipeline.runtime.graph import EVENTS

_HEAD = ("stream", "encoding", "frames", "rate", "jitter", "missing", "span", "clock error", "")


def report(path: Path, *, plot: Path | None = None, config: str | None = None) -> None:
    """Print the audit of a recording.

    Args:
        path: The recording.
        plot: Draw its timeline into this SVG file too.
        config: The user's own config, whose sync policies may be run; a recording may name no other code.

    Raises:
        ConfigError: A message is unaccounted for, or the file is broken or not closed.
    """
    audit = Audit(path, _own_policies(config))
    first_ns, last_ns = audit.span_ns
    print(f"{path}: {(last_ns - first_ns) / NS:.1f} s, {audit.counts.total()} messages, {_origin(audit)}")
    _print_streams(audit)
    for align, verdict in audit.verdicts.items():
        gap = (
            "; not derived again: the recorder dropped a part of its event log"
            if not audit.has_all_events(align)
            else ""
        )
        derived = gap or ("" if verdict.differences else ", each derived again, with its receipts")
        print(f"  {align}: {verdict.sets} aligned sets{derived}")
    for node, predictions in audit.predictions.items():
        print(f"  {node}: {len(predictions)} predictions")
    for stream in audit.counts:
        if stream != HEALTH and (lost := audit.dropped_by_the_recorder(stream)):
            print(f"  dropped by the recorder: {lost} of {stream}")
    if not audit.finished:
        print(f"  cut off: the writer was killed. {_missing(audit)}")
        for cut in audit.streams.values():
            if unknown := cut.lost - sum(count for _, count, _ in audit.countable_gaps(cut)):
                print(f"  {cut.name}: the counters of {unknown} missing messages were lost with the file's end")
    if plot is not None:
        plot.write_text(draw(audit), encoding="utf-8")
        print(f"  timeline: {plot}")
    for fault in audit.faults:
        print(f"  UNACCOUNTED {fault}")
    if audit.faults:
        raise ConfigError(f"{path}: not every message is accounted for: {len(audit.faults)} faults, above")
    if not audit.closed:
        raise ConfigError(f"{path}: not closed. Write a closed copy with: {COMMAND} record --repair {path}")
    print("  every message is accounted for" + ("" if audit.finished else ", up to where it was cut off"))


def report_event_log(path: Path, *, config: str | None = None) -> None:
    """Print whether every set of an event log follows from what arrived. config: as for `report`.

    Raises:
        ConfigError: One does not, or the file is no event log.
    """
    verdict = event_log.verify(path, own_policies=_own_policies(config))
    for difference in verdict.differences:
        print(f"  {difference}")
    if verdict.differences:
        raise ConfigError(f"{path}: some of its {verdict.sets} sets do not follow from what arrived")
    print(f"{path}: all {verdict.sets} sets follow from the {verdict.events - verdict.sets} other events")


def _own_policies(config: str | None) -> list[dict[str, Any]]:
    """The sync policies of the user's config, which alone may name code."""
    if config is None:
        return []
    tables = [node.options.get("sync") for node in load(config).nodes.values()]
    return [entry for table in tables if isinstance(table, dict) for entry in table.values()]


def _print_streams(audit: Audit) -> None:
    rows = [_HEAD, *(s.row() for n, s in audit.streams.items() if not n.endswith(EVENTS))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())


def _origin(audit: Audit) -> str:
    about: dict[str, Any] = audit.about
    consent = f"; consent: {about['consent']}" if about.get("consent") else ""
    source = about.get("config") or about.get("source") or "an unknown source"
    return f"written by {about.get('made_by', 'an unknown program')} from {source}{consent}"


def _missing(audit: Audit) -> str:
    """What a file that was cut off lacks: where it ends, and the streams that end before."""
    end_ns = max(audit.last_ns.values(), default=0)
    behind = [
        f"{s} {(end_ns - t) / 1e6:.0f} ms before"
        for s, t in sorted(audit.last_ns.items())
        if 0 < t < end_ns and s != HEALTH
    ]
    torn = f"{audit.torn_bytes} torn bytes at the end; " if audit.torn_bytes else ""
    at_s = (end_ns - audit.span_ns[0]) / NS
    return f"{torn}missing: everything after {at_s:.2f} s" + (
        f", and of what ends earlier: {', '.join(behind)}" if behind else ""
    )
