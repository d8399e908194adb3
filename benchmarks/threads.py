"""The best settings of ONNX Runtime on a processor: how many threads, and whether inputs and outputs are bound.

Example:
    python -m benchmarks.threads [--rounds 40] [--json OUT.json]

Each live model with one and with two threads, alone and beside a process that computes all the time, as the graph's
other processes may; and with its inputs and outputs bound to memory of its own (I/O binding), whose outputs are copied,
since those of an engine are the caller's to keep. Rows take turns, call by call. CPU is the whole process's, wall the
call's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.infer import inputs_of
from pipeline import assets
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.engine import Tensors
from pipeline.installation import MODELS

THREADS = (1, 2)


def live() -> list[tuple[str, Path, Tensors]]:
    """What the emotion task calls, at the sizes at which it does."""
    calls = []
    for title, path, batch in (
        ("face, 1", MODELS / "face-expression.onnx", 1),
        ("face, 4", MODELS / "face-expression.onnx", 4),
        ("voice", MODELS / "voice-expression.onnx", 1),
        ("fusion", MODELS / "fusion-expression.onnx", 1),
        ("detector 96×96", assets.path("centerface"), 1),
        ("silero-vad", assets.path("silero-vad"), 1),
    ):
        inputs = inputs_of(path, batch)
        assert inputs is not None
        calls.append((title, path, inputs))
    picture = np.random.default_rng(0).uniform(0, 255, (1, 3, 192, 320)).astype(np.float32)
    return [*calls, ("detector 320×192", assets.path("centerface"), {"input.1": picture})]


def bound(engine: Onnxruntime, inputs: Tensors) -> Callable[[], object]:
    """The same call with nothing allocated but the copies of its outputs."""
    import onnxruntime

    session = engine._session
    binding = session.io_binding()
    bound_inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
    answers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in engine.run(inputs).items()}
    for name, value in bound_inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in answers.items():
        binding.bind_ortvalue_output(name, value)

    def run() -> object:
        for name, value in bound_inputs.items():
            value.update_inplace(inputs[name])
        session.run_with_iobinding(binding)
        return {name: value.numpy().copy() for name, value in answers.items()}

    return run


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            call()
            spent[name].append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    medians = {name: np.median(np.array(each) * 1e3, axis=0) for name, each in spent.items()}
    return {
        name: {"wall_ms": round(float(wall), 3), "cpu_ms": round(float(cpu), 3)}
        for name, (wall, cpu) in medians.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--json", type=Path, help="write the figures here")
    args = options.parse_args()
    report: dict[str, Any] = {}
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; ms p50")
    print(f"{'':18}{'alone: 1 thread':>20}{'2 threads':>20}{'bound':>20}{'beside: 1 thread':>20}{'2 threads':>20}")
    print(f"{'':18}" + f"{'wall':>10}{'CPU':>10}" * 5)
    for title, path, inputs in live():
        engines = {threads: Onnxruntime(path, threads=threads, device="cpu") for threads in THREADS}
        calls: dict[str, Callable[[], object]] = {
            f"{threads} threads": partial(engine.run, inputs) for threads, engine in engines.items()
        }
        alone = in_turns({**calls, "bound": bound(engines[1], inputs)}, args.rounds)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside = in_turns(calls, args.rounds)
        finally:
            busy.kill()
            busy.wait()
        report[title] = {"alone": alone, "beside": beside}
        cells = [*alone.values(), *beside.values()]
        print(f"{title:18}" + "".join(f"{cell['wall_ms']:10.2f}{cell['cpu_ms']:10.2f}" for cell in cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
