"""What a start needs to know of an ONNX file, read without the package `onnx`, whose import alone takes 0.4 s.

An ONNX file is a protobuf message: fields of (number, kind, value). Read are the metadata, the graph's bytes as they
stand, and the names, types and shapes of its inputs and outputs; weights are stepped over, not parsed.

Example:
    file = OnnxFile.read(Path("models/face-expression.onnx"))
    file.metadata["sensorium.manifest"], file.inputs[0].shape            # '{"name": …', ("n", 1, 48, 48)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.files import read_bytes
from pipeline.installation import COMMAND

# onnx.proto3: the numbers of the fields that are read.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA = 7, 8, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_OP, _TENSOR_NAME = 4, 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT, _TENSOR_SHAPE, _DIM_VALUE, _DIM_NAME = 1, 2, 1, 1, 2, 1, 2
_ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}

# Where tensors may be: in graphs, nodes' attributes, functions, training information; by the numbers of their fields.
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_MODEL, _TRAINING, _FUNCTION, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR = (
    *("model", "training", "function", "graph", "node", "attribute", "sparse", "tensor"),
)
_PARTS: dict[str, dict[int, str]] = {
    _MODEL: {_MODEL_GRAPH: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
MAX_DEPTH = 100
MAX_BYTES = 2 << 30  # protobuf's own limit

Field = tuple[int, "int | memoryview"]


class Value(NamedTuple):
    """An input or output. shape: a size that is free is its name, or None where it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class OnnxFile:
    metadata: dict[str, str]
    inputs: tuple[Value, ...]  # without the weights that older files list among them
    outputs: tuple[Value, ...]
    operators: frozenset[str]
    opset: int
    graph_sha256: str  # of the graph's bytes as they stand in the file

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Raises ConfigError for a file that is missing, of another kind, or cut short."""
        if not path.exists():
            raise ConfigError(f"{path}: no such model. Those that ship are listed by: {COMMAND} models list")
        raw = read_bytes(path, most=MAX_BYTES)
        try:
            if b"location" in raw:  # the key by which a tensor names another file; without it there is none to look for
                _check_parts(memoryview(raw), _MODEL, 0)
            return cls._parse(memoryview(raw))
        except _OtherFiles as error:
            raise ConfigError(
                f"{path}: the weights of {error} lie in another file, which could be any file of yours. Save it as one "
                "file, if you trust it: onnx.save(onnx.load(PATH), PATH)"
            ) from error
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{path}: not an ONNX file, or cut short ({error}). Fetch it again.") from error

    @classmethod
    def _parse(cls, content: memoryview) -> OnnxFile:
        metadata: dict[str, str] = {}
        graph, opset = None, 0
        for number, value in _fields(content):
            if number == _MODEL_GRAPH:
                if graph is not None:
                    raise ValueError("there are two graphs in it")
                graph = _part(value)
            elif number == _MODEL_METADATA:
                entry = dict(_fields(_part(value)))
                metadata[_text(entry.get(1))] = _text(entry.get(2))
            elif number == _MODEL_OPSETS:
                entry = dict(_fields(_part(value)))
                if not _text(entry.get(1)):
                    opset = _number(entry.get(2, 0))
        if graph is None:
            raise ValueError("there is no graph in it")
        values: dict[int, list[Value]] = {_GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
        weights, operators = set(), set()
        for number, value in _fields(graph):
            if number in values:
                values[number].append(_value(_part(value)))
            elif number == _GRAPH_INITIALIZER:
                weights.add(_text(next((v for n, v in _fields(_part(value)) if n == _TENSOR_NAME), None)))
            elif number == _GRAPH_NODE:
                operators.add(_text(next((v for n, v in _fields(_part(value)) if n == _NODE_OP), None)))
        inputs = tuple(value for value in values[_GRAPH_INPUT] if value.name not in weights)
        return cls(
            metadata,
            inputs,
            tuple(values[_GRAPH_OUTPUT]),
            frozenset(operators),
            opset,
            hashlib.sha256(graph).hexdigest(),
        )


class _OtherFiles(Exception):
    """A tensor's content lies in another file. Its name is the message."""


def _check_parts(content: memoryview, kind: str, depth: int) -> None:
    """Raises _OtherFiles for a tensor anywhere below that names another file, ValueError for nesting without end."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} times")
    parts = _PARTS[kind]
    for number, value in _fields(content):
        if number in parts:
            _check_parts(_part(value), parts[number], depth + 1)
        elif kind == _TENSOR and (number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0)):
            raise _OtherFiles(_text(next((v for n, v in _fields(content) if n == _TENSOR_NAME), None)) or "a tensor")


def _value(content: memoryview) -> Value:
    name, dtype, shape = "", "?", []
    for number, value in _fields(content):
        if number == _VALUE_NAME:
            name = _text(value)
        elif number == _VALUE_TYPE:
            tensor = dict(_fields(_part(dict(_fields(_part(value))).get(_TYPE_TENSOR, memoryview(b"")))))
            dtype = _ELEMENTS.get(_number(tensor.get(_TENSOR_ELEMENT, 0)), "?")
            for _, dim in _fields(_part(tensor.get(_TENSOR_SHAPE, memoryview(b"")))):
                size = dict(_fields(_part(dim)))
                shape.append(_number(size[_DIM_VALUE]) if _DIM_VALUE in size else _text(size.get(_DIM_NAME)) or None)
    return Value(name, dtype, tuple(shape))


def _fields(content: memoryview) -> Iterator[Field]:
    """(number, value) of a message: an int, or the bytes of what has a length."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:  # other readers take the lower bits of a larger one
            raise ValueError(f"a field of the number {number}")
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(content, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(content):
            raise ValueError("a field reaches beyond the end")
        yield number, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number without an end")


def _part(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number should be")
    return value


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else bytes(_part(value)).decode()
