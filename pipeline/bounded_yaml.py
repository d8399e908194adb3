"""YAML text → plain values, in bounded time and memory, whoever wrote it.

PyYAML's safe loader runs no code, but follows nesting until Python's recursion ends, lets a few lines of aliases stand
for billions of values, and raises whatever Python raises for a date or a number that cannot be. Here all of these are
errors with a line and a column.

Example:
    load("nodes: {}", name="configs/x.yaml")        # {"nodes": {}}; raises ValueError
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 256 << 10  # which PyYAML reads in 3 s
MAX_DEPTH = 50
MAX_VALUES = 150_000  # with aliases written out: more than so much text holds


class BoundedLoader(yaml.SafeLoader):
    """A SafeLoader with bounds. Its errors are yaml.YAMLError."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {MAX_DEPTH} times",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"with its aliases it holds more than {MAX_VALUES:,} values", problem_mark=node.start_mark
            )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, OverflowError, LookupError) as error:  # a date, a number that cannot be
            raise yaml.MarkedYAMLError(
                problem=f"'{str(node.value)[:40]}' cannot be read as {node.tag.rpartition(':')[2]}: {error}",
                problem_mark=node.start_mark,
            ) from error


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values there are once aliases are written out; an alias inside of what it stands for has no end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # until it is counted
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def load(text: str, *, name: str = "<text>", loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """The value of the only document.

    Args:
        text: YAML.
        name: Of the file, for the error's line.
        loader: A stricter one.

    Raises:
        ValueError: It is no YAML, or more than the bounds allow, with line and column.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text) >> 10} KiB of text, expected at most {MAX_BYTES >> 10}")
    try:
        bounded = loader(text)
        bounded.name = name
        return bounded.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
