"""Between hosts: sockets that only allowed hosts can open, and the pings by which a host learns another's clock.

With wire.py and control.py the only files that import zmq. An address of the loopback or of a socket file is opened as it is; any other
is encrypted and authenticated both ways (CURVE), and without a keyring it is not opened at all.

    bind(socket, "tcp://10.0.0.1:7701", keyring)
    connect(socket, "tcp://10.0.0.2:7701", keyring, "brain")     # only to a `brain` that proves its key
    server = ClockServer("tcp://10.0.0.1:7700", keyring)         # in each host's launcher
    line = ClockClient("brain", "tcp://10.0.0.2:7700", keyring)    # in each process that reads from `brain`
    line.clock.to_local(frame.capture_ns)
"""

from __future__ import annotations

import logging
import select
import socket as network
import threading
from typing import Any

import zmq

from pipeline.clock import NS, Clock, LiveClock
from pipeline.errors import ConfigError, WireError
from pipeline.transport.host_clock import HostClock
from pipeline.transport.keys import Keyring, leaves_host
from pipeline.transport.wire_format import Codec, Ping, Pong

log = logging.getLogger("network")

# A partner that was switched off says nothing; without this TCP would wait for it for minutes.
# Readers are drained by a thread that does nothing else, so a queue this long means that a process stands still.
QUEUE_MESSAGES = 32
HEARTBEAT_MS, SILENT_AFTER_MS, CONNECT_MS = 1000, 4000, 1500
PING_FAST_S, FAST_PINGS, PING_EVERY_S, PATIENCE_S = 0.02, 100, 0.4, 0.5
# The first ping finds threads and cores asleep, here more than there: it takes 230 µs and is off by 45, the next 90 and 1.
IN_A_ROW = 3
NO_ANSWER_S = 5.0
READABLE = int(zmq.POLLIN)
SMALL_BYTES = 4096  # a ping is 30 bytes, but CURVE introduces itself with 500
ZAP_DOMAIN = "sensorium"

_door_lock = threading.Lock()
_door: Any = None  # the thread that answers, for this process's ZeroMQ context, who may connect


def system_poller() -> Any:
    """What waits for descriptors: the system's, the quickest way there is, or, on Windows, ZeroMQ's, which knows them too."""
    return select.poll() if hasattr(select, "poll") else zmq.Poller()


def context() -> zmq.Context[Any]:
    """The one ZeroMQ context of this process; made on first use, so never before a fork."""
    return zmq.Context.instance()


def new_keys() -> tuple[str, str]:
    """(public, secret): a new pair of CURVE keys, in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def bind(socket: zmq.Socket[Any], address: str, keyring: Keyring | None) -> None:
    """Raises ConfigError for an address of the network without a keyring, and zmq.ZMQError where it cannot be bound.

    Binds made before on the same socket stay as they are: a socket can serve its own host in the clear.
    """
    if leaves_host(address):
        keyring = _required(keyring, address)
        _watch_the_door(keyring)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in while nobody watches the door
        _identify(socket, keyring)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        address = f"tcp://{_numeric(host)}:{port}"  # ZeroMQ binds to numbers only
    socket.bind(address)


def connect(socket: zmq.Socket[Any], address: str, keyring: Keyring | None, host: str) -> None:
    """host: whose address it is. Raises ConfigError without a keyring, or without that host's key, beyond the loopback."""
    if leaves_host(address):
        keyring = _required(keyring, address)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, keyring.public_of(host))
        _identify(socket, keyring)
    socket.connect(address)


def _identify(socket: zmq.Socket[Any], keyring: Keyring) -> None:
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keyring.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keyring.secret)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_AFTER_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)


def _required(keyring: Keyring | None, address: str) -> Keyring:
    if keyring is None:
        raise ConfigError(
            f"{address} can be reached by others, and this host has no key to tell who they are. Name the host "
            "(run CONFIG --host NAME) and make its key: python run_pipeline.py keys new NAME"
        )
    return keyring


