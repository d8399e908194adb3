"""Sockets between hosts: a host without an allowed key gets nothing.

127.0.0.2 stands for an address of the network here, so that the encrypted path runs on any machine.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from running import wait_for
from wires import KEYS

from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.transport import clock_exchange, control, network, service_thread
from pipeline.transport.clock_exchange import ClockClient, ClockServer
from pipeline.transport.control import ControlClient, ControlServer
from pipeline.transport.keys import Keyring, write_new
from pipeline.transport.network import new_keys
from pipeline.transport.publisher import Publisher
from pipeline.transport.service_thread import failure
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import Codec, Hello, Request

pytestmark = pytest.mark.system
MS = 1_000_000


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> str:
    """A free address that counts as one of the network."""
    monkeypatch.setattr(network, "leaves_host", lambda address: "127.0.0.2" in address)  # for the texts of errors
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return f"tcp://127.0.0.2:{probe.getsockname()[1]}"


@pytest.fixture
def keyrings(tmp_path: Path) -> Callable[..., Keyring]:
    """keyrings("front", allows=("brain",)): a host's keys; each host has a folder of its own."""

    def folder(name: str) -> Path:
        if not (path := tmp_path / name).exists():
            write_new(name, *new_keys(), path)
        return path

    def make(name: str, *, allows: tuple[str, ...] = ()) -> Keyring:
        for other in allows:
            (folder(name) / "allowed" / f"{other}.public").write_bytes((folder(other) / f"{other}.public").read_bytes())
        return Keyring.load(name, folder(name))

    return make


def first_parts(publisher: Publisher, *readers: zmq.Socket, seconds: float = 1.0) -> list[bytes]:
    """The first message that one of these raw sockets receives of a frame every 20 ms; [] for none."""
    until_s, received = time.monotonic() + seconds, []
    while time.monotonic() < until_s and not received:
        publisher.send(Frame("camera", -1, 1, "label"))
        time.sleep(0.02)
        received = [part for reader in readers if reader.poll(0) for part in reader.recv_multipart()]
    for reader in readers:
        reader.close(linger=0)
    return received


def raw(address: str, *, server_key: str = "", keys: tuple[str, str] | None = None) -> zmq.Socket:
    """A DEALER that sends Hello, as any program might."""
    reader = network.context().socket(zmq.DEALER)
    if keys is not None:
        reader.setsockopt_string(zmq.CURVE_SERVERKEY, server_key)
        reader.setsockopt_string(zmq.CURVE_PUBLICKEY, keys[0])
        reader.setsockopt_string(zmq.CURVE_SECRETKEY, keys[1])
    reader.connect(address)
    with suppress(zmq.Again):  # it is rejected already: ZeroMQ has given the connection up, and would wait for ever
        reader.send_multipart(Codec().encode(0, 0, Hello("unknown")), zmq.DONTWAIT)
    return reader


def test_intruder_gets_nothing_and_the_allowed_reader_is_served(
    outside: str, keyrings: Callable[..., Keyring], caplog: pytest.LogCaptureFixture
) -> None:
    front, brain = keyrings("front", allows=("brain",)), keyrings("brain", allows=("front",))
    publisher = Publisher(
        f"inproc://{secrets.token_hex(4)}", StreamInfo("camera", "label"), network=outside, keyring=front
    )
    intruders = (
        raw(outside),  # no CURVE at all
        raw(outside, server_key=front.public, keys=new_keys()),  # an unknown key
        raw(outside, server_key=brain.public, keys=(brain.public, brain.secret)),  # the wrong server
        raw(outside, server_key=front.public, keys=(brain.public, new_keys()[1])),  # an allowed name without its secret
    )
    assert first_parts(publisher, *intruders) == []
    assert "rejected a connection with an unknown key" in caplog.text
    assert first_parts(
        publisher, raw(outside, server_key=front.public, keys=(brain.public, brain.secret)), seconds=10.0
    )
    publisher.close(ended=False)


def test_own_host_is_served_without_keys_by_a_socket_file_beside_the_network(
    outside: str, keyrings: Callable[..., Keyring], tmp_path: Path
) -> None:
    inside = f"ipc://{tmp_path}/camera.sock"
    publisher = Publisher(inside, StreamInfo("camera", "label"), network=outside, keyring=keyrings("front"))
    assert first_parts(publisher, raw(inside), seconds=10.0)
    publisher.close(ended=False)


