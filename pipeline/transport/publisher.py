"""The sending end of one stream: a ROUTER socket to which every reader connects a DEALER and says hello.

The publisher answers with a welcome that names the first message it promises, so a late reader knows what it was never
promised, and sees every later gap. A reader that grants credits is waited for; for all others a full queue drops the
message, and the reader counts it from `seq`. A reader on the same host gets large payloads through shared memory
(shared_memory.py) and small messages as datagrams (datagrams.py); its hello says so.

Example:
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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from pipeline.errors import ConfigError, WireError
from pipeline.frame import Message, StreamInfo
from pipeline.transport import shared_memory
from pipeline.transport.compression import compress
from pipeline.transport.datagrams import DatagramSender
from pipeline.transport.keys import Keyring
from pipeline.transport.network import QUEUE_MESSAGES, READABLE, bind, context
from pipeline.transport.shared_memory import folder_for_address
from pipeline.transport.wire_format import (
    INLINE_BYTES,
    Bye,
    Codec,
    Credit,
    End,
    Hello,
    Payloads,
    Welcome,
)

SERVICE_EVERY_S = 0.1
FORGET_READER_S = 5.0
WAIT_FOR_ROOM_MS = 300
GOODBYE_S, GOODBYE_NETWORK_S = 0.3, 5.0  # over a network that loses packets the last messages take a while


class _Reader:
    def __init__(self, hello: Hello, now_s: float, next_seq: int, express_folder: Path | None) -> None:
        self.name, self.credits, self.payloads, self.heard_s = hello.reader, hello.credits, hello.payloads, now_s
        self.express: DatagramSender | None = None
        if express_folder is not None and hello.express:
            with suppress(OSError):  # gone already, or on another host
                self.express = DatagramSender(express_folder, hello.express)
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
        span_s: float = shared_memory.DEFAULT_SPAN_S,
    ) -> None:
        """network: another address, for readers on other hosts. queue: messages that may be on their way to a reader, span_s:
        how much of the stream has room in shared memory. Raises ConfigError when an address cannot be opened."""
        self.info = info
        self._codec = Codec()
        self._session = secrets.randbits(62)
        self._seq = 0
        self._readers: dict[bytes, _Reader] = {}
        self._ended = False
        self._goodbye_s = GOODBYE_NETWORK_S if network else GOODBYE_S
        self._ring_folder, self._ring_s = folder_for_address(address), span_s
        self._ring: shared_memory.SharedMemoryWriter | None = None  # made for the first reader that wants one
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

    def _wanted_ring(self) -> shared_memory.SharedMemoryWriter | None:
        if self._ring is None and self._ring_folder and any(r.payloads == "ring" for r in list(self._readers.values())):
            self._ring = shared_memory.SharedMemoryWriter(
                self._ring_folder, self.info.stream, self.info.rate_hz, self._ring_s
            )
        return self._ring

    def _encode(self, seq: int, message: Message, payloads: Payloads) -> list[Any]:
        if payloads == "packed":
            message = compress(message)
        return self._codec.encode(self._session, seq, message, self._place if payloads == "ring" else None)

    def _place(self, array: np.ndarray) -> shared_memory.SlotAddress | None:
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
