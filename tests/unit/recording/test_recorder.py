"""What is recorded, whom one has to ask, what the page may say to it, and what verify and diff make of it. Nothing runs here."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.align import Align
from nodes.dashboard import Dashboard
from nodes.labels import Labels
from nodes.record import Record
from pipeline.alignment.event_log import Finished, Told
from pipeline.alignment.sync_policies import MS
from pipeline.clock import NS, ReplayClock
from pipeline.errors import ConfigError, DiffersError
from pipeline.frame import Frame, Health, NodeHealth, Prediction, StreamInfo
from pipeline.node import Context
from pipeline.recording.arrival_replay import NOT_HEARD, NOT_RECORDED, Retold, Shed, afresh
from pipeline.recording.diff import compare, read_predictions, report
from pipeline.recording.labels import Labels as Marks
from pipeline.recording.reader import Reader
from pipeline.recording.recorder import Wanted, with_recorder
from pipeline.recording.replay import Tape
from pipeline.recording.verify import Audit
from pipeline.recording.verify import report as audit_report
from pipeline.recording.writer import Writer
from pipeline.rig import rig
from pipeline.rig.intrinsics import Intrinsics
from pipeline.runtime.config import parse
from pipeline.testing import Stage

LIVE = {
    "camera": {"use": "camera", "device": 0},
    "microphone": {"use": "microphone"},
    "align": {"use": "align", "inputs": ["camera", "microphone"], "anchor": "camera"},
    "emotion": {"use": "infer", "inputs": ["align"], "process": "align"},
}


def recorder(nodes: dict[str, Any], path: Path, **wanted: Any) -> Any:
    return with_recorder(parse({"nodes": nodes}, "graph.yaml"), path, Wanted(**wanted)).nodes["record"]


# --- consent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, "/dev/video2", "rtsp://192.168.1.20/stream"])
def test_a_camera_that_sees_whoever_is_there_is_recorded_with_consent_only(tmp_path, device):
    nodes = LIVE | {"camera": {"use": "camera", "device": device}}
    with pytest.raises(ConfigError, match="'camera' sees or hears whoever is there.*--consent.*--features-only"):
        recorder(nodes, tmp_path / "a.mcap", streams=("camera",))
    node = recorder(nodes, tmp_path / "a.mcap", consent="Ada agreed")
    assert node.options["about"]["consent"] == "Ada agreed"


def test_so_is_a_microphone(tmp_path):
    with pytest.raises(ConfigError, match="'microphone' sees or hears"):
        recorder(LIVE, tmp_path / "a.mcap", streams=("microphone",))


def test_files_and_generated_streams_need_nobodys_consent(tmp_path):
    files = {
        "camera": {"use": "camera", "device": "clip.mp4"},
        "microphone": {"use": "microphone", "device": "clip.mp4"},
    }
    node = recorder(LIVE | files, tmp_path / "a.mcap")
    assert [edge.source for edge in node.inputs] == ["camera", "microphone", "align.events", "emotion", "health"]


def test_features_only_reads_no_sensor_and_asks_for_embeddings(tmp_path):
    config = with_recorder(parse({"nodes": LIVE}, "graph.yaml"), tmp_path / "a.mcap", Wanted(features_only=True))
    assert [edge.source for edge in config.nodes["record"].inputs] == ["align.events", "emotion", "health"]
    assert config.nodes["emotion"].options["options"] == {"embeddings": True}


def test_features_only_keeps_no_picture_and_no_sound_whatever_it_is_given(tmp_path):
    path = tmp_path / "a.mcap"
    with Stage(Record(path=str(path), features_only=True), inputs=["camera", "words"]) as stage:
        stage.give("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
        stage.give("words", Frame("words", 0, 6, "text_utf8", np.frombuffer(b"hello", np.uint8)))
        stage.end()
    with Reader(path) as reader:
        assert set(reader.streams) == {"words"}
        assert reader.notes["finished"][0]["dropped"] == {"camera": {"features only": 1}}


def test_an_unknown_stream_and_a_file_that_is_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no stream 'camra'.*Did you mean 'camera'"):
        recorder(LIVE, tmp_path / "a.mcap", streams=("camra",), consent="all")
    (tmp_path / "a.mcap").touch()
    with pytest.raises(ConfigError, match="exists already"):
        recorder(LIVE, tmp_path / "a.mcap", consent="all")


def test_pictures_are_kept_as_jpeg_where_asked(tmp_path):
    path = tmp_path / "a.mcap"
    with Stage(Record(path=str(path), jpeg=["camera"]), inputs=["camera"]) as stage:
        stage.give("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8)))
    with Reader(path) as reader:
        assert reader.kinds("camera") == {"foxglove.CompressedImage"}


# --- labels and the page ----------------------------------------------------------------------------------------------


def said(label: str, at_ns: int) -> str:
    return json.dumps({"label": label, "at_ns": at_ns})


def test_the_rig_that_a_config_names_is_kept_whole_and_its_lenses_as_calibrations(tmp_path):
    lens = Intrinsics("radtan", 640, 480, 520, 522, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
    rig.save(rig.Rig(intrinsics={"camera": lens}), tmp_path / "rig.yaml")
    nodes = {"camera": {"use": "camera", "device": "clip.mp4", "rig": str(tmp_path / "rig.yaml")}}
    node = recorder(nodes, tmp_path / "a.mcap")
    with Stage(Record(path=str(tmp_path / "a.mcap"), rigs=node.options["rigs"]), inputs=["camera"]) as stage:
        stage.give("camera", Frame("camera", 0, 5, "bgr8", np.zeros((6, 8, 3), np.uint8)))
    with Reader(tmp_path / "a.mcap") as reader:
        found = reader.calibrations["camera"]
        assert (found.distortion_model, list(found.K)) == ("plumb_bob", [520, 0, 325, 0, 522, 236, 0, 0, 1])
        assert reader.attachments()["rig.yaml"] == (tmp_path / "rig.yaml").read_bytes()


def test_labels_given_on_the_page_are_a_stream_of_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with Stage(Record(path=str(path)), inputs=["camera", "health"]) as stage:
        stage.give("camera", Frame("camera", 0, 5, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=5))
        stage.node.context.heard.put(said("happy", 3 * NS))
        stage.give("health", Health(NS, ()))
        stage.node.context.heard.put(said("", 4 * NS))
        stage.end()
    with Reader(path) as reader:
        marks = Marks.read(reader)
        assert [marks.at(t * NS) for t in (2, 3, 5)] == ["", "happy", ""]


def test_labels_given_during_a_replay_are_added_to_the_recording(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={"utc_offset_ns": NS}) as writer:
        writer.write("camera", Frame("camera", 0, NS, "bgr8", np.zeros((60, 80, 3), np.uint8), publish_ns=NS))
    for label in ("sad", "happy"):  # and those of a second replay too
        with Stage(Labels(path=str(path)), inputs=["emotion"]) as stage:
            stage.node.context.heard.put(said(label, 3 * NS if label == "sad" else 4 * NS))
            stage.give("emotion", Health(1, ()))
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


# --- replay -----------------------------------------------------------------------------------------------------------


def test_the_clock_of_a_replay_goes_at_its_speed_and_stands_while_paused():
    clock, stop = ReplayClock(1000 * NS, speed=20), threading.Event()
    assert clock.now_ns() == 1000 * NS
    clock.begin(time.monotonic_ns())
    assert clock.sleep_until(1001 * NS, stop)
    assert clock.now_ns() >= 1001 * NS
    clock.pause()
    stands_ns = clock.now_ns()
    time.sleep(0.01)
    assert clock.now_ns() == stands_ns and clock.paused
    clock.resume()
    assert clock.wait_while_paused(stop) and clock.now_ns() >= stands_ns
    stop.set()
    assert not clock.sleep_until(stands_ns + 3600 * NS, stop)


def picture(seq: int) -> Frame:
    return Frame("camera", seq, seq * 40 * MS, "bgr8", np.full((60, 80, 3), seq, np.uint8), publish_ns=seq * 40 * MS)


def arrivals(*frames: Frame) -> list[Told]:
    return [Told(f.stream, f.seq, f.capture_ns, 0, 0, f.encoding, "", f.capture_ns + MS) for f in frames]


def aligner_rules() -> Any:
    node = Align(anchor="camera")
    node.context = Context("align", inputs=("camera",))
    return node.rules(0)


def test_frames_that_the_recorded_aligner_never_heard_are_passed_over_and_counted():
    retold = Retold(iter([aligner_rules(), *arrivals(picture(0), picture(2))]))
    sets = [s for seq in range(4) for s in retold.add(picture(seq))] + retold.ended("camera") + retold.finish()
    assert [s.anchor_ns for s in sets] == [0, 80 * MS]
    assert dict(retold.counts) == {("camera", NOT_HEARD): 2}


def test_a_frame_that_is_not_in_the_recording_keeps_its_place_without_its_payload():
    retold = Retold(iter([aligner_rules(), *arrivals(picture(0), picture(1), picture(2))]))
    sets = [s for seq in (0, 2) for s in retold.add(picture(seq))] + retold.ended("camera") + retold.finish()
    assert [(s.frames["camera"][0].seq, s.frames["camera"][0].data.size) for s in sets] == [
        (0, 14400),
        (1, 0),
        (2, 14400),
    ]
    assert dict(retold.counts) == {("camera", NOT_RECORDED): 1}


def test_of_a_part_that_is_played_alone_what_lies_outside_never_was():
    retold = Retold(iter([aligner_rules(), *arrivals(*map(picture, range(6))), Finished(99 * NS)]), part=True)
    sets = [s for seq in (2, 3) for s in retold.add(picture(seq))] + retold.ended("camera") + retold.finish()
    assert [s.anchor_ns for s in sets] == [80 * MS, 120 * MS]
    assert +retold.counts == {}


def test_only_the_stream_that_is_due_is_asked_for():
    retold = Retold(iter([aligner_rules(), *arrivals(picture(0))]))
    retold._go_on()
    assert retold.wanted == "camera"
    retold.add(picture(0))
    assert retold.wanted is None


def test_sets_that_were_shed_are_told_from_the_others():
    shed = Shed([10, 30, 40])
    assert [shed.was(anchor) for anchor in (10, 20, 30, 35, 40, 50)] == [False, True, False, True, False, True]


def test_alignment_afresh_is_told_every_frame_in_the_order_in_which_they_left(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={}) as writer:
        for frame in (picture(2), picture(0), picture(1)):
            writer.write("camera", frame)
    events = [e for e in afresh(path, ["camera"], aligner_rules()) if isinstance(e, Told)]
    assert [e.seq for e in events] == [0, 1, 2]


# --- verify and diff --------------------------------------------------------------------------------------------------


def recorded_run(path: Path, *, without: int | None = None, events_dropped: int = 0) -> None:
    """Ten pictures, each aligned and predicted from, as `record` keeps them. without: a picture that is missing. events_dropped:
    so many of the last lines of the aligner's events found no room on the disk, as the recorder says."""
    journal: list[bytes] = []
    node = Align(anchor="camera", max_wait_ms=20)
    about = {"made_by": "record", "nodes": {"memory": {"inputs": ["align"]}}}
    with Stage(node, inputs=["camera"]) as stage, Writer(path, about=about) as writer:
        node.context.journal = journal.append
        writer.stream(StreamInfo("camera", "bgr8", 25.0))
        sets = [s for i in range(10) for s in stage.give("camera", picture(i), at_ns=i * 40 * MS + MS)] + stage.end()
        for i in (i for i in range(10) if i != without):
            writer.write("camera", picture(i))
        for i, text in enumerate(journal[: len(journal) - events_dropped]):
            writer.write(
                "align.events",
                Frame("align.events", i, i, "text_utf8", np.frombuffer(text, np.uint8), publish_ns=i * 40 * MS),
            )
        for s in sets:
            writer.write(
                "memory",
                Prediction("memory", s.anchor_ns, ("a",), np.ones(1, np.float32), "a", "m", receipts=s.receipts),
            )
        dropped = {"align.events": {"disk full": events_dropped}} if events_dropped else {}
        writer.note("finished", {"dropped": dropped, "written": {}})
        writer.note("summary", {"dropped": {"record": dropped}})


