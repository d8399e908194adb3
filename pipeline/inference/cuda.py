"""The NVIDIA driver: whether there is one, and the few calls of it that an engine's run is made of.

`probe` asks through ctypes and constructs nothing of TensorRT's, whose Runtime can end a process without a driver with
a segmentation fault. `Cuda` owns one GPU's primary context: pinned memory, its own streams, graphs. Every call's status
is checked. Nothing here is imported where there is no GPU, but for `probe`.

Example:
    gpus = probe()                                   # Gpus(driver="13.0", devices=(Gpu("NVIDIA L4", (8, 9), 23034),))
    cuda = Cuda(0); stream = cuda.stream()
"""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import EngineError

Bytes = npt.NDArray[np.uint8]

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute
_LIBRARIES = {"linux": ("libcuda.so.1", "libcuda.so"), "win32": ("nvcuda.dll",)}
_WHY = {
    1: "invalid value",
    2: "out of memory",
    3: "not initialised",
    100: "no device",
    101: "invalid device",
    201: "invalid context",
    700: "illegal address",
    719: "launch failed",
    803: "driver older than the CUDA library",
    901: "stream capture invalidated",
    906: "a call that a capture does not allow",
}


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # (8, 9)
    memory_mib: int


@dataclass(frozen=True)
class Gpus:
    """driver: the CUDA version that the driver supports. missing: why there is nothing to run on, with the fix; "" if
    there is something. has_driver: False on a machine without NVIDIA's driver, where there is nothing to report."""

    driver: str = ""
    devices: tuple[Gpu, ...] = ()
    missing: str = ""
    has_driver: bool = True


@functools.cache
def probe() -> Gpus:
    """What the driver reports, asked once a process. Never raises; loads nothing but the driver's own library."""
    for name in _LIBRARIES.get(sys.platform, ()):
        try:
            return _ask(ctypes.CDLL(name))
        except OSError:
            continue
    return Gpus(
        missing="no NVIDIA driver on this machine. Where there is an NVIDIA GPU, install its driver", has_driver=False
    )


def _ask(driver: Any) -> Gpus:
    status = driver.cuInit(0)
    if status:
        fix = "Is the GPU visible here (nvidia-smi, CUDA_VISIBLE_DEVICES, the container's --gpus)?"
        return Gpus(missing=f"the NVIDIA driver answers {_status_text(status)}. {fix}")
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return Gpus(missing="the NVIDIA driver does not list its GPUs. Reboot, or reinstall it")
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    devices = tuple(gpu for index in range(count.value) if (gpu := _describe(driver, index)) is not None)
    missing = (
        "" if devices else "the NVIDIA driver sees no GPU. Is one visible here (nvidia-smi, CUDA_VISIBLE_DEVICES)?"
    )
    return Gpus(text, devices, missing)


def _describe(driver: Any, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(128)
    asked = (
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device),
    )
    return (
        None if any(asked) else Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value >> 20)
    )


def _status_text(status: int) -> str:
    return f"{status} ({_WHY[status]})" if status in _WHY else str(status)


class Device(Protocol):
    """What a runner asks of a GPU. `Cuda` is the real one; tests have one made of numpy arrays."""

    def enter(self) -> None:
        """Make the GPU's context the calling thread's."""

    def stream(self) -> int: ...
    def pinned(self, size: int) -> Bytes:
        """Page-locked host memory, which a copy engine reads while we go on."""

    def memory(self, size: int) -> int:
        """The address of device memory."""

    def fill(self, address: int, byte: int, size: int, stream: int) -> None: ...
    def upload(self, address: int, source: Bytes, stream: int) -> None: ...
    def download(self, target: Bytes, address: int, stream: int) -> None: ...
    def synchronise(self, stream: int) -> None: ...
    def begin_capture(self, stream: int) -> None:
        """Thread-local: what other threads do meanwhile neither lands in the graph nor breaks it."""

    def end_capture(self, stream: int) -> Any:
        """The executable graph of what was enqueued on the stream since begin_capture."""

    def launch(self, graph: Any, stream: int) -> None: ...
    def release(self) -> None:
        """Free all that was allocated."""


class Cuda:
    """GPU number `index`, through cuda-bindings (extra `gpu` or `trt-rtx`). Raises EngineError with the driver's
    status."""

    def __init__(self, index: int = 0) -> None:
        from cuda.bindings import driver  # the extra's; not there without it

        self._driver = driver
        self._call(driver.cuInit, 0)
        self._device = self._call(driver.cuDeviceGet, index)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, self._device)
        self._host: list[int] = []
        self._memory: list[int] = []
        self._streams: list[Any] = []
        self._graphs: list[Any] = []
        self.enter()

    def _call(self, function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if int(status):
            raise EngineError(f"{function.__name__}: the GPU's driver answers {_status_text(int(status))}")
        return results[0] if len(results) == 1 else results

    def enter(self) -> None:
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def stream(self) -> int:
        # Non-blocking: the legacy default stream would make every other user of the GPU wait for us and us for them.
        stream = self._call(self._driver.cuStreamCreate, int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._streams.append(stream)
        return int(stream)

    def pinned(self, size: int) -> Bytes:
        address = int(self._call(self._driver.cuMemHostAlloc, size, 0))
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def memory(self, size: int) -> int:
        address = int(self._call(self._driver.cuMemAlloc, size))
        self._memory.append(address)
        return address

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        self._call(self._driver.cuMemsetD8Async, address, byte, size, stream)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._call(self._driver.cuMemcpyHtoDAsync, address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._call(self._driver.cuMemcpyDtoHAsync, target.ctypes.data, address, target.nbytes, stream)

    def synchronise(self, stream: int) -> None:
        self._call(self._driver.cuStreamSynchronize, stream)

    def begin_capture(self, stream: int) -> None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._call(self._driver.cuStreamEndCapture, stream)
        executable = self._call(self._driver.cuGraphInstantiate, graph, 0)
        self._call(self._driver.cuGraphDestroy, graph)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        self._call(self._driver.cuGraphLaunch, graph, stream)

    def release(self) -> None:
        self.enter()
        driver = self._driver
        for handles, free in (
            (self._graphs, driver.cuGraphExecDestroy),
            (self._streams, driver.cuStreamDestroy),
            (self._memory, driver.cuMemFree),
            (self._host, driver.cuMemFreeHost),
        ):
            while handles:
                free(handles.pop())  # after a fault the driver refuses these too; there is nothing left to do about it
        driver.cuDevicePrimaryCtxRelease(self._device)
