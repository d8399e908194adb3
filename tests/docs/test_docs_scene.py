"""The page about scenes: its commands are understood, its options and defaults are the code's, and its files exist.

What its commands do is shown by test_scene_live.py.
"""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from pipeline.perception.obstacles.path_clearance import Corridor
from pipeline.tasks.obstacles import Obstacles

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scene.md").read_text(encoding="utf-8")
COMMANDS = sorted({command.strip() for command in re.findall(r"python run_pipeline\.py ([^\n#`|]*)", PAGE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    import run_pipeline

    assert run_pipeline.parser().parse_args(shlex.split(re.sub(r"\[.*", "", command))).function


def test_the_options_of_obstacles_have_the_defaults_that_the_table_says() -> None:
    table = re.search(r"\| option \| default \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert table is not None
    parameters = inspect.signature(Obstacles).parameters
    for row in table[1].splitlines():
        names, defaults = (cell.strip() for cell in row.split("|")[1:3])
        values = re.findall(r"\[[^]]*\]|[^,\s]+", defaults)
        for name, text in zip(re.findall(r"`(\w+)`", names), values, strict=False):
            value = parameters[name].default
            if text[0].isdigit():
                assert float(text) == value, name
            else:
                assert name in parameters, name


def test_the_corridor_of_the_page_is_the_default() -> None:
    text = re.search(r"`corridor: \{([^}]*)\}`", PAGE)
    assert text is not None
    assert {name: float(value) for name, value in re.findall(r"(\w+): ([\d.]+)", text[1])} == vars(Corridor())


def test_every_config_page_and_benchmark_that_is_named_exists() -> None:
    assert all((ROOT / name).exists() for name in re.findall(r"configs/[\w/.-]+\.yaml", PAGE))
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in re.findall(r"bench (\w+)", PAGE))
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
