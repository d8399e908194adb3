"""Every model on every backend that works here, in every precision and batch, beside torch eager and the floor.

Example:
    python run_pipeline.py bench infer [--model NAME] [--precision fp32] [--rounds 12] [--json OUT.json]

All rows are timed in turns, a few calls each, so that whatever else the machine does weighs on all alike; compare rows
of one run, and ratios between runs. One thread, whose own CPU time stands beside the wall time: that is not disturbed
by other programs, and on a processor `of eager` is made of it. fp16 and int8 files are made for the run where they are
not there. The floor is what a call costs that computes nothing: on a processor one Identity through ONNX Runtime, on a
GPU the copies up and down and the launch of an empty graph. Memory is what loading and running a row added to this
process (on a GPU: its own).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import assets
from pipeline.errors import SensoriumError
from pipeline.inference import cuda
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.choose_backend import backends, load
from pipeline.inference.engine import Engine, Tensors
from pipeline.inference.manifest import PRECISIONS, precision_of, with_precision
from pipeline.installation import MODELS
from pipeline.perception import parity_samples

BATCHES = (1, 4, 8)
CALLS_A_TURN = 5
THIRD_PARTY = ("centerface", "silero-vad")


@dataclass
class Row:
    model: str
    backend: str
    precision: str
    batch: int
    run: Callable[[], object]
    memory_mib: float = 0.0
    spent_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # of the calling thread

    def figures(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.spent_ms, [50, 99])
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "p50_ms": round(float(p50), 4),
            "p99_ms": round(float(p99), 4),
            "cpu_p50_ms": round(float(np.median(self.cpu_ms)), 4),
            "per_second": round(self.batch / float(np.mean(self.spent_ms)) * 1e3, 1),
            "memory_mib": round(self.memory_mib, 1),
        }


def inputs_of(path: Path, batch: int) -> Tensors | None:
    """The first samples of the model, `batch` of them; None where it takes one at a time."""
    if path.stem == "silero_vad":
        samples = np.random.default_rng(0).normal(0, 0.05, (1, 576)).astype(np.float32)
        state = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16_000, np.int64)}
        return {"input": samples, **state} if batch == 1 else None
    batches = list(parity_samples.of(path))
    names = list(batches[0])
    whole = {name: np.concatenate([each[name] for each in batches[:6]]) for name in names}
    return {name: value[:batch] for name, value in whole.items()}


def models(only: str | None) -> Iterator[tuple[str, Path]]:
    for path in sorted(MODELS.glob("*.onnx")):
        if precision_of(path) == "fp32" and only in (None, path.stem):
            yield path.stem, path
    for name in THIRD_PARTY:
        if only in (None, name):
            yield name, assets.path(name)


def rows(only: str | None, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Iterator[Row]:
    for name, path in models(only):
        for batch in BATCHES:
            inputs = inputs_of(path, batch)
            if inputs is None:
                continue
            for precision in precisions if name not in THIRD_PARTY else ("fp32",):
                file = _file(path, precision, folder)
                if file is None:
                    continue
                for backend, kind in backends().items():
                    if not kind.unusable():
                        yield from _row(
                            name,
                            backend,
                            precision,
                            batch,
                            lambda f=file, b=backend, i=inputs: _engine(f, b, i),
                            inputs,
                        )
            yield from _row(name, "torch eager", "fp32", batch, lambda p=path: _torch_network(p), inputs)


def _row(
    name: str, backend: str, precision: str, batch: int, make: Callable[[], Any], inputs: Tensors
) -> Iterator[Row]:
    before = resident_mib()
    try:
        engine = make()
        if engine is None:
            return
        engine.run(inputs)
    except SensoriumError as error:
        print(f"{name} on {backend}, {precision}: {error}", flush=True)
        return
    yield Row(name, backend, precision, batch, lambda: engine.run(inputs), resident_mib() - before)


def _engine(path: Path, backend: str, inputs: Tensors) -> Engine:
    hint = [{name: value.shape for name, value in inputs.items() if value.dtype == np.float32}]
    if backend == "onnxruntime":
        return Onnxruntime(path, threads=1)
    return load(
        path, backend=backend, warm_up=hint, samples=lambda: parity_samples.of(path), log=logging.getLogger("bench")
    )


def _torch_network(path: Path) -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    from pipeline.training.export.onnx_to_torch import TorchModel

    torch.set_num_threads(1)
    return TorchModel(path)


_written: dict[tuple[Path, str], Path | None] = {}


def _file(path: Path, precision: str, folder: Path) -> Path | None:
    if precision == "fp32":
        return path
    if with_precision(path, precision).is_file():
        return with_precision(path, precision)
    key = (path, precision)
    if key not in _written:
        from pipeline.training.export.precision import export

        try:
            source = folder / path.name
            if not source.is_file():
                source.symlink_to(path)
            export(source, precision=precision)
            _written[key] = with_precision(source, precision)
        except SensoriumError as error:
            print(f"{path.stem}, {precision}: {error}", flush=True)
            _written[key] = None
    return _written[key]


def floor(folder: Path) -> Row:
    """One call that computes nothing."""
    import onnx

    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 7]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    path = folder / "identity.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), str(path))
    engine, inputs = Onnxruntime(path, threads=1, device="cpu"), {"x": np.zeros((1, 7), np.float32)}
    return Row("(a call)", "floor", "fp32", 1, lambda: engine.run(inputs))


def gpu_floor(size: int = 9216) -> Row:
    """A face's bytes up and down through pinned memory, and the launch of a graph that holds nothing else."""
    device = cuda.Cuda(0)
    stream, host, address = device.stream(), device.pinned(size), device.memory(size)
    device.begin_capture(stream)
    device.upload(address, host, stream)
    device.download(host, address, stream)
    graph = device.end_capture(stream)

    def run() -> None:
        device.launch(graph, stream)
        device.synchronise(stream)

    return Row("(copies and launch)", "floor", "-", 1, run)


