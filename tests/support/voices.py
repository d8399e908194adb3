"""A microphone whose cable a test can pull: `use: "voices:Speech"`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.clock import Clock
from pipeline.errors import DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Source

CHUNK, CHUNK_NS = 320, 20_000_000


class Speech(Source):
    """samples: .npy of float32 at 16 kHz, repeated. unplugged: while this file exists, the device does not."""

    def __init__(self, *, samples: str, unplugged: str) -> None:
        self._samples, self._unplugged = np.load(samples), Path(unplugged)

    def open(self) -> None:
        if self._unplugged.exists():
            raise DeviceError(f"microphone '{self.name}': it is not plugged in. Plug it in", retry=True)

    def info(self) -> StreamInfo:
        return StreamInfo(self.name, "pcm_f32", 50.0)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        at_ns, first = clock.now_ns(), 0
        while clock.sleep_until(at_ns + CHUNK_NS, self.context.stopping):
            self.open()
            yield Frame(self.name, -1, at_ns, "pcm_f32", self._samples[first : first + CHUNK], CHUNK_NS)
            at_ns, first = at_ns + CHUNK_NS, (first + CHUNK) % (len(self._samples) // CHUNK * CHUNK)
