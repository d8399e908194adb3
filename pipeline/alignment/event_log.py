"""The event log: everything an aligner received and decided, from which every decision can be derived again.

The sets of an aligner depend only on its configuration and on what arrived when, so that is all the log holds: no
payload, and no `advance`, which changes when a set is sent but never what is in it. One JSON array a line.

Example:
    log = EventLog(Path("events.jsonl"), config)      # nodes.align.event_log in the YAML
    log.add_arrival(frame, arrival_ns); log.add_set(aligned); log.add_finish(now_ns)
    verify(Path("events.jsonl"))                      # Verification(sets=472, events=1457, differences=())
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline.alignment.aligner import Aligner, Emit
from pipeline.alignment.sync_policies import parse_policy
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.files import open_regular
from pipeline.frame import FOREVER_NS, AlignedSet, Encoding, Frame, Receipt
from pipeline.old_names import current_event_line
from pipeline.private_file import LineFile

log = logging.getLogger("align")

# Of arrivals without a set: one message for each arrival would cost more than the frame that it describes.
MAX_UNPUBLISHED_BYTES = 8000
MAX_LINE_BYTES = 1 << 20  # of a file: an event has some hundred bytes


MAX_RATE_HZ = 10_000.0
MAX_WAIT_NS = 24 * 3600 * NS
# Sets without a frame of the anchor that one log may ask for: so many at once, as after a night in which the computer
# slept, and so many more for each of its events.
MAX_TICKS, TICKS_AN_EVENT = 200_000, 100


def check_anchor(anchor: str | float, max_wait_ns: int | None, start_ns: int = 0) -> None:
    """Raises ValueError for a rate, a wait or a start that no run has."""
    if not isinstance(anchor, str) and not 1 / MAX_RATE_HZ <= anchor <= MAX_RATE_HZ:
        raise ValueError(f"anchor_rate_hz: found {anchor:g}, expected {1 / MAX_RATE_HZ:g} to {MAX_RATE_HZ:g}")
    if max_wait_ns is not None and not 0 <= max_wait_ns <= MAX_WAIT_NS:
        raise ValueError(f"max_wait_ms: found {max_wait_ns / 1e6:g}, expected 0 to {MAX_WAIT_NS / 1e6:g}, or null")
    if not -FOREVER_NS < start_ns < FOREVER_NS:
        raise ValueError(f"start_ns: found {start_ns}, a time that is never reached")


class AlignerConfig(msgspec.Struct, frozen=True, array_like=True, tag="config"):
    """Everything an aligner is built from."""

    anchor: str | float  # a stream, or a rate in Hz
    sync: dict[str, dict[str, Any]]  # of every stream but the anchor: its policy, as in the YAML
    max_wait_ns: int | None
    emit: Emit
    start_ns: int

    def aligner(self, where: str = "", own: Collection[Mapping[str, Any]] = ()) -> Aligner:
        """The aligner that it describes.

        Args:
            where: Begins every error: the file that holds it.
            own: The sync policies of the user's own config, which alone may name code.

        Raises:
            ConfigError: A policy does not exist, or names code that the user's own config does not.
        """
        try:
            check_anchor(self.anchor, self.max_wait_ns, self.start_ns)
            policies = {name: parse_policy(entry, f"sync.{name}", own=own) for name, entry in self.sync.items()}
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from error
        return Aligner(self.anchor, policies, max_wait_ns=self.max_wait_ns, emit=self.emit, start_ns=self.start_ns)

    def decides_like(self, other: AlignerConfig) -> bool:
        """Whether both are the same in all but the start time."""
        return msgspec.structs.replace(self, start_ns=0) == msgspec.structs.replace(other, start_ns=0)


class ArrivalEvent(msgspec.Struct, frozen=True, array_like=True, tag="arrival"):
    """A frame without its payload, and when it arrived."""

    stream: str
    seq: int
    capture_ns: int
    duration_ns: int
    clock_error_ns: int
    encoding: Encoding
    reason: str
    arrival_ns: int

    @classmethod
    def of(cls, frame: Frame, arrival_ns: int) -> ArrivalEvent:
        return cls(
            frame.stream,
            frame.seq,
            frame.capture_ns,
            frame.duration_ns,
            frame.clock_error_ns,
            frame.encoding,
            frame.reason,
            arrival_ns,
        )

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


class SetEvent(msgspec.Struct, frozen=True, array_like=True, tag="set"):
    """A set that was sent, with its receipts instead of its frames."""

    anchor_ns: int
    missing: tuple[str, ...]
    receipts: tuple[Receipt, ...]

    @classmethod
    def of(cls, aligned: AlignedSet) -> SetEvent:
        return cls(aligned.anchor_ns, aligned.missing, aligned.receipts)

    def matches(self, other: SetEvent) -> bool:
        """Alike in all but the age, which depends on when the set was sent."""
        ageless = [[msgspec.structs.replace(r, age_ns=0) for r in event.receipts] for event in (self, other)]
        return (self.anchor_ns, self.missing) == (other.anchor_ns, other.missing) and ageless[0] == ageless[1]


class FinishEvent(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """Every input had ended at now_ns."""

    now_ns: int


Event = AlignerConfig | ArrivalEvent | SetEvent | FinishEvent


class EventLog:
    """Writes events as lines of JSON, to a file, to `publish`, or to both.

    Args:
        path: The file; None: no file. Raises ConfigError when it cannot be written, or another run writes it.
        config: The first event: what the aligner is built from.
        publish: Called with whole lines, several at a time (see `flush`); None: nothing is published.
        goes_on: The aligner was started again: the file goes on behind its last whole line.
    """

    def __init__(
        self,
        path: Path | None,
        config: AlignerConfig,
        publish: Callable[[bytes], None] | None = None,
        *,
        goes_on: bool = False,
    ) -> None:
        try:
            self._file = LineFile(path, goes_on=goes_on) if path else None
        except OSError as error:
            raise ConfigError(f"event log {path}: cannot be written: {error.strerror}") from error
        self._encoder = msgspec.json.Encoder()
        self._publish, self._unpublished, self._set_unpublished = publish, bytearray(), False
        self._write(config)

    def add_arrival(self, frame: Frame, arrival_ns: int) -> None:
        self._write(ArrivalEvent.of(frame, arrival_ns))

    def add_set(self, aligned: AlignedSet) -> None:
        self._set_unpublished = True
        self._write(SetEvent.of(aligned))

    def add_finish(self, now_ns: int) -> None:
        self._write(FinishEvent(now_ns))

    def flush(self, *, now: bool = False) -> None:
        """Publish the events since the last time, if a set is among them, if there are many, or `now`."""
        if self._publish is None or not self._unpublished:
            return
        if now or self._set_unpublished or len(self._unpublished) > MAX_UNPUBLISHED_BYTES:
            self._publish(bytes(self._unpublished))
            self._unpublished.clear()
            self._set_unpublished = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: Event) -> None:
        line = self._encoder.encode(event) + b"\n"
        if self._file is not None:
            try:
                self._file.write(line)
            except OSError as error:  # sets go on; without these events, none of the events after them can be verified
                log.error("event log: %s. It ends here; the pipeline goes on.", error.strerror)
                self.close()
                self._file = None
        if self._publish is not None:
            self._unpublished += line


class Verification(NamedTuple):
    """The result of deriving every set again. differences: for people; empty when all sets are as they were sent."""

    sets: int
    events: int
    differences: tuple[str, ...]


def verify(path: Path, *, own_policies: Collection[Mapping[str, Any]] = (), max_differences: int = 10) -> Verification:
    """Derive every set of a run from what arrived; the arguments are those of `verify_events`.

    Raises ConfigError for a file that is no event log.
    """
    return verify_events(_read(path), str(path), own_policies=own_policies, max_differences=max_differences)


def verify_events(
    events: Iterator[Event],
    where: str,
    *,
    own_policies: Collection[Mapping[str, Any]] = (),
    max_differences: int = 10,
    incomplete: bool = False,
) -> Verification:
    """The same for events from anywhere. Each AlignerConfig among them is a restart of the aligner.

    Args:
        events: In the order of the log.
        where: Names the log in errors.
        own_policies: The sync policies of the user's own config; a log may name no other code.
        max_differences: Differences that are listed.
        incomplete: The end of the log is missing, so a set without a SetEvent is no difference.
    """
    config = next(events, None)
    if not isinstance(config, AlignerConfig):
        raise ConfigError(f"{where}: not an event log: its first line should hold the configuration of the aligner")
    aligner = config.aligner(where, own_policies)
    budget = _Budget(where)
    derived: deque[SetEvent] = deque()
    differences: list[str] = []
    sets = count = 0
    for event in events:
        count += 1
        if isinstance(event, AlignerConfig):
            derived.clear()  # the aligner stopped before it could send these
            aligner = event.aligner(where, own_policies)
        elif isinstance(event, ArrivalEvent):
            frame = event.frame()
            budget.check(count, event.arrival_ns, frame.capture_ns, frame.end_ns)
            budget.spend(count, aligner.ticks_until(event.arrival_ns, frame))
            derived += map(SetEvent.of, aligner.add(frame, event.arrival_ns))
        elif isinstance(event, FinishEvent):
            budget.check(count, event.now_ns)
            budget.spend(count, aligner.ticks_until(event.now_ns))
            derived += map(SetEvent.of, aligner.finish(event.now_ns))
        elif isinstance(event, SetEvent):
            sets += 1
            # A set that was sent at its deadline, before the next arrival.
            while not derived and (wake_ns := aligner.wake_ns() or FOREVER_NS) < FOREVER_NS:
                budget.spend(count, 1)
                derived += map(SetEvent.of, aligner.advance(wake_ns))
            if not derived:
                differences.append(f"set at {event.anchor_ns}: was sent, but cannot be derived")
            elif not (again := derived.popleft()).matches(event):
                differences.append(f"set at {event.anchor_ns}: was {event}, derived {again}")
    if not incomplete:
        differences += [f"set at {event.anchor_ns}: derived, but was not sent" for event in derived]
    return Verification(sets, count, tuple(differences[:max_differences]))


class _Budget:
    """What deriving a log may cost: times that are never reached, and gaps of years, are refused with the event."""

    def __init__(self, where: str) -> None:
        self._where, self._spent = where, 0

    def check(self, number: int, *times_ns: int) -> None:
        for time_ns in times_ns:
            if not -FOREVER_NS <= time_ns <= 2 * FOREVER_NS - 1:
                raise ConfigError(f"{self._where}: event {number}: a time of {time_ns} ns, which is never reached")

    def spend(self, number: int, ticks: int) -> None:
        self._spent += ticks
        if self._spent > MAX_TICKS + TICKS_AN_EVENT * number:
            raise ConfigError(
                f"{self._where}: event {number} lies so far after the one before that {self._spent:,} sets would have "
                "to be derived. Was the log written by one run, and is it whole?"
            )


def parse_events(lines: Iterable[bytes], where: str) -> Iterator[Event]:
    """The events of an event log's lines, also of a log of an earlier version. Raises ConfigError."""
    decoder = msgspec.json.Decoder(Event)
    for number, line in enumerate(lines, 1):
        try:
            yield decoder.decode(current_event_line(line))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ConfigError(f"{where}:{number}: not a line of an event log: {error}") from error


def _read(path: Path) -> Iterator[Event]:
    with open_regular(path) as file:
        # A line without an end is cut, so that it is refused, not held in memory.
        yield from parse_events(iter(lambda: file.readline(MAX_LINE_BYTES), b""), str(path))
