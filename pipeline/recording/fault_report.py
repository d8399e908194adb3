"""What faults on purpose did: how each stream was answered in the sets, and whether the answers are still right.

Beside a run without them, where there is one, and the labels, where there are any. Reads lines as `--out` writes them.

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
    """Stream → how it was answered (frame.ReceiptState) → in how many sets."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        for receipt in record["receipts"]:
            found.setdefault(receipt["stream"], Counter())[receipt["state"]] += 1
    return found


def accuracy(records: Sequence[Record], labels: Labels) -> tuple[float, int]:
    """(share that is right, of how many). A prediction that gives no answer, or an uncertain one, is not right."""
    judged = [(record["label"], label) for record in records if (label := labels.at(record["capture_ns"]))]
    return (sum(said == label for said, label in judged) / len(judged) if judged else 0.0), len(judged)


def agreement(clean: Sequence[Record], other: Sequence[Record]) -> tuple[float, int]:
    """(share with the same label, of how many): of the predictions about a moment that both have."""
    said = {(record["task"], record["capture_ns"]): record["label"] for record in clean}
    both = [(said[key], r["label"]) for r in other if (key := (r["task"], r["capture_ns"])) in said]
    return (sum(a == b for a, b in both) / len(both) if both else 0.0), len(both)


def table(clean: Sequence[Record], with_faults: Sequence[Record], labels: Labels | None) -> str:
    """For people. clean: empty where the recording holds no predictions."""
    runs = [("as recorded", clean)] * bool(clean) + [("with faults", with_faults)]
    lines = [f"  {'':<22}{''.join(f'{name:>14}' for name, _ in runs)}"]

    def row(what: str, values: Sequence[str]) -> None:
        lines.append(f"  {what:<22}{''.join(f'{value:>14}' for value in values)}")

    row("predictions", [str(len(records)) for _, records in runs])
    counted = [states(records) for _, records in runs]
    for stream in dict.fromkeys(name for found in counted for name in found):
        here = [found.get(stream, Counter()) for found in counted]
        row(f"{stream}: missing", [_share(sum(found[state] for state in ABSENT), found.total()) for found in here])
        for state in dict.fromkeys(s for found in here for s in found):
            row(f"    {state}", [_share(found[state], found.total()) for found in here])
    row("no answer", [_share(sum(r["label"] is None for r in records), len(records)) for _, records in runs])
    row("uncertain", [_share(sum(r["label"] == "uncertain" for r in records), len(records)) for _, records in runs])
    if clean:
        same, of = agreement(clean, with_faults)
        row("same label", ["", f"{same:.1%}" if of else "none shared"])
    if labels is not None:
        right = [accuracy(records, labels) for _, records in runs]
        row("right by the labels", [f"{share:.1%} of {of}" if of else "none labelled" for share, of in right])
    else:
        lines.append(
            "  (no labels in the recording: add them with `label`, and whether the answers are right is told too)"
        )
    return "\n".join(lines)


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else "–"
