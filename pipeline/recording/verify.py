"""A recording audited: what each stream holds, whether every aligned set follows from what arrived, and whether any message
is unaccounted for.

    audit = Audit(Path("rec.mcap"))
    audit.faults                                  # () when the books balance
    report(Path("rec.mcap"), plot=Path("timeline.svg"))
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.alignment import event_log
from pipeline.alignment.event_log import Rules, Sent, Told
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import FOREVER_NS, Frame, Health, Prediction, Receipt
from pipeline.recording.arrival_replay import events_of
from pipeline.recording.provenance import dropped_by_recorder
from pipeline.recording.reader import Reader
from pipeline.runtime.config import HEALTH
from pipeline.runtime.graph import EVENTS
from pipeline.transport.input_queue import EDGE_REASONS

MAX_TOLD = 5  # of one kind of trouble
BOOKS_LAG_NS = NS  # a node's counters reach the health that is recorded within this


@dataclass
class Stream:
    """What was seen of one stream of frames. Times in ns of the recording."""

    name: str
    encoding: str = ""
    captures_ns: list[int] = field(default_factory=list)  # without silences
    silences_ns: list[tuple[int, str]] = field(default_factory=list)  # until when, why
    seqs: list[int] = field(default_factory=list)
    end_ns: int = 0  # of the last frame
    missing: list[tuple[int, int, int]] = field(default_factory=list)  # (seq, how many, capture of the frame after)
    twice: int = 0
    backwards: int = 0
    restarts: int = 0
    clock_error_ns: int = 0

    def add(self, frame: Frame) -> None:
        last = self.seqs[-1] if self.seqs else -1
        if frame.seq == last:
            self.twice += 1
            return
        if frame.seq < last:  # its node was started again
            self.restarts += 1
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
        return sum(count for _, count, _ in self.missing)

    def row(self) -> tuple[str, ...]:
        """For the table: name, encoding, frames, rate, jitter, gaps, span, clock error, others."""
        steps: np.ndarray = np.diff(np.array(self.captures_ns, np.float64))  # exact below 104 days
        period_ns = int(np.median(steps)) if len(steps) else 0
        rate = f"{NS / period_ns:.2f} Hz" if period_ns > 0 else "–"
        even = steps[np.abs(steps - period_ns) < period_ns]  # without gaps
        jitter = f"{float(np.std(even)) / 1e6:.2f} ms" if len(even) > 1 else "–"
        span = f"{(self.end_ns - self.captures_ns[0]) / NS:.2f} s" if self.captures_ns else "–"
        gaps = f"{self.lost} in {len(self.missing)}" if self.missing else "none"
        troubles = {
            "silences": len(self.silences_ns),
            "twice": self.twice,
            "back in time": self.backwards,
            "restarts": self.restarts,
        }
        others = ", ".join(f"{count} {what}" for what, count in troubles.items() if count)
        error = f"{self.clock_error_ns / 1e6:.2f} ms"
        return self.name, self.encoding, str(len(self.captures_ns)), rate, jitter, gaps, span, error, others


class Audit:
    """Reads the whole recording once. Raises ConfigError where it is broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.streams: dict[str, Stream] = {}
        self.predictions: defaultdict[str, list[Prediction]] = defaultdict(list)
        self.sent: dict[str, list[Sent]] = {}  # by aligner
        self.told: dict[str, Counter[tuple[str, int, int]]] = {}  # by aligner: (stream, seq, capture)
        self.verdicts: dict[str, event_log.Verdict] = {}
        self._health: Health | None = None
        with Reader(path, unclosed=True) as reader:
            self.closed, self.torn_bytes, self.about, self.notes = (
                reader.closed,
                reader.torn_bytes,
                reader.about,
                reader.notes,
            )
            self.counts, self.span_ns, self.infos = reader.counts, reader.span_ns, dict(reader.streams)
            for stream, message, _ in reader.messages():
                if isinstance(message, Frame):
                    self.streams.setdefault(stream, Stream(stream)).add(message)
                elif isinstance(message, Prediction):
                    self.predictions[stream].append(message)
                elif isinstance(message, Health):
                    self._health = message
            self.last_ns = {s: self._last_of(reader, s) for s in reader.streams} if not self.finished else {}
            for stream in reader.streams:
                if stream.endswith(EVENTS):
                    self._hear(reader, stream.removesuffix(EVENTS))
        self.faults = tuple(self._faults())

    @property
    def finished(self) -> bool:
        """Whether its writer ended it in order."""
        return bool(self.closed and (self.notes.get("finished") or self.about.get("made_by") != "record"))

    @property
    def summary(self) -> dict[str, Any]:
        """The books of the whole run at its end; {} where nobody was left to write them."""
        return dict(self.notes["summary"][-1]) if self.notes.get("summary") else {}

    @property
    def from_live_run(self) -> bool:
        return self.about.get("made_by") == "record"

    def _last_of(self, reader: Reader, stream: str) -> int:
        last_ns = reader.span_ns[1]
        for back_ns in (2 * NS, 1 << 62):  # the last message is near the end, most often
            times = [m.log_ns for m in reader.messages([stream], from_ns=last_ns - back_ns)]
            if times:
                return times[-1]
        return 0

    def _hear(self, reader: Reader, align: str) -> None:
        events = list(events_of(reader, align))
        self.told[align] = Counter(
            (e.stream, e.seq, e.capture_ns) for e in events if isinstance(e, Told) and e.seq >= 0
        )
        self.sent[align] = [e for e in events if isinstance(e, Sent)]
        if not self._heard_whole(align):
            self.verdicts[align] = event_log.Verdict(len(self.sent[align]), len(events), ())
        elif events and isinstance(events[0], Rules):
            self.verdicts[align] = event_log.judge(iter(events), f"{self.path}: {align}{EVENTS}", cut=not self.finished)

    def _heard_whole(self, align: str) -> bool:
        """Whether all that `align` was told and decided is here. What the recorder dropped at the end leaves no gap to see."""
        return not self.streams[align + EVENTS].missing and not self._dropped_by_recorder(align + EVENTS)

    # --- the books ----------------------------------------------------------------------------------------------------

    def booked(self, stream: Stream) -> list[tuple[int, int, int]]:
        """The gaps of which the books that are here can tell: in a file cut off, those well before its last health."""
        if self.finished or self.summary:
            return stream.missing
        until_ns = self._health.publish_ns - BOOKS_LAG_NS if self._health else 0
        return [gap for gap in stream.missing if gap[2] <= until_ns]

    def _dropped(self, node: str, source: str) -> Counter[str]:
        """Reason → count, as that node itself said last."""
        if self.summary:
            return Counter(self.summary["dropped"].get(node, {}).get(source, {}))
        for health in self._health.nodes if self._health else ():
            if health.node == node:
                return Counter(health.dropped.get(source, {}))
        return Counter()

    def _dropped_by_recorder(self, stream: str) -> int:
        if self.notes.get("finished") or self.notes.get("summary"):
            return dropped_by_recorder(self.about, self.notes).get(stream, 0)
        recorders = [h for h in (self._health.nodes if self._health else ()) if "recording" in h.facts]
        return sum(sum(h.dropped.get(stream, {}).values()) for h in recorders)

    def _faults(self) -> Iterator[str]:
        for name, stream in self.streams.items():
            if stream.twice:
                yield f"{name}: {stream.twice} messages are there twice"
            missing = self.booked(stream)
            if self.from_live_run and (lost := sum(count for _, count, _ in missing)):
                explained = self._dropped_by_recorder(name) + self._dropped(name, name).total()
                if lost > explained:
                    where = ", ".join(
                        f"#{seq}" + (f"–{seq + n - 1}" if n > 1 else "") for seq, n, _ in missing[:MAX_TOLD]
                    )
                    yield f"{name}: {lost - explained} of {lost} missing messages are unaccounted for ({where} …)"
        for align, verdict in self.verdicts.items():
            yield from (f"{align}: {difference}" for difference in verdict.differences[:MAX_TOLD])
            if self._heard_whole(align):
                yield from self._unheard(align)
        for node, predictions in self.predictions.items():
            yield from self._unfounded(node, predictions)

    def _unheard(self, align: str) -> Iterator[str]:
        """Frames of which the aligner was told and that are not here, or that are here and it was never told of."""
        told = self.told[align]
        for source in sorted({stream for stream, _, _ in told} & self.streams.keys()):
            stream = self.streams[source]
            heard = sum(count for (name, _, _), count in told.items() if name == source)
            seqs = {seq for name, seq, _ in told if name == source}
            unrecorded = len(seqs - set(stream.seqs))
            if unrecorded > stream.lost and self.finished:
                yield f"{align}: was told of {unrecorded - stream.lost} frames of '{source}' that came after all that is recorded"
            unheard = len(stream.seqs) - (heard - unrecorded)
            dropped = self._dropped(align, source)
            if self.summary and unheard > sum(dropped[reason] for reason in EDGE_REASONS):
                yield f"{align}: {unheard} recorded frames of '{source}' never reached it, and it says nothing of them"

    def _unfounded(self, node: str, predictions: list[Prediction]) -> Iterator[str]:
        """Predictions that no set explains, receipts that are not the set's, and sets that nothing became of."""
        inputs = self.about.get("nodes", {}).get(node, {}).get("inputs", [])
        align = next((name for name in inputs if name in self.sent), None)
        if align is None:
            return
        sets = {sent.anchor_ns: sent for sent in self.sent[align]}
        whole = self._heard_whole(align) and self.finished
        unknown = [p.capture_ns for p in predictions if p.capture_ns not in sets]
        if unknown and whole:
            yield f"{node}: {len(unknown)} predictions are of no set of '{align}' (the first at {unknown[0]})"
        altered = [
            p.capture_ns for p in predictions if (s := sets.get(p.capture_ns)) and not _from_set(p.receipts, s.receipts)
        ]
        if altered:
            yield f"{node}: the receipts of {len(altered)} predictions are not those of their set (the first at {altered[0]})"
        left = len(sets) - (len(predictions) - len(unknown)) - self._dropped_by_recorder(node)
        dropped = self._dropped(node, align)
        if whole and self.summary and left > sum(dropped[reason] for reason in EDGE_REASONS):
            yield f"{node}: {left} sets of '{align}' became no prediction, and it says nothing of them"


