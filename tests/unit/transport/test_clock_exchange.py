"""Another host's clock over real sockets: it is known, with a true bound, whatever the network does in between."""

from __future__ import annotations

import heapq
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from running import wait_for
from wires import KEYS

from pipeline.clock import NS, LiveClock
from pipeline.transport import clock_exchange, network
from pipeline.transport.clock_exchange import ClockClient, ClockServer
from pipeline.transport.wire_format import Codec, Hello, Ping

pytestmark = pytest.mark.system
MS = 1_000_000


class OtherClock(LiveClock):
    """The clock of a host that started long ago, runs fast, and can be made to jump."""

    def __init__(self, ahead_ns: int = 5000 * NS, ppm: float = 0.0) -> None:
        super().__init__()
        self.ahead_ns, self.ppm = ahead_ns, ppm

    def at(self, local_ns: int) -> int:
        return local_ns + self.ahead_ns + round((local_ns - self.start_ns) * self.ppm * 1e-6)

    def now_ns(self) -> int:
        return self.at(super().now_ns())


class Relay(threading.Thread):
    """Forwards TCP, each piece min_ms to max_ms late, in order; nothing while `dead` is set."""

    def __init__(self, port: int, min_ms: float, max_ms: float) -> None:
        super().__init__(daemon=True)
        self.port, self.delay_ms, self.dead = port, (min_ms, max_ms), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for a, b in ((client, server), (server, client)):
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(a, b), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        waiting: list[tuple[float, int, bytes]] = []
        order, last_s = 0, 0.0
        source.settimeout(0.001)
        while True:
            try:
                if not (piece := source.recv(65536)):
                    return
                order, last_s = order + 1, max(last_s, time.monotonic() + random.uniform(*self.delay_ms) / 1000)
                heapq.heappush(waiting, (last_s, order, piece))
            except TimeoutError:
                pass
            except OSError:
                return
            while waiting and waiting[0][0] <= time.monotonic() and not self.dead:
                target.sendall(heapq.heappop(waiting)[2])

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server(free_port: int) -> Iterator[tuple[OtherClock, int]]:
    """Another host that answers clock requests: (its clock, its port)."""
    clock = OtherClock(ppm=40)
    answering = ClockServer(f"tcp://127.0.0.1:{free_port}", KEYS, clock)
    answering.start()
    yield clock, free_port
    answering.stop()


def started(address: str) -> ClockClient:
    client = ClockClient("front", address, KEYS)
    client.start()
    until_s = time.monotonic() + 5
    while not client.clock.ready:
        assert time.monotonic() < until_s, "not known after 5 s"
        time.sleep(0.01)
    return client


def checks(client: ClockClient, other: OtherClock, seconds: float) -> list[tuple[int, int]]:
    """(error, stated bound) of the present, every 5 ms."""
    errors, until_s = [], time.monotonic() + seconds
    while time.monotonic() < until_s:
        now_ns = time.monotonic_ns()
        local_ns, bound_ns = client.clock.to_local(other.at(now_ns))
        errors.append((abs(local_ns - now_ns), bound_ns))
        time.sleep(0.005)
    return errors


@pytest.mark.paced
def test_clock_of_another_process_is_known_at_once(server: tuple[OtherClock, int]) -> None:
    other, port = server
    client = started(f"tcp://127.0.0.1:{port}")
    measured = checks(client, other, 3)
    client.stop()
    assert all(error_ns <= bound_ns for error_ns, bound_ns in measured)
    assert (
        sorted(error for error, _ in measured)[len(measured) // 2] < 1 * MS
    )  # benchmarks/clocks.py has the figure of a quiet machine
    assert measured[-1][1] < 5 * MS


@pytest.mark.paced
def test_true_offset_lies_in_the_bound_through_a_relay_of_20_to_25_ms(server: tuple[OtherClock, int]) -> None:
    other, port = server
    relay = Relay(port, 20, 25)
    client = started(relay.address)
    measured = checks(client, other, 4)
    client.stop()
    relay.close()
    assert sum(error_ns <= bound_ns for error_ns, bound_ns in measured) >= 0.99 * len(measured)
    assert 19 * MS < measured[-1][1] < 30 * MS


def test_a_jump_is_logged_and_the_new_time_is_known(
    server: tuple[OtherClock, int], caplog: pytest.LogCaptureFixture
) -> None:
    other, port = server
    client = started(f"tcp://127.0.0.1:{port}")
    other.ahead_ns -= 4000 * NS  # the host was restarted
    wait_for(lambda: "the clock of host 'front' jumped" in caplog.text, "the jump")
    measured = checks(client, other, 0.5)
    client.stop()
    assert client.clock.jumps == 1
    assert "jumped" in client.describe()
    assert all(error_ns <= bound_ns for error_ns, bound_ns in measured)


def test_silence_of_the_other_host_is_logged_and_widens_the_bound(
    server: tuple[OtherClock, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_exchange, "NO_ANSWER_S", 1.0)
    other, port = server
    relay = Relay(port, 0, 0)
    client = started(relay.address)
    relay.dead = True
    time.sleep(0.7)
    before_ns = checks(client, other, 0.01)[0][1]
    time.sleep(1.5)
    after = checks(client, other, 0.01)[0]
    assert "host 'front' does not answer" in caplog.text
    assert after[1] > before_ns
    assert after[0] <= after[1]
    relay.dead = False
    time.sleep(2.0)
    assert all(error_ns <= bound_ns for error_ns, bound_ns in checks(client, other, 0.2))
    client.stop()
    relay.close()


def test_garbage_sent_to_the_clock_server_changes_nothing(server: tuple[OtherClock, int]) -> None:
    other, port = server
    unknown_sender = network.context().socket(zmq.DEALER)
    network.connect(unknown_sender, f"tcp://127.0.0.1:{port}", KEYS)
    for parts in (
        [b""],
        [b"\x00" * 100],
        [b"a", b"b", b"c"],
        Codec().encode(0, 0, Hello("x")),
        Codec().encode(0, 0, Ping(1))[:1],
    ):
        unknown_sender.send_multipart(parts)
    client = started(f"tcp://127.0.0.1:{port}")
    assert all(error_ns <= bound_ns for error_ns, bound_ns in checks(client, other, 0.2))
    client.stop()
    unknown_sender.close(linger=0)
