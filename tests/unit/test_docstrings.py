"""The example that opens a module calls what is there, with the arguments it takes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "pipeline", "nodes", "calibration"], cwd=ROOT, capture_output=True, text=True
).stdout
MODULES = [
    path.removesuffix(".py").replace("/", ".") for path in LISTED.split() if path.endswith(".py") and "__" not in path
]


def parsed(block: str) -> ast.Module:
    """What of an example is Python: all of it, or each line that is."""
    text = textwrap.dedent(block).replace("…", "...")
    try:
        return ast.parse(text)
    except SyntaxError:
        whole = ast.Module([], [])
        for line in text.splitlines():
            try:
                whole.body += ast.parse(line.strip()).body
            except SyntaxError:
                pass
        return whole


def called(module: ModuleType, example: ast.Module) -> Iterator[tuple[ast.Call, Any, int]]:
    """Each call of something of the module or of an instance of its classes, what it calls, and what `self` takes of
    it.
    """
    constructed = {}
    for node in ast.walk(example):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            if isinstance(node.targets[0], ast.Name) and inspect.isclass(
                kind := getattr(module, node.value.func.id, None)
            ):
                constructed[node.targets[0].id] = kind
    for node in ast.walk(example):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and hasattr(module, node.func.id):
            yield node, getattr(module, node.func.id), 0
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            if kind := constructed.get(node.func.value.id):
                method = getattr(kind, node.func.attr)
                yield node, method, int(inspect.isfunction(method))


@pytest.mark.parametrize("name", MODULES)
def test_example_of_a_module_calls_what_is_there(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs a package that is not here: {error}")
    for block in re.findall(r"(?:^    .*\n?)+", module.__doc__ or "", flags=re.M):
        for call, function, of_self in called(module, parsed(block)):
            left_out = any(isinstance(a, ast.Constant) and a.value is ... for a in call.args) or any(
                k.arg is None for k in call.keywords
            )
            try:
                signature = inspect.signature(function)
            except ValueError:
                continue  # of a class that C constructed
            bind = signature.bind_partial if left_out else signature.bind
            try:
                bind(*[None] * (of_self + len(call.args)), **{k.arg: None for k in call.keywords if k.arg})
            except TypeError as error:
                raise AssertionError(f"{name}: {ast.unparse(call)}: {error}") from None
