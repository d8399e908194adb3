"""The thread that reads the sockets of a process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from wires import INFO, number

from pipeline.frame import Frame
from pipeline.runtime import run_folder
from pipeline.transport.publisher import Publisher
from pipeline.transport.receiver import Receiver
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import End, Value


def test_messages_are_read_without_any_call(tmp_path: Path) -> None:
    address = run_folder.free_address(tmp_path, "camera", portable=False)
    publisher, receiver = Publisher(address, INFO), Receiver()
    delivered: list[Any] = []
    ended = threading.Event()

    def deliver(value: Value | None, lost: int) -> None:
        delivered.append((value.seq if isinstance(value, Frame) else type(value).__name__, lost))
        if isinstance(value, End):
            ended.set()

    subscriber = Subscriber(address, "reader")
    receiver.add(subscriber, deliver, lambda: delivered.append("malformed"), lambda: 0)
    receiver.start()
    while subscriber.info is None:
        publisher.service(timeout_ms=20)
    for seq in range(3):
        publisher.send(number(seq))
    publisher.close(ended=True)
    assert ended.wait(5)
    receiver.stop()
    assert delivered == [(0, 0), (1, 0), (2, 0), ("End", 0)]


def test_processed_messages_are_granted_as_credits(tmp_path: Path) -> None:
    address = run_folder.free_address(tmp_path, "camera", portable=False)
    publisher, receiver = Publisher(address, INFO), Receiver()
    seqs: list[int] = []
    processed = 0

    def deliver(value: Value | None, lost: int) -> None:
        if isinstance(value, Frame):
            seqs.append(value.seq)

    def take_credits() -> int:
        nonlocal processed
        count, processed = len(seqs) - processed, len(seqs)
        return count

    subscriber = Subscriber(address, "reader", credits=2)
    receiver.add(subscriber, deliver, lambda: None, take_credits)
    receiver.start()
    while subscriber.info is None:
        publisher.service(timeout_ms=20)
    for seq in range(10):  # five times as many as the subscriber allows at once
        publisher.send(number(seq))
    publisher.close(ended=True)
    receiver.stop()
    assert seqs == list(range(10))
