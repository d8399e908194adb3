"""The README is the map: its tree is true, its commands exist, its figures have commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TREE = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
COMMANDS = sorted(set(re.findall(r"^python run_pipeline\.py[^\n#]*", README, flags=re.M)))


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.split()


def test_every_module_has_a_line_in_the_tree():
    modules = {p for p in tracked("pipeline", "nodes", "calibration", "benchmarks") if p.endswith(".py")}
    missing = [p for p in sorted(modules) if Path(p).name != "__init__.py" and Path(p).name not in TREE]
    assert missing == []


def test_every_python_file_in_the_tree_exists():
    names = {Path(p).name for p in tracked()}
    assert [name for name in re.findall(r"[\w]+\.py\b", TREE) if name not in names] == []


def test_no_python_file_stands_in_the_tree_twice():
    there, named = [Path(p).name for p in tracked()], re.findall(r"^ *([\w]+\.py)\b", TREE, flags=re.M)
    assert [name for name in sorted(set(named)) if named.count(name) > there.count(name)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_understood(command):
    sys.path.insert(0, str(ROOT))
    import run_pipeline

    run_pipeline.parser().parse_args(shlex.split(command)[2:])


def test_every_picture_and_page_the_readme_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_benchmark_the_readme_quotes_exists():
    quoted = re.findall(r"python -m (benchmarks\.\w+)", README)
    assert quoted and all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in quoted)
