"""Pictures of places: fifteen classes for training, six other classes for testing, and the folds.

The fifteen-scene set (Oliva and Torralba 2001, Fei-Fei and Perona 2005, Lazebnik 2006) is grey; the Intel set of six
outdoor classes is in colour, a quarter as large, and never trained on.

Example:
    places = load_places(data_folder(None) / "scenes" / "fifteen", PLACES)
    for train_rows, test_rows in folds(places, seed=7): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.preprocessing import MAX_PLACE_ASPECT, PLACE_PX
from pipeline.training.data.faces import near_duplicate_groups

PLACES = (
    "bedroom",
    "coast",
    "forest",
    "highway",
    "industrial",
    "insidecity",
    "kitchen",
    "livingroom",
    "mountain",
    "office",
    "opencountry",
    "store",
    "street",
    "suburb",
    "tallbuilding",
)
INTEL = ("buildings", "forest", "glacier", "mountain", "sea", "street")

# Our labels for each of Intel's, fixed before any result was known. The fifteen have no glacier: mountain counts as
# right for one, and figures without glaciers are reported too. Open country and the rooms correspond to none of the
# six.
MEANT = {
    "buildings": ("insidecity", "tallbuilding", "industrial", "suburb"),
    "forest": ("forest",),
    "mountain": ("mountain",),
    "sea": ("coast",),
    "street": ("street", "highway"),
}
GLACIER_IS = "mountain"
FOLDS = 5


@dataclass(frozen=True)
class Places:
    """images: n pictures (h, w, 3) uint8 BGR. labels: (n,) int64, an index into the classes they were loaded with."""

    images: list[npt.NDArray[np.uint8]]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_places(folder: Path, classes: tuple[str, ...]) -> Places:
    """folder/<class>/*.jpg. Raises ConfigError when a class or its pictures are missing."""
    images, labels = [], []
    for index, name in enumerate(classes):
        files = sorted((folder / name).glob("*.jpg"))
        if not files:
            raise ConfigError(
                f"{folder / name}: no pictures (*.jpg). --data or SENSORIUM_DATA names the folder with "
                "scenes/fifteen/<class> and scenes/intel/<class> in it."
            )
        for file in files:
            image = cv2.imread(str(file), cv2.IMREAD_COLOR)
            if image is None:
                raise ConfigError(f"{file}: not a picture that OpenCV can read. Fetch it again.")
            images.append(np.asarray(image, np.uint8))
            labels.append(index)
    return Places(images, np.array(labels, np.int64))


def folds(places: Places, *, seed: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(training rows, test rows), five times: every row is tested once, classes are spread evenly, and near-duplicates
    are never on both sides.
    """
    groups = near_duplicate_groups(np.stack([_detail(image) for image in places.images]))
    random = np.random.default_rng(seed)
    fold_of = np.zeros(len(places), np.int64)
    assigned = 0
    for label in np.unique(places.labels):
        for group in random.permutation(np.unique(groups[places.labels == label])):
            fold_of[groups == group] = assigned % FOLDS
            assigned += 1
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(FOLDS)]


def _detail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(48, 48): edges without shading. Two coasts have similar shading, but only copies have the same edges."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (48, 48), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    return np.clip(grey - cv2.GaussianBlur(grey, (0, 0), 3.0) + 128, 0, 255).astype(np.uint8)


def vary(image: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Augmentation: mirrored, cropped, squeezed, blurred, lighter or darker, noisy.

    image: (h, w, 3). Returns (h', w', 3). place_tensor squeezes pictures up to 3:2 in the same way.
    """
    height, width = image.shape[:2]
    area, aspect = random.uniform(0.45, 1.0), np.exp(random.uniform(-1, 1) * np.log(MAX_PLACE_ASPECT))
    rows, columns = (
        min(height, round(height * (area / aspect) ** 0.5)),
        min(width, round(width * (area * aspect) ** 0.5)),
    )
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    crop = image[top : top + rows, left : left + columns]
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    if random.random() < 0.5:  # a coarser sensor, or the scene out of focus
        small = random.uniform(0.35, 1.0)
        coarse = cv2.resize(
            crop, (max(16, round(columns * small)), max(16, round(rows * small))), interpolation=cv2.INTER_AREA
        )
        crop = cv2.resize(coarse, (PLACE_PX, PLACE_PX), interpolation=cv2.INTER_LINEAR)
    light = 255 * (np.ascontiguousarray(crop).astype(np.float32) / 255) ** np.exp(random.uniform(-0.5, 0.5))
    light = (light - 127) * random.uniform(0.6, 1.25) + 127 + random.uniform(-25, 25)
    light += random.normal(0, random.uniform(0, 8), light.shape[:2])[..., None]
    return np.clip(light, 0, 255).astype(np.uint8)
