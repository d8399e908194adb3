"""The README leads on: it is short, its commands exist, what it links to exists; the page of figures names commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FIGURES = (ROOT / "docs" / "figures.md").read_text()
COMMANDS = sorted({match.strip() for match in re.findall(r"run_pipeline\.py ([^\n#`|]*)", README + FIGURES)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_understood(command):
    sys.path.insert(0, str(ROOT))
    import run_pipeline

    run_pipeline.parser().parse_args(shlex.split(command))


def test_every_picture_and_page_the_readme_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_readme_fits_two_screens():
    assert len(README.splitlines()) <= 110


def test_every_benchmark_that_a_figure_quotes_exists():
    quoted = re.findall(r"python -m (benchmarks\.\w+)", README + FIGURES)
    assert quoted and all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in quoted)
