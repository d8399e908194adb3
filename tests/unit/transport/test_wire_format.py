"""Messages ↔ bytes: a message comes back equal, and bytes that are no message are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wires import INFO, PREDICTION, RECEIPT, message

from pipeline.errors import WireError
from pipeline.frame import AlignedSet, Frame, Health, NodeHealth, silence
from pipeline.transport.wire_format import Bye, Codec, Credit, End, Fault, Hello, Report, Request, Value, Welcome

PICTURE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
FRAME = Frame("camera", 7, 1_000, "bgr8", PICTURE, 33, 1_040, 5)
NODE = NodeHealth(
    "camera", "running", "note", 12, 1, 0.5, 3, {"a": 1}, {"a": {"why": 2}}, {"total": {"p50": 1.0}}, {"k": "v"}
)

EVERY_MESSAGE: list[Value] = [
    FRAME,
    silence("camera", 99, "muted"),
    AlignedSet("camera", 1_000, {"camera": (FRAME,)}, (RECEIPT,), ("microphone",), 1_001, 1_002),
    PREDICTION,
    Health(5, (NODE,)),
    Hello("console<-emotion", 32),
    Hello("console<-emotion"),
    Credit(4),
    Bye(),
    Welcome(INFO),
    End(),
    Report("camera", (NODE,)),
    Fault("camera", "gone", 3),
    Request("mute", "camera"),
]


def over_the_wire(value: Value) -> Any:
    parts = Codec().encode(5, 6, value)
    envelope = Codec().decode([bytes(part) for part in parts])
    assert (envelope.session, envelope.seq) == (5, 6)
    return envelope.value


def plain(value: Any) -> Any:
    """Comparable with ==, which arrays are not."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, msgspec.Struct):
        return type(value).__name__, {k: plain(v) for k, v in msgspec.structs.asdict(value).items()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value


# --- messages ↔ bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", EVERY_MESSAGE, ids=lambda value: type(value).__name__)
def test_message_comes_back_equal(value: Value) -> None:
    assert plain(over_the_wire(value)) == plain(value)


@pytest.mark.parametrize("dtype", ["u1", "i1", "?", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (16, 2), (), (800, 3)])
def test_array_keeps_its_type_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    back = over_the_wire(frame_of(data)).data
    assert (back.dtype, back.shape) == (data.dtype, data.shape)
    assert np.array_equal(back, data)


def frame_of(data: np.ndarray) -> Frame:
    return Frame("s", 0, 0, "series_f32", data)


def test_array_that_is_not_contiguous_comes_back_equal() -> None:
    for data in (PICTURE[:, ::2], PICTURE[::-1], PICTURE.transpose(2, 0, 1), np.arange(8.0)[::3]):
        assert np.array_equal(over_the_wire(frame_of(data)).data, data)


def test_large_array_travels_as_a_part_of_its_own_and_is_not_copied() -> None:
    header, pixels = Codec().encode(1, 1, FRAME)
    assert len(header) < 100
    assert np.shares_memory(np.frombuffer(pixels, np.uint8), PICTURE)


def test_decoded_array_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        over_the_wire(FRAME).data[0] = 0


def test_decoded_array_is_a_view_of_the_message() -> None:
    parts = [bytes(part) for part in Codec().encode(1, 1, FRAME)]
    assert np.shares_memory(Codec().decode(parts).value.data, np.frombuffer(parts[1], np.uint8))


def test_object_array_is_not_sent() -> None:
    with pytest.raises(TypeError, match="cannot send an array of object"):
        over_the_wire(frame_of(np.array([{"a": 1}], dtype=object)))


# --- bytes that are no message ----------------------------------------------------------------------------------------


def refused(*parts: bytes) -> str:
    with pytest.raises(WireError) as caught:
        Codec().decode(parts)
    return str(caught.value)


def frame_with(data: Any) -> bytes:
    return message(["Frame", "camera", 1, 1, "bgr8", data])


def test_crafted_frame_of_these_tests_is_accepted_when_it_is_valid() -> None:
    assert Codec().decode([frame_with(["|u1", [3], b"abc"])]).value.data.tolist() == [97, 98, 99]


def test_other_version_is_named() -> None:
    assert "version 2; this program supports version 1" in refused(message(["End"], version=2))


@pytest.mark.parametrize(
    "data",
    [
        ["|u1", [4], b"abc"],
        ["|u1", [-1], b"abc"],
        ["|u1", [-1, 3], b"abc"],
        ["|u1", [2**63], b"abc"],
        ["|u1", [3.0e300], b"abc"],
        ["|u1", ["3x"], b"abc"],
        ["|u1", 3, b"abc"],
        ["<f4", [1], b"abc"],
        ["|O", [1], b"abcdefgh"],
        ["O", [1], pickle.dumps(print)],
        ["<M8[ns]", [1], b"abcdefgh"],
        [["a", "<f4"], [1], b"abcd"],
        ["|u1", [3], 0],
        ["|u1", [3], -1],
        ["|u1", [3], 2**40],
        ["|u1", [3], None],
        ["|u1", [3]],
        ["|u1", [3], b"abc", 1],
        b"abc",
        None,
    ],
    ids=repr,
)
def test_malformed_array_is_refused(data: Any) -> None:
    assert refused(frame_with(data))


def test_negative_part_is_not_the_last_part() -> None:
    refused(frame_with(["|u1", [3], -1]), b"abc")


def test_message_without_parts_is_refused() -> None:
    refused()
    refused(b"")


def test_missing_part_is_refused() -> None:
    header, _ = Codec().encode(1, 1, FRAME)
    refused(header)


def test_part_of_the_wrong_length_is_refused() -> None:
    header, pixels = Codec().encode(1, 1, FRAME)
    refused(header, bytes(pixels)[:-1])


def test_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    refused(pickle.dumps(Bomb()))
    refused(frame_with(["|O", [1], pickle.dumps(Bomb())]))
    assert not (tmp_path / "executed").exists()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_refused_and_do_nothing_else(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        Codec().decode(parts)


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    index=st.integers(0, len(EVERY_MESSAGE) - 1),
    path=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    new=JSON_LIKE,
)
def test_a_message_with_anything_in_any_place_decodes_or_is_refused(index: int, path: list[int], new: Any) -> None:
    header, *parts = (bytes(part) for part in Codec().encode(1, 1, EVERY_MESSAGE[index]))
    tree = msgspec.msgpack.decode(header)
    at = tree
    for step in path[:-1]:
        if isinstance(at[step % len(at)], list) and at[step % len(at)]:
            at = at[step % len(at)]
    at[path[-1] % len(at)] = new
    try:
        Codec().decode([msgspec.msgpack.encode(tree), *parts])
    except WireError:
        pass


@settings(max_examples=300, deadline=None)
@given(
    index=st.integers(0, len(EVERY_MESSAGE) - 1), at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans()
)
def test_a_message_with_a_changed_or_missing_byte_decodes_or_is_refused(
    index: int, at: int, byte: int, cut: bool
) -> None:
    header, *parts = (bytes(part) for part in Codec().encode(1, 1, EVERY_MESSAGE[index]))
    changed = bytearray(header)
    changed[at % len(header)] = byte
    try:
        Codec().decode([bytes(changed[: at % len(header)] if cut else changed), *parts])
    except WireError:
        pass
