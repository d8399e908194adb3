"""What publishers and subscribers guarantee each other, over real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from wires import INFO, KEYS, Reader, a_socket, message, number

from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.runtime import run_folder
from pipeline.transport import network
from pipeline.transport import publisher as publisher_module
from pipeline.transport.credits import INITIAL_CREDITS
from pipeline.transport.network import QUEUE_MESSAGES
from pipeline.transport.publisher import Publisher
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import Codec, End, Welcome


@pytest.fixture(params=["shared memory", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return run_folder.free_address(tmp_path, "camera", portable=request.param == "tcp")


@pytest.fixture
def connect(address: str) -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def make(**options: Any) -> Reader:
        readers.append(Reader(Subscriber(address, f"reader {len(readers)}", keys=KEYS, **options)))
        return readers[-1]

    yield make
    for reader in readers:
        reader.connection.close()


def publisher_as_soon_as_it_is_free(address: str) -> Publisher:
    """ZeroMQ closes a socket in the background; a process that died has no such delay."""
    end_s = time.monotonic() + 5
    while True:
        try:
            return Publisher(address, INFO, run_keys=KEYS)
        except ConfigError:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_reader_learns_what_the_stream_is(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    reader.join(publisher)
    publisher.close(ended=True)
    assert reader.connection.info == INFO


def test_late_reader_gets_everything_from_its_welcome_on(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
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
    reader.connection.keep_alive()
    publisher = Publisher(address, INFO, run_keys=KEYS)
    reader.join(publisher)
    publisher.send(number(0))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    assert reader.seqs == [0]


def test_every_reader_gets_every_message(address: str, connect: Callable[..., Reader]) -> None:
    publisher, first, second = Publisher(address, INFO, run_keys=KEYS), connect(), connect()
    first.join(publisher)
    second.join(publisher)
    for seq in range(10):
        publisher.send(number(seq))
    publisher.close(ended=True)
    for reader in (first, second):
        reader.read(lambda reader=reader: reader.ended)
        assert reader.seqs == list(range(10))


def test_slow_reader_counts_its_gap_to_the_message(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    reader.join(publisher)
    large = np.zeros(200_000, np.uint8)  # too large for the kernel's own buffers to hold them all
    for seq in range(20 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", large))
    closing = threading.Thread(target=publisher.close, kwargs={"ended": True})
    closing.start()
    reader.read(lambda: reader.ended)
    closing.join()
    assert reader.lost > 0
    assert len(reader.seqs) + reader.lost == 20 * QUEUE_MESSAGES
    assert reader.connection.dropped.total() == reader.lost


def test_slow_reader_does_not_hold_up_the_publisher(address: str, connect: Callable[..., Reader]) -> None:
    publisher, quick, slow = Publisher(address, INFO, run_keys=KEYS), connect(), connect()
    quick.join(publisher)
    slow.join(publisher)
    for seq in range(10 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", np.zeros(100_000, np.uint8)))
        quick.read(lambda seq=seq: seq in quick.seqs[-1:])
    publisher.close(ended=False)
    assert quick.lost == 0


def test_reader_that_grants_credits_loses_nothing(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect(credits=INITIAL_CREDITS)
    reader.join(publisher)

    def send_all() -> None:
        for seq in range(500):
            publisher.send(number(seq))
        publisher.close(ended=True)

    sending = threading.Thread(target=send_all)
    sending.start()
    sending.join(0.1)
    assert sending.is_alive()  # it waits for credits: nothing was read yet
    while not reader.ended:
        taken = len(reader.seqs)
        reader.read(lambda taken=taken: len(reader.seqs) > taken or reader.ended)
        reader.connection.grant_credits(1)
    sending.join()
    assert (reader.seqs, reader.lost) == (list(range(500)), 0)


def test_publisher_stops_waiting_for_credits_when_it_is_stopped(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader, stopping = Publisher(address, INFO, run_keys=KEYS), connect(credits=1), threading.Event()
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
    monkeypatch.setattr(publisher_module, "FORGET_SUBSCRIBER_S", 0.3)
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect(credits=1)
    reader.join(publisher)
    for seq in range(3):  # the reader says nothing more
        publisher.send(number(seq))
    publisher.close(ended=False)


def test_reader_notices_a_restarted_publisher_and_reads_on(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    reader.join(publisher)
    publisher.send(number(0))
    reader.read(lambda: reader.seqs == [0])
    publisher.close(ended=False)  # as if it had been killed

    again = publisher_as_soon_as_it_is_free(address)
    reader.read(lambda: again.service() or reader.connection.publisher_restarts == 1)
    again.send(number(100))
    again.close(ended=True)
    reader.read(lambda: reader.ended)
    assert (reader.seqs, reader.lost) == ([0, 100], 0)


def test_end_reaches_a_reader_whose_queue_is_full(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    reader.join(publisher)
    for seq in range(20 * QUEUE_MESSAGES):
        publisher.send(Frame("camera", seq, seq, "series_f32", np.zeros(200_000, np.uint8)))
    closing = threading.Thread(target=publisher.close, kwargs={"ended": True})
    closing.start()
    reader.read(lambda: reader.ended)
    closing.join()


def test_address_that_is_taken_is_an_error_with_the_stream(tmp_path: Path) -> None:
    address = run_folder.free_address(tmp_path, "camera", portable=True)
    first = Publisher(address, INFO, run_keys=KEYS)
    with pytest.raises(ConfigError, match="stream 'camera': cannot publish at tcp://.*Is it taken"):
        Publisher(address, INFO, run_keys=KEYS)
    first.close(ended=True)


# --- unknown senders --------------------------------------------------------------------------------------------------


def test_publisher_ignores_messages_that_are_not_a_valid_hello(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    unknown_sender = a_socket(zmq.DEALER)
    network.connect(unknown_sender, address, KEYS)
    for parts in (
        [b""],
        [b"GET / HTTP/1.1"],
        [b"", b""],
        [message(["Credit", -5])],
        [message(["End"])],
        [message(["Hello", 7])],
    ):
        unknown_sender.send_multipart(parts)
    reader.join(publisher)
    publisher.send(number(0))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    unknown_sender.close()
    assert (reader.seqs, reader.malformed) == ([0], 0)


def test_reader_counts_a_malformed_message_once_and_reads_on(address: str, connect: Callable[..., Reader]) -> None:
    reader = connect()
    impostor = a_socket(zmq.ROUTER)
    network.bind(impostor, address, KEYS)
    reader.connection.keep_alive()
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


# --- what was missed --------------------------------------------------------------------------------------------------


def test_subscriber_that_missed_nothing_has_no_counts(address: str, connect: Callable[..., Reader]) -> None:
    publisher, reader = Publisher(address, INFO, run_keys=KEYS), connect()
    reader.join(publisher)
    publisher.send(number(0))
    publisher.close(ended=True)
    reader.read(lambda: reader.ended)
    assert reader.connection.dropped == {}


def test_subscriber_counts_what_it_missed_by_reason(address: str, connect: Callable[..., Reader]) -> None:
    reader = connect()
    impostor = a_socket(zmq.ROUTER)
    network.bind(impostor, address, KEYS)
    reader.connection.keep_alive()
    identity, _ = impostor.recv_multipart()
    codec = Codec()
    impostor.send_multipart([identity, *codec.encode(9, 0, Welcome(INFO))])
    impostor.send_multipart([identity, *codec.encode(9, 3, number(3))])
    impostor.send_multipart([identity, b"\xc1 what should have been number 4"])
    impostor.send_multipart([identity, *codec.encode(9, 7, End())])
    reader.read(lambda: reader.ended)
    impostor.close()
    assert reader.connection.dropped == {"lost in transport": 3 + 2, "malformed": 1}
