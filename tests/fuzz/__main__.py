"""Fuzzes every reader of bytes: `make fuzz`, or one of them: python -m tests.fuzz --target wire --inputs 20000

    --target NAME      one target, or those whose names begin so; repeatable. Default: all of them
    --inputs N         in all, shared out by the targets' speed. Default: 1,000,000
    --seed N           of everything that is drawn. Default: 1
    --jobs N           processes side by side. Default: one a core
    --one-process      all targets in one process, for the tests: they are imported once
    --input FILE       reads this one file with the target and shows what happens
    --table FILE       puts the table there too, as Markdown: in a page, between its two lines <!-- fuzz -->
    --list             the targets

Each target runs in a process of its own, with a limit of memory; one that dies or stands still is a failure, and the
input that it had is kept. Inputs that failed are written to .cache/fuzz/, the shortest of each kind. Exit code 1: there
are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tests.fuzz import targets  # noqa: E402  # registers them; needs the path above
from tests.fuzz.harness import TARGETS, Target, limit_memory, run  # noqa: E402

FAILED = ROOT / ".cache" / "fuzz"
MEMORY_BYTES = 1 << 30  # that a target may allocate on top of its own start
STALLED_S, STARTING_S = 90.0, 600.0  # without a new input; before the first
MARK = "<!-- fuzz -->"
RECORD_BYTES = 4 << 20  # of the file in which a worker notes its input


@dataclass
class Result:
    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    messages: int = 0
    skipped: str = ""
    seconds: float = 0.0
    slowest_s: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)  # kind, trace, count, file


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one-process", action="store_true")
    parser.add_argument("--input", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a worker: the file where it notes its input
    options = parser.parse_args()
    chosen = [t for t in TARGETS.values() if not options.target or any(map(t.is_called, options.target))]
    if not chosen:
        parser.error(f"no target {', '.join(options.target)}. Targets: {', '.join(TARGETS)}")
    if options.list:
        print("\n".join(f"{t.name:<20} {t.what}" for t in chosen))
        return 0
    if options.input is not None:
        return read_one(chosen[0], options.input.read_bytes())
    counts = shares(chosen, options.inputs)
    if options.work is not None:
        work(chosen, counts, options.seed, options.work)
        return 0
    groups = [chosen] if options.one_process else [[t] for t in sorted(chosen, key=lambda t: -t.weight)]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = [r for part in pool.map(lambda group: supervise(group, counts, options.seed), groups) for r in part]
    results.sort(key=lambda result: list(TARGETS).index(result.target))
    return report(results, options.table)


def shares(chosen: Sequence[Target], inputs: int) -> dict[str, int]:
    whole = sum(t.weight for t in chosen)
    return {t.name: max(1, math.ceil(inputs * t.weight / whole)) for t in chosen}


# --- a worker ---------------------------------------------------------------------------------------------------------


def work(chosen: Sequence[Target], counts: dict[str, int], seed: int, record: Path) -> None:
    """Runs the targets one after the other; prints a line of JSON for each. `record` holds the input at hand."""
    limit_memory(MEMORY_BYTES)
    with record.open("r+b") as file:
        noted = mmap.mmap(file.fileno(), RECORD_BYTES)
    number = 0
    printed = os.fdopen(os.dup(1), "w")

    for index, fuzzed in enumerate(chosen):

        def before(data: bytes, index: int = index) -> None:
            nonlocal number
            number += 1
            part = data[: RECORD_BYTES - 24]
            noted[24 : 24 + len(part)] = part
            noted[:24] = b"".join(n.to_bytes(8, "little") for n in (number, index, len(part)))

        with tempfile.TemporaryDirectory(prefix="sensorium-fuzz-") as folder:
            result = run(fuzzed, Path(folder), inputs=counts[fuzzed.name], seed=seed, before=before)
        fields = {
            **vars(result),
            "target": fuzzed.name,
            "failures": [
                {"kind": f.kind, "trace": f.trace, "count": f.count, "file": keep(fuzzed.name, f.kind, f.data)}
                for f in result.failures.values()
            ],
        }
        printed.write(json.dumps(fields) + "\n")
        printed.flush()


def keep(name: str, kind: str, data: bytes) -> str:
    FAILED.mkdir(parents=True, exist_ok=True)
    path = FAILED / f"{name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}.bin"
    path.write_bytes(data)
    return str(path.relative_to(ROOT))


def read_one(fuzzed: Target, data: bytes) -> int:
    with tempfile.TemporaryDirectory(prefix="sensorium-fuzz-") as folder:
        reader = fuzzed.make(Path(folder))
        began = time.process_time()
        try:
            print(f"accepted: {reader.read(data)!r:.2000}")
        finally:
            print(f"{time.process_time() - began:.3f} s of CPU time")
    return 0


# --- the parent -------------------------------------------------------------------------------------------------------


def supervise(group: Sequence[Target], counts: dict[str, int], seed: int) -> list[Result]:
    """Runs a worker; one that dies or stands still is a failure of its target, and the others go on in a new one."""
    results: list[Result] = []
    remaining = list(group)
    while remaining:
        lines, noted, why, trace = one_worker(remaining, counts, seed)
        results += [Result(**json.loads(line)) for line in lines]
        if why is None:
            return results
        _, index, size = (int.from_bytes(noted[at : at + 8], "little") for at in (0, 8, 16))
        lost = remaining[index]
        file = keep(lost.name, why, noted[24 : 24 + size])
        results.append(Result(lost.name, failures=[{"kind": why, "trace": trace, "count": "1", "file": file}]))
        remaining = remaining[index + 1 :]
    return results


def one_worker(group: Sequence[Target], counts: dict[str, int], seed: int) -> tuple[list[str], bytes, str | None, str]:
    """(what it printed, its record, why it did not come to its end, the end of its standard error)."""
    with tempfile.NamedTemporaryFile(prefix="sensorium-fuzz-") as record, tempfile.TemporaryFile() as errors:
        record.truncate(RECORD_BYTES)
        command = [sys.executable, "-m", "tests.fuzz", "--work", record.name, "--seed", str(seed)]
        command += ["--inputs", str(sum(counts[t.name] for t in group))]
        command += [word for t in group for word in ("--target", f"{t.name}.")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            why, last, changed_s = None, b"", time.monotonic()
            with ThreadPoolExecutor(1) as reading:
                assert process.stdout is not None
                printed = reading.submit(process.stdout.readlines)
                while process.poll() is None:
                    time.sleep(0.1)
                    now = os.pread(record.fileno(), 8, 0)  # not through a buffer, which would never change
                    if now != last:
                        last, changed_s = now, time.monotonic()
                    elif time.monotonic() - changed_s > (STALLED_S if any(now) else STARTING_S):
                        why = f"it stood still for {STALLED_S:g} s"
                        process.kill()
                        process.wait()
                lines = printed.result()
        if why is None and process.returncode != 0:
            why = f"its process ended with {process.returncode}"
        record.seek(0)
        errors.seek(max(0, errors.seek(0, 2) - 3000))
        return lines, record.read(RECORD_BYTES), why, errors.read().decode(errors="replace")


def report(results: Sequence[Result], table: Path | None) -> int:
    columns = ("inputs", "accepted", "refused", "messages", "failures", "inputs/s", "slowest")
    print("{:<18} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}".format("target", *columns))
    for r in results:
        print(
            f"{r.target:<18} {r.inputs:>9,} {r.accepted:>9,} {r.refused:>9,} {r.messages:>8,} {len(r.failures):>8} "
            f"{r.inputs / max(r.seconds, 1e-9):>9,.0f} {r.slowest_s:>6.2f} s"
        )
    for r in results:
        if r.skipped:
            print(f"{r.target}: skipped: no package {r.skipped} here")
    total = [sum(getattr(r, name) for r in results) for name in ("inputs", "accepted", "refused", "messages")]
    failed = sum(len(r.failures) for r in results)
    print("{:<18} {:>9,} {:>9,} {:>9,} {:>8,} {:>8}".format("all", *total, failed))
    for r in results:
        for failure in r.failures:
            print(f"\n{r.target}: {failure['kind']} ({failure['count']} times); {failure['file']}\n{failure['trace']}")
    if table is not None:
        page = table.read_text(encoding="utf-8").split(MARK) if table.exists() else []
        text = markdown(results, total, failed)
        table.write_text(MARK.join([page[0], f"\n{text}", page[2]]) if len(page) == 3 else text, encoding="utf-8")
    return 1 if failed else 0


def markdown(results: Sequence[Result], total: Sequence[int], failed: int) -> str:
    lines = ["| reader | inputs | accepted | refused | failures | inputs a second |", "|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {TARGETS[r.target].what} | {r.inputs:,} | {r.accepted:,} | {r.refused:,} | {len(r.failures)} | "
        f"{r.inputs / max(r.seconds, 1e-9):,.0f} |"
        for r in results
    ]
    return "\n".join([*lines, "| **all** | {:,} | {:,} | {:,} | {} | |".format(*total[:3], failed), ""])


assert targets
if __name__ == "__main__":
    sys.exit(main())