def _from_set(of_prediction: tuple[Receipt, ...], of_set: tuple[Receipt, ...]) -> bool:
    """A task may say that what arrived cannot be used ("bad"); everything else it passes on."""
    if len(of_prediction) != len(of_set):
        return False
    return all(
        p.stream == s.stream and p.seq == s.seq and p.skew_ns == s.skew_ns and (p.state == s.state or p.state == "bad")
        for p, s in zip(of_prediction, of_set, strict=True)
    )


# --- for people -------------------------------------------------------------------------------------------------------

_HEAD = ("stream", "encoding", "frames", "rate", "jitter", "missing", "span", "clock error", "")


def report(path: Path, *, plot: Path | None = None) -> None:
    """Print the audit, and draw it. Raises ConfigError when anything is unaccounted for, or the file is not closed."""
    audit = Audit(path)
    first_ns, last_ns = audit.span_ns
    print(f"{path}: {(last_ns - first_ns) / NS:.1f} s, {audit.counts.total()} messages, {_made(audit)}")
    rows = [_HEAD, *(s.row() for n, s in audit.streams.items() if not n.endswith(EVENTS))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    for align, verdict in audit.verdicts.items():
        gap = (
            "; not derived again: the recorder dropped a part of what it was told"
            if not audit._heard_whole(align)
            else ""
        )
        derived = gap or ("" if verdict.differences else ", each derived again, with its receipts")
        print(f"  {align}: {verdict.sets} aligned sets{derived}")
    for node, predictions in audit.predictions.items():
        print(f"  {node}: {len(predictions)} predictions")
    for stream in audit.counts:
        if stream != HEALTH and (lost := audit._dropped_by_recorder(stream)):
            print(f"  dropped by the recorder: {lost} of {stream}")
    if not audit.finished:
        print(f"  cut off: its writer was killed. {_missing(audit)}")
        for cut in audit.streams.values():
            if untold := cut.lost - sum(count for _, count, _ in audit.booked(cut)):
                print(f"  {cut.name}: of {untold} missing messages the books were lost with the file's end")
    if plot is not None:
        from pipeline.recording.timeline import draw

        plot.write_text(draw(audit), encoding="utf-8")
        print(f"  drawn: {plot}")
    for fault in audit.faults:
        print(f"  UNACCOUNTED {fault}")
    if audit.faults:
        raise ConfigError(f"{path}: its books do not balance: {len(audit.faults)} faults, above")
    if not audit.closed:
        raise ConfigError(f"{path}: not closed. Close it with: python run_pipeline.py record --repair {path}")
    print("  every message is accounted for" + ("" if audit.finished else ", up to where it was cut off"))


def _made(audit: Audit) -> str:
    made: dict[str, Any] = audit.about
    consent = f"; consent: {made['consent']}" if made.get("consent") else ""
    return (
        f"made by {made.get('made_by', 'nobody known')} of {made.get('config') or made.get('source') or '?'}{consent}"
    )


def _missing(audit: Audit) -> str:
    """What is not there, by stream: the file's end says how far each reaches."""
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


def time_range(audit: Audit) -> tuple[int, int]:
    """(first, last) of what was captured."""
    times = [t for s in audit.streams.values() for t in (s.captures_ns[:1] + s.captures_ns[-1:]) if t < FOREVER_NS]
    return (min(times), max(times)) if times else audit.span_ns
