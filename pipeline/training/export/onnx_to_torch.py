"""Runs an ONNX file in torch, operator by operator: the reference for the results and times of ONNX Runtime.

It is built from the file itself, so that the comparison is with what ships, also where no checkpoint exists. Batch
norms that the export folded are folded here too, which is to torch's advantage. It supports the operators of our
models; the error names any other.

Example:
    model = TorchModel(Path("models/face-expression.onnx"))
    model.run({"face": faces})["logits"]                 # numpy in, numpy out, as an engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from pipeline.errors import EngineError

Attributes = dict[str, Any]
Operator = Callable[..., Any]

_TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}


class TorchModel:
    """One ONNX file in torch.

    Args:
        path: The ONNX file. Raises EngineError for an unsupported operator.
        device: Where it runs: "cpu" or "cuda".
        half: Weights and inputs in float16.
    """

    def __init__(self, path: Path, *, device: str = "cpu", half: bool = False) -> None:
        graph = onnx.load(str(path)).graph
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise EngineError(f"{path}: cannot run in torch: operators {', '.join(unknown)} are not supported here")
        self._device, self.half = torch.device(device), half
        known = {weight.name: self._placed(numpy_helper.to_array(weight)) for weight in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in known]
        self.outputs = [value.name for value in graph.output]
        self._steps: list[tuple[Operator, list[str], list[str], Attributes]] = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                known[node.output[0]] = self._placed(numpy_helper.to_array(attributes["value"]))
                continue
            operator = OPERATORS[node.op_type]
            if node.input and all(not name or name in known for name in node.input):  # constant: computed once
                outputs = _as_sequence(operator([known.get(name) for name in node.input], attributes))
                known.update(zip(node.output, outputs, strict=False))
            else:
                self._steps.append((operator, list(node.input), list(node.output), attributes))
        self._known = known

    def _placed(self, value: np.ndarray[Any, Any]) -> Tensor:
        tensor = torch.from_numpy(np.array(value)).to(self._device)
        return tensor.half() if self.half and tensor.dtype == torch.float32 else tensor

    @torch.inference_mode()
    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values: dict[str, Any] = {**self._known, **inputs, "": None}
        for operator, names, outputs, attributes in self._steps:
            result = operator([values[name] for name in names], attributes)
            if len(outputs) == 1:
                values[outputs[0]] = result if isinstance(result, Tensor) else result[0]
            else:
                values.update(zip(outputs, result, strict=False))
        return {name: values[name] for name in self.outputs}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        tensors = {name: self._placed(value) for name, value in inputs.items()}
        return {name: value.float().cpu().numpy() for name, value in self.forward(tensors).items()}


def _as_sequence(result: Any) -> Sequence[Any]:
    return [result] if isinstance(result, Tensor) else result


def _pads(x: Tensor, attributes: Attributes) -> tuple[Tensor, list[int]]:
    """The input, padded here where the two sides differ, and the padding left to the operator."""
    pads = list(attributes.get("pads", [0] * 2 * (x.dim() - 2)))
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin
    sides = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return F.pad(x, sides), [0] * len(begin)


def _conv(i: list[Any], a: Attributes) -> Tensor:
    x, padding = _pads(i[0], a)
    ones = [1] * len(padding)
    function = {3: F.conv1d, 4: F.conv2d}[x.dim()]
    return function(
        x,
        i[1],
        i[2] if len(i) > 2 else None,
        a.get("strides", ones),
        padding,
        a.get("dilations", ones),
        a.get("group", 1),
    )


def _conv_transpose(i: list[Any], a: Attributes) -> Tensor:
    pads = a.get("pads", [0] * 4)
    return F.conv_transpose2d(
        i[0],
        i[1],
        i[2] if len(i) > 2 else None,
        a.get("strides", [1, 1]),
        pads[:2],
        a.get("output_padding", [0, 0]),
        a.get("group", 1),
        a.get("dilations", [1, 1]),
    )


def _average_pool(i: list[Any], a: Attributes) -> Tensor:
    x, padding = _pads(i[0], a)
    kernel = a["kernel_shape"]
    function: Operator = {3: F.avg_pool1d, 4: F.avg_pool2d}[x.dim()]
    return function(
        x, kernel, a.get("strides", [1] * len(kernel)), padding, count_include_pad=bool(a.get("count_include_pad", 0))
    )  # type: ignore[no-any-return]


def _gemm(i: list[Any], a: Attributes) -> Tensor:
    left = i[0].t() if a.get("transA") else i[0]
    right = i[1].t() if a.get("transB") else i[1]
    if len(i) < 3 or i[2] is None:
        return a.get("alpha", 1.0) * (left @ right)
    return torch.addmm(i[2], left, right, beta=a.get("beta", 1.0), alpha=a.get("alpha", 1.0))


def _lstm(i: list[Any], a: Attributes) -> list[Tensor]:
    """One layer, forward, as torch exports it: no lengths, no peepholes.

    X (t, n, in) -> Y (t, 1, n, h), Y_h and Y_c (1, n, h).
    """
    if (
        a.get("direction", b"forward") != b"forward"
        or a.get("layout")
        or len(i) > 7
        or (len(i) > 4 and i[4] is not None)
    ):
        raise EngineError("cannot run in torch: an LSTM that is not a plain forward layer")

    def torch_order(
        gates: Tensor,
    ) -> Tensor:  # ONNX: input, output, forget, cell; torch: input, forget, cell, output
        gate_i, gate_o, gate_f, gate_c = gates.chunk(4)
        return torch.cat([gate_i, gate_f, gate_c, gate_o])

    weights = [torch_order(part) for part in (i[1][0], i[2][0], *i[3][0].chunk(2))]
    out, hidden, cell = torch.lstm(i[0], (i[5], i[6]), weights, True, 1, 0.0, False, False, False)
    return [out[:, None], hidden, cell]


def _axes(i: list[Any], a: Attributes, at: int = 1) -> list[int]:
    return [int(axis) for axis in (i[at].tolist() if len(i) > at and i[at] is not None else a.get("axes", []))]


def _reduce(function: Operator) -> Operator:
    def reduce(i: list[Any], a: Attributes) -> Any:
        return function(i[0], _axes(i, a) or list(range(i[0].dim())), bool(a.get("keepdims", 1)))

    return reduce


def _slice(i: list[Any], a: Attributes) -> Tensor:
    starts, ends = i[1].tolist(), i[2].tolist()
    axes = i[3].tolist() if len(i) > 3 and i[3] is not None else list(range(len(starts)))
    steps = i[4].tolist() if len(i) > 4 and i[4] is not None else [1] * len(starts)
    x = i[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, stop, step = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            where = [slice(None)] * x.dim()
            where[axis] = slice(first, max(first, stop), step)
            x = x[tuple(where)]
        else:  # torch has no slices that run backwards
            x = x.index_select(axis, torch.arange(first, stop, step, device=x.device))
    return x  # type: ignore[no-any-return]


def _split(i: list[Any], a: Attributes) -> Any:
    axis = a.get("axis", 0)
    if len(i) > 1 and i[1] is not None:
        return torch.split(i[0], i[1].tolist(), axis)
    return torch.chunk(i[0], a["num_outputs"], axis)


def _gather(i: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 0) % i[0].dim()
    if i[1].dim() == 0:
        return i[0].select(axis, int(i[1]))  # type: ignore[no-any-return]
    shape = (*i[0].shape[:axis], *i[1].shape, *i[0].shape[axis + 1 :])
    return i[0].index_select(axis, i[1].reshape(-1)).reshape(shape)  # type: ignore[no-any-return]


def _unsqueeze(i: list[Any], a: Attributes) -> Tensor:
    x = i[0]
    for axis in sorted(_axes(i, a)):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _squeeze(i: list[Any], a: Attributes) -> Tensor:
    return i[0].squeeze(tuple(_axes(i, a))) if _axes(i, a) else i[0].squeeze()  # type: ignore[no-any-return]


def _reshape(i: list[Any], a: Attributes) -> Tensor:
    sizes = [i[0].shape[at] if size == 0 else size for at, size in enumerate(i[1].tolist())]
    return i[0].reshape(sizes)  # type: ignore[no-any-return]


def _flatten(i: list[Any], a: Attributes) -> Tensor:
    axis = a.get("axis", 1)
    return i[0].reshape(int(np.prod(i[0].shape[:axis])), -1)  # type: ignore[no-any-return]


def _clip(i: list[Any], a: Attributes) -> Tensor:
    low, high = (i[at] if len(i) > at else None for at in (1, 2))
    return torch.clamp(i[0], low, high)


def _pad(i: list[Any], a: Attributes) -> Tensor:
    if a.get("mode", b"constant") != b"constant":
        raise EngineError(f"cannot run in torch: Pad of mode {a['mode'].decode()}")
    sizes = i[1].tolist()
    axes = i[3].tolist() if len(i) > 3 and i[3] is not None else list(range(i[0].dim()))
    around = [(0, 0)] * i[0].dim()
    for axis, begin, end in zip(axes, sizes[: len(axes)], sizes[len(axes) :], strict=True):
        around[axis] = (begin, end)
    value = float(i[2]) if len(i) > 2 and i[2] is not None else 0.0
    return F.pad(i[0], [size for pair in reversed(around) for size in pair], value=value)


def _constant_of_shape(i: list[Any], a: Attributes) -> Tensor:
    value = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, np.float32)
    return torch.full(
        i[0].tolist(), value.reshape(-1)[0].item(), dtype=torch.from_numpy(value.copy()).dtype, device=i[0].device
    )


def _batch_norm(i: list[Any], a: Attributes) -> Tensor:
    return F.batch_norm(i[0], i[3], i[4], i[1], i[2], False, 0.0, a.get("epsilon", 1e-5))


def _layer_norm(i: list[Any], a: Attributes) -> Tensor:
    shape = i[0].shape[a.get("axis", -1) % i[0].dim() :]
    return F.layer_norm(i[0], shape, i[1], i[2] if len(i) > 2 else None, a.get("epsilon", 1e-5))


def _div(i: list[Any], a: Attributes) -> Tensor:
    whole = not (i[0].is_floating_point() or i[1].is_floating_point())  # sizes, which ONNX divides as C does
    return torch.div(i[0], i[1], rounding_mode="trunc" if whole else None)


def _elementwise(function: Operator) -> Operator:
    return lambda i, a: function(*i)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "AveragePool": _average_pool,
    "Gemm": _gemm,
    "LSTM": _lstm,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GlobalAveragePool": lambda i, a: i[0].mean(dim=tuple(range(2, i[0].dim())), keepdim=True),
    "Relu": _elementwise(torch.relu),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Tanh": _elementwise(torch.tanh),
    "Erf": _elementwise(torch.erf),
    "Gelu": lambda i, a: F.gelu(i[0], approximate=a.get("approximate", b"none").decode()),
    "HardSigmoid": lambda i, a: torch.clamp(a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": _elementwise(F.hardswish),
    "Exp": _elementwise(torch.exp),
    "Log": _elementwise(torch.log),
    "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs),
    "Sqrt": _elementwise(torch.sqrt),
    "Not": _elementwise(torch.logical_not),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _div,
    "Mod": _elementwise(torch.remainder),
    "Pow": _elementwise(torch.pow),
    "MatMul": _elementwise(torch.matmul),
    "Max": _elementwise(torch.maximum),
    "Min": _elementwise(torch.minimum),
    "Greater": _elementwise(torch.gt),
    "Less": _elementwise(torch.lt),
    "Equal": _elementwise(torch.eq),
    "Where": _elementwise(torch.where),
    "GreaterOrEqual": _elementwise(torch.ge),
    "LessOrEqual": _elementwise(torch.le),
    "And": _elementwise(torch.logical_and),
    "Or": _elementwise(torch.logical_or),
    "Softmax": lambda i, a: torch.softmax(i[0], a.get("axis", -1)),
    "LogSoftmax": lambda i, a: torch.log_softmax(i[0], a.get("axis", -1)),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Clip": _clip,
    "Pad": _pad,
    "Transpose": lambda i, a: i[0].permute(a.get("perm", list(reversed(range(i[0].dim()))))),
    "Expand": lambda i, a: i[0].expand(torch.broadcast_shapes(i[0].shape, i[1].tolist())),
    "Shape": lambda i, a: torch.tensor(i[0].shape[a.get("start", 0) : a.get("end")], dtype=torch.int64),
    "ConstantOfShape": _constant_of_shape,
    "Cast": lambda i, a: i[0].to(_TYPES[a["to"]]),
    "Identity": lambda i, a: i[0],
    "Dropout": lambda i, a: i[0],
}
