"""A recording in place of a graph's sources: the config that plays it, and whether its answers are those of the recorded run.

Example:
    tape = Tape(Path("rec.mcap"))
    config = tape.replayed(load("configs/emotion-demo.yaml"), speed=0)
    summary = launch(config); reasons = tape.differs_because(config, summary)     # () : every answer must be the same
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.alignment.event_log import Rules
from pipeline.clock import NS
from pipeline.errors import ConfigError, DiffersError
from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.node import Sink, Source
from pipeline.recording import fault_report
from pipeline.recording.arrival_replay import NOT_RECORDED, events_of
from pipeline.recording.diff import Difference, compare, read_predictions
from pipeline.recording.faults import parse_all
from pipeline.recording.labels import Labels
from pipeline.recording.provenance import dropped_by_recorder, machine
from pipeline.recording.reader import Reader
from pipeline.recording.writer import QUEUE_MESSAGES
from pipeline.runtime.config import HEALTH, Config, InputConfig, NodeConfig, ReplayConfig, resolve
from pipeline.runtime.graph import EVENTS

PROMISED = 1e-4  # on probabilities, where the same answers to the last digit cannot be promised


class Tape:
    """from_s, to_s: since the recording's beginning. Raises ConfigError for what cannot be read."""

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
            # A recording that was imported holds no decisions that could be told again.
            self.realign = realign or bool(fault) or not any(stream.endswith(EVENTS) for stream in reader.streams)
            self._predicting = [s for s in reader.streams if "sensorium.Prediction" in reader.kinds(s)]
            self._gaps = {s: _gap(reader, s) for s in reader.streams if s.endswith(EVENTS)}
            self._starts = {s: _starts(reader, s.removesuffix(EVENTS)) for s in reader.streams if s.endswith(EVENTS)}
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

    def replayed(self, config: Config, *, speed: float, labels: bool = False) -> Config:
        """`config` with this recording in place of its sources, on one host, with nobody left behind. labels: keep those that
        are given on the page, in the recording."""
        nodes = {}
        sources = [n.name for n in config.nodes.values() if issubclass(resolve(n.use, n.where), Source)]
        for fault in self.faults:
            if fault.stream not in sources:
                raise ConfigError(
                    f"--fault {fault.stream}: no source of {config.path}. Sources there: {', '.join(sources)}"
                )
        for node in config.nodes.values():
            kind = resolve(node.use, node.where)
            if kind.__name__ == "Record":
                continue
            options = dict(node.options)
            use = node.use
            if issubclass(kind, Source):
                use, options = "replay", self._source_options(node, speed)
            elif kind.produces is AlignedSet and kind.publishes_events:
                options |= {
                    "replay": str(self.path.absolute()),
                    "realign": self.realign,
                    "replay_unclosed": self.unclosed,
                }
                options |= {
                    "from_ns": self.from_ns,
                    "to_ns": self.to_ns,
                    "faults": [str(fault) for fault in self.faults],
                }
                options |= {
                    "derived": any(e.source not in self.streams and e.source not in sources for e in node.inputs)
                }
            elif kind.produces is Prediction and node.use == "infer" and self._knows_what_was_shed(config, node):
                options |= {"replay": str(self.path.absolute()), "replay_unclosed": self.unclosed}
            nodes[node.name] = dataclasses.replace(node, use=use, options=options, host="", optional=False)
        labels = labels and any(n.use == "dashboard" for n in nodes.values())
        if labels and (
            predicting := [n.name for n in nodes.values() if resolve(n.use, n.where).produces is Prediction]
        ):
            inputs = tuple(InputConfig(name, QUEUE_MESSAGES) for name in [*predicting, HEALTH])
            options = {"path": str(self.path.absolute())}
            nodes["label-keys"] = NodeConfig("label-keys", "labels", f"replay {self.path}", inputs, options=options)
        start_ns = self.notes["run"][0]["start_ns"] if self.notes.get("run") else self.span_ns[0]
        clock = ReplayConfig(self.from_ns or min(start_ns, self.span_ns[0]), speed)
        return dataclasses.replace(config, nodes=nodes, hosts={}, replay=clock)

    def differs_because(self, config: Config, summary: dict[str, Any] | None = None) -> tuple[str, ...]:
        """Why the answers may not be those of the recorded run; empty: they must be. summary: of the replay, once there is one."""
        return tuple(self._reasons(config, summary))

    def recorded_predictions(self) -> list[dict[str, Any]]:
        """As `--out` writes them."""
        if not self._predicting:
            return []
        with Reader(self.path, unclosed=self.unclosed) as reader:
            found = (m.message for m in reader.messages(self._predicting, from_ns=self.from_ns, to_ns=self.to_ns))
            return [json.loads(json.dumps(p.record())) for p in found if isinstance(p, Prediction)]

    def scratch(self) -> str | None:
        """Where the answers go that a report of faults needs, when nobody asked for them; None: no faults, no report."""
        if not self.faults:
            return None
        self._scratch = tempfile.TemporaryDirectory(prefix="sensorium-")
        return str(Path(self._scratch.name) / "predictions.jsonl")

    def _source_options(self, node: NodeConfig, speed: float) -> dict[str, Any]:
        absent = node.name not in self.streams
        if absent and not node.optional:
            here = ", ".join(s for s in self.streams if s != HEALTH and not s.endswith(EVENTS))
            raise ConfigError(
                f"{self.path}: it has no stream '{node.name}', which {node.where} is. Streams there: {here}"
            )
        wrong = next((str(fault) for fault in self.faults if fault.stream == node.name), None)
        return {
            "fault": wrong,
            "path": str(self.path.absolute()),
            "speed": speed,
            "from_ns": self.from_ns,
            "to_ns": self.to_ns,
            "unclosed": self.unclosed,
            "absent": absent,
            "realtime": False,  # so nothing behind it drops a message
        }

    def _knows_what_was_shed(self, config: Config, node: NodeConfig) -> bool:
        """Only of the run as it was: sets that are decided otherwise are all predicted from."""
        return (
            not self.realign and node.name in self.streams and not self._lost(node.name) and not self._changed(config)
        )

    def _lost(self, stream: str) -> int:
        """Messages of a stream that the recorder itself dropped, as far as it lived to say so."""
        return dropped_by_recorder(self.about, self.notes).get(stream, 0)

    def _changed(self, config: Config) -> list[str]:
        """Nodes between sources and sinks that are not as they were."""
        before: dict[str, Any] = self.about.get("nodes", {})
        changed = []
        for node in config.nodes.values():
            kind = resolve(node.use, node.where)
            if issubclass(kind, Source | Sink) or not before:
                continue
            was = before.get(node.name)
            options = {k: v for k, v in node.options.items() if k not in _OF_A_REPLAY}
            if was is None or (was["use"], was["options"], was["inputs"]) != (
                node.use,
                options,
                [e.source for e in node.inputs],
            ):
                changed.append(node.name)
        return changed

    def _reasons(self, config: Config, summary: dict[str, Any] | None) -> Iterator[str]:
        for fault in self.faults:
            yield f"faults on purpose, {fault}"
        if self.realign:
            yield "alignment was computed afresh"
        if self.from_ns is not None or self.to_ns is not None:
            yield "only a part was played: what the run remembered at its beginning is not known"
        for name in self._changed(config):
            yield f"node '{name}' is not as it was when this was recorded"
        for stream, kept in self.about.get("kept_as", {}).items():
            yield f"the pictures of '{stream}' were kept as {kept}, not as captured"
        for stream in self.streams:
            if stream != HEALTH and (lost := self._lost(stream)):
                yield f"the recorder dropped {lost} messages of '{stream}'"
        for stream, gap in self._gaps.items():
            if gap and not self._lost(stream):
                yield f"{gap} messages of '{stream}' are not in the recording"
        for stream, starts in self._starts.items():
            if starts > 1:
                yield f"'{stream.removesuffix(EVENTS)}' was started again in the recorded run, and forgot what it knew"
        there, here = self.about.get("machine", {}), machine()
        for name in there:
            if there[name] != here.get(name):
                yield f"{name}: recorded on {there[name]}, here is {here.get(name, 'none')}"
        engines = [note["engines"] for note in self.notes.get("engines", [])]
        complete = [
            found for found in engines if all(found.get(n, {}).keys() >= engines[-1][n].keys() for n in engines[-1])
        ]
        if any(found != complete[-1] for found in complete):
            yield "the engine changed in the middle of the recorded run"
        if summary is not None:
            yield from self._found_while_playing(engines[-1] if engines else {}, summary)

    def _found_while_playing(self, recorded: dict[str, Any], summary: dict[str, Any]) -> Iterator[str]:
        for node, facts in recorded.items():
            for fact, was in facts.items():
                if (now := summary["engines"].get(node, {}).get(fact)) != was:
                    yield f"{node}, {fact}: was {was}, is {now}"
        for node, sources in summary["dropped"].items():
            for source, reasons in sources.items():
                if count := reasons.get(NOT_RECORDED, 0):
                    yield f"{count} frames of '{source}' that '{node}' was told of are not in the recording"


