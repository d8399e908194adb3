"""Two files of predictions (`--out`), compared: what differs, with the receipts that may tell why.

Alike means every field but `timing_ms` and the receipts' `age_ns`, which tell how fast a machine was.

    for differing in compare(read_predictions(a), read_predictions(b)): print(differing)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, DiffersError

Record = dict[str, Any]
_OF_SPEED = ("timing_ms",)


class Differing(NamedTuple):
    """capture_ns: of the prediction. fields: that are not alike; empty: it is only in one of them. most: by how much a
    probability differs, 0 to 1."""

    task: str
    capture_ns: int
    fields: tuple[str, ...]
    most: float
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
        by = f" (probabilities by up to {self.most:.1e})" if self.most else ""
        return f"{', '.join(self.fields)}{by}"


def read_predictions(path: Path) -> list[Record]:
    """Without the summary. Raises ConfigError for a file that is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise ConfigError(f"{path}: cannot be read: {why}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if "summary" not in record:
                _ = record["task"], record["capture_ns"], record["label"], record["receipts"]
                records.append(record)
        except (ValueError, LookupError, TypeError) as error:
            lacks = f"it has no {error}" if isinstance(error, LookupError) else f"no JSON object ({error})"
            cut = (
                ". The file ends in the middle of this line: remove it"
                if number == len(lines) and isinstance(error, ValueError)
                else ""
            )
            raise ConfigError(f"{path}:{number}: not a prediction, as --out writes them: {lacks}{cut}") from error
    return records


def compare(a: list[Record], b: list[Record], *, within: float = 0.0) -> Iterator[Differing]:
    """Predictions of the same task and moment belong together. within: probabilities may differ by so much."""
    there: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in b:
        there[record["task"], record["capture_ns"]].append(record)
    for record in a:
        key = (record["task"], record["capture_ns"])
        other = there[key].pop(0) if there[key] else None
        if other is None:
            yield Differing(*key, (), 1.0, record, None)
        elif differing := _differing(key, record, other, within):
            yield differing
    for key, left in there.items():
        for record in left:
            yield Differing(*key, (), 1.0, None, record)


def _differing(key: tuple[str, int], a: Record, b: Record, within: float) -> Differing | None:
    one, other = _timeless(a), _timeless(b)
    if one == other:
        return None
    apart = [_apart(one.get(name), other.get(name)) for name in ("probs", "subjects", "opinions")]
    fields = []
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name) and _apart(one.get(name), other.get(name)) > within:
            fields.append(name)
    return Differing(*key, tuple(fields), max(p for p in apart if p < 2), a, b) if fields else None


def _apart(one: Any, other: Any) -> float:
    """By how much the numbers differ at most; 2 where more than numbers between 0 and 1 does."""
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return abs(one - other) if max(abs(one), abs(other)) <= 1 else 0.0 if one == other else 2.0
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_apart(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((_apart(x, y) for x, y in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else 2.0


def _timeless(record: Record) -> Record:
    kept = {name: value for name, value in record.items() if name not in _OF_SPEED}
    kept["receipts"] = [{n: v for n, v in receipt.items() if n != "age_ns"} for receipt in record["receipts"]]
    return kept


def _receipts(record: Record) -> str:
    told = []
    for receipt in record["receipts"]:
        seq = receipt["seq"]
        numbers = "" if not seq else f" #{seq[0]}" if len(seq) == 1 else f" #{seq[0]}–{seq[-1]} ({len(seq)})"
        reason = f": {receipt['reason']}" if receipt["reason"] else ""
        told.append(f"{receipt['stream']} {receipt['state']}{numbers}{reason}")
    return " · ".join(told)


def report(a: Path, b: Path, *, within: float = 0.0, most: int = 20) -> None:
    """Print what differs. Raises DiffersError (exit 4) if anything does."""
    first, second = read_predictions(a), read_predictions(b)
    found = list(compare(first, second, within=within))
    for differing in found[:most]:
        print(differing)
    if len(found) > most:
        print(f"… and {len(found) - most} more")
    if found:
        raise DiffersError(f"{len(found)} of {len(first)} and {len(second)} predictions differ")
    tolerance = f" within {within:g}" if within else ""
    print(f"{a} and {b}: {len(first)} predictions, all alike{tolerance} (but for timing_ms and age_ns)")
