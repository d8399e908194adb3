"""Messages ↔ the bytes of a recording: Foxglove's well-known schemas, with our own exact fields beside. Knows no files.

Every frame is one protobuf message. Pictures, sound and points are foxglove.CompressedImage, RawImage, RawAudio and
PointCloud, each with one more field, `sensorium` (number 1000, a sensorium.Frame): what that schema has no place for. A
reader that knows only Foxglove's passes over it, as protobuf asks. All other frames are a sensorium.Frame alone.
Predictions, health and aligned sets (without their frames' payload) are JSON objects whose last member, `exact`, is the
value to the bit (base64 of msgpack).

    kind = kind_of(frame)                      # "foxglove.RawImage"
    data = encode(frame, utc_offset_ns, "cam") # bytes
    frame = decode(kind, data)                 # the same, to the bit
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

from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Health, Message, Prediction

OWN_FIELD = 1000  # of `sensorium` in Foxglove's messages: far from any number they will come to use
FRAME = "sensorium.Frame"
CALIBRATION = "foxglove.CameraCalibration"
IMAGE, RAW_IMAGE, AUDIO, POINTS = (
    "foxglove.CompressedImage",
    "foxglove.RawImage",
    "foxglove.RawAudio",
    "foxglove.PointCloud",
)
COMPRESSED = {"jpeg": "jpeg", "depth_png": "png"}  # our encoding → Foxglove's format
# (dtype, dimensions) → Foxglove's encoding, for each of ours
RAW = {"bgr8": {("|u1", 3): "bgr8", ("|u1", 2): "mono8"}, "depth_u16_mm": {("<u2", 2): "mono16"}}
WELL_KNOWN = (
    *COMPRESSED,
    *RAW,
    "pcm_f32",
    "points_xyzi_f32",
    "points_xyzit_f32",
)  # our encodings that a schema of Foxglove fits
FLOAT32 = 7  # PackedElementField.NumericType
S16_FULL = 32768.0  # sound in [-1, 1) → 16 bit
DTYPES = {d: np.dtype(d) for d in ("|u1", "|i1", "|b1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")}


class Schema(NamedTuple):
    """As an MCAP file holds it. encoding: of the schema; message_encoding: of the messages."""

    name: str
    encoding: str
    data: bytes
    message_encoding: str


# --- schemas --------------------------------------------------------------------------------------------------------

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
    ("dtype", 9, "STRING"),  # of the payload, as numpy has it: "<f4"
    ("shape", 10, "INT64"),  # of the payload
    ("exact", 11, "BYTES"),  # the payload, where `data` beside it is not it to the bit
    ("values", 12, "DOUBLE"),  # IMU and series once more, to be plotted
    ("text", 13, "STRING"),  # texts and labels once more, to be read
)


def _own_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="sensorium/Frame.proto", package="sensorium", syntax="proto3")
    message = file.message_type.add(name="Frame")
    for name, number, kind in _OWN_FIELDS:
        label = _LABEL.LABEL_REPEATED if name in ("shape", "values") else _LABEL.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=_TYPE.Value(f"TYPE_{kind}"), label=label, json_name=name)
    return file


def _files() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Every file by name, each after those it needs; `sensorium` added to the four messages that carry frames."""
    files = {"sensorium/Frame.proto": _own_file()}

    def add(described: Any) -> None:
        for needed in described.dependencies:
            add(needed)
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
_CLASSES: dict[str, Any] = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))
    for name in (IMAGE, RAW_IMAGE, AUDIO, POINTS, CALIBRATION, FRAME)
}
_DATA_TAG = {
    name: (_CLASSES[name].DESCRIPTOR.fields_by_name["data"].number << 3 | 2)
    for name in (IMAGE, RAW_IMAGE, AUDIO, POINTS)
}


