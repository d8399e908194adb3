"""What injected faults did to the sets and to the predictions: states of each stream, agreement, accuracy.

Compares a run with faults with the recorded run, where it has predictions, and with the labels, where there are any.
Reads predictions as `--out` writes them.

Example:
    print(table(clean, with_faults, labels))
    accuracy(with_faults, labels)              # (0.91, 216): of the predictions at which a label holds
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.recording.labels import Labels

Record = Mapping[str, Any]
ABSENT = ("late", "absent", "silent", "bad")


def states(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Stream → receipt state (frame.ReceiptState) → in how many sets."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for receipt in record["receipts"]:
            counts.setdefault(receipt["stream"], Counter())[receipt["state"]] += 1
    return counts


def accuracy(records: Sequence[Record], labels: Labels) -> tuple[float, int]:
    """(share of correct predictions, of how many).

    A prediction without an answer, or an uncertain one, is not correct.
    """
    judged = [(record["label"], label) for record in records if (label := labels.at(record["capture_ns"]))]
    return (sum(predicted == label for predicted, label in judged) / len(judged) if judged else 0.0), len(judged)


def agreement(clean: Sequence[Record], other: Sequence[Record]) -> tuple[float, int]:
    """(share with the same label, of how many), for the moments that both runs have a prediction of."""
    labels = {(record["task"], record["capture_ns"]): record["label"] for record in clean}
    both = [(labels[key], r["label"]) for r in other if (key := (r["task"], r["capture_ns"])) in labels]
    return (sum(a == b for a, b in both) / len(both) if both else 0.0), len(both)


def table(clean: Sequence[Record], with_faults: Sequence[Record], labels: Labels | None) -> str:
    """The report for people.

    Args:
        clean: The recorded predictions. Empty: the recording has none.
        with_faults: The predictions of the run with faults.
        labels: The recording's labels. None: it has none.
    """
    runs = [("as recorded", clean)] * bool(clean) + [("with faults", with_faults)]
    lines = [f"  {'':<22}{''.join(f'{name:>14}' for name, _ in runs)}"]

    def row(what: str, values: Sequence[str]) -> None:
        lines.append(f"  {what:<22}{''.join(f'{value:>14}' for value in values)}")

    row("predictions", [str(len(records)) for _, records in runs])
    counted = [states(records) for _, records in runs]
    for stream in dict.fromkeys(name for states_of in counted for name in states_of):
        per_run = [states_of.get(stream, Counter()) for states_of in counted]
        row(f"{stream}: missing", [_share(sum(n[state] for state in ABSENT), n.total()) for n in per_run])
        for state in dict.fromkeys(s for n in per_run for s in n):
            row(f"    {state}", [_share(n[state], n.total()) for n in per_run])
    row("no answer", [_share(sum(r["label"] is None for r in records), len(records)) for _, records in runs])
    row("uncertain", [_share(sum(r["label"] == "uncertain" for r in records), len(records)) for _, records in runs])
    if clean:
        same, of = agreement(clean, with_faults)
        row("same label", ["", f"{same:.1%}" if of else "none shared"])
    if labels is not None:
        correct = [accuracy(records, labels) for _, records in runs]
        row("correct by the labels", [f"{share:.1%} of {of}" if of else "none labelled" for share, of in correct])
    else:
        lines.append("  (the recording has no labels: add them with `label` to see how many predictions are correct)")
    return "\n".join(lines)


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "–"
