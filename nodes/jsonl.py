"""Predictions → a file, one JSON object a line (docs/prediction.schema.json). `--out P.jsonl` adds this node."""

from __future__ import annotations

from pathlib import Path
from typing import IO, ClassVar

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Prediction
from pipeline.node import Arrival, Sink


class Jsonl(Sink):
    """path: the file to write; one that exists is replaced."""

    consumes: ClassVar[tuple[type, ...]] = (Prediction,)

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise ConfigError(f"--out {self._path}: cannot be written: {error.strerror}") from error

    def consume(self, arrival: Arrival) -> None:
        assert self._file is not None and isinstance(arrival.message, Prediction)
        self._file.write(msgspec.json.encode(arrival.message.record()) + b"\n")
        self._file.flush()  # a reader that follows the file sees each line at once

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
