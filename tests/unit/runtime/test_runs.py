"""A program finds what runs here, and reads it until it ends."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import zmq
from wires import INFO, PREDICTION, a_socket

from pipeline.errors import ConfigError
from pipeline.runtime import runs
from pipeline.runtime.runs import find_run, subscribe
from pipeline.transport.publisher import Publisher
from pipeline.transport.wire_format import Codec, End


@pytest.fixture
def announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "sensorium"


def announce(announced: Path, name: str, streams: dict[str, str], pid: int | None = None) -> None:
    (announced / name).mkdir(parents=True)
    (announced / name / "graph.json").write_text(
        json.dumps({"pid": pid or os.getpid(), "config": "", "streams": streams})
    )


def test_without_a_run_the_error_says_how_to_start_one(announced: Path) -> None:
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs.*python run_pipeline.py"):
        next(subscribe("emotion"))


def test_unknown_stream_names_the_nearest(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///a", "camera": "ipc:///b"})
    with pytest.raises(
        ConfigError, match="no running node is called 'emotoin'. Running: camera, emotion. Did you mean 'emotion'"
    ):
        find_run("emotoin")


def test_newest_run_is_found_first(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///old"})
    announce(announced, "2-b", {"emotion": "ipc:///new"})
    os.utime(announced / "1-a" / "graph.json", (1, 1))
    assert find_run("emotion") == "ipc:///new"


def test_run_that_was_killed_is_not_found(announced: Path) -> None:
    announce(announced, "1-a", {"emotion": "ipc:///a"}, pid=2**22 + 1)  # above Linux's largest
    with pytest.raises(ConfigError, match="no Sensorium pipeline runs"):
        find_run("emotion")


def test_subscription_ends_with_the_stream_and_skips_what_it_cannot_read(announced: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/emotion.sock"
    announce(announced, "1-a", {"emotion": address})
    publisher = a_socket(zmq.ROUTER)
    publisher.bind(address)

    def publish() -> None:
        identity, _ = publisher.recv_multipart()
        for seq, value in enumerate([PREDICTION, PREDICTION, End()]):
            publisher.send_multipart([identity, b"not ours"])
            publisher.send_multipart([identity, *Codec().encode(9, seq, value)])

    publishing = threading.Thread(target=publish)
    publishing.start()
    labels = [prediction.label for prediction in subscribe("emotion")]
    publishing.join()
    publisher.close()
    assert labels == ["happy", "happy"]


def test_subscription_ends_when_the_pipeline_was_killed(
    announced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SILENT_S", 0.1)
    address = f"ipc://{tmp_path}/emotion.sock"
    announce(announced, "1-a", {"emotion": address})
    publisher = Publisher(address, INFO)
    predictions = subscribe("emotion")
    publishing = threading.Thread(
        target=lambda: [publisher.service(50) or publisher.send(PREDICTION) for _ in range(20)]
    )
    publishing.start()
    assert next(predictions).label == "happy"
    publishing.join()
    publisher.close(ended=False)
    (announced / "1-a" / "graph.json").unlink()
    assert all(p.label == "happy" for p in predictions)  # what was still on its way, and then the end
