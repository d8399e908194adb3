"""Evaluates the shipped place network in the live engine, with one thread and the live preprocessing. Needs no torch.

Example:
    python run_pipeline.py evaluate place

The figures for the fifteen classes are those of the five folds, from the manifest, because the shipped network was
trained on all of those pictures. The Intel pictures are evaluated again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.installation import MODELS
from pipeline.preprocessing import place_tensor
from pipeline.probabilities import softmax
from pipeline.training.data.folder import data_folder
from pipeline.training.place.data import GLACIER_IS, INTEL, MEANT, PLACES, load_places

PLACE_MODEL = MODELS / "place.onnx"


def place_logits(model: Path, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """images: n pictures (h, w, 3) BGR -> (n, 15) float32."""
    engine = load(model, backend="onnxruntime")
    return np.stack([engine.run({"place": place_tensor(image)[None]})["logits"][0] for image in images])


def intel_figures(model: Path, folder: Path) -> dict[str, float]:
    """Figures on Intel's six colour classes, which are not in the training data.

    The prediction is the group of our labels (MEANT) with the largest sum of probabilities. Our labels that correspond
    to none of Intel's are left out, except in `…_of_all_labels`, where they count as wrong.

    intel_accuracy: all 1,800 pictures, a glacier being right as mountain. intel_accuracy_without_glacier: the other
    1,500.
    """
    manifest = Manifest.read(model)
    if manifest.labels != PLACES:
        raise ConfigError(
            f"{model}: its labels are {manifest.labels}, the fifteen-scene set's are {PLACES}. Give a place model."
        )
    places = load_places(folder / "scenes" / "intel", INTEL)
    return intel_of(place_logits(model, places.images), places.labels, manifest)


def intel_of(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], manifest: Manifest) -> dict[str, float]:
    """logits: (n, 15). labels: (n,), indices into INTEL."""
    probs = softmax(logits.astype(np.float64), temperature=manifest.temperature)
    groups = list(MEANT)
    member = np.array([[name in MEANT[group] for group in groups] for name in PLACES], float)  # (15, 5)
    expected = np.array([groups.index(GLACIER_IS if name == "glacier" else name) for name in INTEL])[labels]
    right = (probs @ member).argmax(axis=1) == expected
    right_of_all = member[probs.argmax(axis=1), expected] > 0
    without = labels != INTEL.index("glacier")
    figures = {
        "intel_accuracy": float(right.mean()),
        "intel_accuracy_without_glacier": float(right[without].mean()),
        "intel_accuracy_of_all_labels": float(right_of_all.mean()),
        "intel_accuracy_of_all_labels_without_glacier": float(right_of_all[without].mean()),
    }
    return figures | {
        f"intel_recall_{name}": float(right[labels == i].mean()) for i, name in enumerate(INTEL) if (labels == i).any()
    }


def report_place(
    *, model: Path = PLACE_MODEL, data: Path | None = None, out: Path = Path("runs/place/evaluated.json")
) -> dict[str, float]:
    """Print a table, and write it as JSON."""
    manifest = Manifest.read(model)
    figures = {name: value for name, value in manifest.metrics.items() if name.startswith("cv_")} | intel_figures(
        model, data_folder(data)
    )
    print(f"| {manifest.id} | |\n|---|---|")
    for name, value in figures.items():
        test_set = (
            "fifteen scenes, 5 folds (measured in training)" if name.startswith("cv_") else "Intel, not trained on"
        )
        print(f"| {test_set}: {name.partition('_')[2].replace('_', ' ')} | {value:.1%} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures
