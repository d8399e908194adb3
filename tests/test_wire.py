"""Messages ↔ bytes, and what publishers and readers promise each other over real sockets."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from running import wait_for

from pipeline import ring, runs, wire
from pipeline.codec import VERSION, Bye, Codec, Credit, End, Fault, Hello, Report, Request, Value, Welcome
from pipeline.drain import Drain
from pipeline.errors import ConfigError, WireError
from pipeline.frame import AlignedSet, Frame, Health, NodeHealth, Prediction, Receipt, StreamInfo, Subject, silence
from pipeline.runs import find_run, subscribe
from pipeline.wire import CREDITS, QUEUE_MESSAGES, Connection, Gone, Publisher

PICTURE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
INFO = StreamInfo("camera", "bgr8", 30.0, 3, "front", "a test")
RECEIPT = Receipt("camera", "nearest", (7, 8), 40, -3, 12, 1, "why")
FRAME = Frame("camera", 7, 1_000, "bgr8", PICTURE, 33, 1_040, 5)
PREDICTION = Prediction(
    "emotion", 1_000, ("happy", "sad"), np.float32([0.75, 0.25]), "happy", "face@1", (Subject(3, (1, 2, 3, 4), (0.75, 0.25)),),
    ("camera",), ("microphone",), (RECEIPT,), True, {"wait": 3, "infer": 4},
)  # fmt: skip
NODE = NodeHealth("camera", "running", "note", 12, 1, 0.5, 3, {"a": 1}, {"a": {"why": 2}}, {"total": {"p50": 1.0}}, {"k": "v"})

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
def test_message_comes_back_as_it_was(value: Value) -> None:
    assert plain(over_the_wire(value)) == plain(value)


@pytest.mark.parametrize("dtype", ["u1", "i1", "?", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (16, 2), (), (800, 3)])
def test_array_keeps_its_type_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    data = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    back = over_the_wire(dataclass_frame(data)).data
    assert (back.dtype, back.shape) == (data.dtype, data.shape)
    assert np.array_equal(back, data)


def dataclass_frame(data: np.ndarray) -> Frame:
    return Frame("s", 0, 0, "series_f32", data)


def test_array_that_is_not_contiguous_comes_back_equal() -> None:
    for data in (PICTURE[:, ::2], PICTURE[::-1], PICTURE.transpose(2, 0, 1), np.arange(8.0)[::3]):
        assert np.array_equal(over_the_wire(dataclass_frame(data)).data, data)


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
        over_the_wire(dataclass_frame(np.array([{"a": 1}], dtype=object)))


# --- bytes that are not ours ------------------------------------------------------------------------------------------


def refused(*parts: bytes) -> str:
    with pytest.raises(WireError) as caught:
        Codec().decode(parts)
    return str(caught.value)


def message(value: Any, version: int = 1) -> bytes:
    return msgspec.msgpack.encode([version, 1, 1, value])


def frame_with(data: Any) -> bytes:
    return message(["Frame", "camera", 1, 1, "bgr8", data])


def test_the_crafted_frame_of_these_tests_is_taken_when_it_is_right() -> None:
    assert Codec().decode([frame_with(["|u1", [3], b"abc"])]).value.data.tolist() == [97, 98, 99]


def test_other_version_is_named() -> None:
    assert "version 2; this program speaks version 1" in refused(message(["End"], version=2))


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
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(index=st.integers(0, len(EVERY_MESSAGE) - 1), path=st.lists(st.integers(0, 20), min_size=1, max_size=5), new=JSON_LIKE)
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
@given(index=st.integers(0, len(EVERY_MESSAGE) - 1), at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans())
def test_a_message_with_a_changed_or_missing_byte_decodes_or_is_refused(index: int, at: int, byte: int, cut: bool) -> None:
    header, *parts = (bytes(part) for part in Codec().encode(1, 1, EVERY_MESSAGE[index]))
    changed = bytearray(header)
    changed[at % len(header)] = byte
    try:
        Codec().decode([bytes(changed[: at % len(header)] if cut else changed), *parts])
    except WireError:
        pass


# --- publisher and reader ---------------------------------------------------------------------------------------------


@pytest.fixture
def shared_memory(tmp_path: Path) -> Iterator[Path]:
    """The folder for the rings of a run in tmp_path, as the launcher makes it."""
    base = ring.rings_folder()
    if base is None:
        pytest.skip("no shared memory here: /dev/shm cannot be written to")
    folder = base / tmp_path.name
    folder.mkdir(mode=0o700, parents=True)
    base.chmod(0o700)
    yield folder
    left = [path.name for path in folder.iterdir()]
    shutil.rmtree(folder)
    assert not left, "a ring or a socket was left behind"


@pytest.fixture(params=["ipc", "tcp", "shared memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "shared memory":
        request.getfixturevalue("shared_memory")
    return runs.free_address(tmp_path, "camera", portable=request.param == "tcp")


@dataclasses.dataclass
class Reader:
    connection: Connection
    seqs: list[int] = dataclasses.field(default_factory=list)
    lost: int = 0
    ended: bool = False
    malformed: int = 0

    def read(self, until: Callable[[], bool], *, give_up_s: float = 10.0) -> None:
        """Take what comes until it is enough."""
        end_s = time.monotonic() + give_up_s
        while not until():
            assert time.monotonic() < end_s, f"waited in vain: {self}"
            self.connection.greet()
            if self.connection.wait(5):
                try:
                    value, lost = self.connection.receive()
                except WireError:
                    self.malformed += 1
                    continue
                self.lost += lost + isinstance(value, Gone)
                if isinstance(value, Frame):
                    self.seqs.append(value.seq)
                self.ended = self.ended or isinstance(value, End)

    def join(self, publisher: Publisher) -> None:
        """Until the publisher has welcomed it; both belong to this thread."""
        self.read(lambda: publisher.service() or self.connection.welcome is not None)


@pytest.fixture
def connect(address: str) -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def make(**options: Any) -> Reader:
        readers.append(Reader(Connection(address, f"reader {len(readers)}", **options)))
        return readers[-1]

    yield make
    for reader in readers:
        reader.connection.close()


def publisher_as_soon_as_it_is_free(address: str) -> Publisher:
    """ZeroMQ closes a socket in the background; a process that died has no such delay."""
    end_s = time.monotonic() + 5
    while True:
        try:
            return Publisher(address, INFO)
        except ConfigError:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def number(seq: int) -> Frame:
    return Frame("camera", seq, seq, "series_f32", np.float32([seq]))


def test_reader_learns_what_the_stream_is(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    reader.join(publisher)
    publisher.close(ended=True)
    assert reader.connection.welcome == INFO


def test_late_reader_gets_everything_from_its_welcome_on(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    for seq in range(5):
        publisher.send(number(seq))
    reader.join(publisher)
    for seq in range(5, 10):
        publisher.send(number(seq))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    assert (reader.seqs, reader.lost) == ([5, 6, 7, 8, 9], 0)


def test_reader_may_be_there_before_the_publisher(address: str, connect: Callable[..., Reader]) -> None:
    reader = connect()
    reader.connection.greet()
    publisher = Publisher(address, INFO)
    reader.join(publisher)
    publisher.send(number(0))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    assert reader.seqs == [0]


def test_every_reader_gets_every_message(address: str, connect: Callable[..., Reader]) -> None:
    publisher, first, second = Publisher(address, INFO), connect(), connect()
    first.join(publisher)
    second.join(publisher)
    for seq in range(10):
        publisher.send(number(seq))
    publisher.close(ended=True)
    for reader in (first, second):
        reader.read(lambda reader=reader: reader.ended)
        assert reader.seqs == list(range(10))


def test_slow_reader_counts_its_gap_to_the_message(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    reader.join(publisher)
    large = np.zeros(200_000, np.uint8)  # so that the kernel's own buffers do not hold them all
    for seq in range(20 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", large))
    closing = threading.Thread(target=publisher.close, kwargs={"ended": True})
    closing.start()
    reader.read(lambda: reader.ended)
    closing.join()
    assert reader.lost > 0
    assert len(reader.seqs) + reader.lost == 20 * QUEUE_MESSAGES


def test_slow_reader_does_not_hold_up_the_publisher(address: str, connect: Callable[..., Reader]) -> None:
    publisher, quick, slow = Publisher(address, INFO), connect(), connect()
    quick.join(publisher)
    slow.join(publisher)
    for seq in range(10 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", np.zeros(100_000, np.uint8)))
        quick.read(lambda seq=seq: seq in quick.seqs[-1:])
    publisher.close(ended=False)
    assert quick.lost == 0


def test_reader_that_grants_credits_loses_nothing(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect(credits=CREDITS)
    reader.join(publisher)

    def send_all() -> None:
        for seq in range(500):
            publisher.send(number(seq))
        publisher.close(ended=True)

    sending = threading.Thread(target=send_all)
    sending.start()
    sending.join(0.1)
    assert sending.is_alive()  # it waits: nothing was read yet
    while not reader.ended:
        taken = len(reader.seqs)
        reader.read(lambda taken=taken: len(reader.seqs) > taken or reader.ended)
        reader.connection.grant(1)
    sending.join()
    assert (reader.seqs, reader.lost) == (list(range(500)), 0)


def test_publisher_that_waits_for_credits_is_let_go_at_the_stop(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader, stopping = Publisher(address, INFO), connect(credits=1), threading.Event()
    reader.join(publisher)
    sending = threading.Thread(target=lambda: [publisher.send(number(seq), stopping=stopping) for seq in range(5)])
    sending.start()
    stopping.set()
    sending.join(5)
    assert not sending.is_alive()
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    assert len(reader.seqs) + reader.lost == 5


def test_publisher_does_not_wait_for_a_reader_that_died(
    address: str, connect: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "FORGET_READER_S", 0.3)
    publisher, reader = Publisher(address, INFO), connect(credits=1)
    reader.join(publisher)
    for seq in range(3):  # the reader says nothing more
        publisher.send(number(seq))
    publisher.close(ended=False)


def test_reader_notices_a_restarted_publisher_and_reads_on(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    reader.join(publisher)
    publisher.send(number(0))
    reader.read(lambda: reader.seqs == [0])
    publisher.close(ended=False)  # as if it had been killed

    again = publisher_as_soon_as_it_is_free(address)
    reader.read(lambda: again.service() or reader.connection.restarts == 1)
    again.send(number(100))
    again.close(ended=True)
    reader.read(lambda: reader.ended)
    assert (reader.seqs, reader.lost) == ([0, 100], 0)


def test_end_is_heard_by_a_reader_whose_queue_is_full(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    reader.join(publisher)
    for seq in range(20 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", np.zeros(200_000, np.uint8)))
    closing = threading.Thread(target=publisher.close, kwargs={"ended": True})
    closing.start()
    reader.read(lambda: reader.ended)
    closing.join()


def test_address_that_is_taken_is_an_error_with_the_stream(tmp_path: Path) -> None:
    address = runs.free_address(tmp_path, "camera", portable=True)
    first = Publisher(address, INFO)
    with pytest.raises(ConfigError, match="stream 'camera': cannot publish at tcp://.*Is it taken"):
        Publisher(address, INFO)
    first.close(ended=True)


# --- strangers --------------------------------------------------------------------------------------------------------


def a_socket(kind: int) -> zmq.Socket[bytes]:
    socket = wire.context().socket(kind)
    socket.setsockopt(zmq.LINGER, 200)
    return socket


def test_publisher_ignores_what_is_not_a_greeting(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO), connect()
    stranger = a_socket(zmq.DEALER)
    stranger.connect(address)
    for parts in ([b""], [b"GET / HTTP/1.1"], [b"", b""], [message(["Credit", -5])], [message(["End"])], [message(["Hello", 7])]):
        stranger.send_multipart(parts)
    reader.join(publisher)
    publisher.send(number(0))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    stranger.close()
    assert (reader.seqs, reader.malformed) == ([0], 0)


def test_reader_counts_a_malformed_message_once_and_reads_on(address: str, connect: Callable[..., Reader]) -> None:
    reader = connect()
    impostor = a_socket(zmq.ROUTER)
    impostor.bind(address)
    reader.connection.greet()
    identity, _ = impostor.recv_multipart()
    codec = Codec()
    impostor.send_multipart([identity, *codec.encode(9, 0, Welcome(INFO))])
    impostor.send_multipart([identity, *codec.encode(9, 0, number(0))])
    impostor.send_multipart([identity, b"\xc1 what should have been number 1"])
    impostor.send_multipart([identity, *codec.encode(9, 2, number(2))])
    impostor.send_multipart([identity, *codec.encode(9, 3, End())])
    reader.read(lambda: reader.ended)
    impostor.close()
    assert (reader.seqs, reader.malformed, reader.lost) == ([0, 2], 1, 0)


# --- the drain thread -------------------------------------------------------------------------------------------------


def test_drain_takes_messages_while_nobody_asks_for_them(address: str) -> None:
    publisher, drain = Publisher(address, INFO), Drain()
    delivered: list[Any] = []
    ended = threading.Event()

    def deliver(value: Value | None, lost: int) -> None:
        delivered.append((value.seq if isinstance(value, Frame) else type(value).__name__, lost))
        if isinstance(value, End):
            ended.set()

    connection = Connection(address, "reader")
    drain.add(connection, deliver, lambda: delivered.append("malformed"), lambda: 0)
    drain.start()
    while connection.welcome is None:
        publisher.service(timeout_ms=20)
    for seq in range(3):
        publisher.send(number(seq))
    publisher.close(ended=True)
    assert ended.wait(5)
    drain.stop()
    assert delivered == [(0, 0), (1, 0), (2, 0), ("End", 0)]


# --- finding a run ----------------------------------------------------------------------------------------------------


# --- the payload's ways -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    """One publisher and one reader in one thread, over shared memory."""

    publisher: Publisher
    connection: Connection

    def receive(self) -> Value | Gone:
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            self.connection.greet()
            self.publisher.service()
            if self.connection.wait(5):
                value, _ = self.connection.receive()
                if value is not None:
                    return value
        raise AssertionError("waited in vain")

    def pass_on(self, frame: Frame) -> Frame:
        self.publisher.send(frame)
        received = self.receive()
        assert isinstance(received, Frame)
        return received


@pytest.fixture
def line(tmp_path: Path, shared_memory: Path) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def make(**options: Any) -> Line:
        address = runs.free_address(tmp_path, "camera", portable=False)
        made.append(Line(Publisher(address, INFO), Connection(address, "reader", **options)))
        Reader(made[-1].connection).join(made[-1].publisher)
        return made[-1]

    yield make
    for one in made:
        one.connection.close()
        one.publisher.close(ended=False)


def picture(seq: int, width_px: int = 320) -> Frame:
    gradient = np.linspace(0, 255, width_px).astype(np.uint8)
    return Frame("camera", seq, seq, "bgr8", np.broadcast_to(gradient[None, :, None], (240, width_px, 3)).copy())


def in_ring(array: np.ndarray) -> bool:
    return isinstance(array.base, mmap.mmap)


def test_large_payload_comes_through_the_ring_and_a_small_one_in_the_message(line: Callable[..., Line]) -> None:
    here = line()
    large, small = here.pass_on(picture(0)), here.pass_on(number(1))
    assert in_ring(large.data) and not in_ring(small.data)
    assert np.array_equal(large.data, picture(0).data)
    assert not large.data.flags.writeable


def test_reader_that_does_not_say_so_gets_the_payload_in_the_message(line: Callable[..., Line]) -> None:
    """So does a program in another language."""
    received = line(payloads="inline").pass_on(picture(0))
    assert not in_ring(received.data)
    assert np.array_equal(received.data, picture(0).data)


def test_hello_of_two_fields_is_understood(line: Callable[..., Line]) -> None:
    hello = msgspec.msgpack.encode([VERSION, 0, 0, ["Hello", "a program in Go", None]])
    value = Codec().decode([hello]).value
    assert isinstance(value, Hello) and (value.payloads, value.express) == ("inline", "")


def test_reader_on_another_host_gets_pictures_as_jpeg(line: Callable[..., Line]) -> None:
    received = line(payloads="packed").pass_on(picture(0))
    assert (received.encoding, received.data.ndim) == ("jpeg", 1)
    assert received.data.nbytes < picture(0).data.nbytes / 10


def test_borrowed_array_reaches_the_reader_without_a_copy(line: Callable[..., Line]) -> None:
    here = line()
    image = here.publisher.borrow((240, 320, 3), np.uint8)
    assert in_ring(image)
    image.fill(9)
    received = here.pass_on(Frame("camera", 0, 0, "bgr8", image))
    assert (received.data == 9).all()
    image.setflags(write=True)
    image.fill(8)  # what no source may do: here it shows that both are the same memory
    assert (received.data == 8).all()


def test_nothing_is_borrowed_from_a_ring_that_nobody_reads(line: Callable[..., Line], shared_memory: Path) -> None:
    here = line(payloads="inline")
    assert not in_ring(here.publisher.borrow((240, 320, 3), np.uint8))
    here.pass_on(picture(0))
    assert list(shared_memory.glob("*.ring")) == []


def test_frame_that_a_reader_came_too_late_for_is_gone_and_counted_apart(line: Callable[..., Line]) -> None:
    here = line()
    for seq in range(20):
        here.publisher.send(picture(seq))
    values = [here.receive() for _ in range(20)]
    gone = [isinstance(value, Gone) for value in values]
    assert any(gone) and not gone[-1]
    assert all(value.seq == seq for seq, value in enumerate(values) if isinstance(value, Frame))


def test_reader_that_is_waited_for_finds_every_frame_in_the_ring(line: Callable[..., Line]) -> None:
    here = line(credits=32)
    publishing = threading.Thread(target=lambda: [here.publisher.send(picture(seq)) for seq in range(60)])
    publishing.start()
    seqs = []
    while len(seqs) < 60:
        if here.connection.wait(50):
            value, lost = here.connection.receive()
            assert not lost and not isinstance(value, Gone)
            if isinstance(value, Frame):
                assert in_ring(value.data)
                seqs.append(value.seq)
                here.connection.grant(1)
        here.connection.greet()
    publishing.join()
    assert seqs == list(range(60))


def test_when_a_reader_keeps_everything_the_payload_travels_in_the_message(line: Callable[..., Line]) -> None:
    here = line()
    lent = [here.publisher.borrow((240, 320, 3), np.uint8) for _ in range(100)]
    assert not in_ring(lent[-1])
    received = here.pass_on(picture(0))
    assert not in_ring(received.data)
    assert np.array_equal(received.data, picture(0).data)


def test_larger_pictures_from_one_frame_to_the_next_lose_nothing(line: Callable[..., Line]) -> None:
    here = line(credits=32)
    widths = [320, 320, 640, 320, 1280]
    for seq, width_px in enumerate(widths):
        here.publisher.send(picture(seq, width_px))
    received = [here.receive() for _ in widths]
    assert [value.data.shape[1] for value in received if isinstance(value, Frame)] == widths


def test_small_messages_keep_their_order_when_the_short_way_is_blocked_now_and_then(line: Callable[..., Line]) -> None:
    """The kernel queues ten datagrams: of 30 at once, 20 come over ZeroMQ."""
    here = line(credits=150)
    seqs = []
    for burst in range(5):
        for seq in range(30 * burst, 30 * burst + 30):
            here.publisher.send(number(seq))
        for _ in range(30):
            value = here.receive()
            assert isinstance(value, Frame)
            seqs.append(value.seq)
    assert seqs == list(range(150))


def caught_up(here: Line) -> Line:
    """A line whose reader has said that it has read all that went over ZeroMQ."""
    here.connection._next_hello_s = 0
    here.connection.greet()
    readers = here.publisher._readers
    wait_for(lambda: here.publisher.service() or all(r.on_zeromq is None for r in readers.values()), "the reader's hello")
    return here


def test_reader_that_keeps_up_gets_small_messages_on_the_short_way_alone(
    line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = caught_up(line())
    monkeypatch.setattr(here.publisher, "_post", lambda *parts, **options: pytest.fail("it went over ZeroMQ"))
    assert [here.pass_on(number(seq)).seq for seq in range(3)] == [0, 1, 2]


def test_what_the_short_way_refuses_and_zeromq_drops_is_counted(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    here = caught_up(line())
    with monkeypatch.context() as full:
        (reader,) = here.publisher._readers.values()
        full.setattr(reader.express, "send", lambda message: False)
        full.setattr(here.publisher, "_post", lambda *parts, **options: False)
        here.publisher.send(number(0))
    here.publisher.send(number(1))
    assert here.connection.wait(1000)
    value, lost = here.connection.receive()
    assert isinstance(value, Frame) and (value.seq, lost) == (1, 1)


def test_reader_held_up_between_its_two_looks_reads_in_order(line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held up in its first look at the short way, which finds nothing, and meanwhile much is sent on both."""
    here = caught_up(line())
    express = here.connection._express
    assert express is not None
    receive, bursts = express.receive, iter([range(15)])

    def held_up() -> bytes | None:
        header = receive()
        for seq in next(bursts, ()):
            here.publisher.send(number(seq))  # ten fit on the short way
        return header

    monkeypatch.setattr(express, "receive", held_up)
    received = [here.connection.receive()[0], *(here.receive() for _ in range(14))]
    assert [value.seq for value in received if isinstance(value, Frame)] == list(range(15))


