"""What an aligner was told and what it decided, so that anyone can derive every decision again.

The aligner's sets depend only on its rules and on what arrived when, so those are all that is kept: no payload, and no
`advance`, which changes when a set is sent but never what is in it. One JSON array a line.

    log = EventLog(Path("events.jsonl"), rules)       # nodes.align.event_log in the YAML
    log.told(frame, arrival_ns); log.sent(aligned); log.finished(now_ns)
    verify(Path("events.jsonl"))                      # Verdict(sets=472, events=1457, differences=())
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline.alignment.aligner import Aligner, Emit
from pipeline.alignment.sync_policies import from_rule
from pipeline.errors import ConfigError
from pipeline.frame import FOREVER_NS, AlignedSet, Encoding, Frame, Receipt

UNTOLD_BYTES = 8000  # a journal's message is a message like any other: not one for every frame that arrives


class Rules(msgspec.Struct, frozen=True, array_like=True, tag="Rules"):
    """Everything an aligner is made from. picks: stream → its rule as in the YAML, for every stream but the anchor."""

    anchor: str | float  # a stream, or a rate in Hz
    picks: dict[str, dict[str, Any]]
    max_wait_ns: int | None
    emit: Emit
    start_ns: int

    def aligner(self) -> Aligner:
        picks = {stream: from_rule(rule, f"sync.{stream}") for stream, rule in self.picks.items()}
        return Aligner(self.anchor, picks, max_wait_ns=self.max_wait_ns, emit=self.emit, start_ns=self.start_ns)


class Told(msgspec.Struct, frozen=True, array_like=True, tag="Told"):
    """A frame without its payload, and when it arrived."""

    stream: str
    seq: int
    capture_ns: int
    duration_ns: int
    clock_error_ns: int
    encoding: Encoding
    reason: str
    arrival_ns: int

    def frame(self) -> Frame:
        return Frame(
            self.stream,
            self.seq,
            self.capture_ns,
            self.encoding,
            duration_ns=self.duration_ns,
            clock_error_ns=self.clock_error_ns,
            reason=self.reason,
        )


class Sent(msgspec.Struct, frozen=True, array_like=True, tag="Sent"):
    anchor_ns: int
    missing: tuple[str, ...]
    receipts: tuple[Receipt, ...]

    def matches(self, other: Sent) -> bool:
        """Alike in all but the age, which tells when the set was sent."""
        ageless = [[msgspec.structs.replace(r, age_ns=0) for r in sent.receipts] for sent in (self, other)]
        return (self.anchor_ns, self.missing) == (other.anchor_ns, other.missing) and ageless[0] == ageless[1]


class Finished(msgspec.Struct, frozen=True, array_like=True, tag="Finished"):
    now_ns: int


Event = Rules | Told | Sent | Finished


class EventLog:
    """To a file, and to `tell` (a node's journal), in whole lines. Raises ConfigError when the file cannot be written."""

    def __init__(self, path: Path | None, rules: Rules, tell: Callable[[bytes], None] | None = None) -> None:
        try:
            self._file = path.open("wb") if path else None
        except OSError as error:
            raise ConfigError(f"event log {path}: cannot be written: {error.strerror}") from error
        self._encoder = msgspec.json.Encoder()
        self._tell, self._untold, self._set_untold = tell, bytearray(), False
        self._write(rules)

    def told(self, frame: Frame, arrival_ns: int) -> None:
        self._write(
            Told(
                frame.stream,
                frame.seq,
                frame.capture_ns,
                frame.duration_ns,
                frame.clock_error_ns,
                frame.encoding,
                frame.reason,
                arrival_ns,
            )
        )

    def sent(self, aligned: AlignedSet) -> None:
        self._set_untold = True
        self._write(_sent(aligned))

    def finished(self, now_ns: int) -> None:
        self._write(Finished(now_ns))

    def pass_on(self, *, now: bool = False) -> None:
        """What was written since the last time, to `tell`: when a set was sent, or much has come together; else it can wait."""
        if self._tell is not None and self._untold and (now or self._set_untold or len(self._untold) > UNTOLD_BYTES):
            self._tell(bytes(self._untold))
            self._untold.clear()
            self._set_untold = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: Event) -> None:
        line = self._encoder.encode(event) + b"\n"
        if self._file is not None:
            self._file.write(line)
        if self._tell is not None:
            self._untold += line


class Verdict(NamedTuple):
    """differences: what does not agree, for people; empty when every set was derived again."""

    sets: int
    events: int
    differences: tuple[str, ...]


def verify(path: Path, *, most: int = 10) -> Verdict:
    """Derive every set of a run from what arrived. Raises ConfigError for a file that is no event log."""
    return judge(_read(path), str(path), most=most)


def judge(events: Iterator[Event], where: str, *, most: int = 10, cut: bool = False) -> Verdict:
    """The same of events from anywhere. An aligner that was started again begins with its rules again. cut: the end of the
    log is missing, so sets may be derived whose sending was not told any more."""
    rules = next(events, None)
    if not isinstance(rules, Rules):
        raise ConfigError(f"{where}: not an event log: its first line should hold the aligner's rules")
    aligner = rules.aligner()
    derived: deque[Sent] = deque()
    differences: list[str] = []
    sets = count = 0
    for event in events:
        count += 1
        if isinstance(event, Rules):
            derived.clear()  # what it held when it was stopped
            aligner = event.aligner()
        elif isinstance(event, Told):
            derived += map(_sent, aligner.add(event.frame(), event.arrival_ns))
        elif isinstance(event, Finished):
            derived += map(_sent, aligner.finish(event.now_ns))
        elif isinstance(event, Sent):
            sets += 1
            # A set that went out at its deadline, before the next arrival.
            while not derived and (wake_ns := aligner.wake_ns() or FOREVER_NS) < FOREVER_NS:
                derived += map(_sent, aligner.advance(wake_ns))
            if not derived:
                differences.append(f"set at {event.anchor_ns}: was sent, but cannot be derived")
            elif not (again := derived.popleft()).matches(event):
                differences.append(f"set at {event.anchor_ns}: was {event}, derived {again}")
    differences += [f"set at {sent.anchor_ns}: derived, but was not sent" for sent in derived if not cut]
    return Verdict(sets, count, tuple(differences[:most]))


def _sent(aligned: AlignedSet) -> Sent:
    return Sent(aligned.anchor_ns, aligned.missing, aligned.receipts)


def parse(lines: Iterable[bytes], where: str) -> Iterator[Event]:
    decoder = msgspec.json.Decoder(Event)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{where}:{number}: not a line of an event log: {error}") from error


def _read(path: Path) -> Iterator[Event]:
    try:
        with path.open("rb") as file:
            yield from parse(file, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