def schema(kind: str) -> Schema:
    """kind: as `kind_of` tells it."""
    if kind in _CLASSES:
        described = descriptor_pb2.FileDescriptorSet()
        wanted: dict[str, Any] = {}

        def add(name: str) -> None:
            if name not in wanted:
                for needed in _FILES[name].dependency:
                    add(needed)
                wanted[name] = _FILES[name]

        add(_CLASSES[kind].DESCRIPTOR.file.name)
        described.file.extend(wanted.values())
        return Schema(kind, "protobuf", described.SerializeToString(), "protobuf")
    return Schema(kind, "jsonschema", msgspec.json.encode(_JSON_SCHEMAS[kind]), "json")


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
    "sensorium.Prediction": {
        "title": "sensorium.Prediction",
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


# --- messages → bytes -----------------------------------------------------------------------------------------------


def kind_of(message: Message) -> str:
    """The name of the schema that the message is written by."""
    if not isinstance(message, Frame):
        return f"sensorium.{type(message).__name__}"
    data, encoding = message.data, message.encoding
    if encoding in COMPRESSED and data.size and data.ndim == 1 and data.dtype == np.uint8:
        return IMAGE
    if data.size and (data.dtype.str, data.ndim) in RAW.get(encoding, {}) and (data.ndim == 2 or data.shape[2] == 3):
        return RAW_IMAGE
    if encoding == "pcm_f32" and data.size and data.ndim == 1 and data.dtype == np.float32 and message.duration_ns:
        return AUDIO
    if (
        data.ndim == 2
        and data.dtype == np.float32
        and data.shape[1] == {"points_xyzi_f32": 4, "points_xyzit_f32": 5}.get(encoding)
    ):
        return POINTS
    return FRAME


def encode(message: Message, utc_offset_ns: int, frame_id: str) -> bytes:
    """utc_offset_ns: monotonic + offset = UTC, for the schema's own time stamp. frame_id: the sensor's name in the rig."""
    if not isinstance(message, Frame):
        return _encode_json(message)
    kind, data = kind_of(message), np.ascontiguousarray(message.data)
    if data.dtype.str not in DTYPES:
        raise TypeError(f"cannot record an array of {data.dtype}. What can be: {', '.join(DTYPES)}")
    head = _CLASSES[FRAME](
        stream=message.stream,
        seq=message.seq,
        capture_ns=message.capture_ns,
        duration_ns=message.duration_ns,
        publish_ns=message.publish_ns,
        clock_error_ns=message.clock_error_ns,
        encoding=message.encoding,
        reason=message.reason,
        dtype=data.dtype.str,
        shape=data.shape,
    )
    if kind == FRAME:
        return _encode_own(head, message.encoding, data)
    stamped = _CLASSES[kind]()
    stamped.timestamp.seconds, stamped.timestamp.nanos = divmod(_utc(message.capture_ns, utc_offset_ns), NS)
    payload: Any = data.data.cast("B") if data.size else b""
    if kind == IMAGE:
        stamped.frame_id, stamped.format = frame_id, COMPRESSED[message.encoding]
    elif kind == RAW_IMAGE:
        stamped.frame_id, stamped.encoding = frame_id, RAW[message.encoding][data.dtype.str, data.ndim]
        stamped.height, stamped.width, stamped.step = *data.shape[:2], data.strides[0]
    elif kind == AUDIO:
        stamped.format, stamped.number_of_channels = "pcm-s16", 1
        stamped.sample_rate = round(len(data) * NS / message.duration_ns)
        coarse = _to_s16(data)
        if _from_s16(coarse).tobytes() != data.tobytes():  # sound that never was 16 bit
            head.exact = data.tobytes()
        payload = coarse.tobytes()
    else:
        stamped.frame_id, stamped.point_stride, stamped.pose.orientation.w = frame_id, 4 * data.shape[1], 1.0
        for i, name in enumerate(("x", "y", "z", "reflectance", "time_s")[: data.shape[1]]):
            stamped.fields.add(name=name, offset=4 * i, type=FLOAT32)
    stamped.sensorium.CopyFrom(head)
    # Protobuf takes fields in any order: the payload is appended by hand, which saves copying megabytes twice.
    return b"".join((stamped.SerializeToString(), _varint(_DATA_TAG[kind]), _varint(len(payload)), payload))


def calibration(
    camera: str, *, width_px: int, height_px: int, matrix: np.ndarray, distortion: np.ndarray, model: str, utc_ns: int
) -> bytes:
    """A foxglove.CameraCalibration. matrix: (3, 3) intrinsics, px. model: "plumb_bob", "rational_polynomial" or "kannala_brandt"."""
    message = _CLASSES[CALIBRATION](frame_id=camera, width=width_px, height=height_px, distortion_model=model)
    message.timestamp.seconds, message.timestamp.nanos = divmod(utc_ns, NS)
    message.D.extend(float(d) for d in np.ravel(distortion))
    message.K.extend(float(k) for k in np.ravel(matrix))
    message.R.extend(float(r) for r in np.eye(3).ravel())
    message.P.extend(float(p) for p in np.hstack([matrix, np.zeros((3, 1))]).ravel())
    serialized: bytes = message.SerializeToString()
    return serialized


def _encode_own(head: Any, encoding: str, data: np.ndarray) -> bytes:
    head.exact = data.tobytes()
    if encoding in ("imu_f64", "series_f32"):
        head.values.extend(data.ravel().tolist())
    elif encoding in ("text_utf8", "label") and data.dtype == np.uint8:
        head.text = data.tobytes().decode("utf-8", "replace")
    serialized: bytes = head.SerializeToString()
    return serialized


def _encode_json(message: AlignedSet | Prediction | Health) -> bytes:
    if isinstance(message, Prediction):
        plain = message.record()
    elif isinstance(message, Health):
        plain = {"publish_ns": message.publish_ns, "nodes": [msgspec.structs.asdict(node) for node in message.nodes]}
    else:
        message = without_payload(message)
        plain = {name: value for name, value in msgspec.structs.asdict(message).items() if name != "frames"}
        plain["receipts"] = [msgspec.structs.asdict(receipt) for receipt in message.receipts]
    return msgspec.json.encode(plain | {"exact": _PACKER.encode(message)})


def without_payload(aligned: AlignedSet) -> AlignedSet:
    bare = {
        stream: tuple(
            Frame(
                f.stream,
                f.seq,
                f.capture_ns,
                f.encoding,
                duration_ns=f.duration_ns,
                publish_ns=f.publish_ns,
                clock_error_ns=f.clock_error_ns,
                reason=f.reason,
            )
            for f in frames
        )
        for stream, frames in aligned.frames.items()
    }
    return msgspec.structs.replace(aligned, frames=bare)


# --- bytes → messages -----------------------------------------------------------------------------------------------


def decode(kind: str, data: bytes) -> Message:
    """Raises ValueError for what is not a message of that kind, whatever is wrong with it."""
    try:
        return _decode_frame(kind, data) if kind in _CLASSES else _decode_json(kind, data)
    except Exception as error:  # protobuf, msgspec and numpy each have their own kinds
        raise ValueError(f"not a {kind}: {error}") from error


def decoded_calibration(data: bytes) -> Any:
    """A foxglove.CameraCalibration: width, height, distortion_model, D, K (9 numbers, by row). Raises ValueError."""
    return parsed(CALIBRATION, data)


def parsed(kind: str, data: bytes) -> Any:
    """A message of one of Foxglove's schemas as it is, also one that is not ours. Raises ValueError."""
    try:
        return _CLASSES[kind].FromString(data)
    except Exception as error:
        raise ValueError(f"not a {kind}: {error}") from error


def _decode_frame(kind: str, data: bytes) -> Frame:
    message = _CLASSES[kind].FromString(data)
    head = message if kind == FRAME else message.sensorium
    dtype, shape = DTYPES[head.dtype], tuple(head.shape)
    if kind == FRAME or head.exact:
        payload = np.frombuffer(head.exact, dtype)
    elif kind == AUDIO:
        payload = _from_s16(np.frombuffer(message.data, "<i2"))
    else:
        payload = np.frombuffer(message.data, dtype)
    if not head.stream or min(shape, default=0) < 0:
        raise ValueError("its own fields are missing or make no sense")
    return Frame(
        head.stream,
        head.seq,
        head.capture_ns,
        head.encoding,
        payload.reshape(shape),
        head.duration_ns,
        head.publish_ns,
        head.clock_error_ns,
        head.reason,
    )


class _Exact(msgspec.Struct):
    exact: bytes


def _decode_json(kind: str, data: bytes) -> Message:
    message: Message = _UNPACKERS[kind].decode(msgspec.json.decode(data, type=_Exact).exact)
    return message


def _array_out(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    if not isinstance(array, np.ndarray) or array.dtype.str not in DTYPES:
        raise TypeError(f"cannot record a {type(array).__name__}")
    return array.dtype.str, array.shape, array.tobytes()


def _array_in(kind: type, raw: Any) -> np.ndarray:
    dtype, shape, data = raw
    return np.frombuffer(data, DTYPES[dtype]).reshape([int(n) for n in shape])


_PACKER = msgspec.msgpack.Encoder(enc_hook=_array_out)
_UNPACKERS: dict[str, Any] = {
    f"sensorium.{kind.__name__}": msgspec.msgpack.Decoder(kind, dec_hook=_array_in)
    for kind in (AlignedSet, Prediction, Health)
}


def _to_s16(samples: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        coarse: np.ndarray = np.clip(np.nan_to_num(np.rint(samples * S16_FULL)), -32768, 32767).astype("<i2")
    return coarse


def _from_s16(coarse: np.ndarray) -> np.ndarray:
    return np.asarray(coarse.astype(np.float32) / np.float32(S16_FULL))


def _utc(monotonic_ns: int, utc_offset_ns: int) -> int:
    """0 for a time at which there is no UTC: a watermark at the end of time, or before 1970."""
    return max(0, monotonic_ns + utc_offset_ns) if monotonic_ns < FOREVER_NS else 0


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