def test_a_recording_whose_books_balance_is_said_to_be_whole(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap")
    audit_report(tmp_path / "a.mcap")
    said = capsys.readouterr().out
    assert "10 aligned sets, each derived again" in said and "every message is accounted for" in said


def test_one_missing_picture_is_an_error_that_names_its_number(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap", without=4)
    with pytest.raises(ConfigError, match="books do not balance"):
        audit_report(tmp_path / "a.mcap")
    assert "camera: 1 of 1 missing messages are unaccounted for (#4" in capsys.readouterr().out


def test_what_the_recorder_dropped_of_the_aligners_last_events_is_no_fault_of_the_books(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap", events_dropped=4)
    audit_report(tmp_path / "a.mcap")
    said = capsys.readouterr().out
    assert (
        "not derived again: the recorder dropped a part" in said
        and "dropped by the recorder: 4 of align.events" in said
    )


def test_a_prediction_too_few_is_an_error(tmp_path):
    path = tmp_path / "a.mcap"
    recorded_run(path)
    whole = Audit(path)
    assert whole.faults == ()
    whole.predictions["memory"].pop()
    assert list(whole._faults()) == ["memory: 1 sets of 'align' became no prediction, and it says nothing of them"]


def test_a_tape_says_why_its_answers_may_differ(tmp_path):
    path = tmp_path / "a.mcap"
    about = {"utc_offset_ns": NS, "machine": {"cpu": "another one"}, "kept_as": {"camera": "JPEG"}, "nodes": {}}
    with Writer(path, about=about) as writer:
        for i in range(3):
            writer.write("camera", picture(i))
        writer.note("finished", {"dropped": {"camera": {"reader too slow": 2}}})
    config = parse({"nodes": {"camera": {"use": "camera", "device": "x.mp4"}}}, "graph.yaml")
    reasons = "; ".join(Tape(path, from_s=0.01).differs_because(config))
    for told in (
        "only a part",
        "kept as JPEG",
        "recorder dropped 2 messages of 'camera'",
        "cpu: recorded on another one",
    ):
        assert told in reasons


RECORD = {
    "task": "t",
    "capture_ns": 1,
    "label": "a",
    "probs": {"a": 0.9, "b": 0.1},
    "subjects": [],
    "timing_ms": {"total": 1.0},
    "receipts": [{"stream": "camera", "seq": [7], "state": "exact", "reason": "", "age_ns": 5}],
}


def test_predictions_that_differ_in_age_and_timing_alone_are_alike():
    faster = RECORD | {"timing_ms": {"total": 9.0}, "receipts": [RECORD["receipts"][0] | {"age_ns": 99}]}
    assert list(compare([RECORD], [faster])) == []


def test_what_differs_is_told_with_its_receipts_and_small_differences_pass_where_allowed(tmp_path, capsys):
    other = RECORD | {"probs": {"a": 0.90005, "b": 0.09995}}
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text(json.dumps(RECORD) + '\n{"summary": true}\n')
    b.write_text(json.dumps(other) + "\n" + json.dumps(RECORD | {"capture_ns": 2}) + "\n")
    assert len(read_predictions(a)) == 1
    with pytest.raises(DiffersError, match="2 of 1 and 2 predictions differ") as raised:
        report(a, b)
    assert raised.value.exit_code == 4
    assert "t at 1: probs (probabilities by up to 5.0e-05)" in (told := capsys.readouterr().out)
    assert "camera exact #7" in told and "t at 2: only in B" in told
    assert list(compare([RECORD], [other], within=1e-4)) == []


def test_a_file_that_holds_no_predictions_is_named_with_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: not a prediction, as --out writes them: it has no 'task'"):
        read_predictions(path)
    path.write_text('{"summary": true}\n{"task": "mood", "capt')
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: not a prediction.*ends in the middle of this line"):
        read_predictions(path)
    with pytest.raises(ConfigError, match=r"b\.jsonl: cannot be read: No such file or directory$"):
        read_predictions(tmp_path / "b.jsonl")
