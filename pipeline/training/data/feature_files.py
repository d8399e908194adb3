"""Feature files of public data sets, read into labelled rows (pipeline/recording/dataset.py).

    cmu-csd     CMU-MOSI and CMU-MOSEI: a folder of the SDK's .csd files (HDF5), one of them with labels
    arrays      one .npz or .pkl of {split: {"text", "audio", "vision", "id", labels}}, as in MMSA for MOSI/MOSEI
    dialogues   IEMOCAP_features*.pkl and MELD_features*.pkl: per dialogue the utterances' features, labels and speakers

Example:
    rows = cmu_csd(Path("mosei"))                                 # as: train fusion --data mosei --format cmu-csd

None of these sets comes with Sensorium; their licences bind you, and every model trained on them. A row is an
utterance; a modality's value there is the mean over its time. Rows of one video or dialogue are one group. Opening a
pickle can run any program, so .pkl files are read by an unpickler that accepts numbers and text only.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.array_files import load_npz
from pipeline.errors import ConfigError, missing_package
from pipeline.recording.dataset import Modality, Rows

SENTIMENTS = ("negative", "neutral", "positive")
# The columns of MOSEI's label file: sentiment from −3 to 3, then six emotions from 0 to 3.
MOSEI_EMOTIONS = ("happy", "sad", "angry", "surprise", "disgust", "fear")
IEMOCAP_LABELS = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MELD_LABELS = ("neutral", "surprise", "fear", "sad", "joy", "disgust", "angry")
NAMES = {"vision": "face", "visual": "face", "video": "face", "audio": "voice", "text": "text"}

Numbers = npt.NDArray[np.floating]


def cmu_csd(path: Path) -> Rows:
    """A folder of computational sequences, each one modality named like its file.

    The file with "label" in its name holds the annotations: seven columns are MOSEI's and give emotions, one column is
    MOSI's sentiment and gives its sign.
    """
    files = sorted(path.glob("*.csd"))
    label_files = [file for file in files if "label" in file.stem.lower()]
    if len(label_files) != 1 or len(files) < 2:
        raise ConfigError(
            f"{path}: {len(files)} .csd files, {len(label_files)} of them with labels; expected one with 'label' in "
            "its name and at least one of features. Fetch them with the CMU Multimodal SDK "
            "(mmsdk) and give their folder."
        )
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise missing_package("h5py", "reading .csd files", "train") from error

    def segments(file: Path) -> dict[str, tuple[Numbers, Numbers]]:
        """segment → intervals (k, 2) in seconds, features (k, d)."""
        try:
            with h5py.File(file, "r") as opened:
                (root,) = opened.values()
                return {
                    name: (np.asarray(data["intervals"], np.float64), np.asarray(data["features"], np.float32))
                    for name, data in root["data"].items()
                }
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{file}: not as the CMU Multimodal SDK writes it ({error}). Fetch the file again."
            ) from error

    annotated = segments(label_files[0])
    utterances = [
        (video, begin, end, values)
        for video, (intervals, features) in sorted(annotated.items())
        for (begin, end), values in zip(intervals, features, strict=True)
    ]
    columns = {len(values) for *_, values in utterances}
    if columns == {7}:
        labels: tuple[str, ...] = (*MOSEI_EMOTIONS, "neutral")
        label = [int(v[1:].argmax()) if v[1:].max() > 0 else len(MOSEI_EMOTIONS) for *_, v in utterances]
    elif columns == {1}:
        labels, label = SENTIMENTS, [_sign(float(v[0])) for *_, v in utterances]
    else:
        raise ConfigError(
            f"{label_files[0]}: labels of {sorted(columns)} columns; expected 7 (MOSEI) or 1 (MOSI's sentiment)."
        )
    modalities = {}
    for file in files:
        if file == label_files[0]:
            continue
        sequence = segments(file)
        width = next(iter(sequence.values()))[1].shape[1]
        values, offset_s = np.zeros((len(utterances), width), np.float32), np.zeros(len(utterances))
        present = np.zeros(len(utterances), bool)
        for row, (video, begin, end, _) in enumerate(utterances):
            # Some files have one segment for each video, others one for each utterance, named "video[3]".
            for name in (video, video.split("[")[0]):
                intervals, features = sequence.get(name, (np.zeros((0, 2)), np.zeros((0, width), np.float32)))
                inside = (intervals[:, 1] > begin) & (intervals[:, 0] < end)
                if inside.any():
                    values[row], present[row] = _mean(features[inside]), True
                    offset_s[row] = intervals[inside].mean() - (begin + end) / 2
                    break
        modalities[_name(file.stem)] = Modality("embedding", values, present, np.rint(offset_s * 1e9).astype(np.int64))
    middle = np.array([(begin + end) / 2 for _, begin, end, _ in utterances])
    return Rows(
        labels,
        np.array(label, np.int64),
        np.array([video.split("[")[0] for video, *_ in utterances]),
        np.rint(middle * 1e9).astype(np.int64),
        modalities,
        f"{path.name}, as cmu-csd",
    )


def arrays(path: Path) -> Rows:
    """One dictionary, or one per split, with ids, labels and (n, d) or (n, time, d) arrays. Splits are joined."""
    stored = _opened(path)
    if not isinstance(stored, Mapping):
        raise ConfigError(
            f"{path}: {type(stored).__name__}, expected a dictionary. For IEMOCAP or MELD say --format dialogues."
        )
    splits = [part for part in stored.values() if isinstance(part, Mapping)] or [stored]
    names = [
        name
        for name in splits[0]
        if name in NAMES or (_numeric(splits[0][name]) and np.ndim(splits[0][name]) in (2, 3))
    ]
    names = [name for name in names if "label" not in name and _numeric(splits[0][name])]
    key = next((k for k in ("classification_labels", "label", "labels", "regression_labels") if k in splits[0]), None)
    if key is None or not names:
        raise ConfigError(
            f"{path}: it holds {', '.join(map(str, splits[0]))}; expected labels (label, labels, "
            "classification_labels or regression_labels) and arrays such as text, audio and vision."
        )
    raw = np.concatenate([np.asarray(part[key]).reshape(len(part[names[0]]), -1)[:, 0] for part in splits])
    labels: tuple[str, ...] = SENTIMENTS
    if key == "regression_labels" or not np.equal(np.mod(raw, 1), 0).all() or raw.min() < 0:
        label = np.array([_sign(float(v)) for v in raw])
    else:
        label = raw.astype(np.int64)
        if label.max() != len(SENTIMENTS) - 1:
            labels = tuple(f"class {i}" for i in range(int(label.max()) + 1))
    ids = [
        str(one)
        for part in splits
        for one in np.asarray(part.get("id", np.arange(len(part[names[0]])))).reshape(len(part[names[0]]), -1)[:, 0]
    ]
    group = np.array([one.split("$_$")[0] for one in ids])
    modalities = {}
    for name in names:
        values = np.stack(
            [_mean(row.reshape(-1, row.shape[-1])) for part in splits for row in np.asarray(part[name], np.float32)]
        )
        modalities[_name(name)] = _modality(values)
    return Rows(labels, label, group, np.arange(len(label), dtype=np.int64), modalities, f"{path.name}, as arrays")


def dialogues(path: Path) -> Rows:
    """A sequence of dictionaries from dialogue to utterances, in the order of DialogueRNN's authors.

    The first with whole numbers holds the labels; those with vectors of real numbers are text, audio and video, in this
    order, as many as there are.
    """
    stored = _opened(path)
    tables = [t for t in stored if isinstance(t, Mapping) and t] if isinstance(stored, (tuple, list)) else []
    label = next((t for t in tables if _shape(t) == "labels"), None)
    vectors = [t for t in tables if _shape(t) == "vectors"]
    if label is None or not vectors:
        raise ConfigError(
            f"{path}: no dictionaries of labels and vectors in it; expected IEMOCAP_features*.pkl or "
            "MELD_features*.pkl of the DialogueRNN and MMGCN repositories."
        )
    order = sorted(label, key=str)
    highest = max(int(max(label[d])) for d in order if len(label[d]))
    meld = "meld" in path.name.lower()
    labels = MELD_LABELS if meld else IEMOCAP_LABELS
    if highest >= len(labels):
        raise ConfigError(
            f"{path}: a label {highest}, but {', '.join(labels)} are {len(labels)}. "
            "Does the file name match its content?"
        )
    names = {1: ("text",), 2: ("text", "voice"), 3: ("text", "voice", "face")}.get(
        len(vectors), tuple(f"features_{i + 1}" for i in range(len(vectors)))
    )
    modalities = {
        name: _modality(np.concatenate([np.asarray(table[d], np.float32).reshape(len(label[d]), -1) for d in order]))
        for name, table in zip(names, vectors, strict=True)
    }
    group = np.concatenate([np.full(len(label[d]), _speaker(str(d), meld)) for d in order])
    labels_of_rows = np.concatenate([np.asarray(label[d], np.int64) for d in order])
    return Rows(
        labels,
        labels_of_rows,
        group,
        np.arange(len(labels_of_rows), dtype=np.int64),
        modalities,
        f"{path.name}, as dialogues",
    )


FORMATS: dict[str, Callable[[Path], Rows]] = {"cmu-csd": cmu_csd, "arrays": arrays, "dialogues": dialogues}


def _speaker(dialogue: str, meld: bool) -> str:
    """IEMOCAP's dialogues are named Ses01F_…: its five sessions are the groups, each with two speakers."""
    return f"dialogue {dialogue}" if meld else dialogue[:5]


