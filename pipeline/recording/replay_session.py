"""A recording that stands in for the sources of a graph, and why predictions may not be those of the recorded run.

Knows no node by name: pipeline/cli/replay.py builds the graph that plays it.

Example:
    session = ReplaySession(Path("rec.mcap"))
    session.recorded_predictions()
    session.differs_because(config, summary)      # () : every prediction must be the same as in the recorded run
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.alignment.event_log import AlignerConfig
from pipeline.clock import NS
from pipeline.credentials import without_credentials
from pipeline.errors import ConfigError
from pipeline.frame import Frame, Prediction
from pipeline.node import Sink, Source
from pipeline.old_names import current_options
from pipeline.recording.arrival_replay import NOT_RECORDED, events_of
from pipeline.recording.faults import parse_all
from pipeline.recording.provenance import dropped_by_recorder, machine
from pipeline.recording.reader import Reader
from pipeline.runtime.config import HEALTH, Config, ReplayConfig, resolve
from pipeline.runtime.graph import EVENTS


class ReplaySession:
    """What is replayed of a recording, and how. Raises ConfigError for a recording that cannot be read.

    Args:
        path: The recording.
        from_s: Where the replay begins (s since the recording's beginning). None: at its beginning.
        to_s: Where it ends. None: at its end.
        realign: Align again, by the times at which frames left their sources.
        unclosed: Read a recording that was not closed, up to its last whole chunk.
        fault: What to make worse, such as "microphone: drop=5%" (faults.py); implies `realign`.
    """

    def __init__(
        self,
        path: Path,
        *,
        from_s: float | None = None,
        to_s: float | None = None,
        realign: bool = False,
        unclosed: bool = False,
        fault: Sequence[str] = (),
    ) -> None:
        self.path, self.unclosed = path, unclosed
        with Reader(path, unclosed=unclosed) as reader:
            self.about, self.notes, self.streams = reader.about, reader.notes, dict(reader.streams)
            self.counts, self.span_ns = reader.counts, reader.span_ns
            self.faults = parse_all(fault, reader.streams)
            event_logs = [stream for stream in reader.streams if stream.endswith(EVENTS)]
            # An imported recording holds no alignment that could be repeated.
            self.realign = realign or bool(fault) or not event_logs
            self._predicting = [s for s in reader.streams if "sensorium.Prediction" in reader.kinds(s)]
            self._missing_events = {s: _missing(reader, s) for s in event_logs}
            self._starts = {s: _starts(reader, s.removesuffix(EVENTS)) for s in event_logs}
        first_ns, last_ns = self.span_ns
        self.from_ns = None if from_s is None else first_ns + round(from_s * NS)
        self.to_ns = None if to_s is None else first_ns + round(to_s * NS)
        if (self.from_ns or first_ns) >= min(self.to_ns or last_ns + 1, last_ns + 1):
            raise ConfigError(
                f"{path}: it lasts {(last_ns - first_ns) / NS:.1f} s: nothing of it lies between --from and --to"
            )

    @property
    def lasts_s(self) -> float:
        return (min(self.to_ns or self.span_ns[1], self.span_ns[1]) - (self.from_ns or self.span_ns[0])) / NS

    def clock(self, speed: float) -> ReplayConfig:
        """The clock of the replay. speed 0: as fast as the machine can."""
        start_ns = self.notes["run"][0]["start_ns"] if self.notes.get("run") else self.span_ns[0]
        return ReplayConfig(self.from_ns or min(start_ns, self.span_ns[0]), speed)

    def repeats_shedding(self, config: Config, node: str) -> bool:
        """Whether the sets from which `node` predicted are known, and will come again."""
        return not self.realign and node in self.streams and not self._lost(node) and not self._changed(config)

    def differs_because(self, config: Config, summary: dict[str, Any] | None = None) -> tuple[str, ...]:
        """Why predictions may not be those of the recorded run; empty: they must be.

        Args:
            config: The config that was replayed, as it was loaded.
            summary: Of the replay, once it has ended.
        """
        return tuple(self._reasons(config, summary))

    @property
    def holds_predictions(self) -> bool:
        """False for a recording that nothing predicted on, such as an import: there is nothing to compare with."""
        return bool(self._predicting)

    def recorded_predictions(self) -> list[dict[str, Any]]:
        """As `--out` writes them."""
        if not self._predicting:
            return []
        with Reader(self.path, unclosed=self.unclosed) as reader:
            recorded = reader.messages(self._predicting, from_ns=self.from_ns, to_ns=self.to_ns)
            predictions = [message for _, message, _ in recorded if isinstance(message, Prediction)]
        return [json.loads(json.dumps(prediction.record())) for prediction in predictions]

    def _lost(self, stream: str) -> int:
        """Messages of a stream that the recorder dropped, as far as it could count them."""
        return dropped_by_recorder(self.about, self.notes, self.counts).get(stream, 0)

    def _changed(self, config: Config) -> list[str]:
        """Nodes between sources and sinks that are not as they were."""
        recorded: dict[str, Any] = self.about.get("nodes", {})
        changed = []
        for node in config.nodes.values():
            kind = resolve(node.use, node.where)
            if issubclass(kind, Source | Sink) or not recorded:
                continue
            before = recorded.get(node.name)
            now = (node.use, [edge.source for edge in node.inputs], _deciding(node.options))
            if before is None or (before["use"], before["inputs"], _deciding(before["options"])) != now:
                changed.append(node.name)
        return changed

    def _reasons(self, config: Config, summary: dict[str, Any] | None) -> Iterator[str]:
        for fault in self.faults:
            yield f"faults on purpose, {fault}"
        if self.realign:
            yield "frames were aligned again"
        if self.from_ns is not None or self.to_ns is not None:
            yield "only a part was replayed: what tasks remembered at its beginning is not known"
        for name in self._changed(config):
            yield f"node '{name}' is not as it was when this was recorded"
        for stream, encoding in self.about.get("kept_as", {}).items():
            yield f"the pictures of '{stream}' were recorded as {encoding}, not as captured"
        for stream in self.streams:
            if stream != HEALTH and (lost := self._lost(stream)):
                yield f"the recorder dropped {lost} messages of '{stream}'"
        for stream, missing in self._missing_events.items():
            if missing and not self._lost(stream):
                yield f"{missing} messages of '{stream}' are not in the recording"
        for stream, starts in self._starts.items():
            if starts > 1:
                yield f"'{stream.removesuffix(EVENTS)}' was restarted in the recorded run, and lost its state"
        recorded_on, here = self.about.get("machine", {}), machine()
        for name in recorded_on:
            if recorded_on[name] != here.get(name):
                yield f"{name}: recorded on {recorded_on[name]}, here is {here.get(name, 'none')}"
        engines = [note["engines"] for note in self.notes.get("engines", [])]
        complete = [e for e in engines if all(e.get(n, {}).keys() >= engines[-1][n].keys() for n in engines[-1])]
        if any(e != complete[-1] for e in complete):
            yield "the engine changed in the middle of the recorded run"
        if summary is not None:
            yield from self._reasons_from(summary, engines[-1] if engines else {})

    def _reasons_from(self, summary: dict[str, Any], recorded_engines: dict[str, Any]) -> Iterator[str]:
        for node, facts in recorded_engines.items():
            for fact, before in facts.items():
                if (now := summary["engines"].get(node, {}).get(fact)) != before:
                    yield f"{node}, {fact}: was {before}, is {now}"
        for node, sources in summary["dropped"].items():
            for source, reasons in sources.items():
                if count := reasons.get(NOT_RECORDED, 0):
                    yield f"{count} frames of '{source}' that '{node}' received are not in the recording"


def _deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options that a node's output depends on, by their names of today."""
    deciding = {name: value for name, value in current_options(options).items() if name != "event_log"}
    return dict(without_credentials(deciding))  # as a recording holds them


def _missing(reader: Reader, stream: str) -> int:
    """How many messages of an event log are missing."""
    seqs = [m.message.seq for m in reader.messages([stream]) if isinstance(m.message, Frame)]
    return sum(max(0, after - before - 1) for before, after in pairwise([-1, *seqs]))


def _starts(reader: Reader, node: str) -> int:
    return sum(isinstance(event, AlignerConfig) for event in events_of(reader, node))
