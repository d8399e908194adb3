"""Where the training data lies and how a part of it is held back to choose on.

The data is never part of the repository. `SENSORIUM_DATA` names its folder; without it, `../shared/data` is used where
that exists. A set that is missing is a ConfigError with one instruction.

    faces = load_faces(data_folder(None), "train48")
    train, held_back = split_by_group(near_duplicate_groups(faces.images), fraction=0.1, seed=0)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

FACE_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")   # FER2013's own order, 0 to 6

# Two faces whose 24×24 pictures correlate this much are one photograph, cropped or compressed twice: looked at in bands,
# nearly all pairs above 0.92 are twins, about half at 0.90 to 0.92, almost none below 0.88.
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


def data_folder(data: Path | None) -> Path:
    """The folder with the training data: the one given, else SENSORIUM_DATA, else ../shared/data beside the repository.

    Raises ConfigError when it is not there.
    """
    named = data or (Path(os.environ["SENSORIUM_DATA"]) if os.environ.get("SENSORIUM_DATA") else None)
    folder = named or Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        raise ConfigError(
            f"training data: no folder {folder}. Say where it lies: --data DIR, or SENSORIUM_DATA=DIR in the environment."
        )
    return folder


def load_faces(folder: Path, part: str) -> Faces:
    """One part of FER2013: "train48" or "publictest48". Raises ConfigError when it is missing or not what it should be."""
    path = folder / "faces" / f"fer2013_{part}.npz"
    if not path.is_file():
        raise ConfigError(
            f"{path}: not there. It holds images (n, 48, 48) uint8, labels (n,) 0 to 6 and the 7 class names; "
            "point --data or SENSORIUM_DATA at the folder that has faces/ in it."
        )
    with np.load(path, allow_pickle=False) as stored:
        classes = tuple(str(name) for name in stored["classes"])
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    if classes != FACE_CLASSES or images.shape[1:] != (48, 48) or len(images) != len(labels):
        raise ConfigError(
            f"{path}: found images {images.shape} with classes {classes}, expected (n, 48, 48) with {FACE_CLASSES}. "
            "Fetch the file anew."
        )
    return Faces(images, labels)


def near_duplicate_groups(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Join pictures that are nearly the same, mirrored ones too, so that a split never puts twins on both sides.

    images: (n, 48, 48). Returns (n,) group numbers; a picture without a twin is a group of its own. About 2e12
    multiply-adds for 27,000 pictures: half a minute.
    """
    def unit(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        small = np.stack([cv2.resize(p, (24, 24), interpolation=cv2.INTER_AREA) for p in pictures]).reshape(len(pictures), -1)
        centred = small.astype(np.float32) - small.mean(axis=1, keepdims=True, dtype=np.float32)
        return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6), dtype=np.float32)

    straight, mirrored = unit(images), unit(np.ascontiguousarray(images[:, :, ::-1]))
    group = np.arange(len(images))
    block = 1024                                                    # rows at a time: 1024 × 27,000 floats = 110 MB
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
    """Rows to train on and rows to hold back. Groups go to one side as a whole; `fraction` of the groups is held back."""
    names = np.unique(groups)
    held_names = np.random.default_rng(seed).permutation(names)[: round(fraction * len(names))]
    held = np.isin(groups, held_names)
    return np.flatnonzero(~held), np.flatnonzero(held)
