"""One stream of a recording, in place of its sensor. `run_pipeline.py replay` puts it in place of each source.

Frames have the seq, capture and publish times of the recording. At speed 0 they are sent as fast as readers take them,
and none is dropped.

Example:
    camera: {use: replay, path: rec.mcap, stream: camera, speed: 1}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pipeline.clock import Clock, ReplayClock
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Source
from pipeline.recording import faults
from pipeline.recording.reader import Reader


class Replay(Source):
    """The frames of one recorded stream.

    Args:
        path: The recording.
        stream: The stream to replay. null: the one with the name of this node.
        speed: 1: as fast as it happened; 2: twice as fast; 0: as fast as readers take it (≥ 0). Default 1.
        from_ns: Where the replay begins, in the recording's time. null: at its beginning.
        to_ns: Where it ends. null: at the recording's end.
        unclosed: Read a recording that was not closed, up to its last whole chunk.
        absent: The recording has no such stream: end at once.
        realtime: Always false: a replay waits for its readers.
        fault: A fault to apply, such as "camera: drop=5%" (pipeline/recording/faults.py). Dropped frames are counted.
    """

    assigns_seq: ClassVar[bool] = False

    def __init__(
        self,
        *,
        path: str,
        stream: str | None = None,
        speed: float = 1.0,
        from_ns: int | None = None,
        to_ns: int | None = None,
        unclosed: bool = False,
        absent: bool = False,
        realtime: bool = False,
        fault: str | None = None,
    ) -> None:
        if speed < 0 or realtime:
            raise ValueError("speed must be at least 0, realtime is always false here")
        self._path, self._stream, self._speed = Path(path), stream, speed
        self._from_ns, self._to_ns, self._unclosed, self._absent = from_ns, to_ns, unclosed, absent
        self._fault = None if fault is None else faults.parse(fault)
        self._reader: Reader | None = None

    def open(self) -> None:
        if not self._absent:
            self._reader = Reader(self._path, unclosed=self._unclosed)
        self.context.metrics.facts["replays"] = f"{self._path.name}{' (has no such stream)' if self._absent else ''}"

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def info(self) -> StreamInfo:
        stream = self._stream or self.name
        return self._reader.streams[stream] if self._reader else StreamInfo(self.name, "")

    def frames(self, clock: Clock) -> Iterator[Frame]:
        if self._reader is None:
            return
        recorded = self._reader.messages([self._stream or self.name], from_ns=self._from_ns, to_ns=self._to_ns)
        if self._fault is not None:
            recorded = faults.apply(recorded, [self._fault], start_ns=self._reader.span_ns[0], lost=self._count_lost)
        for _, message, log_ns in recorded:
            if self._speed and not clock.sleep_until(log_ns, self.context.stopping):
                return
            if isinstance(clock, ReplayClock) and clock.paused:
                self.context.metrics.facts["replays"] = f"{self._path.name} (paused)"
                if not clock.wait_while_paused(self.context.stopping):
                    return
                self.context.metrics.facts["replays"] = self._path.name
            if self.context.stopping.is_set():
                return
            if isinstance(message, Frame):
                yield message

    def _count_lost(self, reason: str) -> None:
        self.context.metrics.drop(self.name, reason, 1)
