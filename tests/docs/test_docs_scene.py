"""The page about scenes: its commands are understood, its options and defaults are the code's, and its files exist.

What its commands do is shown by test_scene_live.py.
"""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline.perception.obstacles.options import NESTED
from pipeline.tasks.obstacles import Obstacles

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scene.md").read_text(encoding="utf-8")
COMMANDS = sorted({command.strip() for command in re.findall(r"python run_pipeline\.py ([^\n#`|]*)", PAGE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    import run_pipeline

    assert run_pipeline.parser().parse_args(shlex.split(re.sub(r"\[.*", "", command))).function


def options_table() -> list[tuple[type, str, str]]:
    """(class, option, default) of each option in the page's table; `ground: {z_m}` is an option of GroundOptions."""
    table = re.search(r"\| option \| default \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert table is not None
    options = []
    for row in table[1].splitlines():
        names, defaults = (cell.strip() for cell in row.split("|")[1:3])
        values = re.findall(r"\[[^]]*\]|[^,\s]+", defaults)
        nested = re.fullmatch(r"`(\w+): \{([^}]*)\}`", names)
        kind, listed = (NESTED[nested[1]], nested[2]) if nested else (Obstacles, names)
        options += [(kind, name, value) for name, value in zip(re.findall(r"\w+", listed), values, strict=False)]
    return options


@pytest.mark.parametrize(("kind", "name", "text"), options_table())
def test_an_option_of_the_table_has_the_default_of_the_code(kind: type, name: str, text: str) -> None:
    parameters = inspect.signature(kind).parameters
    assert name in parameters
    if text[0].isdigit():
        assert float(text) == parameters[name].default
    elif text[0] == "[":
        assert tuple(yaml.safe_load(text)) == parameters[name].default


def test_the_table_has_every_option_of_obstacles() -> None:
    listed = {(kind, name) for kind, name, _ in options_table()}
    for kind in (Obstacles, *NESTED.values()):
        names = set(inspect.signature(kind).parameters) - set(NESTED)
        assert {name for k, name in listed if k is kind} == names, kind


def test_every_config_page_and_benchmark_that_is_named_exists() -> None:
    assert all((ROOT / name).exists() for name in re.findall(r"configs/[\w/.-]+\.yaml", PAGE))
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in re.findall(r"bench (\w+)", PAGE))
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
