"""A user's extension in one file: a source, a sync policy, a task and other nodes, from the public surface alone.

Example:
    mood: {use: infer, task: "third_party:Mood", inputs: [align]}

The tests run it as a user would: named in a YAML, from the folder where the command runs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np

from pipeline import (
    NS,
    WAIT,
    AlignedSet,
    Answer,
    Arrival,
    Clock,
    ConfigError,
    DeviceError,
    Frame,
    Match,
    Message,
    NoMatch,
    Prediction,
    Sink,
    Source,
    StreamInfo,
    Task,
    Transform,
)


class Thermometer(Source):
    """A device that is connected once the file `device` exists."""

    def __init__(self, *, device: str, rate_hz: float = 20.0) -> None:
        self.device, self.rate_hz = device, rate_hz

    def open(self) -> None:
        if not os.path.exists(self.device):
            raise DeviceError(f"thermometer '{self.name}': there is no {self.device}. Plug it in", retry=True)

    def info(self) -> StreamInfo:
        return StreamInfo(self.name, "series_f32", self.rate_hz)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        when_ns = clock.now_ns()
        while clock.sleep_until(when_ns, self.context.stopping):
            yield Frame(self.name, -1, when_ns, "series_f32", np.float32([21.5]))
            when_ns += round(NS / self.rate_hz)


@dataclass(frozen=True)
class First:
    """A sync policy: the first frame at or after the anchor, at most `within_ms` after it."""

    within_ms: float = 100.0

    def answer(self, frames: Sequence[Frame], anchor_ns: int, complete_before_ns: int) -> Answer:
        for frame in frames:
            if frame.capture_ns >= anchor_ns:
                near = frame.capture_ns - anchor_ns <= self.within_ms * 1e6
                return Match((frame,), "nearest", "the first after") if near else NoMatch("too far behind")
        return NoMatch("nothing after") if complete_before_ns > anchor_ns + self.within_ms * 1e6 else WAIT

    lookback_ns = lookahead_ns = 0


class Mood(Task):
    """Good while the series is above `threshold`."""

    labels = ("good", "bad")
    model = "mood@1"

    def __init__(self, *, threshold: float = 0.0) -> None:
        self.threshold = threshold

    def predict(self, aligned: AlignedSet) -> Prediction:
        frames = aligned.frames.get("camera", ())
        if not frames:
            return self.prediction(aligned, None)
        good = float(frames[-1].data[0] >= self.threshold)
        return self.prediction(aligned, np.float32([good, 1 - good]), used=("camera",))


class Smoother(Transform):
    """Frames in, the same frames out as a stream of its own; slow if asked to be."""

    consumes: ClassVar[tuple[type, ...]] = (Frame,)
    produces: ClassVar[type | None] = Frame

    def __init__(self, *, takes_ms: float = 0.0) -> None:
        self.takes_s = takes_ms / 1000

    def process(self, arrival: Arrival) -> Iterable[Message]:
        time.sleep(self.takes_s)
        yield msgspec.structs.replace(arrival.message, stream=self.name)


class Failing(Smoother):
    """Fails as asked: when it is made, when it is opened, or at the nth message (once a run: it leaves a mark)."""

    def __init__(self, *, when: str, mark: str = "", at: int = 10) -> None:
        super().__init__()
        self.when, self.mark, self.at, self.count = when, mark, at, 0

    def open(self) -> None:
        match self.when:
            case "open":
                raise ConfigError(f"node '{self.name}': there is no such model. Choose another")
            case "open, device":
                raise DeviceError(f"node '{self.name}': nothing is plugged in. Plug it in")
            case "open, bug":
                raise ZeroDivisionError("division by zero")
            case "open, hangs":
                time.sleep(60)

    def process(self, arrival: Arrival) -> Iterable[Message]:
        self.count += 1
        if self.count == self.at and self.when == "process" and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            raise ValueError("the tenth is too much")
        return [msgspec.structs.replace(arrival.message, stream=self.name)]


class Stopper(Sink):
    """Asks for the end of the run after so many messages, or for one source to be muted."""

    def __init__(self, *, after: int, verb: str = "stop", argument: str = "") -> None:
        self.after, self.verb, self.argument = after, verb, argument

    def consume(self, arrival: Arrival) -> None:
        self.after -= 1
        if self.after == 0:
            self.context.request(self.verb, self.argument)


class Busy(Sink):
    """Computes in pure Python in a second thread, without a pause if asked to; at the end writes how late messages
    arrived, and for which share of the time other programs had the core that this one needed, longer than `pause_ms`.
    """

    def __init__(self, *, computes: bool, path: str, pause_ms: float = 2.0) -> None:
        self.computes, self.path, self.pause_ms = computes, path, pause_ms
        self.late_ms: list[float] = []
        self.paused_s = self.computed_s = 0.0

    def open(self) -> None:
        self._ended = threading.Event()
        if self.computes:
            threading.Thread(target=self._compute, daemon=True).start()

    def _compute(self) -> None:
        number, wall_s, cpu_s = 1, time.perf_counter(), time.process_time()
        while not self._ended.is_set():
            for _ in range(1000):
                number = number * 31 % 1_000_003
            now_s, now_cpu_s = time.perf_counter(), time.process_time()
            # Of the whole process: while its other threads run, the CPU is not another program's.
            waited_s = (now_s - wall_s) - (now_cpu_s - cpu_s)
            self.paused_s += waited_s if waited_s * 1e3 > self.pause_ms else 0.0
            self.computed_s += now_s - wall_s
            wall_s, cpu_s = now_s, now_cpu_s

    def consume(self, arrival: Arrival) -> None:
        self.late_ms.append((arrival.arrival_ns - arrival.message.publish_ns) / 1e6)

    def close(self) -> None:
        self._ended.set()
        measured = self.late_ms[10:]  # the first ones find a process that is still loading
        with open(self.path, "w") as file:
            p99_ms = float(np.percentile(measured, 99)) if measured else 0.0
            paused = self.paused_s / self.computed_s if self.computed_s else 0.0
            json.dump({"count": len(measured), "p99_ms": p99_ms, "paused": paused}, file)
