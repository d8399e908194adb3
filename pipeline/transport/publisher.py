"""The sending end of one stream: a ROUTER socket, to which each subscriber connects a DEALER and sends Hello.

The publisher answers with a Welcome that names the first seq it promises: a subscriber that comes late knows what it
was never promised, and sees every later gap. Three protocols stand beside ZeroMQ, for subscribers whose Hello
asks for them:

    credits.py         the publisher waits for a subscriber that must not miss a message; for all others a full
                       queue drops the message, and the subscriber counts the gap
    shared_memory.py   large payloads, on the same host
    datagrams.py       small messages with less latency, on the same host

Example:
    publisher = Publisher("ipc:///run/…/camera.sock", info)
    publisher.send(frame)
    publisher.close(ended=True)
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from pipeline.errors import ConfigError, WireError
from pipeline.frame import Message, StreamInfo
from pipeline.transport.compression import compress
from pipeline.transport.credits import CreditWindow
from pipeline.transport.datagrams import DatagramSender, datagram_folder
from pipeline.transport.keys import Keys
from pipeline.transport.network import QUEUE_MESSAGES, READABLE, bind, context, receive
from pipeline.transport.shared_memory import DEFAULT_SPAN_S, SharedMemoryWriter, SlotAddress, has_shared_memory
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

log = logging.getLogger("transport")

SERVICE_EVERY_S = 0.1
MAX_SUBSCRIBERS = 256  # each has a queue, and a descriptor for its datagrams
MAX_AT_ONCE = 1000  # messages of subscribers that are read before the publisher's own work goes on
FORGET_SUBSCRIBER_S = 5.0  # without a Hello, which comes every half second
WAIT_FOR_ROOM_MS = 300
CLOSE_S, CLOSE_NETWORK_S = 0.3, 5.0  # over a network that loses packets the last messages take a while


class _Peer:
    """What the publisher knows of one subscriber."""

    def __init__(self, hello: Hello, now_s: float, next_seq: int, folder: Path | None) -> None:
        self.payloads, self.last_hello_s = hello.payloads, now_s
        self.window = None if hello.credits is None else CreditWindow(hello.credits)
        self.datagrams: DatagramSender | None = None
        if folder is not None and hello.datagram_socket:
            with suppress(OSError):  # closed already, or on another host
                self.datagrams = DatagramSender(folder, hello.datagram_socket, next_seq)

    def close(self) -> None:
        if self.datagrams is not None:
            self.datagrams.close()


class Publisher:
    """One stream's sending end. Belongs to one thread; only borrow() may be called from others."""

    def __init__(
        self,
        address: str,
        info: StreamInfo,
        *,
        network: str = "",
        keyring: Keys | None = None,
        run_keys: Keys | None = None,
        queue: int = QUEUE_MESSAGES,
        span_s: float = DEFAULT_SPAN_S,
    ) -> None:
        """Raises ConfigError when an address cannot be opened.

        Args:
            address: Where subscribers of this host connect.
            info: Sent in each Welcome; may be replaced until the first subscriber connects.
            network: A second address, for other hosts. Empty: none.
            keyring: This host's keys; required for `network`.
            run_keys: Those of the run; required for a TCP `address`.
            queue: Messages that ZeroMQ holds for each subscriber before it drops new ones.
            span_s: How much of the stream, in seconds, has room in shared memory.
        """
        self.info = info
        self._codec = Codec()
        self._session = secrets.randbits(62)
        self._seq = 0
        self._peers: dict[bytes, _Peer] = {}
        self._ended = self._is_full_logged = False
        self._close_s = CLOSE_NETWORK_S if network else CLOSE_S
        self._folder, self._span_s = datagram_folder(address), span_s
        self._has_shared_memory = has_shared_memory(address)
        self._shared_memory: SharedMemoryWriter | None = None  # created for the first subscriber that asks for it
        self._serviced_s = 0.0
        self._stored: list[np.ndarray] = []  # the payloads in shared memory of the message that is being sent
        self._stopping: threading.Event | None = None
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a closed subscriber is an error here, not a silent loss
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.SNDTIMEO, WAIT_FOR_ROOM_MS)
        self._socket.setsockopt(zmq.LINGER, 300)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 4096)  # subscribers send only small messages
        for own_address, keys in ((address, run_keys), (network, keyring)):  # the local one first: see network.bind
            try:
                if own_address:
                    bind(self._socket, own_address, keys)
            except zmq.ZMQError as error:
                self._socket.close()
                raise ConfigError(
                    f"stream '{info.stream}': cannot publish at {own_address}: {error}. Is it taken?"
                ) from error

    def send(self, message: Message, *, stopping: threading.Event | None = None) -> None:
        """To every subscriber; waits only for those that grant credits, and no longer once `stopping` is set."""
        if not self._peers:
            self.service()
        seq, self._seq = self._seq, self._seq + 1
        self._stored, self._stopping = [], stopping
        encoded: dict[Payloads, list[Any]] = {}
        flow_control = False
        for identity, peer in list(self._peers.items()):
            window = peer.window
            if window is not None:
                flow_control = True
                while window.available == 0 and identity in self._peers and not self._is_stopping():
                    self.service(timeout_ms=20)
                if window.available == 0:
                    continue
            if (parts := encoded.get(peer.payloads)) is None:
                parts = encoded[peer.payloads] = self._encode(seq, message, peer.payloads)
            if window is not None:
                window.spend(self._stored if peer.payloads == "ring" else [])
            if (datagrams := peer.datagrams) is not None:
                if len(parts) == 1 and datagrams.send(parts[0]):
                    continue
                datagrams.resume_seq = seq + 1
            # ZeroMQ learns in batches what was read, so its queue may look full although there is credit.
            self._post(identity, parts, wait=window is not None)
        self._stored = []
        if self._shared_memory is not None:
            self._shared_memory.reserve_next()
        # After sending, so that no subscriber waits for it. Credits are needed at once, a Hello can wait.
        if flow_control or time.monotonic() > self._serviced_s + SERVICE_EVERY_S:
            self.service()

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        """A writable array to fill and send: a slot of shared memory where that saves a copy, else ordinary memory."""
        array: np.ndarray | None = None
        if self._shared_memory is not None and math.prod(shape) * np.dtype(dtype).itemsize > INLINE_BYTES:
            array = self._shared_memory.borrow(shape, dtype)
        return np.empty(shape, dtype) if array is None else array

    def service(self, timeout_ms: int = 0) -> None:
        """Read what subscribers sent; call it at least every second. timeout_ms: how long to wait if there is none."""
        # Reading EVENTS takes a tenth of the time of a poll, and this is done for every message.
        for _ in range(MAX_AT_ONCE):
            if not (self._socket.get(zmq.EVENTS) & READABLE or (timeout_ms and self._socket.poll(timeout_ms))):
                break
            timeout_ms = 0
            try:
                identity, *parts = receive(self._socket)
            except zmq.Again:
                break
            try:
                value = self._codec.decode(parts).value
            except WireError:
                continue  # unknown sender: nothing was promised to it
            peer = self._peers.get(identity)
            if isinstance(value, Hello):
                if peer is None:
                    self._welcome(identity, value)
                else:
                    peer.last_hello_s, peer.payloads = time.monotonic(), value.payloads
                    if peer.datagrams is not None and value.session == self._session:
                        peer.datagrams.confirm(value.expected)
            elif isinstance(value, Credit) and peer is not None:
                if peer.window is None:
                    peer.window = CreditWindow(0)
                peer.window.grant(value.count)
            elif isinstance(value, Bye):
                self._forget(identity)
        self._serviced_s = time.monotonic()
        oldest_s = self._serviced_s - FORGET_SUBSCRIBER_S
        for identity in [i for i, peer in self._peers.items() if peer.last_hello_s < oldest_s]:
            self._forget(identity)

    def close(self, *, ended: bool) -> None:
        """ended: announce that the stream is finished; else its subscribers wait for the publisher to come back."""
        if ended:
            self._ended = True
            pending = {identity for identity in list(self._peers) if not self._post_end(identity)}
            # A closing ZeroMQ socket drops what is queued for a peer whose queue is full, so wait until each says Bye.
            give_up_s = time.monotonic() + self._close_s
            while self._peers and time.monotonic() < give_up_s:
                self.service(timeout_ms=20)
                pending = {identity for identity in pending & self._peers.keys() if not self._post_end(identity)}
        self._socket.close()
        if self._shared_memory is not None:
            self._shared_memory.close()
        for peer in self._peers.values():
            peer.close()

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if len(self._peers) >= MAX_SUBSCRIBERS:
            if not self._is_full_logged:
                self._is_full_logged = True
                log.warning("'%s' has %d readers: more are not served", self.info.stream, MAX_SUBSCRIBERS)
            return
        if hello.payloads == "ring" and self._shared_memory is None and self._has_shared_memory:
            self._shared_memory = SharedMemoryWriter(self.info.stream, self.info.rate_hz, self._span_s)
        self._peers[identity] = _Peer(hello, time.monotonic(), self._seq, self._folder)
        # Compression takes milliseconds, so the subscribers of this host are served first.
        self._peers = dict(sorted(self._peers.items(), key=lambda item: item[1].payloads == "packed"))
        self._post(identity, self._codec.encode(self._session, self._seq, Welcome(self.info)))
        if self._ended:
            self._post_end(identity)

    def _forget(self, identity: bytes) -> None:
        if (peer := self._peers.pop(identity, None)) is not None:
            peer.close()

    def _encode(self, seq: int, message: Message, payloads: Payloads) -> list[Any]:
        if payloads == "packed":
            message = compress(message)
        return self._codec.encode(self._session, seq, message, self._store if payloads == "ring" else None)

    def _store(self, array: np.ndarray) -> SlotAddress | None:
        """Put a payload into shared memory; None if it must travel in the message."""
        if (writer := self._shared_memory) is None:
            return None
        stored = writer.store(array)
        # A slot that a subscriber with credits has yet to take is free soon, and waiting is cheaper than the socket.
        while stored is None and any(p.window and p.window.holds_payloads for p in self._peers.values()):
            if self._is_stopping():
                break
            self.service(timeout_ms=20)
            stored = writer.store(array)
        if stored is None:
            return None
        address, slot_array = stored
        self._stored.append(slot_array)  # the slot is not reused while this reference lives
        return address

    def _is_stopping(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    def _post_end(self, identity: bytes) -> bool:
        return self._post(identity, self._codec.encode(self._session, self._seq, End()), wait=True)

    def _post(self, identity: bytes, parts: list[Any], *, wait: bool = False) -> bool:
        """False: the queue was full, for WAIT_FOR_ROOM_MS if `wait` is set. The gap in seq then shows the loss."""
        try:
            self._socket.send_multipart([identity, *parts], 0 if wait else zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(identity)
        return True