def test_own_host_and_the_network_have_different_keys(
    outside: str, keyrings: Callable[..., Keyring], free_port: int
) -> None:
    inside, front, brain = f"tcp://127.0.0.1:{free_port}", keyrings("front", allows=("brain",)), keyrings("brain")
    publisher = Publisher(inside, StreamInfo("camera", "label"), network=outside, keyring=front, run_keys=KEYS)
    run, host = (KEYS.public, KEYS.secret), (brain.public, brain.secret)
    exchanged = (raw(inside, server_key=front.public, keys=host), raw(outside, server_key=KEYS.public, keys=run))
    assert first_parts(publisher, *exchanged) == []
    assert first_parts(publisher, raw(inside, server_key=KEYS.public, keys=host)) == []
    assert first_parts(publisher, raw(outside, server_key=front.public, keys=run)) == []
    assert first_parts(publisher, raw(inside, server_key=KEYS.public, keys=run), seconds=10.0)
    assert first_parts(publisher, raw(outside, server_key=front.public, keys=host), seconds=10.0)
    publisher.close(ended=False)


def test_other_user_of_this_machine_gets_nothing_and_cannot_send_orders(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Any user can connect to the loopback; without the keys in the run's folder it is of no use."""
    address, own = f"tcp://127.0.0.1:{free_port}", new_keys()
    server = ControlServer(address, KEYS)
    intruders = [
        raw(address),
        raw(address, server_key=KEYS.public, keys=own),
        raw(address, server_key=own[0], keys=own),
    ]
    for intruder in intruders:
        intruder.send_multipart(Codec().encode(0, 0, Request("stop")))
    client = ControlClient(address, "align", KEYS)
    client.send(Request("label", "mine"))
    received = wait_for(lambda: server.receive(100), "the order of the run's own process")
    assert received + server.receive(300) == [Request("label", "mine")]
    assert "rejected a connection with an unknown key" in caplog.text
    assert KEYS.secret not in caplog.text + repr(KEYS)
    for intruder in intruders:
        intruder.close(linger=0)
    client.close()
    server.close()


def test_nothing_opens_on_the_loopback_without_keys(free_port: int) -> None:
    address = f"tcp://127.0.0.1:{free_port}"
    opening: tuple[Callable[[], object], ...] = (
        lambda: Publisher(address, StreamInfo("camera", "label")),
        lambda: Subscriber(address, "reader"),
        lambda: ControlServer(address),
        lambda: ControlClient(address, "align"),
        lambda: ClockServer(address, None),
        lambda: ClockClient("front", address, None),
    )
    for open_socket in opening:
        with pytest.raises(ConfigError, match="can be reached by other users of this machine"):
            open_socket()


def test_error_in_the_check_of_a_key_ends_the_process_and_not_only_the_thread(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_thread, "_failures", [])
    monkeypatch.setattr(network, "_authenticator", None)
    own_context = zmq.Context()  # the authenticator of the tests' usual one goes on
    for module in (network, control):
        monkeypatch.setattr(module, "context", lambda: own_context)
    monkeypatch.setattr(network._KeyCheck, "callback", lambda *_: 1 / 0)
    server = ControlServer(f"tcp://127.0.0.1:{free_port}", KEYS)
    client = ControlClient(f"tcp://127.0.0.1:{free_port}", "align", KEYS)
    client.send(Request("label", "x"))
    assert "the thread 'authenticator' failed: ZeroDivisionError" in str(wait_for(failure, "the failure"))
    client.close()
    server.close()


def test_nothing_opens_on_the_network_without_a_key(outside: str, free_port: int) -> None:
    with pytest.raises(ConfigError, match="keys new NAME"):
        Publisher(f"tcp://127.0.0.1:{free_port}", StreamInfo("camera", "label"), network=outside, run_keys=KEYS)
    with pytest.raises(ConfigError, match="keys new NAME"):
        Subscriber(outside, "reader")
    with pytest.raises(ConfigError, match="keys new NAME"):
        ClockServer(outside, None)


def test_host_without_its_key_here_is_not_connected_to(outside: str, keyrings: Callable[..., Keyring]) -> None:
    with pytest.raises(ConfigError, match="copy its front.public"):
        ClockClient("front", outside, keyrings("brain"))


def test_a_host_that_rejects_this_hosts_key_is_named_with_the_fix(
    outside: str, keyrings: Callable[..., Keyring], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_exchange, "NO_ANSWER_S", 1.0)
    server = ClockServer(outside, keyrings("front"))
    client = ClockClient("front", outside, keyrings("brain", allows=("front",)))
    server.start()
    client.start()
    wait_for(
        lambda: "host 'front' does not answer: it rejects this host's key. Put brain.public into" in caplog.text,
        "the fix",
    )
    client.stop()
    server.stop()
    assert not client.clock.known
