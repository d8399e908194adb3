"""Nodes and tasks that fail on purpose, each in one way: `use: "faulty_nodes:Steady"` in a graph of a test."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator

import numpy as np

from pipeline.clock import NS, Clock
from pipeline.frame import AlignedSet, Arrival, Frame, Prediction, StreamInfo
from pipeline.node import Sink, Source
from pipeline.task import Task


class Steady(Source):
    """A number, `rate_hz` times a second. At frame `at` it does what `fails` says.

    Args:
        rate_hz: Frames a second.
        fails: "": never; raises, exits, leaves, interrupts, crashes, hangs, holds, rubbish, backwards, opens.
        at: The frame at which it fails, counted in every start of its process.
        for_s: How long it holds the interpreter lock (s).
    """

    def __init__(self, *, rate_hz: float = 30.0, fails: str = "", at: int = 30, for_s: int = 1000) -> None:
        self.rate_hz, self._fails, self._at, self._for_s = rate_hz, fails, at, for_s

    def info(self) -> StreamInfo:
        return StreamInfo(self.name, "series_f32", self.rate_hz)

    def open(self) -> None:
        if self._fails == "opens":
            time.sleep(1000)
        if self._fails == "leaves a child":
            subprocess.Popen(["sleep", "300"])
            subprocess.Popen(["sleep", "301"], start_new_session=True)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        begin_ns = clock.now_ns()
        n = 0
        while clock.sleep_until(begin_ns + round(n * NS / self.rate_hz), self.context.stopping):
            at_ns = begin_ns + round(n * NS / self.rate_hz)
            frame = Frame(self.name, -1, at_ns, "series_f32", np.array([n], np.float32))
            yield self._failing(frame) if n >= self._at else frame
            n += 1

    def _failing(self, frame: Frame) -> Frame:
        match self._fails:
            case "raises":
                raise RuntimeError("broken on purpose")
            case "exits":
                os._exit(0)
            case "leaves":
                raise SystemExit(7)
            case "interrupts":
                raise KeyboardInterrupt
            case "crashes":
                ctypes.string_at(0)
            case "hangs":
                time.sleep(1000)
            case "holds":
                self._fails = ""
                ctypes.PyDLL(None).sleep(self._for_s)  # a call that does not release the interpreter lock
            case "rubbish":
                return Frame(self.name, -1, frame.capture_ns, "bgr8", np.zeros(7, np.uint8))  # no picture
            case "backwards":
                return Frame(self.name, -1, frame.capture_ns - 10 * NS, "series_f32", frame.data)
        return frame


class Count(Task):
    """Predicts the same of every set."""

    name = "count"
    labels = ("a", "b")
    model = "none@0"

    def predict(self, aligned: AlignedSet) -> Prediction:
        return self.prediction(aligned, np.float32([1, 0]), used=tuple(aligned.frames))


class Raises(Count):
    """Breaks on every set."""

    def predict(self, aligned: AlignedSet) -> Prediction:
        raise RuntimeError("the task always breaks")


class NotNumbers(Count):
    """Predicts what is no number."""

    def predict(self, aligned: AlignedSet) -> Prediction:
        return self.prediction(aligned, np.float32([np.nan, np.nan]), used=tuple(aligned.frames))


class SlowSink(Sink):
    """Takes a second for every message."""

    consumes = (Frame, AlignedSet, Prediction)

    def consume(self, arrival: Arrival) -> None:
        time.sleep(1)
