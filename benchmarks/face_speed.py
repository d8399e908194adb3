"""How long one face takes on one processor thread in ONNX Runtime: crop, tensor, network.

Example:
    python -m benchmarks.face_speed [--model models/face-expression.onnx] [--json OUT.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.preprocessing import face_crop, face_tensor

RUNS = 500


def time_ms(work: Callable[[], object]) -> dict[str, float]:
    for _ in range(20):
        work()
    spans_ms = []
    for _ in range(RUNS):
        began_ns = time.perf_counter_ns()
        work()
        spans_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    return {"p50_ms": float(np.median(spans_ms)), "p95_ms": float(np.percentile(spans_ms, 95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).resolve().parents[1] / "models" / "face-expression.onnx"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    engine = load(arguments.model, backend="onnxruntime", threads=1)

    picture = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    box_px = np.array([250.0, 100.0, 90.0, 120.0], np.float32)
    eyes_px = np.array([[275, 145], [318, 150], [295, 170], [278, 195], [314, 198]], np.float32)
    grey = face_crop(picture, box_px, eyes_px)
    one, four = face_tensor(grey)[None], face_tensor(np.stack([grey] * 4))
    rows = {
        "crop": time_ms(lambda: face_crop(picture, box_px, eyes_px)),
        "tensor": time_ms(lambda: face_tensor(grey)),
        "network, 1 face": time_ms(lambda: engine.run({"face": one})),
        "network, 4 faces": time_ms(lambda: engine.run({"face": four})),
    }
    print(f"{Manifest.read(arguments.model).id}, {engine.description}, {RUNS} runs\n{'':18}{'p50 ms':>8}{'p95 ms':>8}")
    for name, row in rows.items():
        print(f"{name:18}{row['p50_ms']:8.2f}{row['p95_ms']:8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