@pytest.fixture
def announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "sensorium"


def announce(announced: Path, name: str, streams: dict[str, str], pid: int | None = None) -> None:
    (announced / name).mkdir(parents=True)
    (announced / name / "graph.json").write_text(json.dumps({"pid": pid or os.getpid(), "config": "", "streams": streams}))


def test_without_a_run_the_error_says_how_to_start_one(announced: Path) -> None:
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs.*python run_pipeline.py"):
        next(subscribe("emotion"))


def test_unknown_stream_names_the_nearest(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///a", "camera": "ipc:///b"})
    with pytest.raises(ConfigError, match="no running node is called 'emotoin'. Running: camera, emotion. Did you mean 'emotion'"):
        find_run("emotoin")


def test_newest_run_is_found_first(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///old"})
    announce(announced, "2-b", {"emotion": "ipc:///new"})
    os.utime(announced / "1-a" / "graph.json", (1, 1))
    assert find_run("emotion") == "ipc:///new"


def test_run_that_was_killed_is_not_found(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///a"}, pid=2**22 + 1)  # above Linux's largest
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs"):
        find_run("emotion")


def test_subscription_ends_with_the_stream_and_skips_what_it_cannot_read(announced: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/emotion.sock"
    announce(announced, "1-a", {"emotion": address})
    publisher = a_socket(zmq.ROUTER)
    publisher.bind(address)

    def publish() -> None:
        identity, _ = publisher.recv_multipart()
        for seq, value in enumerate([PREDICTION, PREDICTION, End()]):
            publisher.send_multipart([identity, b"not ours"])
            publisher.send_multipart([identity, *Codec().encode(9, seq, value)])

    publishing = threading.Thread(target=publish)
    publishing.start()
    labels = [prediction.label for prediction in subscribe("emotion")]
    publishing.join()
    publisher.close()
    assert labels == ["happy", "happy"]


def test_subscription_ends_when_the_pipeline_was_killed(
    announced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SILENT_S", 0.1)
    address = f"ipc://{tmp_path}/emotion.sock"
    announce(announced, "1-a", {"emotion": address})
    publisher = Publisher(address, INFO)
    predictions = subscribe("emotion")
    publishing = threading.Thread(target=lambda: [publisher.service(50) or publisher.send(PREDICTION) for _ in range(20)])
    publishing.start()
    assert next(predictions).label == "happy"
    publishing.join()
    publisher.close(ended=False)
    (announced / "1-a" / "graph.json").unlink()
    assert all(p.label == "happy" for p in predictions)  # what was still on its way, and then the end
