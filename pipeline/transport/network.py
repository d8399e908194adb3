"""ZeroMQ sockets, and who may connect to them from other hosts.

Addresses of the loopback and of socket files are opened as they are. Any other is encrypted and authenticated both ways
(CURVE), and is not opened at all without a keyring.

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
from pipeline.transport.keys import Keyring, leaves_host

log = logging.getLogger("network")

# A thread that does nothing else reads the subscribers' sockets: so long a queue means that a process is suspended.
QUEUE_MESSAGES = 32
# A host that was switched off closes no connection; without heartbeats TCP would wait for it for minutes.
HEARTBEAT_MS, SILENT_AFTER_MS, CONNECT_MS = 1000, 4000, 1500
READABLE = int(zmq.POLLIN)
ZAP_DOMAIN = "sensorium"
MAX_REPORTED_KEYS = 1000

_authenticator_lock = threading.Lock()
_authenticator: Any = None  # the thread that accepts or rejects connections of this process's ZeroMQ context


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


def bind(socket: zmq.Socket[Any], address: str, keyring: Keyring | None) -> None:
    """Raises ConfigError for an address of the network without a keyring, and zmq.ZMQError where it cannot be bound.

    Earlier binds of the same socket stay as they are: a socket can serve its own host without encryption.
    """
    if leaves_host(address):
        keyring = _required(keyring, address)
        _start_authenticator(keyring)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # reject connections until the authenticator runs
        _set_own_key(socket, keyring)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        address = f"tcp://{_numeric(host)}:{port}"  # ZeroMQ binds to numeric addresses only
    socket.bind(address)


def connect(socket: zmq.Socket[Any], address: str, keyring: Keyring | None, host: str) -> None:
    """host: whose address it is. Beyond the loopback raises ConfigError without a keyring, or that host's key."""
    if leaves_host(address):
        keyring = _required(keyring, address)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, keyring.public_of(host))
        _set_own_key(socket, keyring)
    socket.connect(address)


def _set_own_key(socket: zmq.Socket[Any], keyring: Keyring) -> None:
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keyring.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keyring.secret)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_AFTER_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)


def _required(keyring: Keyring | None, address: str) -> Keyring:
    if keyring is None:
        raise ConfigError(
            f"{address} can be reached from other machines, and this host has no key to authenticate them. Name "
            f"the host (run CONFIG --host NAME) and create its key: {COMMAND} keys new NAME"
        )
    return keyring


def _numeric(host: str) -> str:
    try:
        return str(system_socket.getaddrinfo(host, None, system_socket.AF_INET, system_socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"'{host}' is not an address: {error}. Give the host's numeric address under hosts:"
        ) from error


class _KeyCheck:
    """ZeroMQ's callback for whether a key may connect; logs each rejected key once."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring, self._rejected = keyring, set[str]()

    def callback(self, domain: str, public: bytes) -> bool:
        key = public.decode()
        if self._keyring.name_of(key) is not None:
            return True
        if key not in self._rejected and len(self._rejected) < MAX_REPORTED_KEYS:
            self._rejected.add(key)
            log.warning(
                "rejected a connection with an unknown key. If the host is yours, put its .public file into %s/: %s",
                self._keyring.allowed,
                key,
            )
        return False


def _start_authenticator(keyring: Keyring) -> None:
    global _authenticator
    with _authenticator_lock:
        if _authenticator is None:
            from zmq.auth.thread import ThreadAuthenticator  # imports asyncio: only where it is needed

            _authenticator = ThreadAuthenticator(context())
            _authenticator.start()
        _authenticator.configure_curve_callback(ZAP_DOMAIN, _KeyCheck(keyring))
