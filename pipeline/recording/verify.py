"""Audits a recording: what each stream holds, whether every aligned set follows from what arrived, and whether every
message is accounted for. verify.py prints it, timeline.py draws it.

Example:
    audit = Audit(Path("rec.mcap"))
    audit.faults                                  # () when every message is accounted for
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.alignment import event_log
from pipeline.alignment.event_log import AlignerConfig, ArrivalEvent, Event, SetEvent
from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, Frame, Health, Prediction, Receipt
from pipeline.recording.arrival_replay import events_of
from pipeline.recording.provenance import dropped_by_recorder
from pipeline.recording.reader import Reader
from pipeline.runtime.accounting import QUEUED
from pipeline.runtime.graph import EVENTS
from pipeline.transport.drop_reasons import EDGE_REASONS

MAX_LISTED = 5  # faults of one kind
COUNTERS_LAG_NS = NS  # a node's counters are in the recorded health messages after this


@dataclass
class StreamAudit:
    """What the recording holds of one stream of frames. Times are in the recording's ns."""

    name: str
    encoding: str = ""
    captures_ns: list[int] = field(default_factory=list)  # without silences
    silences_ns: list[tuple[int, str]] = field(default_factory=list)  # (end, reason)
    seqs: list[int] = field(default_factory=list)
    end_ns: int = 0  # of the last frame
    missing: list[tuple[int, int, int]] = field(default_factory=list)  # (first seq, count, capture of the frame after)
    duplicates: int = 0
    backwards: int = 0  # timestamps not after the one before
    restarts: int = 0
    before_reconnection: int = (
        0  # messages that its node had sent, started again, when the recorder was connected again
    )
    clock_error_ns: int = 0

    def add(self, frame: Frame) -> None:
        last = self.seqs[-1] if self.seqs else -1
        if frame.seq == last:
            self.duplicates += 1
            return
        if frame.seq < last:  # its node restarted
            self.restarts += 1
            self.before_reconnection += frame.seq
            last = -1
        if frame.seq > last + 1:
            self.missing.append((last + 1, frame.seq - last - 1, frame.capture_ns))
        self.seqs.append(frame.seq)
        if frame.encoding == "none":
            self.silences_ns.append((frame.capture_ns, frame.reason))
            return
        self.backwards += bool(self.captures_ns and frame.capture_ns <= self.captures_ns[-1])
        self.encoding = frame.encoding
        self.captures_ns.append(frame.capture_ns)
        self.end_ns = max(self.end_ns, frame.end_ns)
        self.clock_error_ns = max(self.clock_error_ns, frame.clock_error_ns)

    @property
    def lost(self) -> int:
        """How many messages are missing from seq."""
        return sum(count for _, count, _ in self.missing)

    def row(self) -> tuple[str, ...]:
        """For the table of verify: name, encoding, frames, rate, jitter, gaps, span, clock error, others."""
        steps: np.ndarray = np.diff(np.array(self.captures_ns, np.float64))  # exact below 104 days
        period_ns = int(np.median(steps)) if len(steps) else 0
        rate = f"{NS / period_ns:.2f} Hz" if period_ns > 0 else "–"
        even = steps[np.abs(steps - period_ns) < period_ns]  # without gaps
        jitter = f"{float(np.std(even)) / 1e6:.2f} ms" if len(even) > 1 else "–"
        span = f"{(self.end_ns - self.captures_ns[0]) / NS:.2f} s" if self.captures_ns else "–"
        gaps = f"{self.lost} in {len(self.missing)}" if self.missing else "none"
        counts = {
            "silences": len(self.silences_ns),
            "duplicates": self.duplicates,
            "timestamps before the last one": self.backwards,
            "restarts": self.restarts,
        }
        others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        error = f"{self.clock_error_ns / 1e6:.2f} ms"
        return self.name, self.encoding, str(len(self.captures_ns)), rate, jitter, gaps, span, error, others


