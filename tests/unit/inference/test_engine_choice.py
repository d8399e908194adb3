"""Which backend runs where: the driver is asked first, and every reason comes with its fix."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodes.infer import Infer
from pipeline.cli.doctor import examine
from pipeline.errors import ConfigError
from pipeline.inference import cuda, nvidia
from pipeline.inference.backends.tensorrt import Tensorrt
from pipeline.inference.backends.tensorrt_rtx import TensorrtRtx
from pipeline.inference.choose_backend import backends, best, load
from pipeline.inference.cuda import Gpu, Gpus
from pipeline.perception.expression.faces import INPUT, detector_shapes

ROOT = Path(__file__).resolve().parents[3]
NO_DRIVER = Gpus(
    missing="no NVIDIA driver on this machine. Where there is an NVIDIA GPU, install its driver", has_driver=False
)
L4, H100, OLD = Gpu("NVIDIA L4", (8, 9), 23034), Gpu("NVIDIA H100", (9, 0), 81559), Gpu("Tesla P100", (6, 0), 16280)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def has(gpus: Gpus, *packages: str) -> None:
        monkeypatch.setattr(cuda, "probe", lambda: gpus)
        monkeypatch.setattr(nvidia, "_installed", lambda package: package in packages)

    return has


def test_auto_tries_tensorrt_then_rtx_then_onnx_runtime() -> None:
    assert list(backends()) == ["tensorrt", "tensorrt_rtx", "onnxruntime"]


@pytest.mark.parametrize(
    ("gpu", "packages", "chosen"),
    [
        (L4, ("tensorrt", "tensorrt_rtx", "cuda.bindings"), "tensorrt"),
        (L4, ("tensorrt_rtx", "cuda.bindings"), "tensorrt_rtx"),
        (H100, ("tensorrt_rtx", "cuda.bindings"), "onnxruntime"),
        (OLD, ("tensorrt", "tensorrt_rtx", "cuda.bindings"), "onnxruntime"),
        (L4, ("tensorrt",), "onnxruntime"),
        (L4, (), "onnxruntime"),
    ],
)
def test_the_first_that_can_run_is_taken(machine: Any, gpu: Gpu, packages: tuple[str, ...], chosen: str) -> None:
    machine(Gpus("13.0", (gpu,)), *packages)
    assert best()[0] == chosen


def test_without_a_driver_nothing_of_nvidias_is_taken_whatever_is_installed(machine: Any) -> None:
    machine(NO_DRIVER, "tensorrt", "tensorrt_rtx", "cuda.bindings")
    name, _, passed_over = best()
    assert name == "onnxruntime" and passed_over == []


def test_a_machine_without_a_driver_reads_nothing_of_nvidias(machine: Any) -> None:
    machine(NO_DRIVER)
    text = " ".join(f"{finding.what}: {finding.fix}" for section, finding in examine() if section == "inference")
    assert "onnxruntime" in text and "tensorrt" not in text.lower() and "nvidia" not in text.lower()
    with pytest.raises(ConfigError, match="backend 'tensorrt' cannot run here: no NVIDIA driver on this machine"):
        load(ROOT / "models" / "face-expression.onnx", backend="tensorrt")


def test_a_driver_that_sees_no_gpu_is_reported(machine: Any) -> None:
    machine(Gpus(missing="the NVIDIA driver sees no GPU"))
    assert best()[2] == [f"not on {b}: the NVIDIA driver sees no GPU" for b in ("tensorrt", "tensorrt_rtx")]


@pytest.mark.parametrize(
    ("gpu", "packages", "reason"),
    [
        (L4, (), "TensorRT is not installed. Install it with: scripts/setup gpu"),
        (L4, ("tensorrt",), "cuda-bindings is not installed. Install it with: scripts/setup gpu"),
        (OLD, ("tensorrt", "cuda.bindings"), "Tesla P100 has compute capability 6.0, below 7.5. It needs a newer GPU"),
    ],
)
def test_every_reason_names_the_fix(machine: Any, gpu: Gpu, packages: tuple[str, ...], reason: str) -> None:
    machine(Gpus("13.0", (gpu,)), *packages)
    assert Tensorrt.unusable() == reason


def test_rtx_says_which_gpus_it_serves(machine: Any) -> None:
    machine(Gpus("13.0", (H100,)), "tensorrt_rtx", "cuda.bindings")
    assert (
        "9.0; TensorRT-RTX serves 7.5, 8.0, 8.6, 8.9, 12.0, 12.1. Use TensorRT: scripts/setup gpu"
        in TensorrtRtx.unusable()
    )


class Driver:
    """The driver's library, as ctypes sees it."""

    def __init__(self, init: int = 0, count: int = 1) -> None:
        self.init, self.count = init, count

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t))[0] = 23034 << 20
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = {75: 8, 76: 9}[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "missing"),
    [
        (Driver(), ""),
        (Driver(init=100), "answers 100 (no device)"),
        (Driver(init=803), "answers 803"),
        (Driver(count=0), "sees no GPU"),
    ],
)
def test_the_driver_is_asked_what_there_is(driver: Driver, missing: str) -> None:
    gpus = cuda._ask(driver)
    assert missing in gpus.missing and bool(missing) == bool(gpus.missing)
    if not missing:
        assert gpus == Gpus("13.1", (L4,))


def test_choosing_loads_nothing_of_nvidias() -> None:
    program = (
        "import sys; from pipeline.inference.choose_backend import best; best(); "
        "print([m for m in sys.modules if m.startswith(('tensorrt', 'cuda'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n" or not cuda.probe().missing


def test_doctor_lists_where_each_model_runs_and_why_not_elsewhere(machine: Any) -> None:
    machine(Gpus("13.0", (L4,)), "tensorrt_rtx", "cuda.bindings")
    lines = [f"{finding.what}: {finding.fix}" for section, finding in examine() if section in ("inference", "models")]
    text = "\n".join(lines)
    assert "NVIDIA L4, compute capability 8.9, 23034 MiB; the driver supports CUDA 13.0" in text
    assert "tensorrt: TensorRT is not installed. Install it with: scripts/setup gpu" in text
    assert "(face-expression.onnx), runs on tensorrt_rtx" in text and "silero-vad, runs on onnxruntime" in text


def test_a_precision_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ValueError, match="precision: found 'bf16', expected one of fp32, fp16, int8"):
        Infer(precision="bf16")


def test_the_detector_is_built_for_the_usual_cameras_upright_and_across() -> None:
    assert [shape[INPUT][2:] for shape in detector_shapes(320)] == [
        (96, 96),
        (192, 320),
        (256, 320),
        (320, 320),
        (320, 192),
        (320, 256),
    ]


def test_doctor_names_no_backend_of_a_gpu_where_there_is_none_unless_asked(machine: Any) -> None:
    machine(Gpus(has_driver=False, missing="no NVIDIA driver on this machine"))
    text = "\n".join(finding.what for section, finding in examine() if section in ("inference", "models"))
    assert "GPU: none found; ONNX Runtime is used" in text and "tensorrt" not in text.lower()
    assert "tensorrt" in [finding.what for _, finding in examine(gpu=True)]
