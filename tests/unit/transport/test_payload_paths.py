"""How a message travels: payloads in shared memory, inline or compressed; headers as datagrams or over ZeroMQ."""

from __future__ import annotations

import dataclasses
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from running import wait_for
from wires import INFO, Reader, number

from pipeline.frame import Frame
from pipeline.runtime import run_folder
from pipeline.transport import shared_memory
from pipeline.transport.publisher import Publisher
from pipeline.transport.shared_memory import SlotOverwritten
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import VERSION, Codec, Hello, Value


@dataclasses.dataclass
class Pair:
    """One publisher and one subscriber in one thread, with shared memory."""

    publisher: Publisher
    connection: Subscriber

    def receive(self) -> Value | OverwrittenPayload:
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            self.connection.keep_alive()
            self.publisher.service()
            if self.connection.wait(5):
                value, _ = self.connection.receive()
                if value is not None:
                    return value
        raise AssertionError("nothing received within 5 s")

    def pass_on(self, frame: Frame) -> Frame:
        self.publisher.send(frame)
        received = self.receive()
        assert isinstance(received, Frame)
        return received


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(**options: Any) -> Pair:
        address = run_folder.free_address(tmp_path, "camera", portable=False)
        pairs.append(Pair(Publisher(address, INFO), Subscriber(address, "reader", **options)))
        Reader(pairs[-1].connection).join(pairs[-1].publisher)
        return pairs[-1]

    yield make
    for one in pairs:
        one.connection.close()
        one.publisher.close(ended=False)


def picture(seq: int, width_px: int = 320) -> Frame:
    gradient = np.linspace(0, 255, width_px).astype(np.uint8)
    return Frame("camera", seq, seq, "bgr8", np.broadcast_to(gradient[None, :, None], (240, width_px, 3)).copy())


def in_shared_memory(array: np.ndarray) -> bool:
    return isinstance(array.base, mmap.mmap)


def test_large_payload_lies_in_shared_memory_and_a_small_one_in_the_message(line: Callable[..., Pair]) -> None:
    here = line()
    large, small = here.pass_on(picture(0)), here.pass_on(number(1))
    assert in_shared_memory(large.data) and not in_shared_memory(small.data)
    assert np.array_equal(large.data, picture(0).data)
    assert not large.data.flags.writeable


def test_reader_that_does_not_ask_for_shared_memory_gets_the_payload_in_the_message(line: Callable[..., Pair]) -> None:
    """As a program in another language does."""
    received = line(payloads="inline").pass_on(picture(0))
    assert not in_shared_memory(received.data)
    assert np.array_equal(received.data, picture(0).data)


def test_hello_of_two_fields_is_understood(line: Callable[..., Pair]) -> None:
    hello = msgspec.msgpack.encode([VERSION, 0, 0, ["Hello", "a program in Go", None]])
    value = Codec().decode([hello]).value
    assert isinstance(value, Hello) and (value.payloads, value.datagram_socket) == ("inline", "")


def test_reader_on_another_host_gets_pictures_as_jpeg(line: Callable[..., Pair]) -> None:
    received = line(payloads="packed").pass_on(picture(0))
    assert (received.encoding, received.data.ndim) == ("jpeg", 1)
    assert received.data.nbytes < picture(0).data.nbytes / 10


def test_borrowed_array_reaches_the_reader_without_a_copy(line: Callable[..., Pair]) -> None:
    here = line()
    image = here.publisher.borrow((240, 320, 3), np.uint8)
    assert in_shared_memory(image)
    image.fill(9)
    received = here.pass_on(Frame("camera", 0, 0, "bgr8", image))
    assert (received.data == 9).all()
    image.setflags(write=True)
    image.fill(8)  # no source may do this: here it shows that both are the same memory
    assert (received.data == 8).all()


def test_nothing_is_borrowed_from_shared_memory_that_nobody_reads(line: Callable[..., Pair]) -> None:
    here = line(payloads="inline")
    assert not in_shared_memory(here.publisher.borrow((240, 320, 3), np.uint8))
    here.pass_on(picture(0))
    assert here.publisher._shared_memory is None


def test_frame_whose_payload_was_overwritten_before_it_was_read_is_counted_apart(line: Callable[..., Pair]) -> None:
    here = line()
    for seq in range(20):
        here.publisher.send(picture(seq))
    values = [here.receive() for _ in range(20)]
    overwritten = [isinstance(value, OverwrittenPayload) for value in values]
    assert any(overwritten) and not overwritten[-1]
    assert here.connection.dropped == {"overwritten in shared memory": sum(overwritten)}
    assert all(value.seq == seq for seq, value in enumerate(values) if isinstance(value, Frame))


