"""Imports a recording of another format (formats.py). Leaves nothing behind when an import fails.

Owns the names and the writing; each importer (source.ImportSource) only reads.

Example:
    imported = import_recording(Path("drive.bag"), Path("out.mcap"), mapping=["/velodyne_points=lidar"])
    imported.left_out                          # {"/pose": {"geometry_msgs/msg/Pose: this type is not supported": 12}}
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.frame import FOREVER_NS, Frame, StreamInfo
from pipeline.recording.importers.formats import open_source
from pipeline.recording.importers.lidar_streams import LidarPackets, LidarStreams
from pipeline.recording.importers.source import ImportSource
from pipeline.recording.part import refuse_existing
from pipeline.recording.writer import Writer
from pipeline.rig.rig_file import save_rig
from pipeline.runtime.config import HEALTH

PROGRESS_EVERY_S = 0.5
MAX_LISTED = 20


class Imported(NamedTuple):
    """What an import wrote.

    rig: the rig file beside the recording. left_out: topic or stream → why a message is left out → how many.
    """

    format: str
    encodings: dict[str, str]  # by stream
    lidars: dict[str, LidarPackets]  # by stream
    rig: Path | None
    left_out: dict[str, dict[str, int]]
    notes: list[str]  # what a user must know about the times or numbers


def import_recording(source: Path, out: Path, *, mapping: Sequence[str] = (), raw: bool = False) -> Imported:
    """Write `out`, and the sensors' rig beside it where the source holds one.

    Args:
        source: A file or folder of a supported format.
        out: The recording, OUT.mcap. A file that exists is refused.
        mapping: "/velodyne_points=lidar": a topic or stream and its name in the recording.
        raw: Keep a media file's pictures to the bit, not as JPEG, and its sound at its own rate.

    Raises:
        ConfigError: The source cannot be read, a name is not in it, or `out` cannot be written. Nothing is left behind.
    """
    if out.suffix != ".mcap":
        raise ConfigError(f"import: {out} is no name for a recording. Call it OUT.mcap")
    refuse_existing(out)
    opened = open_source(source, raw=raw)
    names = _StreamNames(mapping, opened)
    lidars = LidarStreams()
    partial = out.with_name(f".{out.stem}.part.mcap")
    partial.unlink(missing_ok=True)
    about = {
        "run": secrets.token_hex(8),
        "utc_offset_ns": 0,
        "made_by": "import",
        "source": source.name,
        "format": opened.format,
    }
    try:
        with Writer(partial, about=about) as writer:
            encodings = _write(writer, lidars.watch(names.rename(_with_progress(opened, source))), opened, names)
            left_out = {where: dict(reasons) for where, reasons in opened.left_out.items() if reasons}
            names.check_all_used()
            if not writer.counts:
                raise ConfigError(f"import: {source}: nothing in it could be read.{listed(left_out)}")
            writer.note("import", {"left_out": left_out, "notes": opened.notes})
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    rig = _write_rig(out, opened, names)
    return Imported(opened.format, encodings, lidars.recognised(), rig, left_out, opened.notes)


def _write(writer: Writer, frames: Iterator[Frame], opened: ImportSource, names: _StreamNames) -> dict[str, str]:
    """Returns the encoding of each stream."""
    encodings: dict[str, str] = {}
    for frame in frames:
        if not all(0 <= at <= FOREVER_NS for at in (abs(frame.capture_ns), abs(frame.publish_ns), frame.duration_ns)):
            opened.left_out[frame.stream]["frames of a time that is never reached"] += 1
            continue
        if frame.stream not in encodings:
            info = opened.infos[names.theirs(frame.stream)]
            # The first frame decides the encoding: a topic of pictures may hold PNG, depth or JPEG.
            writer.stream(
                msgspec.structs.replace(info, stream=frame.stream, encoding=frame.encoding, sensor=frame.stream)
            )
            encodings[frame.stream] = frame.encoding
        writer.write(frame.stream, frame)
    return encodings


def _write_rig(out: Path, opened: ImportSource, names: _StreamNames) -> Path | None:
    """The rig file beside the recording. One that exists already is not replaced."""
    path = out.with_suffix(".rig.yaml")
    if opened.rig is None or path.exists():
        return path if path.exists() else None
    try:
        save_rig(opened.rig(names.ours), path)
    except ConfigError as error:  # a calibration that is not KITTI's: the recording holds it as a stream
        opened.notes.append(f"no rig file: {error}")
        return None
    return path


class _StreamNames:
    """The names of streams in the recording: the source's, except those that the user maps."""

    def __init__(self, mapping: Sequence[str], opened: ImportSource) -> None:
        self._mapping: dict[str, str] = {}
        self._used: dict[str, str] = {}  # the source's name → ours
        for pair in mapping:
            theirs, equals, ours = pair.partition("=")
            is_valid = ours.replace("_", "").replace("-", "").replace("/", "").isalnum()
            if not equals or not theirs.strip("/ ") or not is_valid:
                raise ConfigError(f"--map {pair}: expected THEIRS=OURS, such as /velodyne_points=lidar")
            if ours == HEALTH:
                raise ConfigError(f"--map {pair}: '{HEALTH}' is the launcher's own stream. Choose another name")
            self._mapping[theirs.strip("/ ")] = ours
        if opened.infos:  # the streams of a network capture are known only after it was read
            self._check(opened.infos)
        self._opened = opened

    def rename(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            ours = self._used.get(frame.stream) or self._add(frame.stream)
            yield frame if ours == frame.stream else msgspec.structs.replace(frame, stream=ours)

    def _add(self, theirs: str) -> str:
        ours = self._mapping.get(theirs, theirs if theirs != HEALTH else f"{HEALTH}_theirs")
        if ours in self._used.values():
            raise ConfigError(
                f"--map: two streams would be called '{ours}'. Streams here: {', '.join(self._opened.infos)}"
            )
        self._used[theirs] = ours
        return ours

    def ours(self, theirs: str) -> str:
        return self._used.get(theirs, theirs)

    def theirs(self, ours: str) -> str:
        return next(theirs for theirs, name in self._used.items() if name == ours)

    def check_all_used(self) -> None:
        self._check(self._opened.infos)

    def _check(self, streams: Mapping[str, StreamInfo]) -> None:
        for theirs in self._mapping:
            if theirs not in streams:
                raise ConfigError(
                    f"--map {theirs}: no such stream. Streams here: {', '.join(streams)}.{nearest(theirs, streams)}"
                )


def _with_progress(opened: ImportSource, source: Path) -> Iterator[Frame]:
    """The frames; on a terminal, with a progress line that is overwritten."""
    if not sys.stderr.isatty():
        yield from opened.frames
        return
    next_s = time.monotonic() + PROGRESS_EVERY_S
    for count, frame in enumerate(opened.frames, 1):
        yield frame
        if time.monotonic() >= next_s:
            next_s += PROGRESS_EVERY_S
            share = f", {min(100, 100 * count // opened.expected)} %" if opened.expected else ""
            print(f"\r  {source.name}: {count:,} frames{share}", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr)


def listed(left_out: dict[str, dict[str, int]]) -> str:
    """What is not in the recording, a line each, the most frequent first."""
    counts = Counter({f"{where}: {why}": n for where, reasons in left_out.items() for why, n in reasons.items()})
    lines = [f"\n    {what} ({n})" for what, n in counts.most_common(MAX_LISTED)]
    return "".join(lines) + (f"\n    and {len(counts) - MAX_LISTED} more" if len(counts) > MAX_LISTED else "")
