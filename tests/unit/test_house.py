"""The rules of the source tree, read from the source: nothing is imported, so nothing needs to be installed.

What imports what and what lies where is here; which words are used is in test_words.py.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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


def outside(lines: list[str], *allowed: str) -> list[str]:
    return [line for line in lines if not line.startswith(allowed)]


def test_there_is_a_tree_to_read() -> None:
    assert {"pipeline/frame.py", "pipeline/clock.py"} <= set(files("pipeline"))


@pytest.mark.parametrize("other", ["nodes", "calibration", "run_pipeline"])
def test_pipeline_imports_neither_nodes_nor_calibration(other: str) -> None:
    assert importers(other, "pipeline") == []


def test_nodes_do_not_import_each_other() -> None:
    def owner(path: str) -> str:  # nodes/camera.py and nodes/camera/page.py are both "camera"
        return path.split("/")[1].removesuffix(".py")

    others = [line for line in importers("nodes", "nodes") if f" nodes.{owner(line.split(':')[0])}." not in line]
    assert others == []


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
    """The wall clock jumps; a node is given its clock (durations may come from time.monotonic and perf_counter)."""
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


# --- sizes ------------------------------------------------------------------------------------------------------------

MAX_FILES, MAX_LINES = 20, 400

# Files that are longer; each line leaves with the change that splits the file.
LONG_FILES = {
    "calibration/lens/bundle.py",
}


def tracked(*endings: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\n") if path.endswith(endings) and (ROOT / path).is_file()]


def test_no_package_has_more_than_20_files() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for where in files("pipeline", "nodes", "calibration"):
        folder, _, name = where.rpartition("/")
        counts[folder] += name != "__init__.py"
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {
        path: len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in tracked(".py", ".html", ".sh", "scripts/setup")
    }
    assert {path: n for path, n in lengths.items() if n > MAX_LINES and path not in LONG_FILES} == {}


def test_plug_in_folders_hold_plug_ins_only() -> None:
    """What a reader sees in a folder that is scanned by name is what the YAML may say."""
    folders = ("nodes", "pipeline/tasks", "pipeline/inference/backends", "pipeline/sensors/lidar/decoders")
    strays = []
    for folder in folders:
        for path in sorted((ROOT / folder).iterdir()):
            if path.name.startswith(("_", ".")) or not (path.suffix == ".py" or path.is_dir()):
                continue
            module = f"{folder}/{path.name}" if path.suffix == ".py" else f"{folder}/{path.name}/{path.name}.py"
            kinds = {s.name.lower() for s in parsed(module).body if isinstance(s, ast.ClassDef)}
            if path.stem.replace("_", "") not in kinds:
                strays.append(f"{module}: no class is named like the file")
    assert strays == []


# --- circles ----------------------------------------------------------------------------------------------------------

Graph = Mapping[str, set[str]]


def module_of(where: str) -> str:
    return where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Module → modules that it imports, also inside functions and for annotations only.

    The public surface (pipeline/__init__.py) hands on names of every floor, so it is above them all and left out.
    """
    modules = {module_of(where): where for where in files(*LIVE, "benchmarks")}
    del modules["pipeline"]
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, where in modules.items():
        for _, name in all_imports(where):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one member (Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return components


def rooms(graph: Graph, depth: int) -> dict[str, set[str]]:
    """The graph with every module replaced by its package `depth` levels down, or by itself if it lies above that."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    between: defaultdict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        between[room(module)] |= {room(other) for other in others} - {room(module)}
    return between


def test_circles_are_recognised() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(import_graph()) == []


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_packages_import_downwards_only(depth: int) -> None:
    """No circle between packages: so they have an order in which each imports only what is below it."""
    assert circles(rooms(import_graph(), depth)) == []


# --- node names -------------------------------------------------------------------------------------------------------


def node_names() -> set[str]:
    """What `use:` may say: the files and packages of nodes/."""
    return {path.stem for path in (ROOT / "nodes").iterdir() if not path.name.startswith(("_", "."))}


def constants(node: ast.AST | None) -> set[str]:
    """The strings in an expression, also those of a tuple or of an if-else."""
    return (
        {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)} if node else set()
    )


def texts_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string of a module that is not a docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def named_nodes(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) wherever code picks a node by its name: compares `.use`, sets it, or writes it into a config."""
    in_yaml = re.compile(rf"(?<!such as {{)\buse: *({'|'.join(sorted(names))})\b")
    for node in ast.walk(tree):
        spelled: set[str] = set()
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr in ("use", "__name__") for side in sides):
                spelled = set().union(*map(constants, sides))
                spelled |= {name.lower() for name in spelled}  # a class is compared by its own name
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            values = [keyword.value for keyword in node.keywords if keyword.arg == "use"]
            if called == "NodeConfig":
                values += node.args[1:2]
            elif called in ("resolve", "instantiate", "without"):
                values += [arg for arg in node.args if isinstance(arg, ast.Constant)]
            spelled = set().union(*map(constants, values))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                pairs: Iterable[tuple[ast.expr, ast.expr]] = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=False)
                for to, value in pairs:
                    if isinstance(to, ast.Name) and to.id == "use":
                        spelled |= constants(value)
        yield from ((getattr(node, "lineno", 0), name) for name in sorted(spelled & names))
    for line, text in texts_of(tree):
        yield from ((line, name) for name in in_yaml.findall(text))


@pytest.mark.parametrize(
    "code",
    [
        "if node.use == 'align': pass",
        "kept = [n for n in nodes if n.use not in ('console', 'dashboard')]",
        "NodeConfig(name, 'record', where)",
        "replace(node, use='replay')",
        "use, options = 'replay', {}",
        "line = f'{name}: {{use: infer, inputs: [{source}]}}'",
        "if resolve(node.use, node.where).__name__ == 'Record': pass",
    ],
)
def test_a_node_that_is_named_is_noticed(code: str) -> None:
    assert list(named_nodes(ast.parse(code), node_names()))


def test_pipeline_names_no_node() -> None:
    """A node class says of itself what it is; a graph is composed of named nodes in pipeline/cli/ only."""
    names = node_names()
    named = [
        f"{where}:{line} {name}"
        for where in files("pipeline")
        if not where.startswith("pipeline/cli/")
        for line, name in named_nodes(parsed(where), names)
    ]
    assert named == []


def test_hints_name_the_command_by_the_constant() -> None:
    """`sensorium` or `python run_pipeline.py`, as the user started it: pipeline.installation.COMMAND. What training
    notes in a model's manifest stays as it was run.
    """
    spelt_out = []
    for where in files("pipeline", "nodes", "calibration"):
        tree = parsed(where)
        bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = [b.body[0].value for b in bodies if b.body and isinstance(b.body[0], ast.Expr)]
        spelt_out += [
            f"{where}:{node.lineno} {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and "run_pipeline.py" in str(node.value) and node not in docstrings
        ]
    assert outside(spelt_out, "pipeline/installation.py", "pipeline/training/") == []


def test_each_test_file_has_a_name_of_its_own() -> None:
    """pytest imports test files by their names alone: two of one name end the run before it begins."""
    names = [where.rpartition("/")[2] for where in files("tests") if "/test_" in where]
    assert {name for name in names if names.count(name) > 1} == set()
