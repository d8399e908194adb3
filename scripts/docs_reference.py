"""Pages of the documentation site that are made from the code and from the models' cards. A hook of MkDocs.

Nodes, tasks, YAML keys, the command line: they cannot go stale, because options come from the constructors, their
meaning from the `Args:` lines, verbs from the parser. The cards in models/ become pages of the site, too.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from docs_docstrings import examples_as_code  # noqa: E402

from pipeline.cli import describe  # noqa: E402
from pipeline.node import Node, Source  # noqa: E402
from pipeline.plugins import RENAMED, all_named  # noqa: E402
from pipeline.task import Task  # noqa: E402


def on_files(files: Files, config: Any) -> Files:
    pages = {
        "reference/nodes.md": nodes_page(),
        "reference/tasks.md": tasks_page(),
        "reference/config.md": config_page(),
        "reference/command-line.md": command_line_page(),
    }
    for path, lines in pages.items():
        files.append(File.generated(config, path, content="\n".join(lines)))
    for card in sorted((ROOT / "models").glob("*.md")):
        files.append(File.generated(config, f"models/{card.name}", content=card.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page in docs/ links to a card as ../models/NAME.md, as in the repository; on the site it is in models/."""
    if page.file.src_uri.startswith("models/"):
        return markdown.replace("](../docs/", "](../")
    return markdown.replace("](../models/", "](models/")


def nodes_page() -> Iterator[str]:
    yield "# Nodes\n"
    yield "A node is one entry of `nodes:` in a configuration. `use:` names it; the keys below are its options. Every"
    yield "node also takes the [keys of all nodes](config.md). The same text: `python run_pipeline.py nodes NAME`.\n"
    yield from _classes(all_named(Node, "nodes"))


def tasks_page() -> Iterator[str]:
    yield "# Tasks\n"
    yield "A task turns every aligned set into a prediction. The node `infer` runs it: `task:` names it, and its"
    yield "options stand one level below, in `options:`. The same text: `python run_pipeline.py tasks NAME`.\n"
    yield "```yaml\nemotion: {use: infer, task: emotion, inputs: [align], options: {smoothing_ms: 500}}\n```\n"
    yield from _classes(all_named(Task, "pipeline.tasks"))


def _classes(kinds: dict[str, type]) -> Iterator[str]:
    yield "| name | what it does |\n|---|---|"
    for name, kind in kinds.items():
        yield f"| [{name}](#{name}) | {_cell(describe.summary(kind))} |"
    for name, kind in kinds.items():
        module = inspect.getmodule(kind)
        yield f"\n## {name}\n"
        yield _markdown((module.__doc__ if module else "") or "")
        introduction = inspect.cleandoc(kind.__doc__ or "").partition("Args:")[0].strip()
        yield f"\n{_markdown(introduction)}\n" if introduction else ""
        shared = {option.name for option in describe.options_of(Source)} if issubclass(kind, Source) else set()
        own = [option for option in describe.options_of(kind) if option.name not in shared]
        yield from _options(own) if own else ["It has no options of its own."]
        if shared:
            yield "\nAnd the options of every sensor:\n"
            yield from _options(option for option in describe.options_of(kind) if option.name in shared)


def config_page() -> Iterator[str]:
    yield "# YAML keys\n"
    yield "A configuration is a YAML file with a table of nodes. Every other key of a node is an argument of its"
    yield "constructor: see [nodes](nodes.md) and [tasks](tasks.md). `python run_pipeline.py check CONFIG` verifies"
    yield "a file without opening a device; every error names the place, what was found and the fix.\n"
    yield "## At the top\n"
    yield "| key | meaning |\n|---|---|"
    yield "| `nodes` | The table of nodes: name → options. Required. |"
    yield "| `hosts` | name → address, or address:port. See [several hosts](../guides/hosts.md). |"
    yield "| `portable` | true: loopback TCP and inline payloads, no shared memory and no `ipc://`. Default false. |"
    yield "\n## Of every node\n"
    yield "| key | meaning |\n|---|---|"
    yield from (f"| `{key}` | {_cell(text)} |" for key, text in describe.NODE_KEYS.items())
    yield "\n## Of an input\n"
    yield "| key | meaning |\n|---|---|"
    yield from (f"| `{key}` | {_cell(text)} |" for key, text in describe.INPUT_KEYS.items())
    yield "\n## Renamed\n"
    yield "An old key is refused, and the error names the new one.\n"
    yield "| until 0.1 | since 0.2 |\n|---|---|"
    yield from (f"| `{old}` | `{new}` |" for old, new in sorted(RENAMED.items()))


def command_line_page() -> Iterator[str]:
    import run_pipeline

    parser = run_pipeline.parser()
    yield "# Command line\n"
    yield "`python run_pipeline.py VERB …` in a checkout, `sensorium VERB …` where it is installed. Without a verb:"
    yield "`run` with `configs/emotion-live.yaml`.\n"
    yield "| exit code | meaning |\n|---|---|"
    yield "| 0 | done |\n| 1 | a bug of ours |\n| 2 | the configuration or the input is wrong |"
    yield "| 3 | a device cannot be opened |\n| 4 | two things that were compared differ |\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help for choice in action._choices_actions}
            for verb, verb_parser in action.choices.items():
                yield f"\n## {verb}\n\n{texts.get(verb) or ''}\n"
                yield "```text\n" + verb_parser.format_help().strip() + "\n```"


def _options(options: Iterable[describe.Option]) -> Iterator[str]:
    yield "| option | type | default | meaning |\n|---|---|---|---|"
    for option in options:
        default = f"`{option.default}`" if option.default else "required"
        yield f"| `{option.name}` | `{option.type}` | {default} | {_cell(option.text)} |"


def _cell(text: str) -> str:
    """One line of Markdown for a cell of a table. A bar would end the cell, except inside code."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text))
    return "".join(part if part.startswith("`") else _linked(part).replace("|", "&#124;") for part in parts)


def _linked(text: str) -> str:
    """ "docs/emotion.md" as a link; the pages made here lie one folder below docs/."""
    return re.sub(r"\bdocs/([\w-]+)\.md\b", r"[\1](../\1.md)", text)


def _markdown(docstring: str) -> str:
    return _linked(examples_as_code(docstring))
