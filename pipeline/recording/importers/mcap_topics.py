"""The topics of any MCAP file, by the MCAP library's own reader: (topic, type, number of messages)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mcap.reader import make_reader


def topics_of(path: Path) -> list[tuple[str, str, int]]:
    """Raises the library's own exceptions when the file is damaged or was not closed."""
    with path.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        if summary is not None and summary.statistics is not None:
            types = {id: schema.name for id, schema in summary.schemas.items()}
            counts = Counter(summary.statistics.channel_message_counts)
            return [(c.topic, types.get(c.schema_id, ""), counts[id]) for id, c in summary.channels.items()]
        # A writer may omit the summary: count the messages.
        scanned: Counter[tuple[str, str]] = Counter()
        for schema, channel, _ in reader.iter_messages(log_time_order=False):
            scanned[channel.topic, schema.name if schema else ""] += 1
        return [(topic, kind, count) for (topic, kind), count in scanned.items()]