def _numeric(host: str) -> str:
    try:
        return str(network.getaddrinfo(host, None, network.AF_INET, network.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"'{host}' is not an address: {error}. Give the host's numeric address under hosts:"
        ) from error


class _Guard:
    """Answers ZeroMQ's question whether a key may connect; told to the log once a stranger."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring, self._refused = keyring, set[str]()

    def callback(self, domain: str, public: bytes) -> bool:
        key = public.decode()
        if self._keyring.name_of(key) is not None:
            return True
        if key not in self._refused and len(self._refused) < 1000:
            self._refused.add(key)
            log.warning(
                "refused a stranger. If it is one of yours, put its .public into %s/: %s", self._keyring.allowed, key
            )
        return False


def _watch_the_door(keyring: Keyring) -> None:
    global _door
    with _door_lock:
        if _door is None:
            from zmq.auth.thread import ThreadAuthenticator  # asyncio comes with it: only where it is needed

            _door = ThreadAuthenticator(context())
            _door.start()
        _door.configure_curve_callback(ZAP_DOMAIN, _Guard(keyring))


# --- clocks -----------------------------------------------------------------------------------------------------------


class ClockServer(threading.Thread):
    """Answers pings with this host's time. A thread of its own: a busy one would answer late, and every bound would widen."""

    def __init__(self, address: str, keyring: Keyring | None, clock: Clock | None = None) -> None:
        """Raises ConfigError when the address cannot be opened."""
        super().__init__(name="clock server", daemon=True)
        self._clock = clock or LiveClock()
        self._codec = Codec()
        self._stopping = threading.Event()
        self._socket = context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, SMALL_BYTES)
        try:
            bind(self._socket, address, keyring)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ConfigError(
                f"cannot tell other hosts the time at {address}: {error}. Is it this host's, and free?"
            ) from error

    def run(self) -> None:
        while not self._stopping.is_set():
            if not self._socket.poll(100):
                continue
            received_ns = self._clock.now_ns()
            identity, *parts = self._socket.recv_multipart()
            try:
                ping = self._codec.decode(parts).value
            except WireError:
                continue
            if isinstance(ping, Ping):
                pong = Pong(ping.sent_ns, received_ns, self._clock.now_ns())
                self._socket.send_multipart([identity, *self._codec.encode(0, 0, pong)], zmq.DONTWAIT)
        self._socket.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(1.0)


class ClockClient(threading.Thread):
    """Keeps `clock`, the HostClock of `host`, by asking it for its time: often at first and after a jump, then steadily."""

    def __init__(self, host: str, address: str, keyring: Keyring | None, clock: Clock | None = None) -> None:
        """Raises ConfigError as `connect` does."""
        super().__init__(name=f"clock of {host}", daemon=True)
        self.host, self.clock = host, HostClock()
        self._here = clock or LiveClock()
        self._codec = Codec()
        self._stopping = threading.Event()
        self._socket = context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, SMALL_BYTES)
        self._socket.setsockopt(zmq.SNDHWM, 4)  # while it does not answer, old questions need not pile up
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._refusals = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._own_name = keyring.name if keyring else ""
        connect(self._socket, address, keyring, host)

    def run(self) -> None:
        heard_ns = self._here.now_ns()
        jumps, told_silent = 0, False
        while not self._stopping.is_set():
            if all(self._ask() for _ in range(IN_A_ROW)):
                heard_ns, told_silent = self._here.now_ns(), False
            elif self._here.now_ns() - heard_ns > NO_ANSWER_S * NS and not told_silent:
                told_silent = True
                refused = bool(self._refusals.poll(0))
                fix = (
                    f": it refuses our key. Put {self._own_name}.public into the allowed/ folder of its keys"
                    if refused
                    else ""
                )
                log.warning("host '%s' does not answer%s", self.host, fix)
            if self.clock.jumps > jumps and self.clock.known:
                jumps = self.clock.jumps
                log.warning(
                    "the clock of host '%s' jumped: it was restarted, or slept. Its new time is known", self.host
                )
            in_a_hurry = not self.clock.known or self.clock.exchanges < FAST_PINGS
            self._stopping.wait(PING_FAST_S if in_a_hurry else PING_EVERY_S)
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

    def _ask(self) -> bool:
        """One ping. The answer to an earlier one that comes only now still counts: it bounds the offset all the same."""
        sent_ns = self._here.now_ns()
        try:
            self._socket.send_multipart(self._codec.encode(0, 0, Ping(sent_ns)), zmq.DONTWAIT)
        except zmq.Again:
            pass
        give_up_ns = sent_ns + round(PATIENCE_S * NS)
        while self._socket.poll(max(0, give_up_ns - self._here.now_ns()) // 1_000_000):
            back_ns = self._here.now_ns()
            try:
                pong = self._codec.decode(self._socket.recv_multipart()).value
            except WireError:
                continue
            if isinstance(pong, Pong):
                self.clock.exchange(pong.sent_ns, pong.received_ns, pong.answered_ns, back_ns)
                if pong.sent_ns == sent_ns:
                    return True
        return False