class Audit:
    """Reads the whole recording once.

    Args:
        path: The recording.
        own_policies: The sync policies of the user's own config; the recording may name no other code.

    Raises:
        ConfigError: It is broken, or names code.
    """

    def __init__(self, path: Path, own_policies: Collection[Mapping[str, Any]] = ()) -> None:
        self.path, self._own_policies = path, own_policies
        self.streams: dict[str, StreamAudit] = {}
        self.predictions: defaultdict[str, list[Prediction]] = defaultdict(list)
        self.sent: dict[str, list[SetEvent]] = {}  # by aligner
        self.arrivals: dict[str, Counter[tuple[str, int, int]]] = {}  # by aligner: (stream, seq, capture)
        self.verdicts: dict[str, event_log.Verification] = {}
        self._last_before_restart: dict[str, set[int]] = {}  # by aligner: anchors of sets that may have died with it
        self._health: Health | None = None
        with Reader(path, unclosed=True) as reader:
            self.closed, self.torn_bytes = reader.closed, reader.torn_bytes
            self.about, self.notes = reader.about, reader.notes
            self.counts, self.span_ns, self.infos = reader.counts, reader.span_ns, dict(reader.streams)
            for stream, message, _ in reader.messages():
                if isinstance(message, Frame):
                    self.streams.setdefault(stream, StreamAudit(stream)).add(message)
                elif isinstance(message, Prediction):
                    self.predictions[stream].append(message)
                elif isinstance(message, Health):
                    self._health = message
            self.last_ns = {s: self._last_of(reader, s) for s in reader.streams} if not self.finished else {}
            for stream in reader.streams:
                if stream.endswith(EVENTS):
                    self._derive(reader, stream.removesuffix(EVENTS))
        self.faults = tuple(self._faults())

    @property
    def finished(self) -> bool:
        """Whether its writer closed it in order."""
        return bool(self.closed and (self.notes.get("finished") or self.about.get("made_by") != "record"))

    @property
    def summary(self) -> dict[str, Any]:
        """The counters of the whole run at its end; {} when the run did not end in order."""
        return dict(self.notes["summary"][-1]) if self.notes.get("summary") else {}

    @property
    def from_live_run(self) -> bool:
        return self.about.get("made_by") == "record"

    def _last_of(self, reader: Reader, stream: str) -> int:
        """The last log time of a stream."""
        last_ns = reader.span_ns[1]
        for back_ns in (2 * NS, 1 << 62):  # most often the last message is near the end
            times = [m.log_ns for m in reader.messages([stream], from_ns=last_ns - back_ns)]
            if times:
                return times[-1]
        return 0

    def _derive(self, reader: Reader, align: str) -> None:
        events = list(events_of(reader, align))
        self.arrivals[align] = Counter(
            (e.stream, e.seq, e.capture_ns) for e in events if isinstance(e, ArrivalEvent) and e.seq >= 0
        )
        self.sent[align] = [e for e in events if isinstance(e, SetEvent)]
        self._last_before_restart[align] = set(_last_before_restarts(events))
        if not self.has_all_events(align):
            self.verdicts[align] = event_log.Verification(len(self.sent[align]), len(events), ())
        elif events and isinstance(events[0], AlignerConfig):
            self.verdicts[align] = event_log.verify_events(
                iter(events),
                f"{self.path}: {align}{EVENTS}",
                own_policies=self._own_policies,
                incomplete=not self.finished,
            )

    def has_all_events(self, align: str) -> bool:
        """Whether the recording holds the aligner's whole event log.

        Events that the recorder dropped at the end leave no gap in seq.
        """
        return not self.streams[align + EVENTS].missing and not self.dropped_by_the_recorder(align + EVENTS)

    # --- message accounting -------------------------------------------------------------------------------------------

    def countable_gaps(self, stream: StreamAudit) -> list[tuple[int, int, int]]:
        """The gaps that recorded counters can explain: in a file cut off, those well before its last health message."""
        if self.finished or self.summary:
            return stream.missing
        until_ns = self._health.publish_ns - COUNTERS_LAG_NS if self._health else 0
        return [gap for gap in stream.missing if gap[2] <= until_ns]

    def _dropped(self, node: str, source: str) -> Counter[str]:
        """Reason → count, as that node last reported."""
        if self.summary:
            return Counter(self.summary["dropped"].get(node, {}).get(source, {}))
        for health in self._health.nodes if self._health else ():
            if health.node == node:
                return Counter(health.dropped.get(source, {}))
        return Counter()

    def dropped_by_the_recorder(self, stream: str) -> int:
        if self.notes.get("finished") or self.notes.get("summary"):
            return dropped_by_recorder(self.about, self.notes, self.counts).get(stream, 0)
        recorders = [h for h in (self._health.nodes if self._health else ()) if "recording" in h.facts]
        return sum(sum(h.dropped.get(stream, {}).values()) for h in recorders)

    def _faults(self) -> Iterator[str]:
        for name, stream in self.streams.items():
            if stream.duplicates:
                yield f"{name}: {stream.duplicates} messages are in it twice"
            missing = self.countable_gaps(stream)
            if self.from_live_run and (lost := sum(count for _, count, _ in missing)):
                explained = self.dropped_by_the_recorder(name) + self._dropped(name, name).total()
                if self.summary.get("restarts", {}).get(name.removesuffix(EVENTS)):
                    explained += stream.before_reconnection
                if lost > explained:
                    where = ", ".join(
                        f"#{seq}" + (f"–{seq + n - 1}" if n > 1 else "") for seq, n, _ in missing[:MAX_LISTED]
                    )
                    yield f"{name}: {lost - explained} of {lost} missing messages are unaccounted for ({where} …)"
        for align, verdict in self.verdicts.items():
            yield from (f"{align}: {difference}" for difference in verdict.differences[:MAX_LISTED])
            if self.has_all_events(align):
                yield from self._unreceived(align)
        for node, predictions in self.predictions.items():
            yield from self._unmatched(node, predictions)

    def _unreceived(self, align: str) -> Iterator[str]:
        """Frames that the aligner received and the recording lacks, and recorded frames that never reached it."""
        arrivals = self.arrivals[align]
        for source in sorted({stream for stream, _, _ in arrivals} & self.streams.keys()):
            stream = self.streams[source]
            received = sum(count for (name, _, _), count in arrivals.items() if name == source)
            seqs = {seq for name, seq, _ in arrivals if name == source}
            unrecorded = len(seqs - set(stream.seqs))
            if unrecorded > stream.lost and self.finished:
                yield f"{align}: received {unrecorded - stream.lost} frames of '{source}' after the last recorded one"
            unreceived = len(stream.seqs) - (received - unrecorded)
            dropped = self._dropped(align, source)
            if self.summary and unreceived > sum(dropped[reason] for reason in EDGE_REASONS):
                yield (
                    f"{align}: {unreceived} recorded frames of '{source}' never arrived, "
                    "and no node counted them as dropped"
                )

    def _unmatched(self, node: str, predictions: list[Prediction]) -> Iterator[str]:
        """Predictions without a set, receipts that differ from their set's, and sets without a prediction."""
        inputs = self.about.get("nodes", {}).get(node, {}).get("inputs", [])
        align = next((name for name in inputs if name in self.sent), None)
        if align is None:
            return
        sets = {sent.anchor_ns: sent for sent in self.sent[align]}
        whole = self.has_all_events(align) and self.finished
        unknown = [p.capture_ns for p in predictions if p.capture_ns not in sets]
        if unknown and whole:
            yield f"{node}: {len(unknown)} predictions belong to no set of '{align}' (the first at {unknown[0]})"
        altered = [
            p.capture_ns for p in predictions if (s := sets.get(p.capture_ns)) and not _from_set(p.receipts, s.receipts)
        ]
        if altered:
            first = f"the first at {altered[0]}"
            yield f"{node}: the receipts of {len(altered)} predictions differ from their set's ({first})"
        died = self._last_before_restart[align] - {p.capture_ns for p in predictions}
        left = len(sets) - (len(predictions) - len(unknown)) - self.dropped_by_the_recorder(node) - len(died)
        dropped = self._dropped(node, align)
        if whole and self.summary and left > sum(dropped[reason] for reason in EDGE_REASONS):
            yield f"{node}: {left} sets of '{align}' have no prediction, and were not counted as dropped"


def _last_before_restarts(events: Sequence[Event]) -> Iterator[int]:
    """The anchors of the sets that an aligner had logged last when it was killed: its queues may have held them."""
    anchors: list[int] = []
    for event in events:
        if isinstance(event, SetEvent):
            anchors.append(event.anchor_ns)
        elif isinstance(event, AlignerConfig):
            yield from anchors[-QUEUED:]
            anchors.clear()


def _from_set(of_prediction: tuple[Receipt, ...], of_set: tuple[Receipt, ...]) -> bool:
    """Whether receipts are the set's, in every field. A task may mark an input as unusable ("bad"), with its reason."""
    if len(of_prediction) != len(of_set):
        return False
    return all(
        p == s or (p.state == "bad" and msgspec.structs.replace(p, state=s.state, reason=s.reason) == s)
        for p, s in zip(of_prediction, of_set, strict=True)
    )


def time_range(audit: Audit) -> tuple[int, int]:
    """(first, last) capture time; the log times of a recording without frames."""
    times = [t for s in audit.streams.values() for t in (s.captures_ns[:1] + s.captures_ns[-1:]) if t < FOREVER_NS]
    return (min(times), max(times)) if times else audit.span_ns
