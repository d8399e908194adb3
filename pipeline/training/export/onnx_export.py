"""Exports a trained network to ONNX, and compares the file with torch before it gets its name.

Example:
    export_network(net, Path("face.onnx"), "face", samples)      # raises where torch and ONNX Runtime differ
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES

OPSET = 20  # TensorRT-RTX builds 18 to 22
MAX_DIFFERENCE = 1e-4


def sample_sound_windows() -> torch.Tensor:
    """(3, 2, 64, 300): log-mel and its mask, as voice and sound networks take them; the first lacks 200 columns."""
    windows = torch.rand(3, 2, VOICE_BANDS, VOICE_FRAMES, generator=torch.Generator().manual_seed(0))
    windows[:, 1] = 1
    windows[0, :, :, :200] = 0  # columns that were not received
    return windows


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
    """Write the file of a network whose inputs and outputs all have a dynamic first dimension.

    difference: the largest difference between the outputs of a file and of the network. Raises RuntimeError, and leaves
        no file, where that is more than MAX_DIFFERENCE, or NaN.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_suffix(".onnx.unchecked")
    with warnings.catch_warnings():
        # The TorchScript exporter, on purpose: it folds batch norm into the convolutions and needs no further package.
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
    gap = difference(unchecked)
    if not gap <= MAX_DIFFERENCE:
        unchecked.unlink()
        raise RuntimeError(f"{path}: ONNX Runtime differs from torch by {gap:.2g}, more than {MAX_DIFFERENCE}")
    unchecked.replace(path)


@torch.no_grad()
def largest_difference(
    net: torch.nn.Module, path: Path, samples: torch.Tensor, outputs: tuple[str, ...] = ("logits", "embedding")
) -> float:
    """Between torch and ONNX Runtime, over all outputs. samples: (n, …), as the network takes them."""
    net.eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exported = session.run(list(outputs), {session.get_inputs()[0].name: samples.numpy()})
    return largest_gap(net(samples), exported)


def largest_gap(ours: Sequence[torch.Tensor], theirs: Sequence[np.ndarray]) -> float:
    """Largest absolute difference; NaN where either holds one, which Python's max would skip."""
    return float(np.max([np.abs(a.numpy() - b).max() for a, b in zip(ours, theirs, strict=True)]))
