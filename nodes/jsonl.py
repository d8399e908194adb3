"""Writes predictions to a file, one JSON object a line (docs/prediction.schema.json).

`--out P.jsonl` adds this node.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Prediction
from pipeline.node import Arrival, Sink, Stored
from pipeline.private_file import LineFile


class Jsonl(Sink):
    """Writes predictions as JSON lines.

    Args:
        path: The file to write, for this user alone. One that exists is replaced; after a crash of this node it goes on
            behind the last whole line. One that another run writes is refused.
        consent: Who agreed to be in it, and to what: needed where predictions of people hold embeddings. Default none.
    """

    consumes: ClassVar[tuple[type, ...]] = (Prediction,)

    def __init__(self, *, path: str, consent: str = "") -> None:
        self._path, self._consent = Path(path), consent
        self._file: LineFile | None = None
        self._is_full = False

    def stored(self) -> Stored:
        return Stored(str(self._path), "predictions", (Prediction,), True, self._consent)

    def open(self) -> None:
        try:
            self._file = LineFile(self._path, goes_on=self.context.restarts > 0)
        except OSError as error:
            raise ConfigError(f"--out {self._path}: cannot be written: {error.strerror}") from error

    def consume(self, arrival: Arrival) -> None:
        assert self._file is not None and isinstance(arrival.message, Prediction)
        line = msgspec.json.encode(arrival.message.record()) + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            self.context.metrics.drop(arrival.source, "disk full")
            if not self._is_full:
                self.context.log.error(
                    "--out %s: %s. Predictions are counted, not written, until there is room; the pipeline goes on.",
                    self._path,
                    error.strerror,
                )
                self.context.report_state("silent", f"--out {self._path}: {error.strerror}")
            self._is_full = True
        else:
            if self._is_full:
                self.context.report_state("running", "")
            self._is_full = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
