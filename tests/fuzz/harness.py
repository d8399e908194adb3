"""Runs one reader of bytes on many inputs and counts what becomes of them.

A target returns for an input that it accepts and raises a SensoriumError with a message for one that it refuses.
Everything else is a failure: another exception, more CPU time than LIMIT_S, or a wrong accept, which a target raises
as AssertionError after it compared payloads. What brings a new message joins the pool that is mutated further.

Example:
    counts = run(TARGETS["wire"], folder, inputs=20_000, seed=1)
    counts.accepted, counts.refused, counts.failures
"""

from __future__ import annotations

import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import SensoriumError
from tests.fuzz.mutate import altered_tree, mutated

LIMIT_S = 3.0  # of CPU time for one input
GIVE_UP_S = 12.0  # of CPU time: then it is interrupted
MAX_POOL, MAX_POOLED_BYTES = 400, 1 << 16
MAX_FAILURES = 40  # kinds of a target
_NO_DIGITS = str.maketrans("", "", "0123456789")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reader:
    """A reader of bytes, ready.

    Args:
        samples: Valid inputs, from which others are made.
        read: Reads one input. Raises SensoriumError to refuse it, AssertionError where it was accepted wrongly.
        trees: Valid inputs as nested values, which `encode` makes bytes of.
        encode: Raises TypeError, ValueError or OverflowError for a tree that the format cannot hold.
        mend: Repairs checksums, so that an input gets past them; half of the mutated ones are mended.
        read_mended: Reads those, where what is accepted cannot be compared any more.
        names: Has to stand in the message of every refusal: the name of the file.
    """

    samples: list[bytes]
    read: Callable[[bytes], object]
    trees: list[Any] = field(default_factory=list)
    encode: Callable[[Any], bytes] | None = None
    mend: Callable[[bytes], bytes] | None = None
    read_mended: Callable[[bytes], object] | None = None
    names: str = ""


@dataclass(frozen=True)
class Target:
    """weight: its share of the inputs, by how fast it is."""

    name: str
    what: str
    weight: int
    make: Callable[[Path], Reader]

    def is_called(self, name: str) -> bool:
        """A target's name, or how several begin; with a point at its end, the whole name."""
        return f"{self.name}.".startswith(name)


TARGETS: dict[str, Target] = {}


def target(name: str, *, weight: int) -> Callable[[Callable[[Path], Reader]], Callable[[Path], Reader]]:
    """Registers a function that makes a Reader; its docstring says what is read."""

    def register(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
        assert name not in TARGETS, name
        TARGETS[name] = Target(name, (make.__doc__ or "").strip().split("\n")[0].rstrip("."), weight, make)
        return make

    return register


@dataclass
class Failure:
    kind: str
    trace: str
    data: bytes
    count: int = 1


@dataclass
class Counts:
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    messages: int = 0  # different ones, of refusals
    skipped: str = ""  # the package that is not installed here
    seconds: float = 0.0
    slowest_s: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def add_failure(self, kind: str, trace: str, data: bytes) -> None:
        known = self.failures.get(kind)
        if known is not None:
            known.count += 1
            if len(data) < len(known.data):
                known.data, known.trace = data, trace
        elif len(self.failures) < MAX_FAILURES:
            self.failures[kind] = Failure(kind, trace, data)


class Hang(BaseException):
    """An input took GIVE_UP_S. Not an Exception, so that no reader takes it for damage."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def run(
    fuzzed: Target,
    folder: Path,
    *,
    inputs: int,
    seed: int,
    before: Callable[[bytes], None] = lambda data: None,
) -> Counts:
    """Reads the samples, which have to be accepted, and then `inputs` mutated ones.

    Args:
        fuzzed: The target.
        folder: An empty folder for its files.
        inputs: How many.
        seed: Of everything that is drawn.
        before: Called with each input before it is read, so that a crash can be traced back.
    """
    counts = Counts()
    try:
        reader = fuzzed.make(folder)
    except ModuleNotFoundError as error:
        counts.skipped = str(error.name)
        return counts
    for sample in (*reader.samples, *(reader.encode(tree) for tree in reader.trees if reader.encode)):
        before(sample)
        try:
            reader.read(sample)
        except Exception as error:
            counts.add_failure("a valid sample is refused", _trace(error), sample)
    pool, messages = [*reader.samples], set[str]()
    signal.signal(signal.SIGPROF, _hang)
    began = time.perf_counter()
    for data, read in _inputs(reader, pool, random.Random(seed), inputs):
        before(data)
        counts.inputs += 1
        refusal = _read(read, reader.names, data, counts)
        if refusal is not None:
            shape = refusal.translate(_NO_DIGITS)[:160]
            if shape not in messages and len(messages) < 5000:
                messages.add(shape)
                if len(data) <= MAX_POOLED_BYTES and len(pool) < MAX_POOL:
                    pool.append(data)
    counts.seconds, counts.messages = time.perf_counter() - began, len(messages)
    return counts


def _inputs(
    reader: Reader, pool: list[bytes], chance: random.Random, count: int
) -> Iterator[tuple[bytes, Callable[[bytes], object]]]:
    """Inputs, and what reads each."""
    for _ in range(count):
        if reader.trees and reader.encode and (not pool or chance.random() < 0.5):
            try:
                yield reader.encode(altered_tree(chance, chance.choice(reader.trees))), reader.read
                continue
            except (TypeError, ValueError, LookupError, OverflowError, RecursionError):
                pass  # the format cannot hold it
        data = mutated(chance, pool or [b""])
        if reader.mend is not None and chance.random() < 0.5:
            yield reader.mend(data), reader.read_mended or reader.read
        else:
            yield data, reader.read


def _read(read: Callable[[bytes], object], names: str, data: bytes, counts: Counts) -> str | None:
    """The message of a refusal; None for anything else."""
    refusal = None
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, GIVE_UP_S)
    try:
        read(data)
        counts.accepted += 1
    except SensoriumError as error:
        counts.refused += 1
        refusal = str(error)
        if not refusal.strip() or names not in refusal:
            counts.add_failure(f"a refusal that does not name {names or 'anything'}", _trace(error), data)
        if len(refusal) > 4000:
            counts.add_failure("a refusal of more than 4000 characters", refusal[:4000], data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        counts.add_failure(_kind(error), _trace(error), data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took_s = time.process_time() - began
    counts.slowest_s = max(counts.slowest_s, took_s)
    if took_s > LIMIT_S:
        counts.add_failure(f"more than {LIMIT_S:g} s of CPU time", f"{took_s:.1f} s", data)
    return refusal


def _kind(error: BaseException) -> str:
    """The exception and the deepest line of ours: failures with one cause count as one."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT / "pipeline"))]
    where = f" at {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{where}"


def _trace(error: BaseException) -> str:
    lines = traceback.format_exception(error, limit=-12)
    return "".join(lines)[-6000:]


def limit_memory(more_bytes: int) -> None:
    """This process may allocate so much more than now; then Python raises MemoryError, which is a failure."""
    if sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text()
    now = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (now + more_bytes, resource.RLIM_INFINITY))
