"""ZeroMQ sockets, and who may connect to them from other hosts.

Socket files are opened as they are: their folder is closed to others. Every TCP address, also of the loopback, which
other users of this machine reach, is encrypted and authenticated both ways (CURVE), and is not opened without keys.

Example:
    bind(socket, "tcp://10.0.0.1:7701", keyring)
    connect(socket, "tcp://10.0.0.2:7701", keyring, "brain")     # only to a `brain` that proves its key
"""

from __future__ import annotations

import logging
import select
import socket as system_socket
import threading
from typing import Any

import zmq

from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.transport.keys import Keys, leaves_host
from pipeline.transport.service_thread import ServiceThread

log = logging.getLogger("network")

# A thread that does nothing else reads the subscribers' sockets: so long a queue means that a process is suspended.
QUEUE_MESSAGES = 32
# A host that was switched off closes no connection; without heartbeats TCP would wait for it for minutes.
HEARTBEAT_MS, SILENT_AFTER_MS, CONNECT_MS = 1000, 4000, 1500
READABLE = int(zmq.POLLIN)
MAX_REPORTED_KEYS = 1000

_authenticator_lock = threading.Lock()
_authenticator: _Authenticator | None = None  # of this process's ZeroMQ context


def system_poller() -> Any:
    """The system's poll, which is the fastest, or, on Windows, ZeroMQ's, which accepts plain descriptors too."""
    return select.poll() if hasattr(select, "poll") else zmq.Poller()


def context() -> zmq.Context[Any]:
    """The one ZeroMQ context of this process; created on first use, so never before a fork."""
    return zmq.Context.instance()


def receive(socket: zmq.Socket[Any], *, max_parts: int = 2, copy: bool = True) -> list[Any]:
    """The parts of the message that has arrived, as bytes or, if not `copy`, as views of what ZeroMQ holds.

    Of a longer one than max_parts only one part more is returned, so that its reader sees that it is too long. Raises
    zmq.Again when none has arrived.
    """
    parts: list[Any] = [socket.recv(zmq.DONTWAIT, copy=copy)]
    while socket.getsockopt(zmq.RCVMORE):
        part = socket.recv(zmq.DONTWAIT, copy=copy)
        if len(parts) <= max_parts:
            parts.append(part)
    return parts if copy else [part.buffer for part in parts]


def new_keys() -> tuple[str, str]:
    """(public, secret): a new pair of CURVE keys, in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def bind(socket: zmq.Socket[Any], address: str, keys: Keys | None) -> None:
    """Raises ConfigError for a TCP address without keys, and zmq.ZMQError where it cannot be bound.

    Earlier binds of the same socket stay as they are: a socket can serve its own host with other keys, or by a file.
    """
    if address.startswith("tcp://"):
        keys = _required(keys, address)
        _start_authenticator(keys)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, keys.public)  # who may connect is decided by these keys
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # reject connections until the authenticator runs
        _set_own_key(socket, keys)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        address = f"tcp://{_numeric(host)}:{port}"  # ZeroMQ binds to numeric addresses only
    socket.bind(address)


def connect(socket: zmq.Socket[Any], address: str, keys: Keys | None, host: str = "") -> None:
    """host: whose address it is. Raises ConfigError for a TCP address without keys, or without that host's."""
    if address.startswith("tcp://"):
        keys = _required(keys, address)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, keys.public_of(host))
        _set_own_key(socket, keys)
    socket.connect(address)


def _set_own_key(socket: zmq.Socket[Any], keys: Keys) -> None:
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_AFTER_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)


def _required(keys: Keys | None, address: str) -> Keys:
    if keys is not None:
        return keys
    if leaves_host(address):
        raise ConfigError(
            f"{address} can be reached from other machines, and this host has no key to authenticate them. Name "
            f"the host (run CONFIG --host NAME) and create its key: {COMMAND} keys new NAME"
        )
    raise ConfigError(
        f"{address} can be reached by other users of this machine, and the keys of its run are not here. Is a run of "
        "yours announced at this address? `pipeline.subscribe` then finds its keys"
    )


def _numeric(host: str) -> str:
    try:
        return str(system_socket.getaddrinfo(host, None, system_socket.AF_INET, system_socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"'{host}' is not an address: {error}. Give the host's numeric address under hosts:"
        ) from error


class _KeyCheck:
    """ZeroMQ's callback for whether a key may connect; logs each rejected key once."""

    def __init__(self, keys: Keys) -> None:
        self._keys, self._rejected = keys, set[str]()

    def callback(self, domain: str, public: bytes) -> bool:
        key = public.decode()
        if self._keys.name_of(key) is not None:
            return True
        if key not in self._rejected and len(self._rejected) < MAX_REPORTED_KEYS:
            self._rejected.add(key)
            if (allowed := getattr(self._keys, "allowed", None)) is not None:
                log.warning(
                    "rejected a connection with an unknown key. If the host is yours, put its .public file into %s/, "
                    "which nobody else may write to: %s",
                    allowed,
                    key,
                )
            else:
                log.warning("rejected a connection with an unknown key: another user of this machine?")
        return False


class _Authenticator(ServiceThread):
    """Accepts or rejects connections, for all sockets of this process."""

    def __init__(self) -> None:
        super().__init__(name="authenticator", daemon=True)
        from zmq.auth import Authenticator  # imports asyncio: only where it is needed

        self.rules = Authenticator(context())
        self.rules.start()

    def serve(self) -> None:
        import asyncio

        try:
            while True:
                asyncio.run(self.rules.handle_zap_message(self.rules.zap_socket.recv_multipart()))
        except zmq.ContextTerminated:
            self.rules.stop()  # closes its socket, for which the context's end waits


def _start_authenticator(keys: Keys) -> None:
    global _authenticator
    with _authenticator_lock:
        if _authenticator is None:
            _authenticator = _Authenticator()
            _authenticator.start()
        _authenticator.rules.configure_curve_callback(keys.public, _KeyCheck(keys))
