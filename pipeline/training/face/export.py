"""Exports the selected face network with its manifest and figures.

Example:
    export_face(net, Path("models/face-expression.onnx"))
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.preprocessing import CONTRAST_FLOOR, FACE_PX
from pipeline.training.data.faces import FACE_CLASSES, Faces
from pipeline.training.evaluation.classifier_figures import figures, fit_temperature
from pipeline.training.export.onnx_export import export_network
from pipeline.training.face.evaluate import evaluate_face, face_logits
from pipeline.training.face.net import FaceNet, MirroredFaceNet


def export_face(net: FaceNet, path: Path) -> None:
    """Write `face` (n, 1, 48, 48) -> `logits` (n, 7), `embedding` (n, 256), float32.

    n is free because a picture shows any number of faces, and one call for all costs less than one each. Raises
    RuntimeError, and leaves no file, when ONNX Runtime's answers differ from torch's by more than 1e-4.
    """
    copied = FaceNet()  # exporting must not change the network's memory format
    copied.load_state_dict(net.state_dict())
    export_network(
        MirroredFaceNet(copied).eval(),
        path,
        "face",
        torch.randn(3, 1, FACE_PX, FACE_PX, generator=torch.Generator().manual_seed(0)),
    )


def export_best(best: Path, val_faces: Faces, seed: int, folder: Path, out: Path) -> None:
    """Export the selected checkpoint with its manifest: temperature from the validation faces, figures from both sets.

    Raises ConfigError when the checkpoint was selected on other validation faces.
    """
    selected = torch.load(best, weights_only=True)
    if selected["seed"] != seed:
        raise ConfigError(
            f"{best}: trained with seed {selected['seed']}, with another validation split. "
            f"Give --seed {selected['seed']}."
        )
    net = FaceNet()
    net.load_state_dict(selected["average"])
    export_face(net, out)
    logits = face_logits(out, val_faces.images)
    temperature = fit_temperature(logits, val_faces.labels)
    metrics = {
        f"held_back_{name}": value for name, value in figures(logits, val_faces.labels, temperature=temperature).items()
    }
    manifest = Manifest(
        name="face-expression",
        task="emotion",
        inputs=(
            TensorInfo(
                "face",
                ("n", 1, FACE_PX, FACE_PX),
                "float32",
                f"preprocessing.face_tensor: grey, each face standardised (contrast at least {CONTRAST_FLOOR:g})",
            ),
        ),
        outputs=(
            TensorInfo("logits", ("n", len(FACE_CLASSES)), "float32", "divide by the temperature, then softmax"),
            TensorInfo("embedding", ("n", net.head.in_features), "float32", "what the logits are a linear map of"),
        ),
        labels=FACE_CLASSES,
        temperature=temperature,
        training_data="FER2013 training images without near-duplicates of its test images; "
        "a tenth held back to choose on",
        licence="weights Apache-2.0; the pictures under Kaggle's FER2013 terms, which are for research",
        made_by=f"{selected['command']} (epoch {selected['epoch'] + 1} selected)",
        metrics=metrics,
    )
    manifest.write(out)
    if (folder / "faces" / "fer2013_publictest48.npz").is_file():
        metrics |= evaluate_face(out, folder)
        manifest.write(out)
    print(f"{out}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)
