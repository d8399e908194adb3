"""What the tests of record and replay add to a graph: tasks with a memory, recorders whose disk is slow or full."""

from __future__ import annotations

import resource
import signal
import time
import zlib

import numpy as np

from nodes.record import Record
from pipeline.frame import AlignedSet, Message, Prediction
from pipeline.recording.writer import Writer
from pipeline.task import Task


class Memory(Task):
    """Every answer depends on all sets before it, so one set more or less changes all that follow.

    Args:
        takes_ms: How long every tenth set takes (ms).
    """

    labels = ("a", "b")
    model = "memory@1"

    def __init__(self, *, takes_ms: float = 0.0) -> None:
        self.takes_s = takes_ms / 1000

    def open(self, backend: str) -> None:
        self.state = np.float64(0.5)
        self.count = 0

    def predict(self, aligned: AlignedSet) -> Prediction:
        self.count += 1
        time.sleep(self.takes_s * (self.count % 10 == 0))
        total = sum(float(frame.data.ravel()[::97].sum()) for frames in aligned.frames.values() for frame in frames)
        self.state = np.float64(0.25 + 0.5 * abs(np.sin(12.9898 * self.state + total)))
        return self.prediction(aligned, np.float32([self.state, 1 - self.state]), used=tuple(aligned.frames))


class Checksum(Task):
    """Like Memory, but of whole numbers only, so that its answers are the same on every CPU and with every NumPy."""

    labels = ("a", "b")
    model = "checksum@1"

    def __init__(self, *, takes_ms: float = 0.0) -> None:
        self.takes_s = takes_ms / 1000

    def open(self, backend: str) -> None:
        self.state = self.count = 0

    def predict(self, aligned: AlignedSet) -> Prediction:
        self.count += 1
        time.sleep(self.takes_s * (self.count % 10 == 0))
        for frames in aligned.frames.values():
            for frame in frames:
                self.state = zlib.crc32(frame.data.tobytes(), self.state)
        share = np.float32((self.state & 0xFFFF) / 0x10000)
        return self.prediction(aligned, np.float32([share, 1 - share]), used=tuple(aligned.frames))


class SlowDisk(Record):
    """Each message takes 40 ms to write."""

    def _write(self, writer: Writer, source: str, message: Message, arrival_ns: int) -> None:
        time.sleep(0.04)
        super()._write(writer, source, message, arrival_ns)


class FullDisk(Record):
    """No file may grow beyond 400 kB."""

    def open(self) -> None:
        super().open()
        signal_was_ignored = signal.getsignal(signal.SIGXFSZ)  # Python ignores it, so that writing is an error
        assert signal_was_ignored == signal.SIG_IGN
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
