"""Labels given on the page while a recording is replayed → that recording, as its stream `label`. `replay` adds this node.

    label-keys: {use: labels, path: rec.mcap, inputs: [emotion, health]}

They are added when the replay ends; a recording that nobody labelled is not touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Health, Prediction, StreamInfo
from pipeline.node import Arrival, Sink
from pipeline.recording.labels import STREAM, heard_labels
from pipeline.recording.writer import Writer


class Labels(Sink):
    """path: the recording they are added to."""

    consumes: ClassVar[tuple[type, ...]] = (Prediction, Health)

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        self._frames: list[Frame] = []

    def consume(self, arrival: Arrival) -> None:
        self._frames += heard_labels(self.context.commands, len(self._frames))

    def close(self) -> None:
        self._frames += heard_labels(self.context.commands, len(self._frames))
        if not self._frames:
            return
        try:
            with Writer.resumed(self._path) as writer:
                writer.stream(StreamInfo(STREAM, "label", description="from the page's number keys"))
                for frame in self._frames:
                    writer.write(STREAM, frame, log_ns=frame.capture_ns)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: {len(self._frames)} labels could not be added: {error.strerror}"
            ) from error
        self.context.log.info("%d labels added to %s", len(self._frames), self._path)
