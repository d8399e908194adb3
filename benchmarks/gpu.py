"""What only a machine with an NVIDIA GPU can show, in one run: scripts/gpu-check.

Example:
    python -m benchmarks.gpu [--json OUT.json] [--rounds 12]

1. Mechanics: pinned copies, a stream of one's own, graph capture and replay, two threads, poisoned outputs, wrong
   device; the runner's own code, with torch behind TensorRT's five calls where there is a CUDA build of torch.
2. Each of TensorRT and TensorRT-RTX that is usable here: every model built, compared, run; refusals with their reason.
3. The table of `bench infer`, with torch FP16 in a CUDA graph, named as such.
Exit code 1 when a check failed; what could not be run is reported, and fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import infer
from pipeline.errors import EngineError, SensoriumError
from pipeline.inference import choose_backend, cuda
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.engine import BuiltEngine
from pipeline.inference.manifest import precision_of
from pipeline.inference.profile import derive
from pipeline.inference.runner import POISON, Runner, Tensor
from pipeline.installation import MODELS
from pipeline.perception import parity_samples

FACE = MODELS / "face-expression.onnx"
Findings = list[dict[str, Any]]
View = Callable[[int, tuple[int, ...], np.dtype], Any]
Submit = Callable[[int, Callable[[], None]], None]


# --- torch behind TensorRT's calls


class TorchPlan:
    """A model in torch as a runner's plan. view: the tensor at an address. submit: work, in the order of a stream."""

    def __init__(self, path: Path, *, device: str, half: bool, view: View, submit: Submit, forget: str = "") -> None:
        from pipeline.training.export.onnx_to_torch import TorchModel

        self.network = TorchModel(path, device=device, half=half)
        self.view, self.submit, self.forget = view, submit, forget
        self.shapes = Onnxruntime(path, threads=1, device="cpu")
        kind = np.dtype(np.float32)
        self.tensors = [
            *(Tensor(n, kind, True) for n in self.network.inputs),
            *(Tensor(n, kind, False) for n in self.network.outputs),
        ]

    def context(self) -> TorchContext:
        return TorchContext(self)


