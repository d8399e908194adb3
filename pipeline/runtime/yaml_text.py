"""YAML text → plain values, safely, and stricter than YAML: a key that appears twice is an error.

Imported only where a file is read: the processes of a graph get their plan as JSON and start without PyYAML (60 ms).

Example:
    tree = parse("nodes: {}", name="configs/x.yaml")           # {"nodes": {}}; raises ValueError with line and column
"""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.bounded_yaml import BoundedLoader, load


class _Loader(BoundedLoader):
    """A loader that refuses a key given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key_node.start_mark)
            if key_node.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key_node.value}' is given twice", problem_mark=key_node.start_mark
                )
            keys.add(key_node.value)
        return super().construct_mapping(node, deep)


def parse(text: str, *, name: str = "<text>") -> Any:
    """name: of the file, for the error's line."""
    return load(text, name=name, loader=_Loader)
