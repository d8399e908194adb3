"""The datagram fast path between two processes of one host: when it carries a message, and when it must not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.transport.datagrams import MAX_BYTES, DatagramReceiver, DatagramSender

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no Unix sockets here")


@pytest.fixture
def receiver(folder: Path) -> Iterator[DatagramReceiver]:
    opened = DatagramReceiver(folder)
    yield opened
    opened.close()


@pytest.fixture
def sender(folder: Path, receiver: DatagramReceiver) -> Iterator[DatagramSender]:
    """A sender that is not paused: its subscriber has confirmed that it expects seq 0."""
    opened = DatagramSender(folder, receiver.name, next_seq=0)
    opened.confirm(0)
    yield opened
    opened.close()


def test_messages_arrive_in_order(sender: DatagramSender, receiver: DatagramReceiver) -> None:
    assert sender.send(b"first") and sender.send(b"second")
    received = [bytes(receiver.receive() or b"") for _ in range(2)]
    assert received == [b"first", b"second"]
    assert receiver.receive() is None


def test_new_sender_is_paused_until_the_subscriber_has_all_that_was_sent_before(
    folder: Path, receiver: DatagramReceiver
) -> None:
    sender = DatagramSender(folder, receiver.name, next_seq=5)
    assert not sender.send(b"5")
    sender.confirm(4)
    assert not sender.send(b"5")
    sender.confirm(5)
    assert sender.send(b"5")
    sender.close()


def test_after_a_message_over_zeromq_datagrams_pause_until_it_was_read(sender: DatagramSender) -> None:
    sender.resume_seq = 8  # message 7 was sent over ZeroMQ
    sender.confirm(7)
    assert not sender.send(b"8")
    sender.confirm(8)
    assert sender.send(b"8")


def test_kernel_refuses_while_too_many_wait_and_nothing_is_lost(
    sender: DatagramSender, receiver: DatagramReceiver
) -> None:
    accepted = sum(sender.send(bytes([seq])) for seq in range(200))
    assert 0 < accepted < 200
    received = [bytes(receiver.receive() or b"") for _ in range(accepted)]
    assert received == [bytes([seq]) for seq in range(accepted)]
    assert receiver.receive() is None


def test_large_message_is_not_accepted(sender: DatagramSender, receiver: DatagramReceiver) -> None:
    assert not sender.send(bytes(MAX_BYTES + 1))
    assert sender.send(bytes(MAX_BYTES))
    assert len(receiver.receive() or b"") == MAX_BYTES


def test_message_to_a_closed_subscriber_is_not_accepted(sender: DatagramSender, receiver: DatagramReceiver) -> None:
    receiver.close()
    assert not sender.send(b"x")


def test_socket_that_does_not_exist_is_an_error(folder: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        DatagramSender(folder, "1-abcd.datagrams", next_seq=0)


def test_name_cannot_lead_out_of_the_folder(folder: Path, receiver: DatagramReceiver) -> None:
    (folder / "inside").mkdir()
    with pytest.raises(OSError, match="No such file"):
        DatagramSender(folder / "inside", f"../{receiver.name}", next_seq=0)


def test_closed_receiver_leaves_no_file(folder: Path) -> None:
    DatagramReceiver(folder).close()
    assert list(folder.iterdir()) == []
