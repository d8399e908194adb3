"""TensorRT-RTX: for the GPUs of people's own machines, small, and built ahead of time, also where no GPU is at hand."""

from __future__ import annotations

from pipeline.inference.cuda import Gpu
from pipeline.inference.nvidia import NvidiaEngine
from pipeline.installation import setup_command

# What 1.7 builds for, without asking the library, which is loaded only where it will be used.
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


class TensorrtRtx(NvidiaEngine):
    rank = 20
    package, title, extra = "tensorrt_rtx", "TensorRT-RTX", "trt-rtx"

    @classmethod
    def lacks(cls, gpu: Gpu) -> str:
        if gpu.capability in CAPABILITIES:
            return ""
        known = ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
        capability = f"{gpu.capability[0]}.{gpu.capability[1]}"
        return (
            f"{gpu.name} has compute capability {capability}; TensorRT-RTX serves {known}. "
            f"Use TensorRT: {setup_command('gpu')}"
        )

    @classmethod
    def for_gpu(cls, gpu: Gpu) -> tuple[tuple[int, int], ...]:
        return (gpu.capability,)
