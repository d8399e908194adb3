"""How a host learns another's clock: pings over the network. The arithmetic is in host_clock.py.

Example:
    server = ClockServer("tcp://10.0.0.1:7700", keyring)             # in each host's launcher
    client = ClockClient("brain", "tcp://10.0.0.2:7700", keyring)    # in each process that reads from `brain`
    client.clock.to_local(frame.capture_ns)
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

import zmq

from pipeline.clock import NS, Clock, LiveClock
from pipeline.errors import ConfigError, WireError
from pipeline.transport.host_clock import HostClock
from pipeline.transport.keys import Keys
from pipeline.transport.network import bind, connect, context, receive
from pipeline.transport.service_thread import ServiceThread
from pipeline.transport.wire_format import Codec, Ping, Pong

log = logging.getLogger("network")

# Often at first and after a jump, then steadily. An answer that takes longer than PING_TIMEOUT_S is not waited for.
FAST_PING_EVERY_S, FAST_PINGS, PING_EVERY_S, PING_TIMEOUT_S = 0.02, 100, 0.4, 0.5
# The first ping finds threads and cores asleep, here more than there: it takes 230 µs with an error of 45, the next
# takes 90 with an error of 1.
PINGS_IN_A_ROW = 3
NO_ANSWER_S = 5.0
MAX_PING_BYTES = 4096  # a ping is 30 bytes, but the CURVE handshake takes 500


class ClockServer(ServiceThread):
    """Answers pings with this host's time. In a thread of its own: a late answer widens every client's error bound."""

    def __init__(self, address: str, keys: Keys | None, clock: Clock | None = None) -> None:
        """Raises ConfigError when the address cannot be opened."""
        super().__init__(name="clock server", daemon=True)
        self._clock = clock or LiveClock()
        self._codec = Codec()
        self._stopping = threading.Event()
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PING_BYTES)
        try:
            bind(self._socket, address, keys)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot answer clock requests of other hosts at {address}: {error}. Is it this host's, and free?"
            ) from error

    def serve(self) -> None:
        while not self._stopping.is_set():
            if not self._socket.poll(100):
                continue
            received_ns = self._clock.now_ns()
            identity, *parts = receive(self._socket)
            try:
                ping = self._codec.decode(parts).value
            except WireError:
                continue  # unknown sender: ignore
            if isinstance(ping, Ping):
                pong = Pong(ping.sent_ns, received_ns, self._clock.now_ns())
                with suppress(zmq.Again):  # a client that does not read its answers pings again
                    self._socket.send_multipart([identity, *self._codec.encode(0, 0, pong)], zmq.DONTWAIT)
        self._socket.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(1.0)


class ClockClient(ServiceThread):
    """Maintains `clock`, the HostClock of `host`, from the answers to its pings."""

    def __init__(self, host: str, address: str, keys: Keys | None, clock: Clock | None = None) -> None:
        """Raises ConfigError as network.connect does."""
        super().__init__(name=f"clock of {host}", daemon=True)
        self.host, self.clock = host, HostClock()
        self._own_clock = clock or LiveClock()
        self._codec = Codec()
        self._stopping = threading.Event()
        self._socket = context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PING_BYTES)
        self._socket.setsockopt(zmq.SNDHWM, 4)  # old pings are of no use, and need not queue while none is answered
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._rejections = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._own_name = getattr(keys, "name", "")
        connect(self._socket, address, keys, host)

    def serve(self) -> None:
        answered_ns = self._own_clock.now_ns()
        jumps, logged = 0, ""
        while not self._stopping.is_set():
            if all(self._ping() for _ in range(PINGS_IN_A_ROW)):
                answered_ns, logged = self._own_clock.now_ns(), ""
            elif self._own_clock.now_ns() - answered_ns > NO_ANSWER_S * NS:
                rejected = bool(self._rejections.poll(0))
                fix = (
                    f": it rejects this host's key. Put {self._own_name}.public into the allowed/ folder of its keys"
                    if rejected
                    else ""
                )
                if (text := f"host '{self.host}' does not answer{fix}") != logged:  # that it rejects may show later
                    logged = text
                    log.warning("%s", text)
            if self.clock.jumps > jumps and self.clock.known:
                jumps = self.clock.jumps
                log.warning(
                    "the clock of host '%s' jumped: it was restarted or suspended. Its new time is known", self.host
                )
            fast = not self.clock.known or self.clock.exchanges < FAST_PINGS
            self._stopping.wait(FAST_PING_EVERY_S if fast else PING_EVERY_S)
        self._socket.disable_monitor()
        self._socket.close()

    def describe(self) -> str:
        """For people: how well the other clock is known."""
        if not self.clock.known:
            return "not known: no answer yet"
        jumps = f", jumped {self.clock.jumps} times" if self.clock.jumps else ""
        return f"known to ±{self.clock.error_ns / 1e6:.3f} ms, {self.clock.drift * 1e6:+.1f} ppm{jumps}"

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(1.0)

    def _ping(self) -> bool:
        """Whether a new ping was answered in time. A late answer to an earlier one is used too."""
        sent_ns = self._own_clock.now_ns()
        try:
            self._socket.send_multipart(self._codec.encode(0, 0, Ping(sent_ns)), zmq.DONTWAIT)
        except zmq.Again:
            pass
        give_up_ns = sent_ns + round(PING_TIMEOUT_S * NS)
        while self._socket.poll(max(0, give_up_ns - self._own_clock.now_ns()) // 1_000_000):
            back_ns = self._own_clock.now_ns()
            try:
                pong = self._codec.decode(receive(self._socket)).value
            except WireError:
                continue
            if isinstance(pong, Pong):
                self.clock.exchange(pong.sent_ns, pong.received_ns, pong.answered_ns, back_ns)
                if pong.sent_ns == sent_ns:
                    return True
        return False
