"""Reads an MCAP file by its index, or record by record where its writer was killed before it wrote one.

Knows nothing of what a message holds. The MCAP library's own readers refuse a file that was not closed; so its records
are used, and the file is read here (chunk.py: what is inside a chunk; index.py: what ends a file).

Example:
    with McapReader(Path("out.mcap"), unclosed=False) as reader:
        for log_time, channel, data in reader.messages({channel}, 0, 1 << 64): ...
"""

from __future__ import annotations

import heapq
import struct
import zlib
from collections.abc import Iterator, Set
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    Footer,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
)
from mcap.writer import MCAP0_MAGIC

from pipeline.errors import ConfigError
from pipeline.files import open_regular
from pipeline.installation import COMMAND
from pipeline.recording.decompression import MAX_BYTES
from pipeline.recording.mcap.chunk import HEAD_BYTES, chunk_index_of, messages_of
from pipeline.recording.mcap.index import RECORD, Index

_FOOTER_BYTES = 9 + 20 + len(MCAP0_MAGIC)
_DEFINITIONS = {Opcode.SCHEMA: Schema, Opcode.CHANNEL: Channel}
# The records that a file without an end is read by; any other opcode there is where it is torn.
_KNOWN = {
    Opcode.HEADER,
    Opcode.ATTACHMENT,
    Opcode.METADATA,
    Opcode.MESSAGE_INDEX,
    Opcode.CHUNK,
    *_DEFINITIONS,
}
NOT_CLOSED = (
    "the file was not closed: its writer was killed, or the disk was full. "
    f"Write a closed copy with: {COMMAND} record --repair"
)