_OF_A_REPLAY = ("replay", "realign", "replay_unclosed", "from_ns", "to_ns", "event_log", "faults", "derived")


def _gap(reader: Reader, stream: str) -> int:
    """How many messages of a journal are missing."""
    seqs = [m.message.seq for m in reader.messages([stream]) if isinstance(m.message, Frame)]
    return sum(max(0, after - before - 1) for before, after in pairwise([-1, *seqs]))


def _starts(reader: Reader, node: str) -> int:
    return sum(isinstance(event, Rules) for event in events_of(reader, node))


def conclude(tape: Tape, config: Config, summary: dict[str, Any], out: Path | None) -> None:
    """Say how long it took and whether the answers are those of the recorded run; DiffersError when they should be and are not."""
    reasons = tape.differs_because(config, summary)
    took_s = summary["seconds"]
    print(
        f"  {tape.lasts_s:.1f} s of recording in {took_s:.1f} s: {tape.lasts_s / max(took_s, 0.01):.2f} times as fast as it happened"
    )
    found = list(compare(tape.recorded_predictions(), read_predictions(out))) if out else None
    if tape.faults and out is not None:
        return tell_faults(tape, read_predictions(out))
    if reasons:
        print("  not identical to the recorded run because " + "; ".join(reasons))
        if found is not None:
            most = max((d.max_probability for d in found), default=0.0)
            print(f"  {_count(found)}; probabilities differ by at most {most:.1e} (the promise: {PROMISED:g})")
    elif found is None:
        print("  identical to the recorded run, as far as can be told without its predictions (--out compares them)")
    elif found:
        raise DiffersError(f"{_count(found)}, and nothing is known that explains it: a bug. The first: {found[0]}")
    else:
        print("  identical to the recorded run: every prediction, in every field but timing_ms and age_ns")


def tell_faults(tape: Tape, with_faults: list[dict[str, Any]]) -> None:
    """What the faults did to alignment and to the answers, beside the recorded run's, and the labels where there are any."""
    with Reader(tape.path, unclosed=tape.unclosed) as reader:
        labels = Labels.read(reader) if any(info.encoding == "label" for info in reader.streams.values()) else None
    for fault in tape.faults:
        print(f"  fault: {fault}")
    print(fault_report.table(tape.recorded_predictions(), with_faults, labels))


def _count(found: list[Difference]) -> str:
    return f"{len(found)} predictions are not those of the recorded run"
