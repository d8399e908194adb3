"""What a page costs at most, and what it says to whoever watches over a run."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from nodes.dashboard import Dashboard
from nodes.metrics import Metrics
from pipeline.errors import ConfigError
from pipeline.frame import Arrival, Health, NodeHealth
from pipeline.node import Context
from pipeline.web.prometheus import exposition
from pipeline.web.server import HEADER_S, MAX_CLIENTS, MAX_CONNECTIONS

TOKEN = "open-sesame"
WELL = NodeHealth("camera", "running", produced=7, latency_ms={"total": {"p50": 12.5}})
ALIGN = NodeHealth(
    "align", "running", received={"camera": 7}, dropped={"camera": {'a "late" one\n': 2}}, used={"camera": 5}
)
LOST = NodeHealth("mood", "given up", "it failed 6 times within a minute", restarts=5)
SAMPLE = re.compile(r'^sensorium_\w+\{(\w+="(?:[^"\\\n]|\\["\\n])*",?)*\} -?\d+(\.\d+)?(e[+-]\d+)?$')


@pytest.fixture
def page() -> Iterator[tuple[Dashboard, list[tuple[str, str]]]]:
    orders: list[tuple[str, str]] = []
    node = Dashboard(port=0, token=TOKEN)
    node.context = Context("dashboard", request=lambda verb, argument: orders.append((verb, argument)))
    node.open()
    yield node, orders
    node.close()


def get(node: Dashboard | Metrics, path: str, **headers: str) -> tuple[int, str]:
    assert node._server is not None
    request = urllib.request.Request(f"{node._server.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def report(node: Dashboard | Metrics, *nodes: NodeHealth) -> None:
    node.consume(Arrival("health", Health(1, nodes, "door"), 1))


def test_healthz_needs_no_token_and_names_what_is_in_trouble(page) -> None:
    node, _ = page
    assert get(node, "healthz")[0] == 503  # nothing is known yet
    report(node, WELL)
    assert (get(node, "healthz")[0], json.loads(get(node, "healthz")[1])) == (200, {"ok": True, "trouble": {}})
    report(node, WELL, LOST)
    status, text = get(node, "healthz")
    assert status == 503
    assert json.loads(text)["trouble"] == {"mood": "given up: it failed 6 times within a minute"}


def test_metrics_need_the_token_and_follow_the_format(page) -> None:
    node, _ = page
    report(node, WELL, ALIGN, LOST)
    status, text = get(node, "metrics")
    assert status == 401 and "?token=" in text and TOKEN not in text
    assert get(node, "metrics?token=wrong")[0] == 401
    status, text = get(node, "metrics", Authorization=f"Bearer {TOKEN}")
    assert status == 200 and text == get(node, f"metrics?token={TOKEN}")[1]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not SAMPLE.match(line)] == []
    assert 'sensorium_node_up{node="mood"} 0' in lines and 'sensorium_node_up{node="camera"} 1' in lines
    assert 'sensorium_frames_used_total{node="align",source="camera"} 5' in lines
    assert 'sensorium_latency_seconds{node="camera",name="total",quantile="0.5"} 0.0125' in lines
    assert exposition(None) == ""


def test_metrics_are_served_without_a_page_too() -> None:
    addresses: list[str] = []
    node = Metrics(port=0, token=TOKEN)
    node.context = Context("metrics", publish_page=addresses.append)
    node.open()
    try:
        report(node, WELL)
        assert get(node, "healthz")[0] == 200 and "sensorium_node_up" in get(node, f"metrics?token={TOKEN}")[1]
        assert get(node, f"?token={TOKEN}")[0] == 404
        assert addresses[0].endswith(f"/metrics?token={TOKEN}")
    finally:
        node.close()


def test_token_that_is_turned_off_is_logged_and_stays_on_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    node = Dashboard(port=0, token="none")
    node.context = Context("dashboard")
    node.open()
    try:
        assert get(node, "")[0] == 200
        assert "every program and user of this machine can read it" in caplog.text
    finally:
        node.close()
    with pytest.raises(ConfigError, match="shows camera and microphone to the network"):
        Dashboard(address="0.0.0.0", token="none")


def test_orders_in_excess_are_refused_and_a_stop_is_not(page) -> None:
    node, orders = page
    report(node, WELL)
    with connect(f"{node._server.url.replace('http', 'ws')}ws?pictures=0&token={TOKEN}") as browser:
        for _ in range(2000):
            browser.send('{"do": "mute", "source": "camera"}')
        browser.send('{"do": "stop"}')
        began_s = time.monotonic()
        while ("stop", "") not in orders:
            assert time.monotonic() - began_s < 5
            time.sleep(0.01)
        while "too many orders" not in str(browser.recv(timeout=5)):
            pass
    assert len(orders) < 200


def test_connections_that_ask_for_nothing_are_closed_and_keep_nobody_out(page) -> None:
    node, _ = page
    report(node, WELL)
    address = ("127.0.0.1", node._server.port)
    before = len(os.listdir("/proc/self/fd"))
    half_open = []
    for number in range(600):
        half_open.append(socket.create_connection(address))
        half_open[-1].sendall(b"GET / HT" if number % 2 else b"")
        if number % 100 == 99:
            assert get(node, "healthz")[0] == 200
    server_side = len(os.listdir("/proc/self/fd")) - before - len(half_open)
    assert server_side <= MAX_CONNECTIONS + 20
    time.sleep(HEADER_S + 1)
    assert len(os.listdir("/proc/self/fd")) - before - len(half_open) <= 5
    assert get(node, "healthz")[0] == 200
    for connection in half_open:
        connection.close()


def test_pages_that_are_open_at_once_are_bounded(page) -> None:
    node, _ = page
    address = f"{node._server.url.replace('http', 'ws')}ws?pictures=0&token={TOKEN}"
    browsers = [connect(address) for _ in range(MAX_CLIENTS)]
    for browser in browsers:
        browser.recv(timeout=5)
    with connect(address) as one_too_many, pytest.raises(Exception, match="too many pages"):
        one_too_many.recv(timeout=5)
    for browser in browsers:
        browser.close()
