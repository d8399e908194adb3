"""Adds labels that are set on the page during a replay to the recording, as its stream `label`.

`replay` adds this node:

    label-keys: {use: labels, path: rec.mcap, inputs: [emotion, health]}

They are added when the replay ends. Without labels the recording is not changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Health, Prediction
from pipeline.node import Arrival, Sink
from pipeline.recording.labels import PAGE_LABELS, STREAM, page_labels
from pipeline.recording.writer import Writer


class Labels(Sink):
    """Collects labels from the page and writes them at the end.

    Args:
        path: The recording that they are added to.
    """

    consumes: ClassVar[tuple[type, ...]] = (Prediction, Health)

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        self._frames: list[Frame] = []

    def consume(self, arrival: Arrival) -> None:
        self._frames += page_labels(self.context.commands, len(self._frames))

    def close(self) -> None:
        self._frames += page_labels(self.context.commands, len(self._frames))
        if not self._frames:
            return
        try:
            with Writer.resumed(self._path) as writer:
                writer.stream(PAGE_LABELS)
                for frame in self._frames:
                    writer.write(STREAM, frame, log_ns=frame.capture_ns)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: {len(self._frames)} labels could not be added: {error.strerror}. "
                "Set them again once the file can be written"
            ) from error
        self.context.log.info("%d labels added to %s", len(self._frames), self._path)