def test_reader_with_credits_gets_every_frame_through_shared_memory(line: Callable[..., Pair]) -> None:
    here = line(credits=32)
    publishing = threading.Thread(target=lambda: [here.publisher.send(picture(seq)) for seq in range(60)])
    publishing.start()
    seqs = []
    while len(seqs) < 60:
        if here.connection.wait(50):
            value, lost = here.connection.receive()
            assert not lost and not isinstance(value, OverwrittenPayload)
            if isinstance(value, Frame):
                assert in_shared_memory(value.data)
                seqs.append(value.seq)
                here.connection.grant_credits(1)
        here.connection.keep_alive()
    publishing.join()
    assert seqs == list(range(60))


def test_when_every_slot_is_held_the_payload_travels_in_the_message(line: Callable[..., Pair]) -> None:
    here = line()
    lent = [here.publisher.borrow((240, 320, 3), np.uint8) for _ in range(100)]
    assert not in_shared_memory(lent[-1])
    received = here.pass_on(picture(0))
    assert not in_shared_memory(received.data)
    assert np.array_equal(received.data, picture(0).data)


def test_reader_that_cannot_open_the_memory_gets_copies_after_one_warning(
    line: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in another PID namespace: the first pictures are counted, and all that follow come in the messages."""

    def elsewhere(name: str) -> int:
        raise SlotOverwritten

    monkeypatch.setattr(shared_memory, "_open", elsewhere)
    here = line()
    values = []
    for seq in range(10):
        here.publisher.send(picture(seq))
        values.append(here.receive())
        here.connection.keep_alive()
        wait_for(lambda: here.publisher.service(20) or not here.publisher._socket.poll(20), "its Hello to be read")
    assert [isinstance(value, OverwrittenPayload) for value in values] == [True] * 3 + [False] * 7
    assert all(np.array_equal(value.data, picture(0).data) for value in values if isinstance(value, Frame))
    assert here.connection.dropped == {"overwritten in shared memory": 3}
    assert caplog.text.count("cannot open the memory of its publisher") == 1


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="becoming another user needs root")
def test_another_user_cannot_open_the_memory(line: Callable[..., Pair]) -> None:
    here = line()
    received = here.pass_on(picture(0))
    assert in_shared_memory(received.data) and here.publisher._shared_memory is not None
    name = here.publisher._shared_memory._file.name
    process, descriptor, _ = name.split("/")
    code = (
        f"import os; os.setgid(65534); os.setuid(65534); print(open('/proc/{process}/fd/{descriptor}', 'rb').read(8))"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "SNSRING" not in tried.stdout and "PermissionError" in tried.stderr


def test_larger_pictures_from_one_frame_to_the_next_lose_nothing(line: Callable[..., Pair]) -> None:
    here = line(credits=32)
    widths = [320, 320, 640, 320, 1280]
    for seq, width_px in enumerate(widths):
        here.publisher.send(picture(seq, width_px))
    received = [here.receive() for _ in widths]
    assert [value.data.shape[1] for value in received if isinstance(value, Frame)] == widths


def test_small_messages_keep_their_order_when_datagrams_are_refused_now_and_then(line: Callable[..., Pair]) -> None:
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


def caught_up(here: Pair) -> Pair:
    """The pair once its subscriber has confirmed that it has read all that went over ZeroMQ."""
    here.connection._next_hello_s = 0
    here.connection.keep_alive()
    peers = here.publisher._peers.values()
    wait_for(
        lambda: here.publisher.service() or all(p.datagrams and p.datagrams.resume_seq is None for p in peers),
        "the subscriber's Hello",
    )
    return here


def test_reader_that_keeps_up_gets_small_messages_as_datagrams_alone(
    line: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = caught_up(line())
    monkeypatch.setattr(here.publisher, "_post", lambda *parts, **options: pytest.fail("it went over ZeroMQ"))
    assert [here.pass_on(number(seq)).seq for seq in range(3)] == [0, 1, 2]


def test_message_that_is_refused_as_a_datagram_and_dropped_by_zeromq_is_counted(
    line: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = caught_up(line())
    with monkeypatch.context() as full:
        (peer,) = here.publisher._peers.values()
        full.setattr(peer.datagrams, "send", lambda message: False)
        full.setattr(here.publisher, "_post", lambda *parts, **options: False)
        here.publisher.send(number(0))
    here.publisher.send(number(1))
    assert here.connection.wait(1000)
    value, lost = here.connection.receive()
    assert isinstance(value, Frame) and (value.seq, lost) == (1, 1)


def test_reader_delayed_between_its_two_checks_for_datagrams_reads_in_order(
    line: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is delayed in its first check, which finds nothing, while messages are sent as datagrams and over ZeroMQ."""
    here = caught_up(line())
    datagrams = here.connection._datagrams
    assert datagrams is not None
    receive, bursts = datagrams.receive, iter([range(15)])

    def delayed() -> bytes | None:
        header = receive()
        for seq in next(bursts, ()):
            here.publisher.send(number(seq))  # ten are accepted as datagrams
        return header

    monkeypatch.setattr(datagrams, "receive", delayed)
    received = [here.connection.receive()[0], *(here.receive() for _ in range(14))]
    assert [value.seq for value in received if isinstance(value, Frame)] == list(range(15))
