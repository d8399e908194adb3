"""The recorder node, and labels set on the page: what is written, and what the page may ask for. Nothing runs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nodes.dashboard import Dashboard
from nodes.labels import Labels
from nodes.record import Record
from pipeline.cli.record import RecordOptions, with_recorder
from pipeline.clock import NS
from pipeline.frame import Frame, Health, NodeHealth
from pipeline.node import Context
from pipeline.recording.labels import Labels as Marks
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer
from pipeline.rig import rig
from pipeline.rig.intrinsics import Intrinsics
from pipeline.runtime.config import parse
from pipeline.testing import NodeHarness

LIVE = {
    "camera": {"use": "camera", "device": 0},
    "microphone": {"use": "microphone"},
    "align": {"use": "align", "inputs": ["camera", "microphone"], "anchor": "camera"},
    "emotion": {"use": "infer", "inputs": ["align"], "process": "align"},
}


def recorder(nodes: dict[str, Any], path: Path, **options: Any) -> Any:
    return with_recorder(parse({"nodes": nodes}, "graph.yaml"), path, RecordOptions(**options)).nodes["record"]


def test_features_only_keeps_no_picture_and_no_sound_whatever_it_is_given(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path), features_only=True), inputs=["camera", "words"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
        harness.send("words", Frame("words", 0, 6, "text_utf8", np.frombuffer(b"hello", np.uint8)))
        harness.end()
    with Reader(path) as reader:
        assert set(reader.streams) == {"words"}
        assert reader.notes["finished"][0]["dropped"] == {"camera": {"features only": 1}}


def test_pictures_are_kept_as_jpeg_where_asked(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path), jpeg=["camera"]), inputs=["camera"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
    with Reader(path) as reader:
        assert reader.kinds("camera") == {"foxglove.CompressedImage"}


def test_the_rig_that_a_config_names_is_kept_whole_and_its_lenses_as_calibrations(tmp_path):
    lens = Intrinsics("radtan", 640, 480, 520, 522, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
    rig.save(rig.Rig(intrinsics={"camera": lens}), tmp_path / "rig.yaml")
    nodes = {"camera": {"use": "camera", "device": "clip.mp4", "rig": str(tmp_path / "rig.yaml")}}
    node = recorder(nodes, tmp_path / "a.mcap")
    with NodeHarness(Record(path=str(tmp_path / "a.mcap"), rigs=node.options["rigs"]), inputs=["camera"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((6, 8, 3), np.uint8)))
    with Reader(tmp_path / "a.mcap") as reader:
        found = reader.calibrations["camera"]
        assert (found.distortion_model, list(found.K)) == ("plumb_bob", [520, 0, 325, 0, 522, 236, 0, 0, 1])
        assert reader.attachments()["rig.yaml"] == (tmp_path / "rig.yaml").read_bytes()


def said(label: str, at_ns: int) -> str:
    return json.dumps({"label": label, "at_ns": at_ns})


def test_labels_given_on_the_page_are_a_stream_of_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with NodeHarness(Record(path=str(path)), inputs=["camera", "health"]) as harness:
        harness.send("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=5))
        harness.node.context.commands.put(said("happy", 3 * NS))
        harness.send("health", Health(NS, ()))
        harness.node.context.commands.put(said("", 4 * NS))
        harness.end()
    with Reader(path) as reader:
        marks = Marks.read(reader)
        assert [marks.at(t * NS) for t in (2, 3, 5)] == ["", "happy", ""]


def test_labels_given_during_a_replay_are_added_to_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={"utc_offset_ns": NS}) as writer:
        writer.write("camera", Frame("camera", 0, NS, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=NS))
    for label in ("sad", "happy"):  # and those of a second replay too
        with NodeHarness(Labels(path=str(path)), inputs=["emotion"]) as harness:
            harness.node.context.commands.put(said(label, 3 * NS if label == "sad" else 4 * NS))
            harness.send("emotion", Health(1, ()))
    with Reader(path) as reader:
        marks = Marks.read(reader)
        assert [marks.at(t * NS) for t in (3, 4)] == ["sad", "happy"]
        assert reader.counts["camera"] == 1


def page(facts: dict[str, str]) -> tuple[Dashboard, list[tuple[str, str]]]:
    asked: list[tuple[str, str]] = []
    node = Dashboard()
    node.context = Context("dashboard", request=lambda verb, argument: asked.append((verb, argument)))
    node._last["Health"] = Health(1, (NodeHealth("some", "running", facts=facts),))
    return node, asked


def test_the_page_may_pause_a_replay_and_label_what_is_recorded_or_replayed():
    node, asked = page({"replays": "a.mcap"})
    for order in ({"do": "pause"}, {"do": "resume"}, {"do": "label", "label": "happy", "at_ns": 7}):
        assert node._hear(json.dumps(order)) is None
    assert asked == [("pause", ""), ("resume", ""), ("label", '{"label":"happy","at_ns":7}')]


def test_the_page_may_neither_pause_what_happens_now_nor_label_what_nobody_keeps():
    node, asked = page({})
    assert "cannot be made to pause" in str(node._hear('{"do": "pause"}'))
    assert "nothing to label" in str(node._hear('{"do": "label", "label": "happy"}'))
    assert asked == []
