"""A trained network becomes the ONNX file that ships, and is compared with it before anybody may use it.

Example:
    export_face(net, Path("models/face-expression.onnx"))
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from pipeline.preprocessing import FACE_PX, PLACE_PX, VOICE_BANDS, VOICE_FRAMES
from pipeline.training.nets import FaceNet, MirroredFaceNet, VoiceNet
from pipeline.training.place.net import Early, PlaceNet
from pipeline.training.sound.net import SoundNet

OPSET = 20  # TensorRT-RTX builds 18 to 22
MAX_DIFFERENCE = 1e-4


def export_face(net: FaceNet, path: Path) -> None:
    """Write `face` (n, 1, 48, 48) -> `logits` (n, 7), `embedding` (n, 256), float32.

    n is free because a picture shows any number of faces, and one call for all costs less than one each. Raises
    RuntimeError, and leaves no file, when ONNX Runtime's answers differ from torch's by more than 1e-4.
    """
    copied = FaceNet()  # exporting must not change the network's memory format
    copied.load_state_dict(net.state_dict())
    _export(
        MirroredFaceNet(copied).eval(),
        path,
        "face",
        torch.randn(3, 1, FACE_PX, FACE_PX, generator=torch.Generator().manual_seed(0)),
    )


def export_voice(net: VoiceNet, path: Path) -> None:
    """Write `voice` (n, 2, 64, 300) -> `logits` (n, labels), `embedding` (n, 512 a view), float32. Raises as export_face does."""
    windows = torch.rand(3, 2, VOICE_BANDS, VOICE_FRAMES, generator=torch.Generator().manual_seed(0))
    windows[:, 1] = 1
    windows[0, :, :, :200] = 0  # not heard
    _export(copy.deepcopy(net).eval(), path, "voice", windows)


def export_sound(net: SoundNet, path: Path) -> None:
    """Write `sound` (n, 2, 64, 300) -> `logits` (n, labels), `embedding` (n, 128 a member), float32. Raises as export_face does."""
    windows = torch.rand(3, 2, VOICE_BANDS, VOICE_FRAMES, generator=torch.Generator().manual_seed(0))
    windows[:, 1] = 1
    windows[0, :, :, :200] = 0  # not heard
    _export(copy.deepcopy(net).eval(), path, "sound", windows)


def export_place(net: PlaceNet, path: Path) -> None:
    """Write `place` (n, 1, 225, 225) -> `logits` (n, labels), `embedding` (n, 3840), float32. Raises as export_face does."""
    _export(copy.deepcopy(net).eval(), path, "place", _noise_pictures())


def export_early(net: PlaceNet, path: Path) -> None:
    """Write `place` (n, 1, 225, 225) -> `early` (n, 192, 8, 8): the blocks that training leaves as they are."""
    _export(Early(copy.deepcopy(net)).eval(), path, "place", _noise_pictures(), ("early",))


def _noise_pictures() -> torch.Tensor:
    return torch.randn(3, 1, PLACE_PX, PLACE_PX, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def _export(
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
