"""Predictions over UDP: on a real socket, within a datagram's size, to this host unless allowed otherwise."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nodes.udp import Udp
from pipeline import assets
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import Prediction
from pipeline.scene_state import FreeSpace, SceneState, Sound
from pipeline.testing import NodeHarness

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "udp.md").read_text(encoding="utf-8")


@pytest.fixture
def receiving() -> Iterator[socket.socket]:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    bound.settimeout(5)
    yield bound
    bound.close()


def address(receiving: socket.socket) -> str:
    return f"127.0.0.1:{receiving.getsockname()[1]}"


def scene(cells: int = 0, capture_ns: int = 7) -> Prediction:
    grid = FreeSpace(np.ones((cells, cells), np.uint8), 0.2, (0.0, 0.0)) if cells else None
    around = SceneState(free_space=grid, sounds=(Sound("rain", 0.9),))
    return Prediction(
        "scene",
        capture_ns,
        ("street", "forest"),
        np.array([0.75, 0.25], np.float32),
        "street",
        "m@1",
        surroundings=around,
    )


def received(receiving: socket.socket) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(receiving.recv(65536))
    return record


def test_each_prediction_is_one_datagram_of_the_published_object(receiving: socket.socket) -> None:
    with NodeHarness(Udp(address=address(receiving), grid=True), inputs=["scene"]) as harness:
        for seq in range(3):
            harness.send("scene", scene(cells=20, capture_ns=seq))
    records = [received(receiving) for _ in range(3)]
    assert records == [json.loads(msgspec.json.encode(scene(20, seq).record())) for seq in range(3)]
    assert records[0]["surroundings"]["free_space"]["rows"][0] == "." * 20


def test_nothing_comes_in(receiving: socket.socket) -> None:
    """Anyone can send to the port that the system chose: as little is held as it allows, and nothing is read."""
    node = Udp(address=address(receiving))
    with NodeHarness(node, inputs=["scene"]) as harness:
        harness.send("scene", scene())
        assert node._socket is not None
        assert node._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < 8192
        _, sender = receiving.recvfrom(65536)
        for _ in range(100):
            receiving.sendto(bytes(1000), ("127.0.0.1", sender[1]))
        harness.send("scene", scene(capture_ns=8))
        assert received(receiving)["capture_ns"] == 8


def test_grid_is_left_out_unless_asked_for(receiving: socket.socket) -> None:
    with NodeHarness(Udp(address=address(receiving)), inputs=["scene"]) as harness:
        harness.send("scene", scene(cells=400))  # 160,000 letters
    record = received(receiving)
    assert "free_space" not in record["surroundings"] and record["surroundings"]["sounds"][0]["label"] == "rain"
    assert not harness.node.context.metrics.dropped()


def test_too_large_loses_its_grid_first_then_is_dropped_and_both_are_counted(receiving: socket.socket) -> None:
    with NodeHarness(Udp(address=address(receiving), grid=True, max_bytes=1472), inputs=["scene"]) as harness:
        harness.send("scene", scene(cells=100))
        assert "free_space" not in received(receiving)["surroundings"]
        metrics = harness.node.context.metrics
        assert metrics.facts["without the grid"].startswith("1,") and not metrics.dropped()
        labels = tuple(f"a label {i}" for i in range(200))
        crowd = msgspec.structs.replace(scene(cells=100), labels=labels, probs=np.full(200, 0.005, np.float32))
        harness.send("scene", crowd)
        assert metrics.dropped() == {"scene": {"larger than 1472 bytes": 1}}
    receiving.settimeout(0.1)
    with pytest.raises(TimeoutError):
        receiving.recv(65536)


def test_nobody_listening_and_a_full_network_never_block() -> None:
    with NodeHarness(
        Udp(address="127.0.0.1:9"), inputs=["scene"]
    ) as harness:  # nobody there: the first may come back refused
        node = harness.node
        assert isinstance(node, Udp) and node._socket is not None
        node._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        began_s = time.monotonic()
        for _ in range(300):
            harness.send("scene", scene())
        assert time.monotonic() - began_s < 5
        lost = sum(harness.node.context.metrics.dropped().get("scene", {}).values())
        assert lost + node._sent == 300


def test_unreachable_network_is_counted_with_its_reason() -> None:
    with NodeHarness(Udp(address="255.255.255.255:9870", allow_remote=True), inputs=["scene"]) as harness:
        node = harness.node
        assert isinstance(node, Udp) and node._socket is not None
        node._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)  # the system refuses it
        harness.send("scene", scene())
        assert harness.node.context.metrics.dropped() == {"scene": {"not sent: Permission denied": 1}}


@pytest.mark.parametrize("host", ["192.168.1.20", "robot.local", "[2001:db8::1]", "0.0.0.0"])
def test_another_host_needs_allow_remote_and_the_error_says_why(host: str) -> None:
    with pytest.raises(ConfigError, match="not encrypted.*anyone on the way.*allow_remote: true"):
        Udp(address=f"{host}:9870")
    Udp(address=f"{host}:9870", allow_remote=True)


def test_this_host_has_several_names() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]", "127.8.8.8"):
        Udp(address=f"{host}:9870")


@pytest.mark.parametrize("wrong", ["127.0.0.1", "9870", "127.0.0.1:0", "127.0.0.1:99999", "::1:9870"])
def test_address_that_is_none_says_what_is_expected(wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        Udp(address=wrong)


def test_unknown_name_is_reported_at_open() -> None:
    with pytest.raises(ConfigError, match="there is no host 'no-such-host.invalid'"):
        NodeHarness(Udp(address="no-such-host.invalid:9870", allow_remote=True))


@pytest.mark.system
def test_config_and_command_of_the_page_send_what_they_promise(receiving: socket.socket, tmp_path: Path) -> None:
    try:
        for asset in ("demo-clip", "centerface", "silero-vad"):
            assets.path(asset)
    except AssetError as error:
        pytest.skip(str(error))
    (config,), (command,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("yaml", "sh"))
    (tmp_path / "robot.yaml").write_text(config)
    words = command.replace("robot.yaml", str(tmp_path / "robot.yaml")).replace("10s", "3s").split()[2:]
    run = subprocess.run(
        [sys.executable, ROOT / "run_pipeline.py", *words, "--set", f"nodes.robot.address={address(receiving)}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert received(receiving)["task"] == "emotion" and "unaccounted: none" in run.stdout


@pytest.mark.system
def test_receiver_of_the_page_prints_what_is_sent(receiving: socket.socket) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(program.splitlines()) == 3
    where, port = address(receiving), receiving.getsockname()[1]
    receiving.close()
    receiver = subprocess.Popen(
        [sys.executable, "-c", program.replace("9870", str(port))], stdout=subprocess.PIPE, text=True
    )
    try:
        with NodeHarness(Udp(address=where), inputs=["scene"]) as harness:
            for _ in range(600):  # it takes a moment to start
                harness.send("scene", scene())
                if select.select([receiver.stdout], [], [], 0.05)[0]:
                    break
        assert receiver.stdout is not None and receiver.stdout.readline() == "street\n"
    finally:
        receiver.kill()
        receiver.wait()
