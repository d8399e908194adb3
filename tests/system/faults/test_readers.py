"""A browser that does not read, and two runs at once: neither costs the run anything."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from pathlib import Path

import pytest
from fault_runs import RECOVERY_S, REPEATS, TOKEN, Row, fault_run, lost, write_row
from running import finished, last_line
from websockets.sync.client import connect

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.parametrize("repeat", range(REPEATS))]


class SleepyBrowser:
    """A WebSocket of a browser that was opened and then reads nothing."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?token={TOKEN} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in self._socket.recv(64)

    def close(self) -> None:
        self._socket.close()


def test_browsers_that_do_not_read(folder: Path, free_port: int, repeat: int) -> None:
    with fault_run(folder, free_port) as run:
        browsers: list[SleepyBrowser] = []

        def close() -> None:
            for browser in browsers:
                browser.close()

        fault = run.fault(
            "5 browsers that do not read for 3 s",
            lambda: browsers.extend(SleepyBrowser(free_port) for _ in range(5)),
            close,
            for_s=3.0,
        )
        shown = [m for _, m in run.page.since(fault.began_ns) if m["type"] == "prediction"]
        assert len(shown) >= 3 * 20 * 0.9  # the browser that does read misses nothing
        run.recovered(fault, "dashboard")
        summary = run.finish(fault)
    assert "dashboard" not in summary["dropped"] or "task" not in summary["dropped"]["dashboard"]


def test_two_runs_at_once(folder: Path, free_port: int, repeat: int) -> None:
    """The second, on the same files, is refused, and costs the first nothing."""
    with fault_run(folder, free_port) as run:
        second = finished(folder, "run", str(folder / "graph.yaml"), "--out", "out.jsonl", "--for", "1s")
        assert second.returncode == 2, second.stderr
        fault = run.fault("a second run on the same page and `--out`", lambda: None)
        run.recovered(fault)
        fault.page.append("nothing")
        run.finish(fault, says=lambda summary: f"the second: exit code 2, {second.stderr.strip()}")


def test_page_that_sends_thousands_of_orders_can_still_stop_the_run(folder: Path, free_port: int, repeat: int) -> None:
    orders = [json.dumps({"do": verb, "source": "sound"}) for verb in ("mute", "unmute")] * 1000
    with fault_run(folder, free_port) as run:
        address = f"ws://127.0.0.1:{free_port}/ws?pictures=0&token={TOKEN}"
        with connect(address, compression=None, close_timeout=0.1) as page:
            for order in orders:
                page.send(order)
            time.sleep(0.5)  # orders are limited in rate: a person's next one comes later
            page.send(json.dumps({"do": "stop"}))
            stopped_s = time.monotonic()
            assert run.run.wait(20) == 0, run.run.err
            recovery_s = time.monotonic() - stopped_s
        summary = last_line(run.out)
    assert summary["unaccounted"] == {} and summary["restarts"] == {}
    write_row(
        Row("2,000 orders of a page, then Stop", recovery_s, None, lost(summary), "too many orders", "exit code 0")
    )
    assert recovery_s <= RECOVERY_S
