"""The receiving end of one stream: sends Hello to its publisher, decodes its messages, and counts those it missed.

On the same host large payloads are views of shared memory (shared_memory.py) and small messages come as datagrams
(datagrams.py); with credits the publisher waits for this subscriber (credits.py).

Example:
    subscriber = Subscriber("ipc:///run/…/camera.sock", "viewer")
    while True:
        subscriber.keep_alive()
        if subscriber.wait(100):
            value, lost = subscriber.receive()
    subscriber.dropped                               # {"lost in transport": 3}: all that was missed so far, by reason
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import cached_property
from typing import Any

import msgspec
import zmq

from pipeline.errors import WireError
from pipeline.frame import StreamInfo
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.datagrams import DatagramReceiver, datagram_folder
from pipeline.transport.drop_reasons import LOST, MALFORMED, OVERWRITTEN
from pipeline.transport.keys import Keys
from pipeline.transport.network import QUEUE_MESSAGES, READABLE, connect, context, receive
from pipeline.transport.poller import Poller
from pipeline.transport.sequence import Sequence
from pipeline.transport.shared_memory import (
    SharedMemoryReader,
    SharedMemoryUnreachable,
    SlotOverwritten,
    has_shared_memory,
)
from pipeline.transport.wire_format import (
    MAX_NAME,
    MAX_PARTS,
    Bye,
    Codec,
    Credit,
    End,
    Envelope,
    Hello,
    Payloads,
    Value,
    Welcome,
)

log = logging.getLogger("transport")

HELLO_EVERY_S, FIRST_HELLOS_EVERY_S = 0.5, 0.05
MAX_PART_BYTES = 64 << 20


class OverwrittenPayload:
    """Stands for a message whose payload in shared memory was overwritten before it was read."""


class Subscriber:
    """One stream's receiving end. Belongs to one thread; only leave() may be called from others."""

    def __init__(
        self,
        address: str,
        reader: str,
        *,
        credits: int | None = None,
        payloads: Payloads | None = None,
        clock_client: ClockClient | None = None,
        keys: Keys | None = None,
    ) -> None:
        """Raises ConfigError as network.connect does.

        Args:
            address: Where the publisher is bound.
            reader: The name of this subscriber, for logs.
            credits: How many messages may be on their way before the publisher waits. None: it never waits, and what
                this subscriber misses is counted.
            payloads: How large arrays travel. None: through shared memory where both ends see it, else in the message.
            clock_client: The clock of the publisher's host, if that is another one.
            keys: This host's; or, on the loopback, those of the run. Required for TCP addresses.
        """
        self.info: StreamInfo | None = None  # of the stream, as its publisher describes it; None before its welcome
        self.dropped: Counter[str] = Counter()  # messages of the stream that were missed so far, by reason
        self.first_seq: int | None = None  # how many messages the publisher had sent before the connection
        self.address, self.clock_client = address, clock_client
        self._ended = self._leaving = False
        self._sequence = Sequence()
        self._next_hello_s = 0.0
        shared = has_shared_memory(address)
        self._shared_memory = SharedMemoryReader(waited_for=credits is not None) if shared else None
        self._codec = Codec(self._shared_memory.view if self._shared_memory else None)
        self._datagrams = _datagram_receiver(address)
        datagram_socket = self._datagrams.name if self._datagrams else ""
        self._hello = Hello(reader[:MAX_NAME], credits, payloads or ("ring" if shared else "inline"), datagram_socket)
        self._socket = context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        connect(self._socket, address, keys, clock_client.host if clock_client else "")

    @property
    def descriptors(self) -> list[int]:
        """File descriptors that become readable when something arrives; see has_zeromq."""
        return [self._socket.get(zmq.FD), *([self._datagrams.descriptor] if self._datagrams else [])]

    @property
    def has_zeromq(self) -> bool:
        """Whether ZeroMQ has something to read. Its descriptor signals only a change from nothing to something."""
        return bool(self._socket.get(zmq.EVENTS) & READABLE)

    @property
    def uses_credits(self) -> bool:
        """Whether the publisher waits for this subscriber."""
        return self._hello.credits is not None

    @property
    def publisher_restarts(self) -> int:
        return self._sequence.publisher_restarts

    def keep_alive(self) -> None:
        """Send Hello when it is due; a publisher that was restarted learns of this subscriber by it.

        To another host only once its clock is known: messages that cannot be dated need not be promised.
        """
        if self._leaving and not self._ended:
            self._ended = True
            self._post(Bye())
        if self._ended or (self.info is None and self.clock_client is not None and not self.clock_client.clock.ready):
            return
        if (now_s := time.monotonic()) >= self._next_hello_s:
            # More often before the welcome, because the publisher may not be bound yet.
            self._next_hello_s = now_s + (HELLO_EVERY_S if self.info else FIRST_HELLOS_EVERY_S)
            sequence = self._sequence
            self._post(msgspec.structs.replace(self._hello, session=sequence.session or 0, expected=sequence.expected))

    def grant_credits(self, count: int) -> None:
        """The publisher may send `count` more messages."""
        self._post(Credit(count))

    def leave(self) -> None:
        """Receive no more. From any thread; the next keep_alive() sends the Bye."""
        self._leaving = True

    def wait(self, timeout_ms: int) -> bool:
        """Whether there is something to receive."""
        return bool(self._poller.wait(timeout_ms))

    def receive(self) -> tuple[Value | OverwrittenPayload | None, int]:
        """The next message, and how many were lost before it; None for the handshake's own. Never blocks.

        Raises WireError for a malformed message. Every loss is added to `dropped`, by reason.
        """
        parts, is_datagram = self._next_parts()
        if not parts:
            return None, 0
        sequence = self._sequence
        try:
            envelope: Envelope = self._codec.decode(parts)
        except WireError:
            if is_datagram:
                return None, 0  # Unknown sender: ignore. If it was our publisher, the next seq shows the gap.
            sequence.malformed()
            self.dropped[MALFORMED] += 1
            raise
        except SlotOverwritten as error:
            if isinstance(error, SharedMemoryUnreachable):
                self._ask_for_copies()
            session, seq = self._codec.number(parts[0]) or (None, 0)
            if session is None or (is_datagram and session != sequence.session):
                return None, 0
            self.dropped[OVERWRITTEN] += 1
            return OverwrittenPayload(), self._count_lost(sequence.received(session, seq))
        value = envelope.value
        if is_datagram and envelope.session != sequence.session:
            return None, 0  # sent by a publisher that has been replaced since
        if isinstance(value, Welcome):
            self.info = value.info
            if self.first_seq is None:
                self.first_seq = envelope.seq
            if self._shared_memory is not None and envelope.session != sequence.session:
                self._shared_memory.forget()
            self._next_hello_s = 0.0  # the next Hello confirms this seq, and so opens the datagram fast path
            return None, self._count_lost(sequence.welcome(envelope.session, envelope.seq))
        if isinstance(value, End):
            self._ended = True
            self._post(Bye())
            return value, self._count_lost(sequence.ended(envelope.session, envelope.seq))
        if lost := sequence.received(envelope.session, envelope.seq):
            self._count_lost(lost)
        return value, lost

    def close(self) -> None:
        self._post(Bye())
        self._socket.close()
        if self._shared_memory is not None:
            self._shared_memory.forget()
        if self._datagrams is not None:
            self._datagrams.close()

    @cached_property
    def _poller(self) -> Poller[Subscriber]:
        return Poller([self])

    def _ask_for_copies(self) -> None:
        if self._hello.payloads == "ring":
            log.warning(
                "%s: this process cannot open the memory of its publisher, which has another PID namespace or other "
                "privileges. Payloads are copied into the messages from now on",
                self._hello.reader,
            )
            self._hello = msgspec.structs.replace(self._hello, payloads="inline")
            self._next_hello_s = 0.0

    def _count_lost(self, lost: int) -> int:
        if lost:
            self.dropped[LOST] += lost
        return lost

    def _next_parts(self) -> tuple[list[Any], bool]:
        """The parts of the next message, and whether it came as a datagram.

        A publisher changes to ZeroMQ at any time, and back only when all of that was read. So whatever datagrams wait
        were sent before the ZeroMQ messages that wait.
        """
        if self._datagrams is not None:
            if header := self._datagrams.receive():
                return [header], True
            # In this order: once ZeroMQ has a message, all datagrams sent before it are already waiting.
            has_zeromq = self.has_zeromq
            if header := self._datagrams.receive():
                return [header], True
            if not has_zeromq:
                return [], False
        try:
            return receive(self._socket, max_parts=MAX_PARTS, copy=False), False
        except zmq.Again:
            return [], False

    def _post(self, value: Value) -> None:
        try:
            self._socket.send_multipart(self._codec.encode(0, 0, value), zmq.DONTWAIT)
        except zmq.Again:
            pass  # no publisher is connected; the next Hello tries again


def _datagram_receiver(address: str) -> DatagramReceiver | None:
    if (folder := datagram_folder(address)) is None:
        return None
    try:
        return DatagramReceiver(folder)
    except OSError:  # the folder's name is too long for one more socket: small messages come over ZeroMQ
        return None
