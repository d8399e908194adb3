"""A program reads a running pipeline until it ends, and learns what it missed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from wires import INFO, PREDICTION, a_socket, number

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Health, Prediction
from pipeline.runtime import subscribe as module
from pipeline.runtime.subscribe import subscribe
from pipeline.transport.publisher import Publisher
from pipeline.transport.wire_format import Codec, End, Welcome


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the stream `emotion` of a run that is announced."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run = tmp_path / "sensorium" / "1-a"
    run.mkdir(parents=True)
    address = f"ipc://{tmp_path}/emotion.sock"
    (run / "graph.json").write_text(json.dumps({"pid": os.getpid(), "config": "", "streams": {"emotion": address}}))
    return address


@pytest.fixture
def publish(address: str) -> Iterator[Callable[[list[Any]], None]]:
    """Sends (seq, value) or raw bytes to the first reader that says hello."""
    socket = a_socket(zmq.ROUTER)
    socket.bind(address)
    threads: list[threading.Thread] = []

    def send(messages: list[Any]) -> None:
        identity, _ = socket.recv_multipart()
        for message in messages:
            parts = [message] if isinstance(message, bytes) else Codec().encode(9, *message)
            socket.send_multipart([identity, *parts])

    def start(messages: list[Any]) -> None:
        threads.append(threading.Thread(target=send, args=[messages]))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()
    socket.close()


def test_without_a_run_the_error_names_the_command_that_starts_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs.*python run_pipeline.py"):
        subscribe("emotion")


def test_subscription_ends_with_the_stream(publish: Callable[[list[Any]], None]) -> None:
    publish([(0, Welcome(INFO)), (0, PREDICTION), (1, PREDICTION), (2, End())])
    predictions = subscribe("emotion")
    assert [prediction.label for prediction in predictions] == ["happy", "happy"]
    assert (predictions.lost, predictions.info) == ({}, INFO)
    assert list(predictions) == []  # it stays ended


def test_subscription_counts_what_it_missed_by_reason(publish: Callable[[list[Any]], None]) -> None:
    publish([(0, Welcome(INFO)), (0, PREDICTION), b"not ours", (5, PREDICTION), (6, End())])
    predictions = subscribe("emotion")
    assert len(list(predictions)) == 2
    assert predictions.lost == {"malformed": 1, "lost in transport": 3}


def test_subscription_closes_with_its_block_and_may_be_closed_twice(publish: Callable[[list[Any]], None]) -> None:
    publish([(0, Welcome(INFO)), (0, PREDICTION), (1, PREDICTION)])
    with subscribe("emotion") as predictions:
        assert next(predictions).label == "happy"
    predictions.close()
    assert list(predictions) == []


def test_message_of_another_type_names_the_type_to_ask_for(publish: Callable[[list[Any]], None]) -> None:
    publish([(0, Welcome(INFO)), (0, number(0))])
    with pytest.raises(
        ConfigError, match=r"'emotion' sends Frame, not Prediction. Write: subscribe\('emotion', Frame\)"
    ):
        next(subscribe("emotion", Prediction))


def test_without_a_type_any_message_is_passed_on(publish: Callable[[list[Any]], None]) -> None:
    publish([(0, Welcome(INFO)), (0, number(0)), (1, Health(0, ())), (2, PREDICTION), (3, End())])
    assert [type(message) for message in subscribe("emotion")] == [Frame, Health, Prediction]


def test_subscription_ends_when_the_pipeline_was_killed(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.1)
    publisher = Publisher(address, INFO)
    predictions = subscribe("emotion")
    publishing = threading.Thread(
        target=lambda: [publisher.service(50) or publisher.send(PREDICTION) for _ in range(20)]
    )
    publishing.start()
    assert next(predictions).label == "happy"
    publishing.join()
    publisher.close(ended=False)
    (tmp_path / "sensorium" / "1-a" / "graph.json").unlink()
    assert all(p.label == "happy" for p in predictions)  # what was still on its way, and then the end
