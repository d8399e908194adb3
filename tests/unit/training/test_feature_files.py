"""Feature files of public data sets, from tiny synthetic ones; and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.training.data.faces import (
    FACE_CLASSES,
    load_faces,
)
from pipeline.training.data.rows import load_rows

RANDOM = np.random.default_rng(0)


def csd(path: Path, name: str, segments: dict[str, tuple[Any, Any]]) -> None:
    h5py = pytest.importorskip("h5py", reason="reading .csd needs h5py: scripts/setup train")
    with h5py.File(path, "w") as file:
        for segment, (intervals, features) in segments.items():
            group = file.create_group(f"{name}/data/{segment}")
            group["intervals"], group["features"] = np.array(intervals, float), np.array(features, np.float32)


def test_mosei_rows_are_utterances_with_the_mean_of_their_segments(tmp_path: Path) -> None:
    csd(
        tmp_path / "CMU_MOSEI_Labels.csd",
        "All Labels",
        {
            "abc": ([[0, 2], [2, 4]], [[1, 2, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0]]),
            "xyz": ([[0, 4]], [[0, 0, 0, 3, 0, 0, 1]]),
        },
    )
    csd(tmp_path / "COVAREP.csd", "COVAREP", {"abc": ([[0, 1], [1, 2], [2, 3]], [[1, 5], [3, 5], [-np.inf, 7]])})
    rows = load_rows(tmp_path, "cmu-csd")
    assert [rows.labels[i] for i in rows.label] == ["happy", "neutral", "angry"] and list(rows.group) == [
        "abc",
        "abc",
        "xyz",
    ]
    voice = rows.modalities["COVAREP"]
    assert voice.values.tolist() == [[2, 5], [0, 7], [0, 0]] and voice.present.tolist() == [True, True, False]
    assert voice.offset_ns[1] == -500_000_000  # the sound is in the first half of its two seconds


def test_mosi_labels_are_the_sign_of_the_sentiment(tmp_path: Path) -> None:
    csd(tmp_path / "Opinion_Labels.csd", "Opinion", {"v": ([[0, 1], [1, 2], [2, 3]], [[-2.4], [0], [0.6]])})
    csd(tmp_path / "words.csd", "words", {"v[1]": ([[1, 2]], [[4, 4]])})
    rows = load_rows(tmp_path, "cmu-csd")
    assert [rows.labels[i] for i in rows.label] == ["negative", "neutral", "positive"]


def test_pickled_splits_of_arrays_become_one_set_grouped_by_video(tmp_path: Path) -> None:
    def split(ids: list[str], labels: list[float]) -> dict[str, Any]:
        audio = np.zeros((len(ids), 3, 2), np.float32)
        audio[:, 0] = [2, 4]  # the other two time steps are padding
        return {
            "text": RANDOM.normal(size=(len(ids), 3, 4)).astype(np.float32),
            "audio": audio,
            "id": ids,
            "raw_text": ["hm"] * len(ids),
            "regression_labels": np.array(labels, np.float32),
        }

    path = tmp_path / "unaligned.pkl"
    path.write_bytes(pickle.dumps({"train": split(["v1$_$1", "v1$_$2"], [1.5, -1]), "test": split(["v2$_$7"], [0])}))
    rows = load_rows(path, "arrays")
    assert list(rows.group) == ["v1", "v1", "v2"] and [rows.labels[i] for i in rows.label] == [
        "positive",
        "negative",
        "neutral",
    ]
    assert rows.modalities["voice"].values.tolist() == [[2, 4]] * 3 and rows.modalities["text"].dim == 4


def test_plain_archive_of_arrays_is_read_too(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "own.npz",
        face=np.ones((4, 3), np.float32),
        label=np.array([0, 1, 3, 1]),
        id=np.array(["a", "b", "a", "b"]),
    )
    rows = load_rows(tmp_path / "own.npz", "arrays")
    assert rows.labels == ("class 0", "class 1", "class 2", "class 3") and list(rows.group) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("name", "dialogue", "group", "labels"),
    [
        ("IEMOCAP_features.pkl", "Ses03M_impro02", "Ses03", ["angry", "happy"]),
        ("MELD_features_raw.pkl", 17, "dialogue 17", ["sad", "neutral"]),
    ],
)
def test_dialogues_of_iemocap_and_meld(tmp_path: Path, name: str, dialogue: Any, group: str, labels: list[str]) -> None:
    vectors = [{dialogue: [RANDOM.normal(size=width) for _ in range(2)]} for width in (5, 3, 4)]
    named = [{dialogue: ["u1", "u2"]}, {dialogue: ["M", "F"]}, {dialogue: [3, 0]}]
    stored = (*named, *vectors, {dialogue: ["hi", "you"]}, [dialogue], [])
    (tmp_path / name).write_bytes(pickle.dumps(stored, protocol=2))
    rows = load_rows(tmp_path / name, "dialogues")
    assert list(rows.group) == [group, group] and [rows.labels[i] for i in rows.label] == labels
    assert {n: m.dim for n, m in rows.modalities.items()} == {"text": 5, "voice": 3, "face": 4}


def test_pickle_that_would_run_a_program_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"train": Trap()}))
    with pytest.raises(ConfigError, match=r"trap\.pkl: cannot be read: it would load posix\.system.*numpy\.savez"):
        load_rows(tmp_path / "trap.pkl", "arrays")
    assert not (tmp_path / "ran").exists()


def test_missing_set_and_unknown_format_are_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mosei: does not exist\. Set --data .*licence"):
        load_rows(tmp_path / "mosei", "cmu-csd")
    with pytest.raises(ConfigError, match=r"0 \.csd files.*CMU Multimodal SDK"):
        load_rows(tmp_path, "cmu-csd")
    with pytest.raises(ConfigError, match=r"nothing called 'cmu-cds'\. Did you mean 'cmu-csd'"):
        load_rows(tmp_path, "cmu-cds")
    with pytest.raises(ConfigError, match=r"no clips of ravdess\. Give the folder.*03-01-05"):
        load_rows(tmp_path, "ravdess")


def test_faces_are_read_from_kaggles_own_file(tmp_path: Path) -> None:
    pixels = " ".join(["7"] * 2304)
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n6,{pixels},PublicTest\n")
    faces = load_faces(tmp_path, "publictest48")
    assert faces.labels.tolist() == [6] and faces.images.shape == (1, 48, 48) and faces.images.max() == 7
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n3,7 7 7,Training\n")
    with pytest.raises(ConfigError, match="line 2 is not as FER2013's are"):
        load_faces(tmp_path, "train48")
    assert FACE_CLASSES[3] == "happy"
