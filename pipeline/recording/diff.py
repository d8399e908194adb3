"""Compares two files of predictions (`--out`): the fields that differ, with the receipts that may explain it.

Alike means every field but `timing_ms` and the receipts' `age_ns`, which depend on the machine's speed.

Example:
    for difference in compare(read_predictions(a), read_predictions(b)): print(difference)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, DiffersError
from pipeline.files import read_text

Record = dict[str, Any]
_SPEED_FIELDS = ("timing_ms",)
MAX_BYTES = 1 << 30  # of a file of predictions: a day of them
DIFFERENT = 2.0  # more than any difference of two probabilities


class Difference(NamedTuple):
    """A prediction that differs between file A and file B, or is in one of them only.

    fields: the fields that differ; empty when it is in one file only. max_probability: the largest difference of a
    probability, 0 to 1.
    """

    task: str
    capture_ns: int
    fields: tuple[str, ...]
    max_probability: float
    a: Record | None
    b: Record | None

    def __str__(self) -> str:
        lines = [f"{self.task} at {self.capture_ns}: {self._what()}"]
        for name, record in (("A", self.a), ("B", self.b)):
            lines += [f"    {name} {record['label']}  {_receipts(record)}"] if record else []
        return "\n".join(lines)

    def _what(self) -> str:
        if self.a is None or self.b is None:
            return f"only in {'A' if self.b is None else 'B'}"
        by = f" (probabilities by up to {self.max_probability:.1e})" if self.max_probability else ""
        return f"{', '.join(self.fields)}{by}"


def read_predictions(path: Path) -> list[Record]:
    """The predictions of a file that --out wrote, without its summary.

    Raises ConfigError with the line that is not one.
    """
    lines = read_text(path, most=MAX_BYTES).splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if "summary" not in record:
                _ = record["task"], record["capture_ns"], record["label"], record["receipts"]
                records.append(record)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            problem = f"it has no {error}" if isinstance(error, LookupError) else f"no JSON object ({error})"
            cut = (
                ". The file ends in the middle of this line: remove it"
                if number == len(lines) and isinstance(error, ValueError)
                else ""
            )
            raise ConfigError(f"{path}:{number}: not a prediction, as --out writes them: {problem}{cut}") from error
    return records


def compare(a: list[Record], b: list[Record], *, within: float = 0.0) -> Iterator[Difference]:
    """Differences between predictions of the same task and moment.

    within: numbers between 0 and 1, such as probabilities, may differ by this much.
    """
    of_b: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in b:
        of_b[record["task"], record["capture_ns"]].append(record)
    for record in a:
        key = (record["task"], record["capture_ns"])
        other = of_b[key].pop(0) if of_b[key] else None
        if other is None:
            yield Difference(*key, (), 1.0, record, None)
        elif difference := _difference(key, record, other, within):
            yield difference
    for key, left in of_b.items():
        for record in left:
            yield Difference(*key, (), 1.0, None, record)


def _difference(key: tuple[str, int], a: Record, b: Record, within: float) -> Difference | None:
    one, other = _without_speed(a), _without_speed(b)
    if one == other:
        return None
    of_probabilities = [_distance(one.get(name), other.get(name)) for name in ("probs", "subjects", "opinions")]
    fields = []
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name) and _distance(one.get(name), other.get(name)) > within:
            fields.append(name)
    return (
        Difference(*key, tuple(fields), max((d for d in of_probabilities if d < DIFFERENT), default=0.0), a, b)
        if fields
        else None
    )


def _distance(one: Any, other: Any) -> float:
    """The largest difference of numbers between 0 and 1; DIFFERENT when anything else differs."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) if max(abs(one), abs(other)) <= 1 else 0.0 if one == other else DIFFERENT
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_distance(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((_distance(x, y) for x, y in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else DIFFERENT


def _without_speed(record: Record) -> Record:
    fields = {name: value for name, value in record.items() if name not in _SPEED_FIELDS}
    fields["receipts"] = [{n: v for n, v in receipt.items() if n != "age_ns"} for receipt in record["receipts"]]
    return fields


def _receipts(record: Record) -> str:
    parts = []
    for receipt in record["receipts"]:
        seq = receipt["seq"]
        numbers = "" if not seq else f" #{seq[0]}" if len(seq) == 1 else f" #{seq[0]}–{seq[-1]} ({len(seq)})"
        reason = f": {receipt['reason']}" if receipt["reason"] else ""
        parts.append(f"{receipt['stream']} {receipt['state']}{numbers}{reason}")
    return " · ".join(parts)


def report(a: Path, b: Path, *, within: float = 0.0, max_printed: int = 20) -> None:
    """Print what differs. Raises DiffersError (exit code 4) when anything does.

    Args:
        a: Predictions, as --out writes them.
        b: The predictions to compare them with.
        within: Probabilities may differ by this much (0 to 1).
        max_printed: How many differences are printed; the others are counted.
    """
    first, second = read_predictions(a), read_predictions(b)
    differences = list(compare(first, second, within=within))
    for difference in differences[:max_printed]:
        print(difference)
    if len(differences) > max_printed:
        print(f"… and {len(differences) - max_printed} more")
    if differences:
        raise DiffersError(f"{len(differences)} of {len(first)} and {len(second)} predictions differ")
    tolerance = f" within {within:g}" if within else ""
    print(f"{a} and {b}: {len(first)} predictions, all alike{tolerance} (but for timing_ms and age_ns)")