class TorchContext:
    def __init__(self, plan: TorchPlan) -> None:
        self._plan = plan
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[tuple[tuple[int, ...], ...], dict[str, tuple[int, ...]]] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        key = tuple(self._shapes.values())
        if key not in self._outputs:
            answers = self._plan.shapes.run({name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()})
            self._outputs[key] = {name: value.shape for name, value in answers.items()}
        return self._outputs[key][name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        plan, shapes = self._plan, dict(self._shapes)
        outputs = {name: self.get_tensor_shape(name) for name in plan.network.outputs}

        def work() -> None:
            half = plan.network.half
            inputs = {n: plan.view(self._addresses[n], shapes[n], np.dtype(np.float32)) for n in plan.network.inputs}
            for name, value in plan.network.forward({n: v.half() if half else v for n, v in inputs.items()}).items():
                if name != plan.forget:
                    plan.view(self._addresses[name], outputs[name], np.dtype(np.float32)).copy_(value)

        plan.submit(stream, work)
        return True


def cuda_view(address: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    import torch

    class At:
        __cuda_array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (address, False), "version": 3}

    return torch.as_tensor(At(), device="cuda")


def cuda_submit(stream: int, work: Callable[[], None]) -> None:
    import torch

    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        work()


# --- the checks


class Report:
    def __init__(self) -> None:
        self.findings: Findings = []

    @contextlib.contextmanager
    def check(self, what: str) -> Iterator[list[str]]:
        """Yields a list for details to report."""
        details: list[str] = []
        try:
            yield details
            self._add("ok", what, "; ".join(details))
        except (SensoriumError, AssertionError, RuntimeError, ImportError) as error:
            self._add("FAILED", what, f"{type(error).__name__}: {error}")

    def skip(self, what: str, why: str) -> None:
        self._add("not run", what, why)

    def _add(self, state: str, what: str, details: str) -> None:
        self.findings.append({"state": state, "what": what, "details": details})
        print(f"  {state:<8} {what}{': ' + details if details else ''}", flush=True)

    @property
    def failed(self) -> bool:
        return any(finding["state"] == "FAILED" for finding in self.findings)


def copies(report: Report) -> None:
    device = cuda.Cuda(0)
    stream = device.stream()
    host, address = device.pinned(1 << 20), device.memory(1 << 20)
    with report.check("pinned memory goes up, is poisoned, and comes down on a stream of its own"):
        host[:] = np.arange(1 << 20, dtype=np.uint32).astype(np.uint8)
        original = host.copy()
        device.upload(address, host, stream)
        device.synchronise(stream)
        host[:] = 0
        device.download(host, address, stream)
        device.synchronise(stream)
        assert np.array_equal(host, original), "other bytes came back"
        device.fill(address, POISON, 1 << 20, stream)
        device.download(host, address, stream)
        device.synchronise(stream)
        assert np.all(host == POISON), "the poison did not arrive"
    with report.check("a captured copy does nothing until its graph is launched, then each time"):
        host[:] = 7
        device.begin_capture(stream)
        device.upload(address, host, stream)
        graph = device.end_capture(stream)
        for value in (7, 9):
            host[:] = value
            device.launch(graph, stream)
            device.synchronise(stream)
            back = device.pinned(1 << 20)
            device.download(back, address, stream)
            device.synchronise(stream)
            assert np.all(back == value), f"{back[0]} for {value}"
    with report.check("a GPU that is not there is an error and not a crash") as details:
        try:
            cuda.Cuda(99)
            raise AssertionError("GPU 99 was opened")
        except EngineError as error:
            details.append(str(error))
    device.release()


def with_torch(report: Report) -> None:
    """The runner with torch behind it."""
    shapes = {"face": (1, 1, 48, 48)}
    profiles = derive({"face": ("n", 1, 48, 48)}, [shapes])
    reference = Onnxruntime(FACE, threads=1, device="cpu")
    faces = np.random.default_rng(0).normal(size=(3, 1, 48, 48)).astype(np.float32)
    right = reference.run({"face": faces})["logits"]

    def runner(half: bool = False, forget: str = "") -> Runner:
        plan = TorchPlan(FACE, device="cuda", half=half, view=cuda_view, submit=cuda_submit, forget=forget)
        return Runner(plan, cuda.Cuda(0), profiles)

    with report.check("torch context: three faces, filled up to four, captured and replayed") as details:
        live = runner()
        live.prepare(shapes)
        apart = max(float(np.abs(live.run({"face": faces})["logits"] - right).max()) for _ in range(20))
        assert apart < 1e-2, f"apart from ONNX Runtime by {apart}"
        details.append(f"{live.graph_launches} graph launches, {live.plain_enqueues} plain, apart by {apart:.1e}")
    with report.check("torch context: two threads at once, each with a stream and graphs of its own") as details:
        live = runner()
        wrong: list[float] = []

        def many() -> None:
            wrong.extend(float(np.abs(live.run({"face": faces})["logits"] - right).max()) for _ in range(50))

        threads = [threading.Thread(target=many) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 100 and max(wrong) < 1e-2, (
            f"{len(wrong)} answers, apart by up to {max(wrong, default=np.inf)}"
        )
        details.append(f"100 answers, apart by up to {max(wrong):.1e}")
    with report.check("torch context: an output left unwritten is refused") as details:
        try:
            runner(forget="embedding").run({"face": faces})
            raise AssertionError("an output of poison passed")
        except EngineError as error:
            details.append(str(error))


def backends(report: Report) -> None:
    for name, kind in choose_backend.backends().items():
        if not issubclass(kind, BuiltEngine):
            continue
        reason = kind.unusable()
        if reason:
            report.skip(f"{name}: every model built, compared and run", reason)
            continue
        for model, path in infer.models(None):
            if model == "silero-vad" or precision_of(path) != "fp32":
                continue  # silero-vad stays on the processor: its graph branches
            with report.check(f"{name}: {model}") as details:
                inputs = infer.inputs_of(path, 1) or {}
                hint = [{n: v.shape for n, v in inputs.items()}]
                engine = choose_backend.load(
                    path, backend=name, warm_up=hint, samples=lambda p=path: parity_samples.of(p)
                )
                assert isinstance(engine, BuiltEngine)
                details.append(f"{engine.description}, parity {engine.approved}")
                engine.close()


def torch_half() -> list[infer.Row]:
    """torch FP16 in a CUDA graph: a figure of torch's, not of TensorRT's."""
    rows = []
    for batch in infer.BATCHES:
        plan = TorchPlan(FACE, device="cuda", half=True, view=cuda_view, submit=cuda_submit)
        shapes = {"face": (batch, 1, 48, 48)}
        runner = Runner(plan, cuda.Cuda(0), derive({"face": ("n", 1, 48, 48)}, [shapes]))
        inputs = infer.inputs_of(FACE, batch) or {}
        rows.append(infer.Row("face-expression", "torch graph", "fp16", batch, lambda r=runner, i=inputs: r.run(i)))
    return rows


def has_cuda_torch() -> str:
    """Why not; "" where it is."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} has no CUDA"


def run(*, rounds: int, out: Path | None) -> int:
    report, gpus = Report(), cuda.probe()
    for gpu in gpus.devices:
        print(
            f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory_mib} MiB; "
            f"CUDA {gpus.driver}"
        )
    extra: list[infer.Row] = []
    if gpus.missing:
        report.skip("mechanics", gpus.missing)
    elif importlib.util.find_spec("cuda") is None:
        report.skip("mechanics", "cuda-bindings is not installed: scripts/setup trt-rtx")
    else:
        copies(report)
        if why := has_cuda_torch():
            report.skip("the runner with a torch context, and torch FP16 in a CUDA graph", why)
        else:
            with_torch(report)
            extra = torch_half()
    backends(report)
    rows = infer.run(rounds=rounds, extra=extra)
    if out:
        out.write_text(
            json.dumps({"gpus": [gpu.name for gpu in gpus.devices], "checks": report.findings, "rows": rows}, indent=1)
            + "\n"
        )
    return 1 if report.failed else 0


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--json", type=Path, help="write checks and rows here")
    chosen = options.parse_args()
    return run(rounds=chosen.rounds, out=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
