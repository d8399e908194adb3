"""Messages over ZeroMQ; with network.py and control.py the only files that import zmq.

A publisher binds one ROUTER socket; each reader connects a DEALER and says hello. The publisher answers with a welcome
that names the first message it promises, so a late reader knows what it was never promised, and sees every later gap.
A reader whose edge says `keep: all` grants credits and is waited for; for all others a full queue drops the message, and
the reader counts it from `seq`. A reader on the same host gets large payloads through shared memory (ring.py) and small
messages by a shorter way (express.py); its hello says so, and who says nothing gets everything in the message.

    publisher = Publisher("ipc:///run/…/camera.sock", info)
    publisher.send(frame)
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from pipeline.errors import ConfigError, WireError
from pipeline.frame import Message, StreamInfo
from pipeline.transport import shared_memory
from pipeline.transport.compression import packed
from pipeline.transport.datagrams import ExpressReceiver, ExpressSender
from pipeline.transport.keys import Keyring
from pipeline.transport.network import READABLE, ClockLine, bind, connect, context
from pipeline.transport.poller import Bells
from pipeline.transport.wire_format import (
    INLINE_BYTES,
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

# Readers are drained by a thread that does nothing else, so a queue this long means that a process stands still.
QUEUE_MESSAGES = 32
CREDITS = 32
HELLO_EVERY_S = 0.5
SERVICE_EVERY_S = 0.1
FORGET_READER_S = 5.0
WAIT_FOR_ROOM_MS = 300
GOODBYE_S, GOODBYE_NETWORK_S = 0.3, 5.0  # over a network that loses packets the last messages take a while
MAX_PART_BYTES = 64 << 20


class _Reader:
    def __init__(self, hello: Hello, now_s: float, next_seq: int, express_folder: Path | None) -> None:
        self.name, self.credits, self.payloads, self.heard_s = hello.reader, hello.credits, hello.payloads, now_s
        self.express: ExpressSender | None = None
        if express_folder is not None and hello.express:
            with suppress(OSError):  # gone already, or on another host
                self.express = ExpressSender(express_folder, hello.express)
        # The seq after the last message that went to it over ZeroMQ; None once it has them all, so that what goes the
        # short way from then on cannot overtake them.
        self.on_zeromq: int | None = next_seq
        # Of a reader that is waited for: the slots of each message it has not taken yet. Kept, so they are not written to.
        self.kept: deque[list[np.ndarray]] = deque()

    def close(self) -> None:
        if self.express is not None:
            self.express.close()


class Publisher:
    """One stream's sending end. Belongs to one thread."""

    def __init__(
        self,
        address: str,
        info: StreamInfo,
        *,
        network: str = "",
        keyring: Keyring | None = None,
        queue: int = QUEUE_MESSAGES,
        ring_s: float = shared_memory.SPAN_S,
    ) -> None:
        """network: another address, for readers on other hosts. queue: messages that may be on their way to a reader, ring_s:
        how much of the stream has room in shared memory. Raises ConfigError when an address cannot be opened."""
        self.info = info
        self._codec = Codec()
        self._session = secrets.randbits(62)
        self._seq = 0
        self._readers: dict[bytes, _Reader] = {}
        self._ended = False
        self._goodbye_s = GOODBYE_NETWORK_S if network else GOODBYE_S
        self._ring_folder, self._ring_s = _ring_folder(address), ring_s
        self._ring: shared_memory.Ring | None = None  # made for the first reader that wants one
        self._service_s = 0.0  # when readers were last heard
        self._slots: list[np.ndarray] = []  # of the message that is being sent
        self._stopping: threading.Event | None = None
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reader that is gone is an error here, not a silent loss
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.SNDTIMEO, WAIT_FOR_ROOM_MS)
        self._socket.setsockopt(zmq.LINGER, 300)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 4096)  # readers send only greetings
        for own_address in filter(None, (address, network)):  # the local one first: see network.bind
            try:
                bind(self._socket, own_address, keyring)
            except zmq.ZMQError as error:
                self._socket.close()
                raise ConfigError(
                    f"stream '{info.stream}': cannot publish at {own_address}: {error}. Is it taken?"
                ) from error

    def send(self, message: Message, *, stopping: threading.Event | None = None) -> None:
        """To every reader; waits only for readers that grant credits, and not once `stopping` is set."""
        if not self._readers:
            self.service()
        seq, self._seq = self._seq, self._seq + 1
        self._slots, self._stopping = [], stopping
        encoded: dict[Payloads, list[Any]] = {}
        for identity, reader in list(self._readers.items()):
            if reader.credits is not None:
                while reader.credits == 0 and identity in self._readers and not self._stopped():
                    self.service(timeout_ms=20)
                if reader.credits == 0:
                    continue
                reader.credits -= 1
            if (parts := encoded.get(reader.payloads)) is None:
                parts = encoded[reader.payloads] = self._encode(seq, message, reader.payloads)
            if reader.credits is not None:
                reader.kept.append(self._slots if reader.payloads == "ring" else [])
            if reader.on_zeromq is None and reader.express and len(parts) == 1 and reader.express.send(parts[0]):
                continue
            reader.on_zeromq = seq + 1
            # ZeroMQ learns in batches of what was read, so its queue can look full to a reader that has given credit.
            self._post(identity, parts, wait=reader.credits is not None)
        self._slots = []
        if self._ring is not None:
            self._ring.prepare()
        # Afterwards: the readers of this message need not wait for it. Credits are wanted at once, greetings can wait.
        if time.monotonic() > self._service_s + SERVICE_EVERY_S or any(
            r.credits is not None for r in self._readers.values()
        ):
            self.service()

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """An array to fill and send: a slot of the ring where that saves a copy, else ordinary memory. From any thread."""
        array: np.ndarray | None = None
        if math.prod(shape) * np.dtype(dtype).itemsize > INLINE_BYTES and (lender := self._wanted_ring()):
            array = lender.borrow(shape, dtype)
        return np.empty(shape, dtype) if array is None else array

    def _wanted_ring(self) -> shared_memory.Ring | None:
        if self._ring is None and self._ring_folder and any(r.payloads == "ring" for r in list(self._readers.values())):
            self._ring = shared_memory.Ring(self._ring_folder, self.info.stream, self.info.rate_hz, self._ring_s)
        return self._ring

    def _encode(self, seq: int, message: Message, payloads: Payloads) -> list[Any]:
        if payloads == "packed":
            message = packed(message)
        return self._codec.encode(self._session, seq, message, self._place if payloads == "ring" else None)

    def _place(self, array: np.ndarray) -> shared_memory.Place | None:
        """In the ring. `_slots` gets the slot's array: while it lives its slot is not written to."""
        if (lender := self._wanted_ring()) is None:
            return None
        placed = lender.place(array)
        # A slot that a reader with credits has yet to take comes back soon, and waiting is cheaper than the socket.
        while placed is None and any(map(any, (r.kept for r in self._readers.values()))) and not self._stopped():
            self.service(timeout_ms=20)
            placed = lender.place(array)
        if placed is None:
            return None
        self._slots.append(placed[1])
        return placed[0]

    def _stopped(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    def service(self, timeout_ms: int = 0) -> None:
        """Answer greetings and take credits; call it at least every second."""
        # Asking for EVENTS takes a tenth of the time of a poll, and this is done for every message.
        while self._socket.get(zmq.EVENTS) & READABLE or (timeout_ms and self._socket.poll(timeout_ms)):
            timeout_ms = 0
            identity, *parts = self._socket.recv_multipart()
            try:
                value = self._codec.decode(parts).value
            except WireError:
                continue  # not one of ours: nothing is promised to it
            if isinstance(value, Hello):
                if (reader := self._readers.get(identity)) is None:
                    self._readers[identity] = _Reader(value, time.monotonic(), self._seq, self._ring_folder)
                    # Packing takes milliseconds: the readers on this host come first.
                    self._readers = dict(sorted(self._readers.items(), key=lambda item: item[1].payloads == "packed"))
                    self._post(identity, self._codec.encode(self._session, self._seq, Welcome(self.info)))
                    if self._ended:
                        self._end(identity)
                else:
                    reader.heard_s = time.monotonic()
                    caught_up = value.session == self._session and value.expected >= (reader.on_zeromq or 0)
                    if caught_up and reader.express:
                        reader.on_zeromq = None
            elif isinstance(value, Credit) and identity in self._readers:
                known = self._readers[identity]
                known.credits = (known.credits or 0) + value.count
                for _ in range(min(value.count, len(known.kept))):
                    known.kept.popleft()
            elif isinstance(value, Bye):
                self._forget(identity)
        self._service_s = time.monotonic()
        late_s = self._service_s - FORGET_READER_S
        for identity in [i for i, r in self._readers.items() if r.heard_s < late_s]:
            self._forget(identity)

    def close(self, *, ended: bool) -> None:
        """ended: tell the readers that the stream is finished (else they wait for it to come back)."""
        if ended:
            self._ended = True
            untold = {identity for identity in list(self._readers) if not self._end(identity)}
            # When a socket closes, ZeroMQ forgets what was on its way to a reader whose queue is full: so hear them out.
            give_up_s = time.monotonic() + self._goodbye_s
            while self._readers and time.monotonic() < give_up_s:
                self.service(timeout_ms=20)
                untold = {identity for identity in untold & self._readers.keys() if not self._end(identity)}
        self._socket.close()
        if self._ring is not None:
            self._ring.close()
        for reader in self._readers.values():
            reader.close()

    def _end(self, identity: bytes) -> bool:
        return self._post(identity, self._codec.encode(self._session, self._seq, End()), wait=True)

    def _post(self, identity: bytes, parts: list[Any], *, wait: bool = False) -> bool:
        """wait: up to WAIT_FOR_ROOM_MS, for room in a full queue. False: there was none, and the gap in seq will tell."""
        try:
            self._socket.send_multipart([identity, *parts], 0 if wait else zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(identity)
        return True

    def _forget(self, identity: bytes) -> None:
        if (reader := self._readers.pop(identity, None)) is not None:
            reader.close()


class Gone:
    """What a message is to a reader that came too late for its payload in the ring."""


class Connection:
    """One reading end: what the drain thread holds for each stream it reads, and `subscribe` for its one."""

    def __init__(
        self,
        address: str,
        reader: str,
        *,
        credits: int | None = None,
        payloads: Payloads | None = None,
        line: ClockLine | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """payloads None: through the ring where it can be reached, else inline. line: of the host that the address belongs
        to, if it is another one. Raises ConfigError as network.connect does."""
        self.welcome: StreamInfo | None = None
        self.address, self.line = address, line
        self._ended = self._leaving = False
        self.restarts = 0
        folder = _ring_folder(address)
        self._express = ExpressReceiver(folder) if folder else None
        express = self._express.name if self._express else ""
        self._hello = Hello(reader, credits, payloads or ("ring" if folder else "inline"), express)
        self._codec = Codec(shared_memory.RingReader(folder, waited_for=credits is not None).view if folder else None)
        self._session: int | None = None
        self._expected = 0
        self._next_hello_s = 0.0
        self.socket = context().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        self.socket.setsockopt(zmq.LINGER, 100)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        connect(self.socket, address, keyring, line.host if line else "")

    @property
    def descriptors(self) -> list[int]:
        """What becomes readable when something comes; ZeroMQ's only tells of a change, so see has_zeromq as well."""
        return [self.socket.get(zmq.FD), *([self._express.socket.fileno()] if self._express else [])]

    @property
    def has_zeromq(self) -> bool:
        """Whether ZeroMQ has something to read."""
        return bool(self.socket.get(zmq.EVENTS) & READABLE)

    @property
    def credited(self) -> bool:
        """Whether the publisher waits for this reader."""
        return self._hello.credits is not None

    def leave(self) -> None:
        """Read no more. From any thread; the drain thread says goodbye."""
        self._leaving = True

    def greet(self) -> None:
        """Say hello when it is time; a publisher that was restarted learns of us by it.

        To another host only once its clock is known: what cannot be dated need not be promised.
        """
        if self._leaving and not self._ended:
            self._ended = True
            self._say(Bye())
        if self._ended or (self.welcome is None and self.line is not None and not self.line.clock.ready):
            return
        if (now_s := time.monotonic()) >= self._next_hello_s:
            # Before the welcome often, because the publisher may not be there yet.
            self._next_hello_s = now_s + (HELLO_EVERY_S if self.welcome else 0.05)
            self._say(msgspec.structs.replace(self._hello, session=self._session or 0, expected=self._expected))

    def grant(self, count: int) -> None:
        self._say(Credit(count))

    def receive(self) -> tuple[Value | Gone | None, int]:
        """The next value, or None for the handshake's own, and how many messages were lost before it.

        Raises WireError for a malformed message; never blocks: call it when `Bells` says so.
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
        except shared_memory.Overwritten:
            session, seq = self._codec.number(parts[0]) or (None, 0)
            if short and session != self._session:
                return None, 0
            lost, self._expected = max(0, seq - self._expected) if session == self._session else 0, seq + 1
            return Gone(), lost
        if short and envelope.session != self._session:
            return None, 0  # of a publisher that is gone
        lost = 0
        if isinstance(envelope.value, Welcome):
            if self._session is not None and envelope.session != self._session:
                self.restarts += 1
            elif self._session is not None:  # forgotten while this process stood still: what we missed was promised
                lost = envelope.seq - self._expected
            self.welcome, self._session, self._expected = envelope.value.info, envelope.session, envelope.seq
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
    def _bells(self) -> Bells:
        return Bells([self])

    def wait(self, timeout_ms: int) -> bool:
        """Whether there is something to receive."""
        return bool(self._bells.wait(timeout_ms))

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


def _ring_folder(address: str) -> Path | None:
    """Where the rings of the run that publishes at this address are; None on the portable path and for other hosts."""
    return (
        shared_memory.folder_of(Path(address.removeprefix("ipc://")).parent) if address.startswith("ipc://") else None
    )