def _name(stem: str) -> str:
    plain = "".join(letter if letter.isalnum() else "_" for letter in NAMES.get(stem, stem))
    return plain if plain.isidentifier() else f"m_{plain}"


def _sign(sentiment: float) -> int:
    return 1 if sentiment == 0 else 0 if sentiment < 0 else 2


def _mean(features: Numbers) -> Numbers:
    """Mean over time, (k, d) -> (d,). Rows of zeros are padding, and COVAREP writes −inf and NaN: both are left out."""
    finite = np.isfinite(features)
    counted = finite & (np.where(finite, features, 0) != 0).any(axis=1, keepdims=True)
    return np.asarray(np.where(counted, features, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1), np.float32)


def _modality(values: Numbers) -> Modality:
    present = np.asarray((values != 0).any(axis=1))
    return Modality("embedding", np.asarray(values, np.float32), present, np.zeros(len(values), np.int64))


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _shape(table: Mapping[Any, Any]) -> str:
    """The content of a dictionary of dialogues: "labels", "vectors" or something else."""
    utterances = next((u for u in table.values() if isinstance(u, Sequence | np.ndarray) and len(u)), None)
    if utterances is None or isinstance(utterances, str):
        return ""
    try:
        values = np.asarray(list(utterances))
    except ValueError:
        return ""
    if values.ndim == 1 and values.dtype.kind in "iu":
        return "labels"
    return "vectors" if values.ndim == 2 and values.dtype.kind == "f" else ""


class _NumbersAndText(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers. Everything else is refused."""

    KNOWN = {
        (f"numpy{core}.multiarray", name) for core in (".core", "._core") for name in ("_reconstruct", "scalar")
    } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it would load {module}.{name}")
        return super().find_class(module, name)


def _opened(path: Path) -> Any:
    """The content of a .npz or .pkl file. Raises ConfigError."""
    try:
        if path.suffix == ".npz":
            return load_npz(path)
        if path.suffix in (".pkl", ".pickle"):
            return _NumbersAndText(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (
        OSError,
        ValueError,
        EOFError,
        IndexError,
        ImportError,
        AttributeError,
        TypeError,
        KeyError,
        OverflowError,
        MemoryError,
        RecursionError,
        struct.error,
        pickle.UnpicklingError,
    ) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}. Only numbers, text and plain containers are read from a .pkl file; "
            "if you trust it, convert its arrays with numpy.savez, labels as 'label' and speakers as 'id'."
        ) from error
    raise ConfigError(f"{path}: expected a .npz or .pkl file")