def measure(timed: list[Row], rounds: int) -> None:
    for row in timed:
        for _ in range(3):
            row.run()
    for _ in range(rounds):
        for row in timed:
            for _ in range(CALLS_A_TURN):
                began_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
                row.run()
                row.cpu_ms.append((time.thread_time_ns() - cpu_ns) / 1e6)
                row.spent_ms.append((time.perf_counter_ns() - began_ns) / 1e6)


def table(timed: list[Row]) -> list[str]:
    """Ready to print. `of eager`: the row's p50 divided by torch eager's for the same model and batch, of CPU time."""
    figures = [row.figures() for row in timed]
    eager = {(f["model"], f["batch"]): f["cpu_p50_ms"] for f in figures if f["backend"] == "torch eager"}
    heads = ("p50 ms", "p99 ms", "CPU ms", "per s", "MiB", "of eager")
    lines = [f"{'model':<20}{'backend':<14}{'precision':<10}{'batch':>5}" + "".join(f"{head:>10}" for head in heads)]
    for f in figures:
        eager_ms = eager.get((f["model"], f["batch"]))
        ratio = f"{f['cpu_p50_ms'] / eager_ms:.2f}" if eager_ms and f["backend"] == "onnxruntime" else ""
        lines.append(
            f"{f['model']:<20}{f['backend']:<14}{f['precision']:<10}{f['batch']:>5}"
            f"{f['p50_ms']:>10.3f}{f['p99_ms']:>10.3f}{f['cpu_p50_ms']:>10.3f}{f['per_second']:>10.0f}{f['memory_mib']:>10.1f}{ratio:>10}"
        )
    return lines


def resident_mib() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # not Linux
        return 0.0


def run(
    *,
    only: str | None = None,
    precisions: Sequence[str] = PRECISIONS,
    rounds: int = 12,
    out: Path | None = None,
    extra: Sequence[Row] = (),
) -> list[dict[str, Any]]:
    """Prints the table; writes its rows as JSON to `out`. only: one model. extra: other rows, timed with these."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        timed = [
            floor(folder),
            *([gpu_floor()] if not cuda.probe().missing and importlib.util.find_spec("cuda") else []),
        ]
        timed += [*rows(only, folder, precisions), *extra]
        measure(timed, rounds)
    gpus = cuda.probe()
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; "
        + (gpus.missing or ", ".join(g.name for g in gpus.devices))
    )
    print("\n".join(table(timed)))
    figures = [row.figures() for row in timed]
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--model", help="one model: a file of models/, centerface or silero-vad")
    options.add_argument("--precision", choices=PRECISIONS, help="one; default: all of them")
    options.add_argument("--rounds", type=int, default=12, help=f"turns of {CALLS_A_TURN} calls for each row")
    options.add_argument("--json", type=Path, help="write the rows here")
    chosen = options.parse_args()
    precisions = [chosen.precision] if chosen.precision else PRECISIONS
    run(only=chosen.model, precisions=precisions, rounds=chosen.rounds, out=chosen.json)


if __name__ == "__main__":
    main()
