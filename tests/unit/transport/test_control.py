"""The line between the launcher and its processes: neither end waits for, or dies of, the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from wires import a_socket

from pipeline.frame import NodeHealth
from pipeline.transport.control import MAX_UNSENT, ControlClient, ControlServer
from pipeline.transport.wire_format import VERSION, Fault, Report, Request


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/control"


@pytest.fixture
def server(address: str) -> Iterator[ControlServer]:
    opened = ControlServer(address)
    yield opened
    opened.close()


@pytest.fixture
def client(address: str) -> Iterator[ControlClient]:
    opened = ControlClient(address, "align")
    yield opened
    opened.close()


def report(number: int, process: str = "align") -> Report:
    return Report(process, (NodeHealth("align", "running", produced=number),))


def everything(server: ControlServer, *, for_s: float = 1.0) -> list[Any]:
    values, until_s = [], time.monotonic() + for_s
    while time.monotonic() < until_s:
        values += server.receive(50)
    return values


def test_process_whose_launcher_is_suspended_goes_on_and_its_newest_report_arrives(
    server: ControlServer, client: ControlClient
) -> None:
    for number in range(5000):  # twenty minutes of reports, none of which is read
        client.send(report(number))
    read = everything(server)
    client.receive(0)  # as in the loop of a process: what waited is sent
    read += everything(server)
    assert len(read) < 1000
    assert read[-1].nodes[0].produced == 4999
    counts = [value.nodes[0].produced for value in read]
    assert counts == sorted(counts)


def test_fault_is_not_displaced_by_reports(server: ControlServer, client: ControlClient) -> None:
    for number in range(2000):
        client.send(report(number))
    client.send(Fault("align", "it broke", 1))
    for number in range(2000):
        client.send(report(number))
    values = everything(server)
    client.receive(0)
    values += everything(server)
    assert [value for value in values if isinstance(value, Fault)] == [Fault("align", "it broke", 1)]
    assert values[-1] == report(1999)


def test_requests_for_a_suspended_launcher_are_bounded(client: ControlClient) -> None:
    for number in range(10 * MAX_UNSENT):
        client.send(Request("label", str(number)))
    assert len(client._unsent) <= MAX_UNSENT


def test_launcher_sends_to_a_suspended_or_unknown_process_without_waiting(
    server: ControlServer, client: ControlClient
) -> None:
    client.send(report(0))
    assert everything(server, for_s=0.3)
    began_s = time.monotonic()
    for _ in range(5000):
        server.send("align", Request("label", "x"))
        server.send("nobody", Request("stop"))
    assert time.monotonic() - began_s < 5
    assert client.receive(1000) == Request("label", "x")


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "parts",
    [
        [nested(100_000)],
        [b"\x94\x01\x00\x00" + nested(100_000)],
        [b""],
        [b"\xc1" * 100],
        [b"x"] * 5000,
        [msgspec.msgpack.encode([VERSION, 0, 0, ["Report", "align", [["camera", 7]]]])],
        [msgspec.msgpack.encode([VERSION, 0, 0, ["Report", "another", []]])],
        [msgspec.msgpack.encode([VERSION, 0, 0, ["Credit", -1]])],
        [msgspec.msgpack.encode([VERSION, 0, 0, ["Fault", "x" * 10_000, "", 1]])],
    ],
    ids=["nested", "nested value", "empty", "rubbish", "parts", "types", "impostor", "credit", "name"],
)
def test_rubbish_on_the_line_is_ignored_and_what_follows_is_read(
    server: ControlServer, address: str, parts: list[bytes]
) -> None:
    rubbish = a_socket(zmq.DEALER)
    rubbish.setsockopt(zmq.IDENTITY, b"align")
    rubbish.connect(address)
    rubbish.send_multipart(parts)
    rubbish.send(msgspec.msgpack.encode([VERSION, 0, 0, ["Request", "stop", ""]]))
    assert everything(server, for_s=0.5) == [Request("stop", "")]
    rubbish.close()


def test_rubbish_from_the_launcher_is_ignored_too(address: str, client: ControlClient) -> None:
    server = a_socket(zmq.ROUTER)
    server.bind(address)
    client.send(report(0))
    identity, _ = server.recv_multipart()
    for part in (nested(100_000), b"", msgspec.msgpack.encode([VERSION, 0, 0, ["Request", "stop", ""]])):
        server.send_multipart([identity, part])
    received = [client.receive(1000) for _ in range(3)]
    assert received == [None, None, Request("stop", "")]
    server.close()
