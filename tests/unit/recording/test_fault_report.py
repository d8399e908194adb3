"""What faults did: how streams were answered, and how many answers are the same and right."""

from __future__ import annotations

from pipeline.recording.fault_report import accuracy, agreement, states, table
from pipeline.recording.labels import Interval, Labels

LABELS = Labels((Interval(0, 20, "sad"), Interval(30, None, "happy")))


def said(at_ns, label, *, sound="exact"):
    receipts = [{"stream": "camera", "state": "exact"}, {"stream": "microphone", "state": sound}]
    return {"task": "emotion", "capture_ns": at_ns, "label": label, "receipts": receipts}


CLEAN = [said(0, "sad"), said(10, "sad"), said(25, "sad"), said(30, "happy")]
WORSE = [
    said(0, "sad", sound="late"),
    said(10, "happy", sound="partial"),
    said(30, None, sound="late"),
    said(31, "happy"),
]


def test_streams_are_counted_by_how_they_were_answered():
    assert states(WORSE)["microphone"] == {"late": 2, "partial": 1, "exact": 1} and states(WORSE)["camera"] == {
        "exact": 4
    }


def test_right_is_judged_where_a_label_holds_and_no_answer_is_not_right():
    assert accuracy(CLEAN, LABELS) == (1.0, 3)
    assert accuracy(WORSE, LABELS) == (0.5, 4)
    assert accuracy([said(25, "sad")], LABELS) == (0.0, 0)


def test_answers_are_compared_at_the_moments_that_both_runs_have():
    assert agreement(CLEAN, WORSE) == (1 / 3, 3)


def test_the_table_says_it_for_both_runs_and_where_nothing_can_be_said():
    told = table(CLEAN, WORSE, LABELS)
    assert (
        "microphone: missing             0.0%         50.0%" in told
        and "right by the labels" in told
        and "50.0% of 4" in told
    )
    alone = table([], WORSE, None)
    assert "as recorded" not in alone and "no labels in the recording" in alone
