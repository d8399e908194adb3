"""What verify reports of a recording, what diff reports of two runs, and why a replay may differ. Nothing runs here."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nodes.align import Align
from pipeline.alignment.sync_policies import MS
from pipeline.cli.verify import report as audit_report
from pipeline.clock import NS
from pipeline.errors import ConfigError, DiffersError
from pipeline.frame import Frame, Prediction, StreamInfo
from pipeline.recording.diff import compare, read_predictions, report
from pipeline.recording.replay_session import ReplaySession
from pipeline.recording.verify import Audit
from pipeline.recording.writer import Writer
from pipeline.runtime.config import parse
from pipeline.testing import NodeHarness


def picture(seq: int) -> Frame:
    return Frame("camera", seq, seq * 40 * MS, "bgr8", np.full((60, 80, 3), seq, np.uint8), publish_ns=seq * 40 * MS)


def recorded_run(path: Path, *, without: int | None = None, events_dropped: int = 0) -> None:
    """Ten pictures, each aligned and predicted from, as `record` writes them.

    without: a picture that is missing. events_dropped: how many of the event log's last lines were dropped.
    """
    journal: list[bytes] = []
    node = Align(anchor="camera", max_wait_ms=20)
    about = {"made_by": "record", "nodes": {"memory": {"inputs": ["align"]}}}
    with NodeHarness(node, inputs=["camera"]) as harness, Writer(path, about=about) as writer:
        node.context.publish_event = journal.append
        writer.stream(StreamInfo("camera", "bgr8", 25.0))
        sets = [
            s for i in range(10) for s in harness.send("camera", picture(i), at_ns=i * 40 * MS + MS)
        ] + harness.end()
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


def test_a_recording_without_faults_passes(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap")
    audit_report(tmp_path / "a.mcap")
    output = capsys.readouterr().out
    assert "10 aligned sets, each derived again" in output and "every message is accounted for" in output


def test_one_missing_picture_is_an_error_that_names_its_number(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap", without=4)
    with pytest.raises(ConfigError, match="not every message is accounted for"):
        audit_report(tmp_path / "a.mcap")
    assert "camera: 1 of 1 missing messages are unaccounted for (#4" in capsys.readouterr().out


def test_a_message_that_is_in_the_file_twice_is_an_error(tmp_path):
    path = tmp_path / "a.mcap"
    recorded_run(path)
    audit = Audit(path)
    audit.streams["camera"].add(picture(9))
    assert "camera: 1 messages are in it twice" in list(audit._faults())


def test_last_events_that_the_recorder_dropped_are_no_fault(tmp_path, capsys):
    recorded_run(tmp_path / "a.mcap", events_dropped=4)
    audit_report(tmp_path / "a.mcap")
    output = capsys.readouterr().out
    assert (
        "not derived again: the recorder dropped a part" in output
        and "dropped by the recorder: 4 of align.events" in output
    )


def test_a_missing_prediction_is_an_error(tmp_path):
    path = tmp_path / "a.mcap"
    recorded_run(path)
    whole = Audit(path)
    assert whole.faults == ()
    whole.predictions["memory"].pop()
    assert list(whole._faults()) == ["memory: 1 sets of 'align' have no prediction, and were not counted as dropped"]


@pytest.mark.parametrize(
    "changed",
    [
        {"stream": "lidar"},
        {"state": "late"},
        {"seq": (99,)},
        {"span_ns": 5},
        {"skew_ns": 1},
        {"age_ns": 10**12},
        {"clock_error_ns": 1},
        {"reason": "at the deadline"},
        {"state": "bad", "reason": "dark", "skew_ns": 1},
    ],
    ids=str,
)
def test_a_receipt_that_was_falsified_in_any_field_is_detected(tmp_path, changed):
    path = tmp_path / "a.mcap"
    recorded_run(path)
    audit = Audit(path)
    first = audit.predictions["memory"][0]
    falsified = tuple(msgspec.structs.replace(receipt, **changed) for receipt in first.receipts)
    audit.predictions["memory"][0] = msgspec.structs.replace(first, receipts=falsified)
    [fault] = audit._faults()
    assert fault.startswith("memory: the receipts of 1 predictions differ from their set's (the first at 0)")


def test_a_task_may_mark_an_input_as_bad_and_say_why(tmp_path):
    path = tmp_path / "a.mcap"
    recorded_run(path)
    audit = Audit(path)
    first = audit.predictions["memory"][0]
    bad = tuple(msgspec.structs.replace(receipt, state="bad", reason="dark") for receipt in first.receipts)
    audit.predictions["memory"][0] = msgspec.structs.replace(first, receipts=bad)
    assert list(audit._faults()) == []


def test_a_replay_says_why_its_predictions_may_differ(tmp_path):
    path = tmp_path / "a.mcap"
    about = {"utc_offset_ns": NS, "machine": {"cpu": "another one"}, "kept_as": {"camera": "JPEG"}, "nodes": {}}
    with Writer(path, about=about) as writer:
        for i in range(3):
            writer.write("camera", picture(i))
        writer.note("finished", {"dropped": {"camera": {"reader too slow": 2}}})
    config = parse({"nodes": {"camera": {"use": "camera", "device": "x.mp4"}}}, "graph.yaml")
    reasons = "; ".join(ReplaySession(path, from_s=0.01).differs_because(config))
    for reason in (
        "only a part",
        "recorded as JPEG",
        "recorder dropped 2 messages of 'camera'",
        "cpu: recorded on another one",
    ):
        assert reason in reasons


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


def test_differences_are_printed_with_receipts_and_small_ones_pass_where_allowed(tmp_path, capsys):
    other = RECORD | {"probs": {"a": 0.90005, "b": 0.09995}}
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text(json.dumps(RECORD) + '\n{"summary": true}\n')
    b.write_text(json.dumps(other) + "\n" + json.dumps(RECORD | {"capture_ns": 2}) + "\n")
    assert len(read_predictions(a)) == 1
    with pytest.raises(DiffersError, match="2 of 1 and 2 predictions differ") as raised:
        report(a, b)
    assert raised.value.exit_code == 4
    assert "t at 1: probs (probabilities by up to 5.0e-05)" in (output := capsys.readouterr().out)
    assert "camera exact #7" in output and "t at 2: only in B" in output
    assert list(compare([RECORD], [other], within=1e-4)) == []


def test_predictions_of_another_model_differ_in_fields_without_a_distance():
    other = RECORD | {"probs": {"c": 1.0}, "subjects": [{}], "opinions": [{}]}
    (difference,) = compare([RECORD], [other])
    assert difference.fields == ("opinions", "probs", "subjects") and difference.max_probability == 0.0


def test_a_file_without_predictions_is_refused_with_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: not a prediction, as --out writes them: it has no 'task'"):
        read_predictions(path)
    path.write_text('{"summary": true}\n{"task": "mood", "capt')
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: not a prediction.*ends in the middle of this line"):
        read_predictions(path)
    with pytest.raises(ConfigError, match=r"b\.jsonl: there is no such file"):
        read_predictions(tmp_path / "b.jsonl")
