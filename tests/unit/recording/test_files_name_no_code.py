"""A recording or an event log may come from anybody: it names no code, unless the user's own config names the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.align_replay import AlignReplay
from pipeline.alignment.sync_policies import MS
from pipeline.cli.verify import report, report_event_log
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.writer import Writer
from pipeline.testing import NodeHarness

WINDOW = {"policy": "window", "before_ms": 1000}
OWN_POLICY = """
import pathlib
from pipeline.alignment.sync_policies import Nearest

class Own(Nearest):
    def __init__(self, *, mark: str) -> None:
        super().__init__()
        pathlib.Path(mark).touch()
"""


def config_line(policy: dict[str, Any]) -> bytes:
    return json.dumps(["config", "camera", {"microphone": policy}, 60 * MS, "ready", 0]).encode() + b"\n"


def recording(path: Path, *policies: dict[str, Any], align: str = "align") -> Path:
    """A recording whose aligner was started once with each of the policies."""
    with Writer(path, about={"run": "1", "made_by": "record", "nodes": {}}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 10.0))
        writer.stream(StreamInfo("microphone", "pcm_f32", 50.0))
        writer.stream(StreamInfo(f"{align}.events", "text_utf8"))
        for i in range(3):
            picture = np.zeros((8, 8, 3), np.uint8)
            writer.write("camera", Frame("camera", i, i * 100 * MS, "bgr8", picture, publish_ns=i * 100 * MS + 1))
        events = np.frombuffer(b"".join(map(config_line, policies)), np.uint8)
        writer.write(f"{align}.events", Frame(f"{align}.events", 0, 0, "text_utf8", events, publish_ns=1))
        writer.note("finished", {"dropped": {}})
    return path


def touching(path: Path) -> dict[str, Any]:
    return {"policy": "subprocess:Popen", "args": ["touch", str(path)]}


def test_an_event_log_runs_nothing(tmp_path: Path) -> None:
    log, mark = tmp_path / "events.jsonl", tmp_path / "mark"
    log.write_bytes(config_line(touching(mark)))
    with pytest.raises(ConfigError, match="events.jsonl.*'subprocess:Popen' names code.*your own config"):
        report_event_log(log)
    assert not mark.exists()


@pytest.mark.parametrize("first", [(), (WINDOW,)], ids=["at its start", "after a restart"])
def test_a_recording_runs_nothing_when_it_is_verified(tmp_path: Path, first: tuple[dict[str, Any], ...]) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ConfigError, match="evil.mcap.*names code"):
        report(recording(tmp_path / "evil.mcap", *first, touching(mark)))
    assert not mark.exists()


@pytest.mark.parametrize("first", [(), (WINDOW,)], ids=["at its start", "after a restart"])
def test_a_recording_runs_nothing_when_it_is_replayed(tmp_path: Path, first: tuple[dict[str, Any], ...]) -> None:
    """The user's config decides like the first start that the recording holds; the second start is the recording's."""
    mark = tmp_path / "mark"
    path = recording(tmp_path / "evil.mcap", *first, touching(mark), align="node")
    node = AlignReplay(path=str(path), options={"anchor": "camera", "sync": {"microphone": WINDOW}})
    if first:
        with (
            pytest.raises(ConfigError, match="names code"),
            NodeHarness(node, inputs=["camera", "microphone"]) as harness,
        ):
            harness.end()
    else:
        with NodeHarness(node, inputs=["camera", "microphone"]) as harness:  # aligned by the user's config instead
            harness.end()
    assert not mark.exists()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a policy of the user's and a config that names it."""
    (tmp_path / "own_sync.py").write_text(OWN_POLICY)
    entry = {"policy": "own_sync:Own", "mark": str(tmp_path / "mark")}
    (tmp_path / "mine.yaml").write_text(f"""
nodes:
  camera: {{use: synthetic}}
  microphone: {{use: synthetic, encoding: pcm_f32}}
  align: {{use: align, inputs: [camera, microphone], anchor: camera, sync: {{microphone: {json.dumps(entry)}}}}}
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_sync", None)


def test_a_policy_that_the_users_config_names_too_is_run(own: Path) -> None:
    log = own / "events.jsonl"
    log.write_bytes(config_line({"policy": "own_sync:Own", "mark": str(own / "mark")}))
    with pytest.raises(ConfigError, match="names code"):
        report_event_log(log)
    assert not (own / "mark").exists()
    report_event_log(log, config=str(own / "mine.yaml"))
    assert (own / "mark").exists()


def test_the_users_own_class_is_not_run_with_the_options_of_a_file(own: Path) -> None:
    log, elsewhere = own / "events.jsonl", own / "elsewhere"
    log.write_bytes(config_line({"policy": "own_sync:Own", "mark": str(elsewhere)}))
    with pytest.raises(ConfigError, match="with the same options"):
        report_event_log(log, config=str(own / "mine.yaml"))
    assert not elsewhere.exists()
