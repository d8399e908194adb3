"""The verb record: which streams a config offers, whose consent it needs, and what it refuses. Nothing runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.consent import require_consent, stored_files, with_consent
from pipeline.cli.out_option import with_out
from pipeline.cli.record import RecordOptions, with_recorder
from pipeline.cli.terminal import print_notice
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


def recording(nodes: dict[str, Any], path: Path, **options: Any) -> Any:
    return with_recorder(parse({"nodes": nodes}, "graph.yaml"), path, RecordOptions(**options))


@pytest.mark.parametrize("device", [0, "/dev/video2", "rtsp://192.168.1.20/stream"])
def test_a_live_camera_is_recorded_with_consent_only(tmp_path, device):
    nodes = LIVE | {"camera": {"use": "camera", "device": device}}
    with pytest.raises(ConfigError, match="it stores what 'camera' captures.*a.mcap.*--consent.*consent: in nodes"):
        require_consent(recording(nodes, tmp_path / "a.mcap", streams=("camera",)))
    config = recording(nodes, tmp_path / "a.mcap", consent="Ada agreed")
    require_consent(config)
    assert config.nodes["record"].options["consent"] == "Ada agreed"


def test_a_microphone_is_recorded_with_consent_only(tmp_path):
    with pytest.raises(ConfigError, match="it stores what 'microphone' captures"):
        require_consent(recording(LIVE, tmp_path / "a.mcap", streams=("microphone",)))


def test_embeddings_are_stored_with_consent_only_by_record_and_by_out(tmp_path):
    with pytest.raises(ConfigError, match="embeddings, by which a person may be recognised, from 'emotion'"):
        require_consent(recording(LIVE, tmp_path / "a.mcap", features_only=True))
    nodes = LIVE | {"emotion": {"use": "infer", "inputs": ["align"], "options": {"embeddings": True}}}
    config = with_out(parse({"nodes": nodes}, "graph.yaml"), str(tmp_path / "p.jsonl"), "")
    with pytest.raises(ConfigError, match="embeddings.*p.jsonl"):
        require_consent(config)
    require_consent(with_consent(config, "Ada agreed"))
    require_consent(with_out(parse({"nodes": LIVE}, "graph.yaml"), str(tmp_path / "p.jsonl"), ""))  # labels alone


def test_a_recorder_in_a_graph_needs_consent_as_the_verb_does_and_an_event_log_needs_none(tmp_path):
    record = {"use": "record", "path": str(tmp_path / "a.mcap"), "inputs": ["camera", "health"]}
    with pytest.raises(ConfigError, match="graph.yaml: nodes.rec: it stores what 'camera' captures"):
        require_consent(parse({"nodes": LIVE | {"rec": record}}, "graph.yaml"))
    require_consent(parse({"nodes": LIVE | {"rec": record | {"consent": "Ada agreed"}}}, "graph.yaml"))
    times = LIVE | {"align": LIVE["align"] | {"event_log": "events.jsonl"}}
    config = parse({"nodes": times | {"rec": record | {"inputs": ["align.events", "health"]}}}, "graph.yaml")
    require_consent(config)
    assert {(name, stored.what) for name, stored in stored_files(config)} == {
        ("align", "times of frames, without their data"),
        ("rec", "all that it reads"),
    }


def test_frames_derived_from_those_of_a_live_sensor_need_consent_too(tmp_path):
    record = {"use": "record", "path": str(tmp_path / "a.mcap"), "inputs": ["turned"]}
    nodes = LIVE | {"turned": {"use": "deskew", "inputs": ["camera", "microphone"]}, "rec": record}
    with pytest.raises(ConfigError, match="it stores what 'turned' makes of what a live sensor captures"):
        require_consent(parse({"nodes": nodes}, "graph.yaml"))


@pytest.mark.parametrize("task", ["emotion", "scene"])
def test_notice_denies_storage_only_where_nothing_is_stored(task, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nodes = LIVE | {"emotion": {"use": "infer", "inputs": ["align"], "task": task}}
    config = parse({"nodes": nodes}, "graph.yaml")
    print_notice(config)
    assert "othing is stored" in capsys.readouterr().out
    print_notice(with_out(config, "p.jsonl", ""))
    assert "Stored: predictions in p.jsonl." in (out := capsys.readouterr().out) and "othing is stored" not in out


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
