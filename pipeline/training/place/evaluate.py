"""Measures the shipped place network as the live task runs it: the same engine, one thread, the same features. No torch.

    python run_pipeline.py evaluate place

The fifteen classes' figures are those of the five folds, as they were measured in training (the manifest holds them): the
net that ships has seen all of those pictures. The Intel pictures are measured anew.
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
    """Intel's six colour classes, without training on them. The answer is the group of our labels (MEANT) with the largest sum
    of probabilities; our labels that mean none of Intel's are left out, but in `…_of_all_labels`, where they are wrong answers.

    intel_accuracy: all 1,800, a glacier being right as mountain. intel_accuracy_without_glacier: the other 1,500.
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
    wanted = np.array([groups.index(GLACIER_IS if name == "glacier" else name) for name in INTEL])[labels]
    right = (probs @ member).argmax(axis=1) == wanted
    at_once = member[probs.argmax(axis=1), wanted] > 0
    without = labels != INTEL.index("glacier")
    found = {
        "intel_accuracy": float(right.mean()),
        "intel_accuracy_without_glacier": float(right[without].mean()),
        "intel_accuracy_of_all_labels": float(at_once.mean()),
        "intel_accuracy_of_all_labels_without_glacier": float(at_once[without].mean()),
    }
    return found | {
        f"intel_recall_{name}": float(right[labels == i].mean()) for i, name in enumerate(INTEL) if (labels == i).any()
    }


def report_place(
    *, model: Path = PLACE_MODEL, data: Path | None = None, out: Path = Path("runs/place/evaluated.json")
) -> dict[str, float]:
    """A table, and the same as a JSON file."""
    manifest = Manifest.read(model)
    figures = {name: value for name, value in manifest.metrics.items() if name.startswith("cv_")} | intel_figures(
        model, data_folder(data)
    )
    print(f"| {manifest.id} | |\n|---|---|")
    for name, value in figures.items():
        told = "fifteen scenes, 5 folds (measured in training)" if name.startswith("cv_") else "Intel, never trained on"
        print(f"| {told}: {name.partition('_')[2].replace('_', ' ')} | {value:.1%} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures
