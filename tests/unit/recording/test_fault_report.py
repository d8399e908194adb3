"""The report of injected faults: receipt states of each stream, agreement between runs, accuracy."""

from __future__ import annotations

from pipeline.recording.fault_report import accuracy, agreement, states, table
from pipeline.recording.labels import Interval, Labels

LABELS = Labels((Interval(0, 20, "sad"), Interval(30, None, "happy")))


def record(at_ns, label, *, sound="exact"):
    receipts = [{"stream": "camera", "state": "exact"}, {"stream": "microphone", "state": sound}]
    return {"task": "emotion", "capture_ns": at_ns, "label": label, "receipts": receipts}


CLEAN = [record(0, "sad"), record(10, "sad"), record(25, "sad"), record(30, "happy")]
WORSE = [
    record(0, "sad", sound="late"),
    record(10, "happy", sound="partial"),
    record(30, None, sound="late"),
    record(31, "happy"),
]


def test_sets_are_counted_by_receipt_state():
    assert states(WORSE)["microphone"] == {"late": 2, "partial": 1, "exact": 1} and states(WORSE)["camera"] == {
        "exact": 4
    }


def test_accuracy_counts_moments_with_a_label_and_no_answer_is_not_correct():
    assert accuracy(CLEAN, LABELS) == (1.0, 3)
    assert accuracy(WORSE, LABELS) == (0.5, 4)
    assert accuracy([record(25, "sad")], LABELS) == (0.0, 0)


def test_agreement_is_of_the_moments_that_both_runs_have():
    assert agreement(CLEAN, WORSE) == (1 / 3, 3)


def test_the_table_compares_both_runs_and_names_what_is_missing():
    report = table(CLEAN, WORSE, LABELS)
    assert (
        "microphone: missing             0.0%         50.0%" in report
        and "correct by the labels" in report
        and "50.0% of 4" in report
    )
    alone = table([], WORSE, None)
    assert "as recorded" not in alone and "the recording has no labels" in alone
