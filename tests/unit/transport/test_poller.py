"""Waiting for messages with the system's poll, and, where there is none (Windows), with ZeroMQ's."""

from __future__ import annotations

import select
import time
from pathlib import Path

import numpy as np
import pytest
from wires import KEYS

from pipeline.frame import Frame, StreamInfo
from pipeline.runtime import run_folder
from pipeline.transport.poller import Poller
from pipeline.transport.publisher import Publisher
from pipeline.transport.subscriber import Subscriber


@pytest.mark.parametrize("has_poll", [True, False])
def test_every_stream_is_received_with_either_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_poll: bool
) -> None:
    if not has_poll:
        monkeypatch.delattr(select, "poll")
    addresses = {name: run_folder.free_address(tmp_path, name, portable=True) for name in ("left", "right")}
    publishers = [
        Publisher(address, StreamInfo(name, "series_f32"), run_keys=KEYS) for name, address in addresses.items()
    ]
    connections = [Subscriber(address, f"reader of {name}", keys=KEYS) for name, address in addresses.items()]
    poller = Poller(connections)
    received: set[str] = set()
    give_up_s = time.monotonic() + 10
    while received != {"left", "right"} and time.monotonic() < give_up_s:
        for publisher in publishers:
            publisher.send(Frame(publisher.info.stream, 0, 1, "series_f32", np.zeros(3, np.float32)))
        for connection in connections:
            connection.keep_alive()
        for connection in poller.wait(20):
            value, _ = connection.receive()
            if isinstance(value, Frame):
                received.add(value.stream)
    for end in connections:
        end.close()
    for publisher in publishers:
        publisher.close(ended=False)
    assert received == {"left", "right"}
