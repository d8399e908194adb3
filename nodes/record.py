"""Writes its inputs to an MCAP file (pipeline/recording/writer.py), in a process of its own.

`record CONFIG OUT.mcap` adds this node to a config; a graph may also have it:

    record: {use: record, path: out.mcap, inputs: [camera, microphone, emotion, align.events, health]}
    record: {use: record, path: out.mcap, jpeg: [camera], split_mb: 1000, inputs: [camera, emotion, health]}

No node waits for it: what a slow disk leaves no time for is dropped here and counted, and so is what a full disk has no
room for. The pipeline goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clock import NS, utc_offset_ns
from pipeline.frame import Frame, Health, Message, Prediction
from pipeline.installation import COMMAND
from pipeline.node import Arrival, Sink, Stored
from pipeline.recording.labels import PAGE_LABELS, STREAM, page_labels
from pipeline.recording.mcap.chunk import Compression
from pipeline.recording.writer import Writer
from pipeline.runtime.accounting import engines
from pipeline.transport.compression import compress

REPORT_EVERY_NS = NS // 4
RETRY_NS = NS  # after a full disk: files may have been removed
# A lens' distortion model → its name in foxglove.CameraCalibration.
FOXGLOVE_MODELS = {"radtan": "plumb_bob", "rational": "rational_polynomial", "fisheye": "kannala_brandt"}
# Encodings in which people are visible or audible. `features_only` stores none of them.
OF_PEOPLE = (
    "bgr8",
    "jpeg",
    "pcm_f32",
    "depth_u16_mm",
    "depth_png",
    "points_xyzi_f32",
    "points_xyzit_f32",
    "points_zlib",
    "points_t_zlib",
)


class Record(Sink):
    """Writes its inputs to a recording.

    Args:
        path: The file to write, for this user alone. One that exists is refused; after a crash of this node another
            part of the recording is begun (out.001.mcap, …).
        jpeg: The inputs whose pictures are stored as JPEG: a tenth of the size, and a replay is then not identical.
            Default none: pictures are stored as captured.
        features_only: Store no pictures, sound or points, whatever the inputs send. Default false.
        compression: Of the file's chunks: none, lz4 or zstd. Default lz4: fast enough for live video on one core; zstd
            makes smaller files and takes more time.
        split_mb: Begin another file (out.001.mcap, …) after this size (MB, > 0). Default null: never.
        split_s: Begin another file after this time (s, > 0). Default null: never.
        rigs: Rig files to store whole, with their lenses as calibrations. `record` fills it with the graph's files.
        consent: Who agreed to be recorded, and to what; it is in the file. Needed for a live camera or microphone.
            Default none.
        about: How the recording came to be, as JSON. `record` fills it with the graph and the machine.
    """

    def __init__(
        self,
        *,
        path: str,
        jpeg: list[str] | None = None,
        features_only: bool = False,
        compression: Compression = "lz4",
        split_mb: float | None = None,
        split_s: float | None = None,
        rigs: list[str] | None = None,
        consent: str = "",
        about: dict[str, Any] | None = None,
    ) -> None:
        if (split_mb is not None and split_mb <= 0) or (split_s is not None and split_s <= 0):
            raise ValueError("split_mb and split_s must be above 0")
        self._path, self._jpeg, self._features_only = Path(path), tuple(jpeg or ()), features_only
        self._compression: Compression = compression
        self._split_bytes = None if split_mb is None else round(split_mb * 1e6)
        self._split_ns = None if split_s is None else round(split_s * NS)
        self._rigs, self._about = [Path(rig) for rig in rigs or ()], about or {}
        self._consent = consent
        self._writer: Writer | None = None
        self._described: set[str] = set()
        self._engines: dict[str, dict[str, str]] = {}
        self._first_ns: int | None = None
        self._report_ns = self._retry_ns = self._labels = 0

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        return (("jpeg", stream) for stream in self._jpeg)

    def stored(self) -> Stored:
        of = (Prediction,) if self._features_only else (Frame, Prediction)
        what = "predictions and embeddings" if self._features_only else "all that it reads"
        return Stored(str(self._path), what, of, True, self._consent)

    def open(self) -> None:
        offset_ns, error_ns = utc_offset_ns(self.context.clock)
        about = {"made_by": "record", "utc_offset_ns": offset_ns, "utc_error_ns": error_ns, **self._about}
        if self._consent:
            about["consent"] = self._consent
        self._writer = Writer(
            self._path,
            about=about,
            compression=self._compression,
            split_bytes=self._split_bytes,
            split_ns=self._split_ns,
            goes_on=self.context.restarts > 0,
        )
        for path in self._rigs:
            self._store_rig(self._writer, path)
        self.context.metrics.facts["recording"] = str(self._path)

    def consume(self, arrival: Arrival) -> None:
        writer, message, source = self._writer, arrival.message, arrival.source
        assert writer is not None
        if isinstance(message, Health):
            self._note_engines(writer, message)
            self._store_labels(writer)
            if message.publish_ns < self.context.clock.start_ns:
                return  # before the start signal: other processes are still loading
        if self._first_ns is None:
            self._first_ns = arrival.arrival_ns
            writer.note("run", {"start_ns": self.context.clock.start_ns})
        if self._features_only and isinstance(message, Frame) and message.encoding in OF_PEOPLE:
            self.context.metrics.drop(source, "features only")
            return
        if arrival.arrival_ns < self._retry_ns:
            self.context.metrics.drop(source, "disk full")
            return
        if source not in self._described and (info := self.context.info(source)) is not None:
            self._described.add(source)
            writer.stream(info)
        try:
            self._write(writer, source, message, arrival.arrival_ns)
        except OSError as error:
            self.context.metrics.drop(source, "disk full")
            self._retry_ns = arrival.arrival_ns + RETRY_NS
            self.context.log.error(
                "%s: %s. Messages are dropped and counted until there is room; the pipeline goes on.",
                self._path,
                error.strerror,
            )
            self.context.report_state("silent", f"{self._path}: {error.strerror}")
            return
        self._report(writer, arrival.arrival_ns)

    def finish(self) -> None:
        """Write this node's own counters: what it dropped and what it wrote."""
        if self._writer is not None:
            try:
                self._store_labels(self._writer)
                self._writer.note(
                    "finished", {"dropped": self.context.metrics.dropped(), "written": dict(self._writer.counts)}
                )
            except OSError:
                pass  # logged already, in consume

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                repair = f"{COMMAND} record --repair {self._path}"
                self.context.log.error(
                    "%s: %s. The file could not be closed. Make room, then: %s", self._path, error.strerror, repair
                )
            self._writer = None

    def _write(self, writer: Writer, source: str, message: Message, arrival_ns: int) -> None:
        if source in self._jpeg and isinstance(message, Frame) and message.encoding == "bgr8":
            message = compress(message)
        # A prediction holds the moment that it is about, not when it left its node.
        writer.write(source, message, log_ns=arrival_ns if isinstance(message, Prediction) else None)

    def _store_rig(self, writer: Writer, path: Path) -> None:
        """Raises ConfigError for a file that is not a rig file."""
        from pipeline.rig.rig_file import load_rig

        for camera, lens in load_rig(path).intrinsics.items():
            writer.calibration(
                camera,
                width_px=lens.width_px,
                height_px=lens.height_px,
                matrix=lens.matrix,
                distortion=np.array(lens.distortion),
                model=FOXGLOVE_MODELS[lens.model],
                log_ns=self.context.clock.now_ns(),
            )
        writer.attach(path.name, path.read_bytes(), "application/yaml")

    def _store_labels(self, writer: Writer) -> None:
        """Labels that were set with the page's number keys."""
        for frame in page_labels(self.context.commands, self._labels):
            if not self._labels:
                writer.stream(PAGE_LABELS)
            self._labels += 1
            writer.write(STREAM, frame)

    def _note_engines(self, writer: Writer, health: Health) -> None:
        """Write the engines when they change: a replay is identical only with the same ones."""
        now = engines(health.nodes)
        if now and now != self._engines:
            self._engines = now
            writer.note("engines", {"publish_ns": health.publish_ns, "engines": now})

    def _report(self, writer: Writer, now_ns: int) -> None:
        if now_ns < self._report_ns:
            return
        self._report_ns = now_ns + REPORT_EVERY_NS
        length_s = (now_ns - (self._first_ns or now_ns)) / NS
        self.context.metrics.facts["recording"] = (
            f"{self._path.name} · {writer.size_bytes / 1e6:.1f} MB · {length_s:.0f} s"
        )
        self.context.report_state("running", "")
