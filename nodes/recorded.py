"""Recorded: one stream of a recording as a source, in its own time. `replay` puts whole recordings in the place of sources.

    lidar: {use: recorded, file: drive.mcap}                      # the stream called like the node
    voice: {use: recorded, file: talk.mcap, stream: microphone}

Streams of one recording keep their times to each other: its first message is the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clock import Clock
from pipeline.errors import ConfigError, nearest
from pipeline.frame import FOREVER_NS, Frame, StreamInfo
from pipeline.node import Source


class Recorded(Source):
    """file: a recording. stream: its name there, when the node is called otherwise. realtime: false gives the frames as fast
    as readers take them."""

    def __init__(self, *, file: str, stream: str | None = None, realtime: bool = True) -> None:
        self.file, self.stream, self.realtime = Path(file).expanduser(), stream, realtime
        self._reader: Any = None

    def open(self) -> None:
        from pipeline.recording import Reader

        self._reader = Reader(self.file)
        wanted, here = self.stream or self.name, self._reader.streams
        if wanted not in here:
            self.close()
            fix = f"Streams there: {', '.join(here)}.{nearest(wanted, here)}"
            raise ConfigError(f"{self.name}: {self.file} has no stream '{wanted}'. {fix}")
        self._info: StreamInfo = here[wanted]
        self.context.metrics.facts["device"] = f"{self.file.name}: {self._info.description}"

    def info(self) -> StreamInfo:
        return msgspec.structs.replace(self._info, stream=self.name)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        assert self._reader is not None
        by_ns = clock.start_ns - self._reader.span_ns[0]
        for _, message, log_ns in self._reader.messages([self._info.stream]):
            if not isinstance(message, Frame):
                raise ConfigError(f"{self.name}: '{self._info.stream}' in {self.file} holds no frames. Name a sensor's stream")
            if self.realtime and not clock.sleep_until(log_ns + by_ns, self.context.stopping):
                return
            at_ns = message.capture_ns if message.capture_ns >= FOREVER_NS else message.capture_ns + by_ns
            yield msgspec.structs.replace(message, stream=self.name, capture_ns=at_ns)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
