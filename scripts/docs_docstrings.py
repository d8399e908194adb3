"""What the documentation makes of docstrings: examples become code, comments beside fields become the fields' meaning.

Used by mkdocstrings as an extension of Griffe for the API reference (`Docstrings`), and by docs_reference.py for the
pages of nodes and tasks (`examples_as_code`).
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from pathlib import Path
from typing import Any

import griffe


def examples_as_code(docstring: str) -> str:
    """A docstring as Markdown: what is indented under `Example:` becomes a block of code."""
    out: list[str] = []
    lines = inspect.cleandoc(docstring).split("\n")
    while lines:
        line = lines.pop(0)
        if line.strip() != "Example:":
            out.append(line)
            continue
        code: list[str] = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            code.append(lines.pop(0))
        text = textwrap.dedent("\n".join(code)).strip("\n")
        out += ["", f"```{language(text)}", text, "```", ""]
    return "\n".join(out)


def language(code: str) -> str:
    if code.startswith(("$", "python ", "sensorium ", "make ")):
        return "sh"
    try:
        ast.parse(code)
    except SyntaxError:
        return "yaml" if re.match(r"[\w#]", code) and ":" in code else "text"
    # One line such as `camera: {use: camera}` is both; Python would take it for an annotation.
    return "yaml" if all(re.match(r"[\w-]+: *[{\[]|$", line) for line in code.split("\n")) else "python"


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = examples_as_code(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A list of literals, each with its comment, such as frame.Encoding."""
        values = [
            f"- `{value[1]}`" + (f": {value[2]}" if value[2] else "")
            for line in source_lines(attr)
            if (value := re.match(r'\s+"(\w+)",(?:  # (.*))?$', line))
        ]
        if attr.docstring is None and any(": " in value for value in values):
            attr.docstring = griffe.Docstring("One of:\n\n" + "\n".join(values), parent=attr)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """The fields of a struct or a dataclass, with the comments beside them, as its section of attributes."""
        if not ("dataclass" in cls.labels or any("Struct" in str(base) for base in cls.bases)):
            return
        if cls.docstring is not None and "Attributes:" in cls.docstring.value:
            return
        attributes = [a for a in cls.attributes.values() if a.annotation is not None and not a.name.startswith("_")]
        fields = [a for a in attributes if "property" not in a.labels]
        rows = [f"    {field.name}: {comment_beside(field)}" for field in fields if field.docstring is None]
        if rows:
            if cls.docstring is None:
                cls.docstring = griffe.Docstring("", parent=cls, parser="google")
            cls.docstring.value = "\n".join([cls.docstring.value, "", "Attributes:", *rows])


def source_lines(attr: griffe.Attribute) -> list[str]:
    path = attr.filepath
    assert isinstance(path, Path)
    return path.read_text(encoding="utf-8").splitlines()[(attr.lineno or 1) - 1 : attr.endlineno]


def comment_beside(attr: griffe.Attribute) -> str:
    """ "bound on the error" of `clock_error_ns: int = 0  # bound on the error`, and the default."""
    comment = ""
    line = source_lines(attr)[-1].strip()
    try:
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            if token.type == tokenize.COMMENT:
                comment = token.string.lstrip("# ")
    except tokenize.TokenError:  # the last line of several: a bracket is closed that was opened before
        comment = line.partition("  # ")[2]
    default = f"Default `{attr.value}`." if attr.value is not None and len(str(attr.value)) < 30 else ""
    if comment and comment[-1] not in ".!?":
        comment += "."
    return f"{comment[:1].upper()}{comment[1:]} {default}".strip()
