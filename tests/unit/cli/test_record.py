"""The verb record: which streams a config offers, whose consent it needs, and what it refuses. Nothing runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.record import RecordOptions, with_recorder
from pipeline.errors import ConfigError
from pipeline.runtime.config import parse

LIVE = {
    "camera": {"use": "camera", "device": 0},
    "microphone": {"use": "microphone"},
    "align": {"use": "align", "inputs": ["camera", "microphone"], "anchor": "camera"},
    "emotion": {"use": "infer", "inputs": ["align"], "process": "align"},
}


def recorder(nodes: dict[str, Any], path: Path, **options: Any) -> Any:
    return with_recorder(parse({"nodes": nodes}, "graph.yaml"), path, RecordOptions(**options)).nodes["record"]


@pytest.mark.parametrize("device", [0, "/dev/video2", "rtsp://192.168.1.20/stream"])
def test_a_live_camera_is_recorded_with_consent_only(tmp_path, device):
    nodes = LIVE | {"camera": {"use": "camera", "device": device}}
    with pytest.raises(ConfigError, match="'camera' records the people in front of it.*--consent.*--features-only"):
        recorder(nodes, tmp_path / "a.mcap", streams=("camera",))
    node = recorder(nodes, tmp_path / "a.mcap", consent="Ada agreed")
    assert node.options["about"]["consent"] == "Ada agreed"


def test_a_microphone_is_recorded_with_consent_only(tmp_path):
    with pytest.raises(ConfigError, match="'microphone' records the people"):
        recorder(LIVE, tmp_path / "a.mcap", streams=("microphone",))


def test_files_need_no_consent(tmp_path):
    files = {
        "camera": {"use": "camera", "device": "clip.mp4"},
        "microphone": {"use": "microphone", "device": "clip.mp4"},
    }
    node = recorder(LIVE | files, tmp_path / "a.mcap")
    assert [edge.source for edge in node.inputs] == ["camera", "microphone", "align.events", "emotion", "health"]


def test_features_only_reads_no_sensor_and_requests_embeddings(tmp_path):
    config = with_recorder(parse({"nodes": LIVE}, "graph.yaml"), tmp_path / "a.mcap", RecordOptions(features_only=True))
    assert [edge.source for edge in config.nodes["record"].inputs] == ["align.events", "emotion", "health"]
    assert config.nodes["emotion"].options["options"] == {"embeddings": True}


def test_an_unknown_stream_and_an_existing_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no stream 'camra'.*Did you mean 'camera'"):
        recorder(LIVE, tmp_path / "a.mcap", streams=("camra",), consent="all")
    (tmp_path / "a.mcap").touch()
    with pytest.raises(ConfigError, match="exists already"):
        recorder(LIVE, tmp_path / "a.mcap", consent="all")
