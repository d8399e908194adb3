"""The page about engines: its commands are understood, its table of bounds is the code's, and its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.inference.backends.tensorrt_rtx import CAPABILITIES
from pipeline.inference.parity import BOUNDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
COMMANDS = sorted({match.strip() for match in re.findall(r"python run_pipeline\.py ([^\n#`|]*)", PAGE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    import run_pipeline

    assert run_pipeline.parser().parse_args(shlex.split(command)).function


def test_the_bounds_of_the_gate_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (fp32|fp16|int8) \| ([\d.]+) % \| ([\d.]+ %|all) \|$", PAGE, flags=re.M)
    assert {name: (float(a) / 100, 1.0 if b == "all" else float(b.split()[0]) / 100) for name, a, b in rows} == {
        name: (bound.relative, pytest.approx(bound.agreement)) for name, bound in BOUNDS.items()
    }


def test_the_gpus_that_rtx_serves_are_named() -> None:
    named = [f"{major}.{minor}" for major, minor in CAPABILITIES]
    assert f"a GPU of {', '.join(named[:-1])} or {named[-1]}" in PAGE


def test_every_file_that_is_named_exists() -> None:
    files = set(re.findall(r"`((?:pipeline|tests|scripts)/[\w/.-]+)", PAGE))
    assert files and [name for name in files if not (ROOT / name).exists()] == []
