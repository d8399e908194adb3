"""The receiving end of one stream: says hello to its publisher, counts what it missed from `seq`, and decodes messages.

Example:
    subscriber = Subscriber("ipc:///run/…/camera.sock", "viewer")
    subscriber.keep_alive()
    if subscriber.wait(100): value, lost = subscriber.receive()
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import msgspec
import zmq

from pipeline.errors import WireError
from pipeline.frame import StreamInfo
from pipeline.transport import shared_memory
from pipeline.transport.datagrams import DatagramReceiver
from pipeline.transport.keys import Keyring
from pipeline.transport.network import QUEUE_MESSAGES, READABLE, ClockClient, connect, context
from pipeline.transport.poller import Poller
from pipeline.transport.shared_memory import folder_for_address
from pipeline.transport.wire_format import Bye, Codec, Credit, End, Envelope, Hello, Payloads, Value, Welcome

HELLO_EVERY_S = 0.5
MAX_PART_BYTES = 64 << 20


class OverwrittenPayload:
    """What a message is to a reader that came too late for its payload in the ring."""


class Subscriber:
    """One reading end: what the drain thread holds for each stream it reads, and `subscribe` for its one."""

    def __init__(
        self,
        address: str,
        reader: str,
        *,
        credits: int | None = None,
        payloads: Payloads | None = None,
        clock_client: ClockClient | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """payloads None: through the ring where it can be reached, else inline. clock_client: of the host that the
        address belongs to, if it is another one. Raises ConfigError as network.connect does."""
        self.info: StreamInfo | None = None
        self.address, self.clock_client = address, clock_client
        self._ended = self._leaving = False
        self.publisher_restarts = 0
        folder = folder_for_address(address)
        self._express = DatagramReceiver(folder) if folder else None
        express = self._express.name if self._express else ""
        self._hello = Hello(reader, credits, payloads or ("ring" if folder else "inline"), express)
        self._codec = Codec(
            shared_memory.SharedMemoryReader(folder, waited_for=credits is not None).view if folder else None
        )
        self._session: int | None = None
        self._expected = 0
        self._next_hello_s = 0.0
        self.socket = context().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        self.socket.setsockopt(zmq.LINGER, 100)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        connect(self.socket, address, keyring, clock_client.host if clock_client else "")

    @property
    def descriptors(self) -> list[int]:
        """What becomes readable when something comes; ZeroMQ's only tells of a change, so see has_zeromq as well."""
        return [self.socket.get(zmq.FD), *([self._express.socket.fileno()] if self._express else [])]

    @property
    def has_zeromq(self) -> bool:
        """Whether ZeroMQ has something to read."""
        return bool(self.socket.get(zmq.EVENTS) & READABLE)

    @property
    def uses_credits(self) -> bool:
        """Whether the publisher waits for this reader."""
        return self._hello.credits is not None

    def leave(self) -> None:
        """Read no more. From any thread; the drain thread says goodbye."""
        self._leaving = True

    def keep_alive(self) -> None:
        """Say hello when it is time; a publisher that was restarted learns of us by it.

        To another host only once its clock is known: what cannot be dated need not be promised.
        """
        if self._leaving and not self._ended:
            self._ended = True
            self._say(Bye())
        if self._ended or (self.info is None and self.clock_client is not None and not self.clock_client.clock.ready):
            return
        if (now_s := time.monotonic()) >= self._next_hello_s:
            # Before the welcome often, because the publisher may not be there yet.
            self._next_hello_s = now_s + (HELLO_EVERY_S if self.info else 0.05)
            self._say(msgspec.structs.replace(self._hello, session=self._session or 0, expected=self._expected))

    def grant_credits(self, count: int) -> None:
        self._say(Credit(count))

    def receive(self) -> tuple[Value | OverwrittenPayload | None, int]:
        """The next value, or None for the handshake's own, and how many messages were lost before it.

        Raises WireError for a malformed message; never blocks: call it when `Poller` says so.
        """
        parts, short = self._next_parts()
        if not parts:
            return None, 0
        try:
            envelope: Envelope = self._codec.decode(parts)
        except WireError:
            if short:
                return None, 0  # nobody's; was it ours, the next number tells
            self._expected += 1  # it had a number too, and is not to be counted twice
            raise
        except shared_memory.SlotOverwritten:
            session, seq = self._codec.number(parts[0]) or (None, 0)
            if short and session != self._session:
                return None, 0
            lost, self._expected = max(0, seq - self._expected) if session == self._session else 0, seq + 1
            return OverwrittenPayload(), lost
        if short and envelope.session != self._session:
            return None, 0  # of a publisher that is gone
        lost = 0
        if isinstance(envelope.value, Welcome):
            if self._session is not None and envelope.session != self._session:
                self.publisher_restarts += 1
            elif self._session is not None:  # forgotten while this process stood still: what we missed was promised
                lost = envelope.seq - self._expected
            self.info, self._session, self._expected = envelope.value.info, envelope.session, envelope.seq
            self._next_hello_s = 0.0  # it opens the short way
            return None, lost
        if envelope.session == self._session:
            lost = max(0, envelope.seq - self._expected)
        self._expected = envelope.seq + (not isinstance(envelope.value, End))
        if isinstance(envelope.value, End):
            self._ended = True
            self._say(Bye())
        return envelope.value, lost

    @cached_property
    def _poller(self) -> Poller[Subscriber]:
        return Poller([self])

    def wait(self, timeout_ms: int) -> bool:
        """Whether there is something to receive."""
        return bool(self._poller.wait(timeout_ms))

    def close(self) -> None:
        self._say(Bye())
        self.socket.close()
        if self._express is not None:
            self._express.close()

    def _next_parts(self) -> tuple[list[Any], bool]:
        """What comes next, and whether it came the short way. A publisher changes to ZeroMQ at any time, and back only when
        all of that was read, so whatever lies on the short way was sent before what ZeroMQ brings."""
        if self._express is not None:
            if header := self._express.receive():
                return [header], True
            # In this order: what was sent before a message that ZeroMQ has by now lies on the short way by now.
            has_zeromq = self.has_zeromq
            if header := self._express.receive():
                return [header], True
            if not has_zeromq:
                return [], False
        try:
            return [part.buffer for part in self.socket.recv_multipart(zmq.DONTWAIT, copy=False)], False
        except zmq.Again:
            return [], False

    def _say(self, value: Value) -> None:
        try:
            self.socket.send_multipart(self._codec.encode(0, 0, value), zmq.DONTWAIT)
        except zmq.Again:
            pass  # nobody is there; the next hello will try again
