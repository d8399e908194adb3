"""A short part of `make mutants`: the list fits the code, and a few of its faults are noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_every_line_of_the_list_is_in_its_file_once_and_its_tests_are_there(mutant: Mutant) -> None:
    compile(mutant.applied(), mutant.file, "exec")
    assert all((ROOT / test).exists() for test in mutant.tests if test.startswith("tests/"))


@pytest.mark.timeout(300)
def test_some_faults_are_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants", "--every", "12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
