"""Loads the weights of a shipped face network from its ONNX file, so that training can continue from them.

The export folds each batch norm into the convolution before it. Training needs the norms again, with the statistics of
real faces, and without changing the outputs.

Example:
    net = face_net_from(Path("models/face-expression.onnx"), training.images)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.preprocessing import face_tensor
from pipeline.training.face.net import FaceNet

# A convolution before a norm may have any scale, which only sets the effective learning rate of the filter. torch
# initialises filters with about this norm, so that learning rates mean the same as in a first training.
FILTER_NORM = 3**-0.5
FACES_TO_MEASURE = 2048


def face_net_from(path: Path, images: npt.NDArray[np.uint8]) -> FaceNet:
    """A FaceNet with the outputs of the file.

    Args:
        path: The ONNX file.
        images: (n, 48, 48), the faces whose statistics the norms get.

    Raises ConfigError when the file's convolutions are not those of a FaceNet.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: does not exist. --start needs the ONNX file of a face network trained here.")
    graph = onnx.load(str(path)).graph
    # The names of a mirrored network start with net., those of a plain one do not.
    weights = {
        tensor.name.removeprefix("net."): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    folded = [
        tuple(weights[name.removeprefix("net.")] for name in node.input[1:3])
        for node in graph.node
        if node.op_type == "Conv"
    ]

    net = FaceNet().eval()
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]  # in the order they run
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    expected_shapes, shapes = (
        [tuple(c.weight.shape) for c in convolutions],
        [tuple(weight.shape) for weight, _ in folded],
    )
    if shapes != expected_shapes or not {"head.weight", "head.bias"} <= set(weights):
        raise ConfigError(
            f"{path}: {len(shapes)} convolutions that are not a FaceNet's {len(expected_shapes)}. "
            "--start needs the ONNX file of a face network trained here."
        )
    with torch.no_grad():
        net.head.weight.copy_(weights["head.weight"])
        net.head.bias.copy_(weights["head.bias"])
        for convolution, norm, (weight, bias) in zip(convolutions, norms, folded, strict=True):
            convolution.weight.copy_(weight)
            norm.running_var.fill_(1 - norm.eps)  # mean 0, variance 1: the norm adds the bias and nothing else
            norm.bias.copy_(bias)
        for norm, (mean, variance) in zip(norms, _statistics(net, norms, images), strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias += mean
        for convolution, norm in zip(convolutions, norms, strict=True):
            length = convolution.weight.flatten(1).norm(dim=1).clamp_min(1e-8) / FILTER_NORM  # (channels,)
            convolution.weight /= length[:, None, None, None]
            norm.running_mean /= length
            norm.running_var /= length**2
            # The norm's epsilon does not scale with the variance: correct for it, to keep the outputs.
            norm.weight *= ((norm.running_var + norm.eps) / (norm.running_var + norm.eps / length**2)).sqrt()
    return net


@torch.no_grad()
def _statistics(
    net: FaceNet, norms: list[nn.BatchNorm2d], images: npt.NDArray[np.uint8]
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance, per channel, of the input of each norm."""
    moments_of: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def record(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0]  # (B, channels, h, w)
        moments_of[norm].append(torch.stack([x.mean(dim=(0, 2, 3)), (x**2).mean(dim=(0, 2, 3))]))

    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    stride = max(1, len(images) // FACES_TO_MEASURE)
    for batch in np.array_split(images[::stride], max(1, len(images) // stride // 256)):
        net(torch.from_numpy(face_tensor(batch)))
    for hook in hooks:
        hook.remove()
    moments = [torch.stack(moments_of[norm]).mean(dim=0) for norm in norms]
    return [(mean, (square - mean**2).clamp_min(1e-8)) for mean, square in moments]
