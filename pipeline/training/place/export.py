"""Exports the place network: the frozen part for training, and the whole for shipping.

Example:
    export_place(net, Path("models/place.onnx"))
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.preprocessing import PLACE_PX
from pipeline.training.export.onnx_export import export_network
from pipeline.training.place.data import PLACES
from pipeline.training.place.net import Early, PlaceNet


def export_place(net: PlaceNet, path: Path) -> None:
    """Write `place` (n, 1, 225, 225) -> `logits` (n, labels), `embedding` (n, 3840), float32.

    Raises as export_face does.
    """
    export_network(copy.deepcopy(net).eval(), path, "place", _noise_pictures())


def export_early(net: PlaceNet, path: Path) -> None:
    """Write `place` (n, 1, 225, 225) -> `early` (n, 192, 8, 8): the frozen blocks."""
    export_network(Early(copy.deepcopy(net)).eval(), path, "place", _noise_pictures(), ("early",))


def _noise_pictures() -> torch.Tensor:
    return torch.randn(3, 1, PLACE_PX, PLACE_PX, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def manifest_of(net: PlaceNet, temperature: float, command: str, metrics: dict[str, float]) -> Manifest:
    return Manifest(
        name="place",
        task="place",
        inputs=(
            TensorInfo(
                "place",
                ("n", 1, PLACE_PX, PLACE_PX),
                "float32",
                "preprocessing.place_tensor: the picture's grey middle, -1 to 1",
            ),
        ),
        outputs=(
            TensorInfo("logits", ("n", len(PLACES)), "float32", "divide by the temperature, then softmax"),
            TensorInfo(
                "embedding", ("n", net.head.in_features), "float32", "of whose square roots the logits are a linear map"
            ),
        ),
        labels=PLACES,
        temperature=temperature,
        training_data="fifteen-scene set, 100 grey pictures a class; start weights: EfficientNet-Lite0 on ImageNet",
        licence="weights Apache-2.0, as their start weights (EfficientNet-Lite0, Google; file by ML Illustrated); "
        "the pictures for research use, without a licence file",
        made_by=command,
        metrics=metrics,
    )
