"""The format of an aligned, labelled data set: a folder with one row a moment, each modality's values and presence.

`export REC.mcap FOLDER --dataset` writes one, `train fusion --data FOLDER` reads it. Owns the two files and their
rules; knows nothing of recordings, networks or torch (dataset_export.py makes rows from recordings).

    dataset.json    {"format": "sensorium-aligned", "version": 1, "labels": ["angry", …], "rows": 471, "made_by": "…",
                     "modalities": {"face": {"dim": 96, "kind": "embedding"}, …}}
    rows.npz        label, group, capture_ns; of each modality NAME, NAME_present and NAME_offset_ns (no pickle in it)

Example:
    face = Modality("embedding", values, present, offset_ns)
    dataset.save(folder, Rows(labels, label, group, capture_ns, {"face": face}))
    dataset.load(folder).modalities["face"].values          # (n, d) float32, zeros where `present` is False
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipeline.array_files import load_npz
from pipeline.errors import ConfigError
from pipeline.files import read_text
from pipeline.installation import COMMAND

FORMAT, VERSION = "sensorium-aligned", 1
UNLABELLED = -1
MAX_DESCRIPTION_BYTES = 1 << 20
Kind = Literal["embedding", "probs", "series"]
OWN_ARRAYS = ("label", "group", "capture_ns")


@dataclass(frozen=True)
class Modality:
    """One modality's values in each of n rows."""

    kind: Kind  # "embedding": of a network; "probs": probabilities, not their logarithms; "series": numbers as measured
    values: npt.NDArray[np.float32]  # (n, d); zeros where `present` is False
    present: npt.NDArray[np.bool_]  # (n,)
    offset_ns: npt.NDArray[np.int64]  # (n,) its capture − the row's capture_ns; 0 where it is absent

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Rows:
    """n moments. Raises ValueError when lengths, kinds or numbers do not fit together."""

    labels: tuple[str, ...]
    label: npt.NDArray[np.int64]  # (n,) index into labels, -1 = unlabelled
    group: npt.NDArray[np.str_]  # (n,) the speaker or session: rows of one group belong in one fold
    capture_ns: npt.NDArray[np.int64]  # (n,) the anchor's time, on its own group's clock
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    made_by: str = ""  # the command that wrote it, and from what

    def __post_init__(self) -> None:
        n = len(self.label)
        _check("label", self.label, (n,), "i")
        _check("group", self.group, (n,), "U")
        _check("capture_ns", self.capture_ns, (n,), "i")
        if n and not (-1 <= self.label.min() and self.label.max() < len(self.labels)):
            raise ValueError(
                f"label: from {self.label.min()} to {self.label.max()}, expected -1 to {len(self.labels) - 1}"
            )
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: one occurs twice: {', '.join(self.labels)}")
        for name, modality in self.modalities.items():
            if name in OWN_ARRAYS or name.endswith(("_present", "_offset_ns")) or not name.isidentifier():
                raise ValueError(
                    f"modality '{name}': not a valid name. Use letters, digits and underscores, as for a variable"
                )
            if modality.kind not in get_args(Kind):
                raise ValueError(f"{name}: of kind '{modality.kind}', expected one of {', '.join(get_args(Kind))}")
            _check(name, modality.values, (n, modality.values.shape[-1] if modality.values.ndim else 0), "f")
            _check(f"{name}_present", modality.present, (n,), "b")
            _check(f"{name}_offset_ns", modality.offset_ns, (n,), "i")
            if not np.isfinite(modality.values).all():
                raise ValueError(f"{name}: it holds numbers that are not finite (NaN or infinity)")

    def __len__(self) -> int:
        return len(self.label)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of several sets one after another. Raises ValueError when their labels or modalities differ."""
    first = parts[0]
    shape = {name: (m.kind, m.dim) for name, m in first.modalities.items()}
    for part in parts[1:]:
        if part.labels != first.labels or {name: (m.kind, m.dim) for name, m in part.modalities.items()} != shape:
            raise ValueError("the sets differ in their labels or modalities, so their rows cannot be joined")

    def all_of(name: str, what: str) -> Any:
        return np.concatenate([getattr(part.modalities[name], what) for part in parts])

    return Rows(
        first.labels,
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.group for part in parts]),
        np.concatenate([part.capture_ns for part in parts]),
        {
            n: Modality(first.modalities[n].kind, all_of(n, "values"), all_of(n, "present"), all_of(n, "offset_ns"))
            for n in shape
        },
        first.made_by,
    )


def save(folder: Path, rows: Rows) -> None:
    """Write both files, the description last, so that a folder with a description is complete.

    Raises ConfigError when they cannot be written.
    """
    arrays: dict[str, Any] = {"label": rows.label, "group": rows.group, "capture_ns": rows.capture_ns}
    for name, modality in rows.modalities.items():
        arrays |= {name: modality.values, f"{name}_present": modality.present, f"{name}_offset_ns": modality.offset_ns}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "labels": list(rows.labels),
        "modalities": {name: {"dim": m.dim, "kind": m.kind} for name, m in rows.modalities.items()},
        "rows": len(rows),
        "made_by": rows.made_by,
    }
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what the recording holds
        (folder / "dataset.json").unlink(missing_ok=True)
        with (folder / "rows.npz").open("wb") as file:
            np.savez(file, **arrays)
        partial = folder / "dataset.json.part"
        partial.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, folder / "dataset.json")
    except OSError as error:
        raise ConfigError(f"{folder}: the data set cannot be written: {error.strerror or error}") from error


def load(folder: Path) -> Rows:
    """Read a folder back. Raises ConfigError that names the file and what is wrong with it."""
    path = folder / "dataset.json"
    if not path.exists():
        fix = f"Export one with: {COMMAND} export REC.mcap FOLDER --dataset"
        raise ConfigError(f"{folder}: not a data set: it has no dataset.json. {fix}")
    text = read_text(path, most=MAX_DESCRIPTION_BYTES)
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}. Export the data set again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: its format is not '{FORMAT}', so it is not a data set of Sensorium. "
            f"Export one with: {COMMAND} export REC.mcap FOLDER --dataset"
        )
    if description.get("version") != VERSION:
        raise ConfigError(
            f"{path}: its version is {description.get('version')}, this Sensorium reads {VERSION}. Export it again"
        )
    arrays = load_npz(folder / "rows.npz")
    try:
        labels = tuple(str(label) for label in description["labels"])
        modalities = {
            str(name): Modality(fields["kind"], arrays[name], arrays[f"{name}_present"], arrays[f"{name}_offset_ns"])
            for name, fields in description["modalities"].items()
        }
        made_by = str(description.get("made_by", ""))
        rows = Rows(labels, arrays["label"], arrays["group"], arrays["capture_ns"], modalities, made_by)
        dims = {name: fields["dim"] for name, fields in description["modalities"].items()}
    except KeyError as error:
        raise ConfigError(f"{folder}: {error} is missing in dataset.json or rows.npz. Export it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: {error}. Export the data set again") from error
    stored_dims = {name: modality.dim for name, modality in modalities.items()}
    if description.get("rows") != len(rows) or dims != stored_dims:
        raise ConfigError(
            f"{folder}: dataset.json says {description.get('rows')} rows of {dims}, "
            f"rows.npz has {len(rows)} of {stored_dims}. Export the data set again"
        )
    return rows


def _check(name: str, array: Any, shape: tuple[int, ...], kind: str) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != kind:
        actual = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        expected = {"i": "int64", "U": "text", "f": "float32", "b": "bool"}[kind]
        raise ValueError(f"{name}: {actual}, expected {expected} {shape}")
