"""10,000 inputs for all readers of bytes together, in a process of their own; `make fuzz` runs a million."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = 10_000


@pytest.mark.timeout(300)
def test_every_reader_accepts_or_refuses_whatever_it_is_handed() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--one-process", "--inputs", str(INPUTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
