"""The idle case beside a test that holds a figure of time: how long a process that does next to nothing waits for a
core.

On a machine whose cores are busy with other programs a figure of time says nothing about this one. A failure of a test
marked `paced` counts while the control waits for MAX_WAIT_MS or less on average; beyond, the test ends undecided and
says so.

    with IdleControl() as control: ...          # the test
    control.wait_ms                             # below 0.5 on an idle machine; 3 to 4 with six programs a core
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Self

import pytest

MAX_WAIT_MS = 3.0
TOO_LATE = (AssertionError, TimeoutError, subprocess.TimeoutExpired, pytest.fail.Exception)

# A process of its own: a thread would wait for the interpreter lock of what is tested. It works for 1 ms, 20 times a
# second.
PROGRAM = """
import select, sys, time
waits = []
while not select.select([sys.stdin], [], [], 0.0)[0]:
    due, cpu = time.monotonic() + 0.049, time.thread_time()
    time.sleep(0.049)
    while time.thread_time() - cpu < 0.001:
        pass
    waits.append(time.monotonic() - due - 0.001)
print(1e3 * sum(waits) / len(waits) if waits else 0.0)
"""


class IdleControl:
    def __init__(self) -> None:
        self.wait_ms = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        out, _ = self._process.communicate("end\n", timeout=30)
        self.wait_ms = max(0.0, float(out))

    @property
    def undecided(self) -> str:
        """Why a failure beside this control does not count; "" where it does."""
        if self.wait_ms <= MAX_WAIT_MS:
            return ""
        return (
            f"this machine cannot decide: a process working 1 ms at a time waited {self.wait_ms:.0f} ms for a core on "
            f"average (at most {MAX_WAIT_MS:g})"
        )


@contextlib.contextmanager
def figure_of_time(control: IdleControl | None = None) -> Iterator[None]:
    """A failure inside becomes a skip only where the control beside it finds that the machine cannot decide."""
    control = control or IdleControl()
    with control:
        try:
            yield
            return
        except TOO_LATE as error:
            failure = error
    if control.undecided:
        first_line = str(failure).strip().partition("\n")[0]
        pytest.skip(f"{control.undecided}. What failed: {first_line[:200]}")
    raise failure
