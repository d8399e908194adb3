"""Runs many command lines of ours from one start: each in a child of its own, with limits of time and memory.

As a program it reads lists of arguments from standard input (JSON) and prints what became of each: the exit code, what
was printed, the CPU seconds and the largest memory.

Example:
    for arguments, ran in forked([["verify", "x.mcap"], ["export", "x.mcap", "out"]]): ran.code, ran.printed
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CPU_S, WAIT_S = 30, 15  # of computing, and of waiting: then the kernel ends it
MEMORY_BYTES = 2 << 30


class Ran(NamedTuple):
    code: int  # negative: the signal that ended it
    printed: str
    cpu_s: float
    peak_bytes: int


def forked(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[tuple[Sequence[str], Ran]]:
    """folder: where they run."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=folder,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for command, line in zip(commands, done.stdout.splitlines(), strict=True):
        yield command, Ran(*json.loads(line))


def _run(arguments: Sequence[str]) -> Ran:
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
                signal.alarm(WAIT_S)
                resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
                sys.argv = ["run_pipeline.py", *arguments]
                code = run_pipeline.main()
            except SystemExit as ending:
                code = ending.code if isinstance(ending.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status, usage = os.wait4(child, 0)
        printed.seek(0)
        text = printed.read().decode("utf-8", "replace")
        return Ran(os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    import pipeline.recording.reader
    import run_pipeline

    assert pipeline.recording.reader
    for command in json.load(sys.stdin):
        print(json.dumps(_run(command)), flush=True)
