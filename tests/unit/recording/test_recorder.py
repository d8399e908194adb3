"""The recorder node, and labels set on the page: what is written, and what the page may ask for. Nothing runs here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nodes.dashboard import Dashboard
from nodes.labels import Labels
from nodes.record import Record
from pipeline.cli.record import RecordOptions, with_recorder
from pipeline.clock import NS, ManualClock
from pipeline.frame import Frame, Health, NodeHealth
from pipeline.node import Context
from pipeline.recording.labels import Labels as RecordedLabels
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import save_rig
from pipeline.runtime.config import parse
from pipeline.testing import NodeHarness


def test_features_only_stores_no_pictures_whatever_the_inputs_send(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path), features_only=True), inputs=["camera", "words"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
        harness.send("words", Frame("words", 0, 6, "text_utf8", np.frombuffer(b"hello", np.uint8)))
        harness.end()
    with Reader(path) as reader:
        assert set(reader.streams) == {"words"}
        assert reader.notes["finished"][0]["dropped"] == {"camera": {"features only": 1}}


def test_pictures_are_stored_as_jpeg_where_requested(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path), jpeg=["camera"]), inputs=["camera"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
    with Reader(path) as reader:
        assert reader.kinds("camera") == {"foxglove.CompressedImage"}


def test_the_rig_of_a_config_is_stored_whole_with_its_lenses_as_calibrations(tmp_path):
    lens = Intrinsics("radtan", 640, 480, 520, 522, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
    save_rig(Rig(intrinsics={"camera": lens}), tmp_path / "rig.yaml")
    nodes = {"camera": {"use": "camera", "device": "clip.mp4", "rig": str(tmp_path / "rig.yaml")}}
    config = with_recorder(parse({"nodes": nodes}, "graph.yaml"), tmp_path / "a.mcap", RecordOptions())
    rigs = config.nodes["record"].options["rigs"]
    with NodeHarness(Record(path=str(tmp_path / "a.mcap"), rigs=rigs), inputs=["camera"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((6, 8, 3), np.uint8)))
    with Reader(tmp_path / "a.mcap") as reader:
        camera = reader.calibrations["camera"]
        assert (camera.distortion_model, list(camera.K)) == ("plumb_bob", [520, 0, 325, 0, 522, 236, 0, 0, 1])
        assert reader.attachments()["rig.yaml"] == (tmp_path / "rig.yaml").read_bytes()


def page_message(label: str, at_ns: int) -> str:
    return json.dumps({"label": label, "at_ns": at_ns})


def test_labels_set_on_the_page_are_a_stream_of_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path)), inputs=["camera", "health"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=5))
        harness.node.context.commands.put(page_message("happy", 3 * NS))
        harness.send("health", Health(NS, ()))
        harness.node.context.commands.put(page_message("", 4 * NS))
        harness.end()
    with Reader(path) as reader:
        labels = RecordedLabels.read(reader)
        assert [labels.at(t * NS) for t in (2, 3, 5)] == ["", "happy", ""]


def test_labels_set_during_a_replay_are_added_to_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={"utc_offset_ns": NS}) as writer:
        writer.write("camera", Frame("camera", 0, NS, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=NS))
    for label in ("sad", "happy"):  # and those of a second replay too
        with NodeHarness(Labels(path=str(path)), inputs=["emotion"]) as harness:
            harness.node.context.commands.put(page_message(label, 3 * NS if label == "sad" else 4 * NS))
            harness.send("emotion", Health(1, ()))
    with Reader(path) as reader:
        labels = RecordedLabels.read(reader)
        assert [labels.at(t * NS) for t in (3, 4)] == ["sad", "happy"]
        assert reader.counts["camera"] == 1


def page(facts: dict[str, str]) -> tuple[Dashboard, list[tuple[str, str]]]:
    requests: list[tuple[str, str]] = []
    node = Dashboard()
    clock = ManualClock(5)
    clock.advance(10)
    node.context = Context("dashboard", clock, request=lambda verb, argument: requests.append((verb, argument)))
    node._last["Health"] = Health(1, (NodeHealth("some", "running", facts=facts),))
    return node, requests


def test_the_page_may_pause_a_replay_and_label_what_is_recorded_or_replayed():
    node, requests = page({"replays": "a.mcap"})
    for order in ({"do": "pause"}, {"do": "resume"}, {"do": "label", "label": "happy", "at_ns": 7}):
        assert node._handle_request(json.dumps(order)) is None
    assert requests == [("pause", ""), ("resume", ""), ("label", '{"label":"happy","at_ns":7}')]


@pytest.mark.parametrize("at_ns", [4, 16, -(2**62), 2**62, 2**80])
def test_a_label_lies_within_the_run(at_ns: int):
    node, requests = page({"recording": "a.mcap"})
    assert '"refused"' in str(node._handle_request(json.dumps({"do": "label", "label": "happy", "at_ns": at_ns})))
    assert requests == []


def test_the_page_may_neither_pause_a_live_run_nor_label_what_is_not_recorded():
    node, requests = page({})
    assert "live sensors cannot pause" in str(node._handle_request('{"do": "pause"}'))
    assert "nothing to label" in str(node._handle_request('{"do": "label", "label": "happy"}'))
    assert requests == []
