"""Which layers of a model have to stay in float for its INT8 file to answer as the fp32 one does.

Example:
    python -m benchmarks.int8 [--model face-expression] [--seed 2]

Judged as the parity gate judges, but on the samples of another seed: the gate's own (0) judge what was
chosen here, and 1 is what the ranges are taken from.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.parity import compare_with_reference
from pipeline.installation import MODELS
from pipeline.perception import parity_samples
from pipeline.training.export.precision import CALIBRATION_SEED, layers, quantize

GATE_SEED = 0


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--model", default="face-expression", help="of the models folder")
    options.add_argument("--seed", type=int, default=2, help="of the samples that are judged on")
    args = options.parse_args()
    if args.seed in (GATE_SEED, CALIBRATION_SEED):
        options.error("--seed: 0 is the parity gate's, 1 is what the ranges are taken from. Choose another")
    source = MODELS / f"{args.model}.onnx"
    names = layers(source)
    in_float_by_title = {
        "none": [],
        "the first": names[:1],
        "the last": names[-1:],
        "the first and the last": [names[0], names[-1]],
    }
    print(f"{args.model}: in float, of {len(names)} layers; samples of seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        for title, in_float in in_float_by_title.items():
            target = Path(folder) / f"{args.model}.int8.onnx"
            quantize(source, target, in_float=in_float)
            engine = Onnxruntime(target, threads=1, device="cpu")
            result = compare_with_reference(
                engine, source, lambda: parity_samples.of(source, seed=args.seed), precision="int8"
            )
            print(
                f"  {title:24}{target.stat().st_size / 1e6:6.2f} MB  {result}{'  refused' if result.refusal else ''}",
                flush=True,
            )


if __name__ == "__main__":
    main()
