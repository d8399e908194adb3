"""Writes predictions to a file, one JSON object a line (docs/prediction.schema.json).

`--out P.jsonl` adds this node.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Prediction
from pipeline.node import Arrival, Sink


class Jsonl(Sink):
    """Writes predictions as JSON lines.

    Args:
        path: The file to write. One that exists is replaced.
    """

    consumes: ClassVar[tuple[type, ...]] = (Prediction,)

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        self._file: IO[bytes] | None = None
        self._whole_bytes = 0  # written, up to the end of the last whole line
        self._is_full = False

    def open(self) -> None:
        try:
            self._file = self._path.open(
                "wb", buffering=0
            )  # unbuffered, so that a program that follows the file gets each line at once
        except OSError as error:
            raise ConfigError(f"--out {self._path}: cannot be written: {error.strerror}") from error

    def consume(self, arrival: Arrival) -> None:
        assert isinstance(arrival.message, Prediction)
        line = msgspec.json.encode(arrival.message.record()) + b"\n"
        try:
            self._write(line)
        except OSError as error:
            self.context.metrics.drop(arrival.source, "disk full")
            if not self._is_full:
                self.context.log.error(
                    "--out %s: %s. Predictions are counted, not written, until there is room; the pipeline goes on.",
                    self._path,
                    error.strerror,
                )
            self._is_full = True
        else:
            self._is_full = False

    def _write(self, line: bytes) -> None:
        """Write the whole line, or raise OSError and write nothing of it."""
        assert self._file is not None
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            if written:
                with suppress(OSError):  # a pipe cannot be cut back
                    self._file.truncate(self._whole_bytes)
                    self._file.seek(self._whole_bytes)
            raise
        self._whole_bytes += len(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
