"""Exports a model in another precision: a file beside the fp32 one, written only if it passes the parity gate.

TensorRT 11 and TensorRT-RTX are strongly typed: they run a graph in the precision it is written in. fp16 keeps float32
inputs and outputs, so callers need not change. int8 carries explicit Q/DQ pairs, as both parsers require.

Example:
    export("face-expression", precision="fp16")           # models/face-expression.fp16.onnx
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.manifest import PRECISIONS, Manifest, with_precision
from pipeline.inference.parity import ParityResult, compare_with_reference
from pipeline.installation import model_path
from pipeline.perception import parity_samples

CALIBRATION_INPUTS, CALIBRATION_SEED = 128, 1  # the gate's samples have the seed 0


def export(model: str | Path, *, precision: str, out: Path | None = None) -> ParityResult:
    """Write the file and return how its results compare with fp32.

    Args:
        model: Name in the models folder, or a path.
        precision: fp32, fp16 or int8.
        out: Where to write. None: beside the source.

    Raises ConfigError, and leaves no file, when the parity gate refuses it.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: found '{precision}', expected one of {', '.join(PRECISIONS)}")
    source = model_path(str(model))
    manifest = Manifest.read(source)
    target = out or with_precision(source, precision)
    unchecked = target.with_name(f"{target.stem}.unchecked.onnx")
    try:
        WRITERS[precision](source, unchecked)
        written = replace(
            manifest,
            precision=precision,
            made_from=manifest.sha256 if precision != "fp32" else "",
            made_by=f"{manifest.made_by}; python run_pipeline.py export {source.stem} --precision {precision}",
        )
        if precision != "fp32":
            written = replace(written, name=f"{manifest.name}-{precision}")
        written.write(unchecked)
        result = judge_file(unchecked, source, precision)
        if result.refusal:
            raise ConfigError(f"{target.name} is not written: {result.refusal}")
        written.write(unchecked)
        unchecked.replace(target)
    finally:
        unchecked.unlink(missing_ok=True)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB ({source.stat().st_size / 1e6:.2f} MB in fp32); {result}")
    return result


def judge_file(path: Path, fp32: Path, precision: str) -> ParityResult:
    """The parity gate, on ONNX Runtime."""
    return compare_with_reference(
        Onnxruntime(path, threads=1, device="cpu"), fp32, lambda: parity_samples.of(fp32), precision=precision
    )


def _fp32(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def _fp16(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    # LayerNormalization stays one operator, whose sums the engines keep in float32: taken apart, they overflow.
    blocked = [operator for operator in DEFAULT_OP_BLOCK_LIST if operator != "LayerNormalization"]
    with warnings.catch_warnings():
        # weights below the smallest float16 become 0: the parity gate measures the effect
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True, op_block_list=blocked)
    onnx.save(model, str(target))


def _int8(source: Path, target: Path) -> None:
    quantize(source, target, in_float=_ends(source))


def quantize(source: Path, target: Path, *, in_float: Sequence[str]) -> None:
    """in_float: the layers, by name, that stay as they are."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = _calibration(source)

        def get_next(self) -> dict[str, Any] | None:
            return self._inputs.pop() if self._inputs else None

    # The parsers support: symmetric int8, biases left in float32, each use with a pair of its own. Weights are stored
    # as int8: with a pair instead (AddQDQPairToWeight) the engine is the same and the file is four times as large.
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True}
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it recommends a preprocessing pass that our exports do not need
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(in_float),
            extra_options=options,
        )
    finally:
        log.setLevel(level)


def _ends(source: Path) -> list[str]:
    """The first and the last layer stay in float; the first matters most (python -m benchmarks.int8)."""
    names = layers(source)
    return [names[0], names[-1]] if names else []


def layers(source: Path) -> list[str]:
    """Names of the layers that have weights and would be quantised, from input to output."""
    import onnx

    return [node.name for node in onnx.load(str(source)).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def _calibration(source: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    single = [
        {name: value[row : row + 1] for name, value in inputs.items()}
        for inputs in parity_samples.of(source, seed=CALIBRATION_SEED)
        for row in range(len(next(iter(inputs.values()))))
    ]
    return single[:: max(1, len(single) // CALIBRATION_INPUTS)][:CALIBRATION_INPUTS]


WRITERS: dict[str, Callable[[Path, Path], None]] = {"fp32": _fp32, "fp16": _fp16, "int8": _int8}
