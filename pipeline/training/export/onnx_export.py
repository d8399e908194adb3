"""A trained network becomes the ONNX file that ships, and is compared with it before anybody may use it.

Example:
    export_face(net, Path("models/face-expression.onnx"))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

OPSET = 20  # TensorRT-RTX builds 18 to 22
MAX_DIFFERENCE = 1e-4


def export_network(
    plain: torch.nn.Module,
    path: Path,
    name: str,
    samples: torch.Tensor,
    outputs: tuple[str, ...] = ("logits", "embedding"),
) -> None:
    write_checked(
        plain, (samples[:1],), path, [name], outputs, lambda file: largest_difference(plain, file, samples, outputs)
    )


def write_checked(
    net: torch.nn.Module,
    samples: tuple[torch.Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    difference: Callable[[Path], float],
) -> None:
    """Write the file of a network whose inputs and outputs are all free in their first dimension.

    difference: how far the answers of a file are from the network's. Raises RuntimeError, and leaves no file, where that
    is more than MAX_DIFFERENCE, or no number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_suffix(".onnx.unchecked")
    with warnings.catch_warnings():
        # The older exporter is used on purpose: it folds batch-norm into the convolutions and needs no further package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            samples,
            str(unchecked),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={each: {0: "n"} for each in (*inputs, *outputs)},
        )
    found = difference(unchecked)
    if not found <= MAX_DIFFERENCE:
        unchecked.unlink()
        raise RuntimeError(f"{path}: ONNX Runtime differs from torch by {found:.2g}, more than {MAX_DIFFERENCE}")
    unchecked.replace(path)


@torch.no_grad()
def largest_difference(
    net: torch.nn.Module, path: Path, samples: torch.Tensor, outputs: tuple[str, ...] = ("logits", "embedding")
) -> float:
    """Between torch and ONNX Runtime, over all outputs. samples: (n, …), as the network takes them."""
    net.eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exported = session.run(list(outputs), {session.get_inputs()[0].name: samples.numpy()})
    return furthest(net(samples), exported)


def furthest(ours: Sequence[torch.Tensor], theirs: Sequence[np.ndarray]) -> float:
    """NaN where either holds one, which Python's max would pass over."""
    return float(np.max([np.abs(a.numpy() - b).max() for a, b in zip(ours, theirs, strict=True)]))
