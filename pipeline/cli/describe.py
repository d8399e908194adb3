"""Lists and describes nodes and tasks: `nodes`, `nodes camera`, `tasks`, `tasks emotion`.

What is printed comes from the code: a class's signature is the schema of its options, the `Args:` lines of its
docstring say what each of them means.

Example:
    for option in options_of(find_task("emotion")): print(option.name, option.type, option.default, option.text)
    print_described("camera", Node)
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.installation import COMMAND
from pipeline.node import Node, Source
from pipeline.plugins import all_named, find
from pipeline.task import Task

# The keys that every node takes beside its own options, and those of an entry of `inputs`: pipeline/runtime/config.py.
NODE_KEYS = {
    "use": "What the node is: a file of nodes/, or module:Name for a class of your own.",
    "inputs": "The nodes it reads from: names, or {from: NAME, queue: …}. A source has none.",
    "process": "The process that it runs in: nodes with the same name share one. Default: a process of its own.",
    "host": "Where it runs, in a config with `hosts`.",
    "shared": "true: programs on other hosts may subscribe to it. Default false.",
    "restarts": "how often a minute it may be started again after it failed, then it is given up. Default 5.",
    "watchdog_s": "without a sign of life for so long (s) it is started again; null: never. Default 10.",
    "optional": "true: the run goes on without it where its device is missing, and tries again. Default false.",
}
INPUT_KEYS = {
    "from": "The node that is read.",
    "queue": "How many messages may wait: a number (the newest), latest (one), all (the sender waits). Default 32.",
}

KINDS: dict[type, tuple[str, str]] = {Node: ("node", "nodes"), Task: ("task", "pipeline.tasks")}  # base → what, package


class Option(NamedTuple):
    """One key of the YAML."""

    name: str
    type: str  # as its constructor has it: "int | str"; "" where it has none
    default: str  # in YAML: "null", "true", "80"; "" where it must be given
    text: str  # what it means; "" where the docstring does not say


def options_of(kind: type) -> list[Option]:
    """The options of a node or a task, in the order of its constructor; behind a table, its keys as "table.key"."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is not object:
            texts |= documented(base.__doc__) | documented(getattr(vars(base).get("__init__"), "__doc__", ""))
    # The options of the node `infer` are those of whichever task it runs: they are described there.
    declared = getattr(kind, "nested_options", None) if issubclass(kind, Task) else None
    tables: dict[str, type | None] = dict(declared({})) if declared else {}
    options: list[Option] = []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        unknown = parameter.annotation is parameter.empty
        options.append(
            Option(
                parameter.name,
                "" if unknown else inspect.formatannotation(parameter.annotation).strip("'"),
                "" if parameter.default is parameter.empty else in_yaml(parameter.default),
                texts.get(parameter.name, ""),
            )
        )
        if (table := tables.get(parameter.name)) is not None:
            options += (key._replace(name=f"{parameter.name}.{key.name}") for key in options_of(table))
    return options


def documented(docstring: str | None) -> dict[str, str]:
    """The `Args:` section of a docstring in Google's style: name → text, its lines joined."""
    texts: dict[str, str] = {}
    name = ""
    lines = iter(inspect.cleandoc(docstring or "").split("\n"))
    for line in lines:
        if line.strip() == "Args:":
            break
    for line in lines:
        if line and not line.startswith(" "):  # the next section
            break
        if begins := re.match(r"    \*{0,2}(\w+)(?: \([^)]*\))?: ?(.*)", line):
            name, texts[begins[1]] = begins[1], begins[2].strip()
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def in_yaml(value: Any) -> str:
    """A default as one writes it in a config."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(in_yaml, value))}]"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return repr(value) if value == "" else str(value)


def print_list(base: type) -> None:
    """One line for each: its name and the first sentence of its module."""
    what, package = KINDS[base]
    kinds: dict[str, type] = all_named(base, package)
    width = max(map(len, kinds))
    for name, kind in kinds.items():
        print(f"  {name:<{width}}  {summary(kind)}")
    print(f"  One with all its options: {COMMAND} {what}s NAME")
    print(f"  Your own: a class in any file, named module:Name in `{'use' if what == 'node' else 'task'}`.")


def print_described(name: str, base: type) -> None:
    """Raises ConfigError for a name that is none."""
    what, package = KINDS[base]
    kind: type = find(name, base, package, what=what)
    module = inspect.getmodule(kind)
    print(inspect.cleandoc((module.__doc__ if module else "") or ""))
    introduction = inspect.cleandoc(kind.__doc__ or "").partition("Args:")[0].strip()
    print(f"\n{introduction}" if introduction else "")
    own = options_of(kind)
    of_source = [option.name for option in options_of(Source)] if issubclass(kind, Source) else []
    _print_options(f"Options of {name}", [option for option in own if option.name not in of_source])
    if what == "task":
        print(f"\nA node runs it: its option `task` is {name}, and `options` holds these.")
        return
    _print_options("Options of every sensor", [option for option in own if option.name in of_source])
    is_source = issubclass(kind, Source)
    _print_options("Keys of every node", _table({k: v for k, v in NODE_KEYS.items() if k != "inputs" or not is_source}))
    if not is_source:
        _print_options("Keys of an input", _table(INPUT_KEYS))


def summary(kind: type) -> str:
    """The first sentence of its module's docstring."""
    module = inspect.getmodule(kind)
    paragraph = inspect.cleandoc((module.__doc__ if module else "") or "").split("\n\n")[0]
    return re.split(r"(?<=\.)\s", paragraph.replace("\n", " "))[0]


def _table(texts: dict[str, str]) -> Iterator[Option]:
    return (Option(name, "", "", text) for name, text in texts.items())


def _print_options(title: str, options: Iterable[Option]) -> None:
    options = list(options)
    if not options:
        return
    print(f"\n{title}")
    width = max(60, min(120, shutil.get_terminal_size().columns))
    for option in options:
        default = f" = {option.default}" if option.default else ", required" if option.type else ""
        print(f"  {option.name}{f': {option.type}' if option.type else ''}{default}")
        if option.text:
            print(textwrap.fill(option.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
