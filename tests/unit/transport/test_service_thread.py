"""A thread that a process cannot do without takes its process down with it, instead of leaving it deaf."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
import zmq
from running import wait_for
from wires import INFO, a_socket, number

from pipeline.frame import Frame
from pipeline.transport import service_thread
from pipeline.transport.publisher import Publisher
from pipeline.transport.receiver import Receiver
from pipeline.transport.service_thread import ServiceThread, failure
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import VERSION


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_thread, "_failures", [])


class Broken(ServiceThread):
    def serve(self) -> None:
        raise KeyError("what nobody thought of")


def test_error_of_a_service_thread_is_reported_to_the_loop_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    assert failure() is None
    thread = Broken(name="the drain")
    thread.start()
    thread.join()
    assert str(failure()) == "the thread 'the drain' failed: KeyError: 'what nobody thought of'"
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("depth", [10, 1_000, 100_000])
def test_nested_messages_do_not_end_the_receiver(tmp_path: Path, depth: int) -> None:
    address = f"ipc://{tmp_path}/camera"
    forged = a_socket(zmq.ROUTER)
    forged.bind(address)
    subscriber, receiver = Subscriber(address, "reader"), Receiver()
    malformed = threading.Event()
    receiver.add(subscriber, lambda value, lost: None, malformed.set, lambda: 0)
    receiver.start()
    identity, _ = forged.recv_multipart()
    forged.send_multipart([identity, b"\x94\x01\x01\x01" + b"\x91" * depth + b"\xc0"])
    assert malformed.wait(5)
    assert receiver.is_alive() and failure() is None
    receiver.stop()
    forged.close()


def test_what_a_receiver_delivers_to_fails_and_the_process_learns_of_it(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/camera"
    publisher, receiver = Publisher(address, INFO), Receiver()

    def deliver(value: object, lost: int) -> None:
        if isinstance(value, Frame):
            raise RuntimeError("a bug")

    subscriber = Subscriber(address, "reader")
    receiver.add(subscriber, deliver, lambda: None, lambda: 0)
    receiver.start()
    wait_for(lambda: publisher.service() or subscriber.info, "the welcome")
    publisher.send(number(0))
    wait_for(failure, "the failure")
    publisher.close(ended=False)


def test_rubbish_for_a_publisher_is_ignored_and_its_readers_are_served(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/camera"
    publisher, rubbish = Publisher(address, INFO), a_socket(zmq.DEALER)
    rubbish.connect(address)
    for parts in ([b"\x91" * 4000], [b"x"] * 3000, [b""], [b"\xc1"]):
        rubbish.send_multipart(parts)
    for value in (["Hello", "x" * 300, None], ["Hello", "x", -5], ["Credit", -(2**40)], ["Credit", 2**64 - 1]):
        rubbish.send(msgspec.msgpack.encode([VERSION, 0, 0, value]))
    wait_for(lambda: publisher.service(20) or not publisher._socket.poll(100), "an empty queue")
    assert publisher._peers == {}
    rubbish.send(msgspec.msgpack.encode([VERSION, 0, 0, ["Hello", "x", 2**31]]))
    wait_for(lambda: publisher.service(20) or publisher._peers, "the reader")
    (peer,) = publisher._peers.values()
    assert peer.window is not None and 0 < peer.window.available <= 1024
    rubbish.close()
    publisher.close(ended=False)


def test_readers_of_one_stream_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transport.publisher.MAX_SUBSCRIBERS", 3)
    address = f"ipc://{tmp_path}/camera"
    publisher = Publisher(address, INFO)
    readers = [a_socket(zmq.DEALER) for _ in range(5)]
    for reader in readers:
        reader.connect(address)
        reader.send(msgspec.msgpack.encode([VERSION, 0, 0, ["Hello", "x", None]]))
    wait_for(lambda: publisher.service(20) or sum(bool(r.poll(50)) for r in readers) >= 3, "three welcomes")
    publisher.service(200)
    assert len(publisher._peers) == 3 and sum(bool(r.poll(50)) for r in readers) == 3
    for reader in readers:
        reader.close()
    publisher.close(ended=False)
