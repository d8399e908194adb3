"""FER2013's faces, near-duplicates among them, and the split into training and validation rows.

Example:
    faces = load_faces(data_folder(None), "train48")           # or a folder with Kaggle's fer2013.csv in it
    train, held_back = split_by_group(near_duplicate_groups(faces.images), fraction=0.1, seed=0)
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

FACE_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # FER2013's own order, 0 to 6

# Two faces whose 24×24 pictures correlate this much are one photograph, cropped or compressed twice: of pairs inspected
# by hand, nearly all above 0.92 are duplicates, about half from 0.90 to 0.92, almost none below 0.88.
DUPLICATE_CORRELATION = 0.91


@dataclass(frozen=True)
class Faces:
    """images: (n, 48, 48) uint8 grey. labels: (n,) int64, an index into FACE_CLASSES."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Faces:
        return Faces(self.images[rows], self.labels[rows])


def load_faces(folder: Path, part: str) -> Faces:
    """One part of FER2013: "train48", "publictest48" or "privatetest48", of our own archive or else of Kaggle's
    fer2013.csv.
    Raises ConfigError when it is missing or not what it should be."""
    path = folder / "faces" / f"fer2013_{part}.npz"
    if not path.is_file():
        if (folder / "fer2013.csv").is_file():
            return _kaggle_faces(folder / "fer2013.csv", part)
        raise ConfigError(
            f"{path}: not there. It holds images (n, 48, 48) uint8, labels (n,) 0 to 6 and the 7 class names; "
            "point --data or SENSORIUM_DATA at the folder that has faces/ in it, or at one with Kaggle's fer2013.csv."
        )
    with np.load(path, allow_pickle=False) as stored:
        classes = tuple(str(name) for name in stored["classes"])
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    if classes != FACE_CLASSES or images.shape[1:] != (48, 48) or len(images) != len(labels):
        raise ConfigError(
            f"{path}: found images {images.shape} with classes {classes}, expected (n, 48, 48) with {FACE_CLASSES}. "
            "Fetch the file again."
        )
    return Faces(images, labels)


def _kaggle_faces(path: Path, part: str) -> Faces:
    """The same part of Kaggle's fer2013.csv: columns emotion, pixels (2304 numbers with spaces between) and Usage."""
    usage = {"train48": "Training", "publictest48": "PublicTest", "privatetest48": "PrivateTest"}[part]
    images, labels = [], []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                if row["Usage"].strip() == usage:
                    images.append(np.array(row["pixels"].split(), np.uint8).reshape(48, 48))
                    labels.append(range(len(FACE_CLASSES))[int(row["emotion"])])
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise ConfigError(
                    f"{path}: line {number} is not as FER2013's are ({error!r}). Fetch the file again."
                ) from error
    if not images:
        raise ConfigError(f"{path}: no rows with the Usage {usage}. Fetch the whole file again.")
    return Faces(np.stack(images), np.array(labels, np.int64))


def near_duplicate_groups(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Group pictures that are nearly the same, also mirrored, so that a split never has duplicates on both sides.

    images: (n, 48, 48). Returns (n,) group numbers; a picture without a duplicate is a group of its own. About 2e12
    multiply-adds for 27,000 pictures: half a minute.
    """

    def unit(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        small = np.stack([cv2.resize(p, (24, 24), interpolation=cv2.INTER_AREA) for p in pictures]).reshape(
            len(pictures), -1
        )
        centred = small.astype(np.float32) - small.mean(axis=1, keepdims=True, dtype=np.float32)
        return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6), dtype=np.float32)

    straight, mirrored = unit(images), unit(np.ascontiguousarray(images[:, :, ::-1]))
    group = np.arange(len(images))
    block = 1024  # rows at a time: 1024 × 27,000 floats = 110 MB
    for start in range(0, len(images), block):
        later = straight[start:].T
        for rows in (straight[start : start + block], mirrored[start : start + block]):
            for a, b in np.argwhere(rows @ later > DUPLICATE_CORRELATION) + start:
                if a < b:
                    group[group == group[b]] = group[a]
    return group.astype(np.int64)


def split_by_group(
    groups: npt.NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for training and rows held back. A group is never split; `fraction` of the groups is held back."""
    names = np.unique(groups)
    held_names = np.random.default_rng(seed).permutation(names)[: round(fraction * len(names))]
    held = np.isin(groups, held_names)
    return np.flatnonzero(~held), np.flatnonzero(held)
