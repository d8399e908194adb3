"""TensorRT (11): the fastest on NVIDIA's GPUs. An engine is built for the one GPU that is here."""

from __future__ import annotations

from pipeline.inference.cuda import Gpu
from pipeline.inference.nvidia import NvidiaEngine

OLDEST = (7, 5)  # Turing


class Tensorrt(NvidiaEngine):
    rank = 30
    package, title, extra = "tensorrt", "TensorRT", "gpu"

    @classmethod
    def lacks(cls, gpu: Gpu) -> str:
        if gpu.capability < OLDEST:
            capability = f"{gpu.capability[0]}.{gpu.capability[1]}"
            return (
                f"{gpu.name} has compute capability {capability}, below {OLDEST[0]}.{OLDEST[1]}. It needs a newer GPU"
            )
        return ""
