"""The check for machines with a GPU: what of it can be tested without one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fake_gpu import FakeGpu

torch = pytest.importorskip("torch", reason="torch is not installed: scripts/setup train")

from benchmarks.gpu import FACE, Report, TorchPlan  # noqa: E402
from pipeline.errors import EngineError  # noqa: E402
from pipeline.inference import cuda  # noqa: E402
from pipeline.inference.backends.onnxruntime import Onnxruntime  # noqa: E402
from pipeline.inference.profile import derive  # noqa: E402
from pipeline.inference.runner import Runner  # noqa: E402

FACES = np.random.default_rng(0).normal(size=(3, 1, 48, 48)).astype(np.float32)


def runner(gpu: FakeGpu, forget: str = "") -> Runner:
    def view(address: int, shape: tuple[int, ...], dtype: np.dtype) -> object:
        return torch.from_numpy(gpu.at(address)[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape))

    plan = TorchPlan(FACE, device="cpu", half=False, view=view, submit=gpu.enqueue, forget=forget)
    return Runner(plan, gpu, derive({"face": ("n", 1, 48, 48)}, [{"face": (1, 1, 48, 48)}]))


def test_torch_behind_tensorrts_calls_answers_as_onnx_runtime_does() -> None:
    gpu = FakeGpu()
    live = runner(gpu)
    right = Onnxruntime(FACE, threads=1).run({"face": FACES})["logits"]
    for _ in range(2):
        assert np.abs(live.run({"face": FACES})["logits"] - right).max() < 1e-4
    assert live.graph_launches == 2 and live.plain_enqueues == 0


def test_torch_behind_tensorrts_calls_cannot_pass_with_an_output_unwritten() -> None:
    with pytest.raises(EngineError, match="left embedding unwritten"):
        runner(FakeGpu(), forget="embedding").run({"face": FACES})


def test_a_check_that_failed_is_reported_and_ends_in_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    with report.check("one") as details:
        details.append("as it should")
    with report.check("two"):
        raise EngineError("cuInit: the GPU's driver answers 100 (no device)")
    report.skip("three", "no GPU")
    assert report.failed and [f["state"] for f in report.findings] == ["ok", "FAILED", "not run"]
    assert "FAILED   two: EngineError: cuInit" in capsys.readouterr().out


def test_without_a_driver_the_check_says_so_and_opens_nothing() -> None:
    if not cuda.probe().missing:
        pytest.skip("this machine has a GPU")
    program = "from benchmarks import gpu; r = gpu.Report(); gpu.backends(r); print(r.failed)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FACE.parent.parent, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.count("not run") == 2 and "no NVIDIA driver" in done.stdout and done.stdout.endswith("False\n")
