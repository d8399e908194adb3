"""The rules that keep the tree a house, read from the source itself: nothing is imported, so nothing needs to be installed."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIVE = ("pipeline", "nodes", "calibration", "run_pipeline.py")
EVERYTHING = (*LIVE, "benchmarks", "tests")
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def files(*tops: str) -> Iterator[str]:
    """ "pipeline/alignment/aligner.py", for every module under the given folders and files."""
    for top in tops:
        for path in [ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")):
            if path.exists():
                yield path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(where: str) -> ast.Module:
    return ast.parse((ROOT / where).read_text(encoding="utf-8"), where)


@functools.cache
def all_imports(where: str) -> list[tuple[int, str]]:
    return list(imports(where, parsed(where)))


def imports(where: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, "package.module.name") of every import, also inside functions; relative ones made absolute."""
    package = where.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (
                (node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])) for alias in node.names
            )
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            # import_module("nodes.camera"): a name spelt out is an import; a name from the configuration is not.
            if ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def importers(of: str, *tops: str) -> list[str]:
    """ "pipeline/transport/wire.py:12 zmq.asyncio" for every import of the package or module `of` under `tops`."""
    return [
        f"{where}:{line} {name}"
        for where in files(*tops)
        for line, name in all_imports(where)
        if name == of or name.startswith(of + ".")
    ]


def outside(found: list[str], *allowed: str) -> list[str]:
    return [line for line in found if not line.startswith(allowed)]


def test_there_is_a_tree_to_read() -> None:
    assert {"pipeline/frame.py", "pipeline/clock.py"} <= set(files("pipeline"))


@pytest.mark.parametrize("other", ["nodes", "calibration", "run_pipeline"])
def test_pipeline_imports_neither_nodes_nor_calibration(other: str) -> None:
    assert importers(other, "pipeline") == []


def test_nodes_do_not_import_each_other() -> None:
    def owner(path: str) -> str:  # nodes/camera.py and nodes/camera/page.py are both "camera"
        return path.split("/")[1].removesuffix(".py")

    found = [line for line in importers("nodes", "nodes") if f" nodes.{owner(line.split(':')[0])}." not in line]
    assert found == []


def test_calibration_does_not_import_nodes() -> None:
    assert importers("nodes", "calibration") == []


@pytest.mark.parametrize("package", ["torch", "torchvision", "torchaudio"])
def test_torch_is_imported_under_training_only(package: str) -> None:
    assert outside(importers(package, *LIVE), "pipeline/training/") == []


def test_the_live_path_does_not_import_training() -> None:
    """run_pipeline.py may, inside the verb that trains: not when it is imported."""
    assert outside(importers("pipeline.training", "pipeline", "nodes", "calibration"), "pipeline/training/") == []
    top_level = [
        name
        for where in files("run_pipeline.py")
        for statement in parsed(where).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for _, name in imports(where, statement)
    ]
    assert [name for name in top_level if name.startswith(("pipeline.training", "torch"))] == []


def test_zmq_is_imported_by_the_transport_only() -> None:
    assert outside(importers("zmq", *LIVE), "pipeline/transport/") == []


def test_mcap_is_imported_by_the_files_named_for_it_only() -> None:
    allowed = ("pipeline/recording/mcap/", "pipeline/recording/importers/mcap_")
    assert outside(importers("mcap", *LIVE) + importers("mcap_protobuf", *LIVE), *allowed) == []


def test_only_clock_asks_the_system_what_time_it_is() -> None:
    """The wall clock jumps; a node is given its clock (durations may be measured with time.monotonic and perf_counter)."""
    asked = [
        f"{where}:{node.lineno} {ast.unparse(node)}"
        for where in files(*LIVE)
        for node in ast.walk(parsed(where))
        if isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns") and ast.unparse(node.value) == "time"
    ]
    asked += importers("time.time", *LIVE) + importers("time.time_ns", *LIVE)
    assert outside(asked, "pipeline/clock.py:") == []


def test_no_module_is_named_for_what_does_not_belong_anywhere() -> None:
    named = [where for where in files(*EVERYTHING) if NAMELESS & set(where.removesuffix(".py").split("/"))]
    assert named == []
