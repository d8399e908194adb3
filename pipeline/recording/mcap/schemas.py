"""The schemas that a recording's messages are written by: Foxglove's well-known ones, and our own beside them.

Pictures, sound and points are foxglove.CompressedImage, RawImage, RawAudio and PointCloud (protobuf), each with one
more field, `sensorium` (number 1000, a sensorium.Frame) for what the schema has no place for. A reader that knows only
Foxglove's schemas skips it, as protobuf asks. All other frames are a sensorium.Frame alone; predictions, health and
aligned sets are JSON. encode.py and decode.py turn messages into bytes and back.

Example:
    schema("foxglove.RawImage")                # Schema(name, encoding, data, message_encoding)
    MESSAGE_CLASSES[FRAME](stream="camera")    # the protobuf message class
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from foxglove_schemas_protobuf import (
    CameraCalibration_pb2,
    CompressedImage_pb2,
    PointCloud_pb2,
    RawAudio_pb2,
    RawImage_pb2,
)
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

OWN_FIELD = 1000  # number of `sensorium` in Foxglove's messages: far above those that Foxglove uses
FRAME = "sensorium.Frame"
CALIBRATION = "foxglove.CameraCalibration"
PREDICTION = "sensorium.Prediction"
IMAGE, RAW_IMAGE = "foxglove.CompressedImage", "foxglove.RawImage"
AUDIO, POINTS = "foxglove.RawAudio", "foxglove.PointCloud"
# Of arrays in a recording.
DTYPES = {d: np.dtype(d) for d in ("|u1", "|i1", "|b1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")}


class Schema(NamedTuple):
    """A schema record of an MCAP file. encoding: of the schema; message_encoding: of the messages."""

    name: str
    encoding: str
    data: bytes
    message_encoding: str


# --- protobuf ---------------------------------------------------------------------------------------------------------

_LABEL, _TYPE = descriptor_pb2.FieldDescriptorProto.Label, descriptor_pb2.FieldDescriptorProto.Type
_OWN_FIELDS = (  # name, number, type
    ("stream", 1, "STRING"),
    ("seq", 2, "SINT64"),
    ("capture_ns", 3, "SINT64"),
    ("duration_ns", 4, "SINT64"),
    ("publish_ns", 5, "SINT64"),
    ("clock_error_ns", 6, "SINT64"),
    ("encoding", 7, "STRING"),
    ("reason", 8, "STRING"),
    ("dtype", 9, "STRING"),  # of the payload, as numpy writes it: "<f4"
    ("shape", 10, "INT64"),  # of the payload
    ("exact", 11, "BYTES"),  # the payload, where Foxglove's `data` does not hold it to the bit
    ("values", 12, "DOUBLE"),  # IMU and series again, for plots
    ("text", 13, "STRING"),  # texts and labels again, for readers
)


def _own_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="sensorium/Frame.proto", package="sensorium", syntax="proto3")
    message = file.message_type.add(name="Frame")
    for name, number, kind in _OWN_FIELDS:
        label = _LABEL.LABEL_REPEATED if name in ("shape", "values") else _LABEL.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=_TYPE.Value(f"TYPE_{kind}"), label=label, json_name=name)
    return file


def _files() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Every descriptor file by name, after those it imports, with `sensorium` in the messages that carry frames."""
    files = {"sensorium/Frame.proto": _own_file()}

    def add(described: Any) -> None:
        for imported in described.dependencies:
            add(imported)
        if described.name not in files:
            described.CopyToProto(proto := descriptor_pb2.FileDescriptorProto())
            files[described.name] = proto

    for module in (CompressedImage_pb2, RawImage_pb2, RawAudio_pb2, PointCloud_pb2, CameraCalibration_pb2):
        add(module.DESCRIPTOR)
        if module is not CameraCalibration_pb2:
            file = files[module.DESCRIPTOR.name]
            file.dependency.append("sensorium/Frame.proto")
            file.message_type[0].field.add(
                name="sensorium",
                number=OWN_FIELD,
                type=_TYPE.TYPE_MESSAGE,
                type_name=".sensorium.Frame",
                label=_LABEL.LABEL_OPTIONAL,
                json_name="sensorium",
            )
    return files


_FILES = _files()
_POOL = descriptor_pool.DescriptorPool()
for _file in _FILES.values():
    _POOL.Add(_file)
MESSAGE_CLASSES: dict[str, Any] = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))
    for name in (IMAGE, RAW_IMAGE, AUDIO, POINTS, CALIBRATION, FRAME)
}
DATA_TAG = {  # the protobuf tag of the payload's field
    name: (MESSAGE_CLASSES[name].DESCRIPTOR.fields_by_name["data"].number << 3 | 2)
    for name in (IMAGE, RAW_IMAGE, AUDIO, POINTS)
}


def schema(kind: str) -> Schema:
    """kind: a message's schema name, as encode.kind_of returns it."""
    if kind in MESSAGE_CLASSES:
        described = descriptor_pb2.FileDescriptorSet()
        files: dict[str, Any] = {}

        def add(name: str) -> None:
            if name not in files:
                for imported in _FILES[name].dependency:
                    add(imported)
                files[name] = _FILES[name]

        add(MESSAGE_CLASSES[kind].DESCRIPTOR.file.name)
        described.file.extend(files.values())
        return Schema(kind, "protobuf", described.SerializeToString(), "protobuf")
    return Schema(kind, "jsonschema", msgspec.json.encode(_JSON_SCHEMAS[kind]), "json")


# --- JSON -------------------------------------------------------------------------------------------------------------

_NUMBER, _TEXT = {"type": "integer"}, {"type": "string"}
_RECEIPTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "stream": _TEXT,
            "state": _TEXT,
            "seq": {"type": "array", "items": _NUMBER},
            "span_ns": _NUMBER,
            "skew_ns": _NUMBER,
            "age_ns": _NUMBER,
            "clock_error_ns": _NUMBER,
            "reason": _TEXT,
        },
    },
}
_EXACT = {"type": "string", "contentEncoding": "base64"}
_JSON_SCHEMAS: dict[str, dict[str, Any]] = {
    PREDICTION: {
        "title": PREDICTION,
        "type": "object",
        "properties": {
            "task": _TEXT,
            "capture_ns": _NUMBER,
            "label": {"type": ["string", "null"]},
            "model": _TEXT,
            "probs": {"type": "object", "additionalProperties": {"type": "number"}},
            "subjects": {"type": "array", "items": {"type": "object"}},
            "opinions": {"type": "array", "items": {"type": "object"}},
            "surroundings": {"type": "object"},
            "used": {"type": "array", "items": _TEXT},
            "missing": {"type": "array", "items": _TEXT},
            "receipts": _RECEIPTS,
            "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
            "exact": _EXACT,
        },
    },
    "sensorium.AlignedSet": {
        "title": "sensorium.AlignedSet",
        "type": "object",
        "properties": {
            "anchor": _TEXT,
            "anchor_ns": _NUMBER,
            "missing": {"type": "array", "items": _TEXT},
            "receipts": _RECEIPTS,
            "arrival_ns": _NUMBER,
            "sent_ns": _NUMBER,
            "exact": _EXACT,
        },
    },
    "sensorium.Health": {
        "title": "sensorium.Health",
        "type": "object",
        "properties": {"publish_ns": _NUMBER, "nodes": {"type": "array", "items": {"type": "object"}}, "exact": _EXACT},
    },
}