class McapReader:
    """One MCAP file, opened for reading.

    Args:
        path: The file.
        unclosed: Read a file that was not closed up to its last whole chunk, instead of refusing it.

    Raises:
        ConfigError: The file cannot be read, is not an MCAP file, is broken, or was not closed.
    """

    def __init__(self, path: Path, *, unclosed: bool) -> None:
        self.path = path
        self._stream = open_regular(path)
        try:
            self._open(unclosed)
        except BaseException:
            self._stream.close()
            raise

    def _open(self, unclosed: bool) -> None:
        self.size = self._stream.seek(0, 2)
        if self._at(0, len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise ConfigError(f"{self.path}: not an MCAP file. Recordings are made by: {COMMAND} record, and import")
        self.closed = (
            self._at(max(0, self.size - len(MCAP0_MAGIC)), 8) == MCAP0_MAGIC and self.size >= _FOOTER_BYTES + 8
        )
        if not self.closed and not unclosed:
            raise ConfigError(f"{self.path}: {NOT_CLOSED} {self.path}")
        self.index = self._summary() if self.closed else self.scan()
        self.torn_bytes = 0 if self.closed else self.size - self.index.end
        self.metadata: list[Metadata] = [
            self._record(Metadata, entry.offset, entry.length) for entry in self.index.metadata
        ]

    def broken(self, what: str, why: object) -> ConfigError:
        return ConfigError(
            f"{self.path}: broken: {what} cannot be read: {why}. Copy the file again, or record it again"
        )

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(length)

    def _record(self, kind: Any, offset: int, length: int) -> Any:
        try:
            if not 0 < length <= self.size - offset:
                raise ValueError("it lies outside the file")
            if length > MAX_BYTES:
                raise ValueError(f"its size is {length} bytes, expected at most {MAX_BYTES}")
            stream = ReadDataStream(BytesIO(self._at(offset, length)))
            _, size = RECORD.unpack(stream.read(RECORD.size))
            if size != length - RECORD.size:
                raise ValueError(f"a record of {size} bytes where one of {length - RECORD.size} should be")
            return kind.read(stream)
        except Exception as error:  # the library raises struct.error, UnicodeDecodeError, and its own
            raise self.broken(f"a {kind.__name__} at byte {offset}", error) from error

    def _summary(self) -> Index:
        """The index that ends a closed file."""
        footer_at = self.size - _FOOTER_BYTES
        footer = self._record(Footer, footer_at, _FOOTER_BYTES - len(MCAP0_MAGIC))
        if not 0 < footer.summary_start <= footer_at:
            raise ConfigError(
                f"{self.path}: an MCAP file without an index, so no recording of Sensorium. "
                f"Import it with: {COMMAND} import"
            )
        length = footer_at - footer.summary_start
        if length > MAX_BYTES:
            raise self.broken("its index", f"its size is {length} bytes, expected at most {MAX_BYTES}")
        raw = self._at(footer.summary_start, length)
        if footer.summary_crc and zlib.crc32(self._at(footer_at, 25), zlib.crc32(raw)) != footer.summary_crc:
            raise self.broken("its index", "the checksum does not match")
        try:
            index = Index.read(raw)
        except Exception as error:  # the library raises struct.error, UnicodeDecodeError, and its own
            raise self.broken("its index", error) from error
        index.end = self.size
        return index

    def scan(self) -> Index:
        """The index of a file that has none: read record by record, up to the last whole one, without payloads."""
        index, at = Index(), len(MCAP0_MAGIC)
        chunk: ChunkIndex | None = None
        while at + RECORD.size <= self.size:
            opcode, length = RECORD.unpack(self._at(at, RECORD.size))
            whole = RECORD.size + length
            if at + whole > self.size or opcode not in _KNOWN:
                break
            if opcode in _DEFINITIONS:
                index.add(self._record(_DEFINITIONS[opcode], at, whole))
            elif opcode == Opcode.METADATA:
                index.add(MetadataIndex(length=whole, name=self._record(Metadata, at, whole).name, offset=at))
            elif opcode == Opcode.ATTACHMENT:
                file = self._record(Attachment, at, whole)
                times = (file.log_time, file.create_time)
                index.add(AttachmentIndex(at, whole, *times, len(file.data), file.name, file.media_type))
            elif opcode == Opcode.CHUNK:
                chunk = self._chunk_index(at, whole)
                index.add(chunk)
            elif opcode == Opcode.MESSAGE_INDEX and chunk is not None:
                entries = self._record(MessageIndex, at, whole)
                chunk.message_index_offsets[entries.channel_id] = at
                chunk.message_index_length += whole
                index.counts[entries.channel_id] += len(entries.records)
            at += whole
        # The last chunk is whole but lacks its message indexes, so its messages cannot be counted: it is left out.
        if chunk is not None and not chunk.message_index_offsets:
            index.chunks.pop()
            at = chunk.chunk_start_offset
        index.end = at
        return index

    def _chunk_index(self, at: int, whole: int) -> ChunkIndex:
        try:
            return chunk_index_of(self._at(at + RECORD.size, HEAD_BYTES), at=at, length=whole)
        except (struct.error, UnicodeDecodeError) as error:
            raise self.broken(f"the chunk at byte {at}", error) from error

    def messages(self, channels: Set[int], from_utc: int, to_utc: int) -> Iterator[tuple[int, int, bytes]]:
        """(log time, channel, data) in the order of log time, with log times in [from_utc, to_utc)."""
        chunks = sorted(
            (
                c
                for c in self.index.chunks
                if c.message_end_time >= from_utc
                and c.message_start_time < to_utc
                and not channels.isdisjoint(c.message_index_offsets)
            ),
            key=lambda c: (c.message_start_time, c.chunk_start_offset),
        )
        heap: list[tuple[int, int, int, int, bytes]] = []
        for next_chunk in [*chunks, None]:
            ready_until = next_chunk.message_start_time if next_chunk else 1 << 64
            while heap and heap[0][0] < ready_until:
                log_time, _, _, channel, data = heapq.heappop(heap)
                yield log_time, channel, data
            if next_chunk is not None:
                for order, (log_time, channel, data) in enumerate(self._chunk_messages(next_chunk, channels)):
                    if from_utc <= log_time < to_utc:
                        heapq.heappush(heap, (log_time, next_chunk.chunk_start_offset, order, channel, data))

    def _chunk_messages(self, entry: ChunkIndex, channels: Set[int]) -> list[tuple[int, int, bytes]]:
        where = f"the chunk at byte {entry.chunk_start_offset}"
        chunk = self._record(Chunk, entry.chunk_start_offset, entry.chunk_length)
        try:
            return messages_of(chunk, entry, channels)
        except (ValueError, struct.error) as error:
            raise self.broken(where, error) from error

    def attachments(self) -> dict[str, bytes]:
        """Name → content."""
        return {e.name: self._record(Attachment, e.offset, e.length).data for e in self.index.attachments}

    def repair(self) -> None:
        """Cut off the torn end of an unclosed file and write its index."""
        try:
            with self.path.open("r+b") as file:
                file.truncate(self.index.end)
                file.seek(self.index.end)
                file.write(self.index.summary())
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be closed: {error.strerror}") from error
