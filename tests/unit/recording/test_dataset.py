"""The folder of an aligned, labelled data set: it is read as it was written, and errors name the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.recording import dataset
from pipeline.recording.dataset import Modality, Rows


def rows(n=3, *, group="anna", labels=("happy", "sad")):
    face = Modality("embedding", np.ones((n, 4), np.float32), np.ones(n, bool), np.zeros(n, np.int64))
    voice = Modality("probs", np.zeros((n, 2), np.float32), np.zeros(n, bool), np.zeros(n, np.int64))
    label = np.arange(n, dtype=np.int64) % 3 - 1
    return Rows(
        labels, label, np.full(n, group), np.arange(n, dtype=np.int64) * 10, {"face": face, "voice": voice}, "a test"
    )


def test_a_data_set_comes_back_as_it_was_saved(tmp_path):
    dataset.save(tmp_path / "set", rows())
    back = dataset.load(tmp_path / "set")
    assert back.labels == ("happy", "sad") and back.made_by == "a test" and list(back.group) == ["anna"] * 3
    assert list(back.label) == [-1, 0, 1] and list(back.capture_ns) == [0, 10, 20]
    assert back.modalities["face"].values.tolist() == [[1.0] * 4] * 3 and not back.modalities["voice"].present.any()
    assert back.modalities["face"].dim == 4 and back.modalities["voice"].kind == "probs"


def test_a_data_set_is_for_its_user_alone(tmp_path):
    dataset.save(tmp_path / "set", rows())
    assert (tmp_path / "set").stat().st_mode & 0o077 == 0


def test_rows_of_two_recordings_are_concatenated_with_their_groups():
    both = dataset.concatenate([rows(2, group="anna"), rows(3, group="ben")])
    assert (
        len(both) == 5
        and list(both.group) == ["anna"] * 2 + ["ben"] * 3
        and both.modalities["face"].values.shape == (5, 4)
    )


def test_rows_of_other_labels_are_not_concatenated():
    with pytest.raises(ValueError, match="differ in their labels"):
        dataset.concatenate([rows(), rows(labels=("happy", "calm"))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.array([0, 1, 2])}, "label: from 0 to 2, expected -1 to 1"),
        ({"capture_ns": np.zeros(2, np.int64)}, "capture_ns: int64"),
        ({"group": np.zeros(3)}, "group: float64"),
        ({"labels": ("happy", "happy")}, "occurs twice"),
        ({"modalities": {"label": rows().modalities["face"]}}, "not a valid name"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(change, message):
    fields = {name: getattr(rows(), name) for name in ("labels", "label", "group", "capture_ns", "modalities")}
    with pytest.raises(ValueError, match=message):
        Rows(**{**fields, **change})


def test_a_folder_without_a_data_set_names_the_command_that_exports_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no dataset.json.*export REC.mcap"):
        dataset.load(tmp_path)


def test_a_description_that_does_not_match_its_rows_is_refused(tmp_path):
    dataset.save(tmp_path, rows())
    description = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "rows": 4}))
    with pytest.raises(ConfigError, match=r"says 4 rows.*has 3"):
        dataset.load(tmp_path)


def test_a_broken_or_foreign_file_is_named(tmp_path):
    dataset.save(tmp_path, rows())
    whole = (tmp_path / "rows.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no"):
        (tmp_path / "rows.npz").write_bytes(broken)
        with pytest.raises(ConfigError, match=r"rows\.npz"):
            dataset.load(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "another"}')
    with pytest.raises(ConfigError, match="not a data set of Sensorium"):
        dataset.load(tmp_path)
