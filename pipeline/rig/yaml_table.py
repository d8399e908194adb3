"""YAML files that people write, read field by field: every error names the file, the field, what was found and the fix.

Example:
    table = read_yaml(Path("rig.yaml"), kind="a rig").only(("version", "poses"))
    table.whole("version"); table.list("poses"); table.table("intrinsics").table("camera").number("fx_px")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.bounded_yaml import MAX_BYTES, load
from pipeline.errors import ConfigError, nearest
from pipeline.files import read_text


class Table:
    """A mapping of a file with its place, such as `rig.yaml: intrinsics.camera`. Every getter raises ConfigError."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: found {described(value)}, expected a table")
        self.value, self.where = value, where

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def names(self) -> list[str]:
        for key in self.value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self.where}: YAML reads the name {key!r} as {type(key).__name__}. Put it in quotes"
                )
        return list(self.value)

    def only(self, known: Iterable[str]) -> Table:
        known = list(known)
        for key in self.value:
            if key not in known:
                raise ConfigError(
                    f"{self.where}: unknown key '{key}'. Known here: {', '.join(known)}.{nearest(str(key), known)}"
                )
        return self

    def at(self, key: str) -> str:
        return f"{self.where}{'.' if self.where.rpartition(': ')[1] else ': '}{key}"

    def get(self, key: str) -> Any:
        if key not in self:
            here = ", ".join(map(str, self.value)) or "nothing"
            close = nearest(key, map(str, self.value)).replace("Did you mean", "Is it")
            raise ConfigError(f"{self.at(key)}: missing. Here: {here}.{close}")
        return self.value[key]

    def table(self, key: str) -> Table:
        return Table(self.get(key), self.at(key))

    def tables(self, key: str) -> Iterator[Table]:
        """Of a table of tables, or none where the key is missing."""
        if key in self:
            table = self.table(key)
            yield from (table.table(name) for name in table.names())

    def list(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise ConfigError(f"{self.at(key)}: found {described(value)}, expected a list")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self.at(key)}: found {described(value)}, expected a name")
        return value

    def number(self, key: str) -> float:
        return number(self.get(key), self.at(key))

    def whole(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise ConfigError(f"{self.at(key)}: found {value:g}, expected a whole number")
        return int(value)

    def array(self, key: str, *shape: int) -> np.ndarray:
        """Nested lists of exactly this shape → float64; −1 stands for any length."""
        return array(self.get(key), self.at(key), shape)


def number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        parsed = float(value)  # YAML reads 1e-5, without a point, as text
    except ValueError:
        raise ConfigError(f"{where}: found {described(value)}, expected a number") from None
    if not np.isfinite(parsed):
        raise ConfigError(f"{where}: found {parsed}, expected a finite number")
    return parsed


def array(value: Any, where: str, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.float64(number(value, where))  # type: ignore[return-value]
    expected = " × ".join("n" if n < 0 else str(n) for n in shape)
    if not isinstance(value, list) or (shape[0] >= 0 and len(value) != shape[0]):
        actual = f"a list of {len(value)}" if isinstance(value, list) else described(value)
        raise ConfigError(f"{where}: found {actual}, expected {expected} numbers")
    return np.array([array(entry, f"{where}[{i}]", shape[1:]) for i, entry in enumerate(value)], np.float64)


def described(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def read_yaml(path: Path, *, kind: str, missing_hint: str = "") -> Table:
    """The table that a YAML file holds. kind: the expected content, for errors: "a rig"."""
    if not path.exists():
        beside = (
            [p.name for p in path.parent.glob("*") if p.suffix in (".yaml", ".yml", ".txt")]
            if path.parent.is_dir()
            else []
        )
        raise ConfigError(f"{path}: there is no such file.{nearest(path.name, beside) or missing_hint}")
    text = read_text(path, most=MAX_BYTES)
    try:
        # OpenCV writes a directive of its own first line, and tags for its matrices; ROS writes plain YAML.
        tree = load(text.replace("%YAML:1.0", "%YAML 1.1", 1) if text.startswith("%YAML:1.0") else text, name=path.name)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file holds {described(tree)}, expected {kind}")
    return Table(tree, str(path))


def write_yaml(tree: Mapping[str, Any], path: Path) -> None:
    """Written whole or not at all: a crash in the middle must not lose an earlier calibration."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(
            yaml.safe_dump(_plain(tree), sort_keys=False, default_flow_style=None, width=140, allow_unicode=True)
        )
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}. Name a place you may write to") from error


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays, and tuples, as plain YAML values."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
