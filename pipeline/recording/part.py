"""One file of a recording: what makes an MCAP file a recording of ours, and how one that was not closed is repaired.

A split recording is several such files (out.mcap, out.001.mcap, …), each whole by itself. writer.py writes them,
reader.py reads them as one.

Example:
    with Part(part_path(Path("out.mcap"), 1), unclosed=False) as part:
        part.about, part.infos, part.stream_of
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import Message, StreamInfo
from pipeline.installation import COMMAND
from pipeline.private_file import opener
from pipeline.recording.mcap.decode import decode
from pipeline.recording.mcap.file_reader import McapReader

VERSION = "1"  # of what a recording's metadata and messages mean
COPIED_BYTES = 8 << 20  # at a time
MAX_NAME = 200  # characters of a stream's name
METADATA = "sensorium"  # the MCAP metadata record that makes a file a recording; notes are "sensorium.NAME"


def part_path(path: Path, part: int) -> Path:
    """out.mcap, out.001.mcap, out.002.mcap, …"""
    return path if part == 0 else path.with_name(f"{path.stem}.{part:03d}{path.suffix}")


def refuse_existing(path: Path) -> None:
    """Raises ConfigError when the file exists: no command overwrites a recording."""
    if path.exists():
        raise ConfigError(f"{path}: the file exists already. Choose another name, or remove it")


class Part(McapReader):
    """One file of a recording, opened for reading.

    Args:
        path: The file.
        unclosed: Read a file that was not closed up to its last whole chunk, instead of refusing it.

    Raises:
        ConfigError: The file is not a recording, is broken, or was not closed.
    """

    def __init__(self, path: Path, *, unclosed: bool) -> None:
        super().__init__(path, unclosed=unclosed)
        try:
            self._read_description()
        except BaseException:
            self.close()
            raise

    def _read_description(self) -> None:
        fields = next((m.metadata for m in self.metadata if m.name == METADATA), None)
        if fields is None:
            fix = (
                f"Import it with: {COMMAND} import"
                if self.closed
                else "Its beginning is lost, or another program wrote it"
            )
            raise ConfigError(f"{self.path}: an MCAP file, but no recording of Sensorium. {fix}")
        if fields.get("version") != VERSION:
            raise ConfigError(
                f"{self.path}: a recording of version {fields.get('version')}; this Sensorium reads version {VERSION}. "
                "Read it with the Sensorium that wrote it"
            )
        try:
            self.about = msgspec.json.decode(fields["about"], type=dict[str, Any])
            self.utc_offset_ns = int(self.about.get("utc_offset_ns", 0))
            channels = self.index.channels.values()
            of_streams = [c for c in channels if "stream" in c.metadata]
            self.stream_of = {c.id: c.metadata["stream"] for c in of_streams}
            self.infos = [msgspec.json.decode(c.metadata["info"], type=StreamInfo) for c in of_streams]
            self.kind_of = {c.id: self.index.schemas[c.schema_id].name for c in channels}
            for name in self.stream_of.values():
                if (
                    not 0 < len(name) <= MAX_NAME or not name.isprintable()
                ):  # names are printed, and files are called by them
                    raise ValueError(f"the name of a stream is {name!r:.60}")
        except (msgspec.MsgspecError, LookupError, ValueError, TypeError) as error:
            raise self.broken("its description", error) from error

    def decoded(self, channel: int, data: bytes) -> Message:
        try:
            return decode(self.kind_of[channel], data)
        except ValueError as error:
            raise self.broken(f"a message of '{self.stream_of[channel]}'", error) from error


def close_unclosed(path: Path) -> tuple[int, int]:
    """Close a file whose writer was killed, in place: for what this run has just written.

    Returns (messages in it, bytes cut off); (n, 0) when it was closed already.
    """
    part = Part(Path(path), unclosed=True)
    part.close()
    if not part.closed:
        part.repair()
    return sum(part.index.counts[channel] for channel in part.stream_of), part.torn_bytes


def repair(path: Path, out: Path) -> tuple[int, int]:
    """Write a closed copy of a file whose writer was killed; the file itself stays as it is.

    Returns (messages in the copy, torn bytes that it lacks).

    Raises:
        ConfigError: The file is not a recording, or the copy exists already or cannot be written.
    """
    refuse_existing(out)
    Part(path, unclosed=True).close()  # before a copy of something else is made
    try:
        with path.open("rb") as source, open(out, "xb", opener=opener) as copy:
            shutil.copyfileobj(source, copy, COPIED_BYTES)
        return close_unclosed(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
