"""MCAP files, record by record: written in chunks that can be written out when wanted, read by index, walked where there is none.

Owns the file and its faults (chunk.py: what is inside a chunk; index.py: what ends a file); knows nothing of what a
message holds. With the MCAP library's records; its own writer has one open chunk, which it writes out when full and not when
asked to, and its readers want a file that was closed.

    file = McapWriter(Path("out.mcap"), "lz4")
    channel = file.register(schema, "/camera", {"stream": "camera"}); file.add(channel, seq, log_time, publish_time, data)
    for log_time, channel, data in McapReader(Path("out.mcap"), unclosed=False).messages({channel}, 0, 1 << 64): ...
"""

from __future__ import annotations

import heapq
import os
import struct
import zlib
from collections.abc import Iterator, Set
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Attachment,
    AttachmentIndex,
    Channel,
    Chunk,
    ChunkIndex,
    Footer,
    Header,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
)
from mcap.writer import LIBRARY_IDENTIFIER, MCAP0_MAGIC

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.chunk import HEAD_BYTES, MAX_BYTES, ChunkBuilder, Compression, entry_of, messages_of
from pipeline.recording.mcap.index import RECORD, Index

PROFILE = "sensorium"
LARGE_BYTES = 64 << 10  # a message of this size has a chunk of its own
CHUNK_BYTES, CHUNK_NS = 256 << 10, NS  # of small ones: written out when so large, or so old
_FOOTER_BYTES = 9 + 20 + len(MCAP0_MAGIC)
NOT_CLOSED = "it was not closed: its writer was killed, or the disk was full. Close it with: python run_pipeline.py record --repair"


class McapWriter:
    """One MCAP file being written. The library's own writer has one open chunk and cannot write it out when asked to."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path, self.index = path, Index(packed=True)
        self._compression = compression
        self._small = ChunkBuilder()
        self._small_since = 0
        self._stream: IO[bytes] | None = path.open("xb")
        builder = RecordBuilder()
        Header(PROFILE, LIBRARY_IDENTIFIER).write(builder)
        self._put(MCAP0_MAGIC + builder.end())

    @classmethod
    def resumed(cls, path: Path, compression: Compression) -> McapWriter:
        """Go on writing a closed file. Killed meanwhile, it is a file that was not closed. Raises ConfigError when it cannot be."""
        with McapReader(path, unclosed=True) as reader:
            index = reader.walked()
        index.pack()
        writer = cls.__new__(cls)
        writer.path, writer.index, writer._compression, writer._small, writer._small_since = (
            path,
            index,
            compression,
            ChunkBuilder(),
            0,
        )
        try:
            writer._stream = path.open("r+b")
            writer._stream.truncate(index.end)
            writer._stream.seek(index.end)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        return writer

    def register(self, schema: schemas.Schema, topic: str, metadata: dict[str, str]) -> int:
        builder = RecordBuilder()
        known = next((s for s in self.index.schemas.values() if s.name == schema.name), None)
        if known is None:
            known = Schema(id=len(self.index.schemas) + 1, data=schema.data, encoding=schema.encoding, name=schema.name)
            known.write(builder)
        channel = Channel(
            id=len(self.index.channels) + 1,
            topic=topic,
            message_encoding=schema.message_encoding,
            metadata=metadata,
            schema_id=known.id,
        )
        channel.write(builder)
        self._put(builder.end())
        self.index.keep(known)
        self.index.keep(channel)
        number: int = channel.id
        return number

    def add(self, channel: int, sequence: int, log_time: int, publish_time: int, data: bytes) -> None:
        if len(data) >= LARGE_BYTES:
            own = ChunkBuilder()
            own.add(channel, sequence, log_time, publish_time, data)
            self._put_chunk(own)
        else:
            self._small_since = self._small_since if self._small.size else log_time
            self._small.add(channel, sequence, log_time, publish_time, data)
        if self._small.size and (self._small.size >= CHUNK_BYTES or log_time - self._small_since >= CHUNK_NS):
            self.flush()

    def flush(self) -> None:
        """Write out what waits for its chunk to be full."""
        small, self._small = self._small, ChunkBuilder()
        if small.size:
            self._put_chunk(small)

    def add_metadata(self, name: str, data: dict[str, str]) -> None:
        builder = RecordBuilder()
        Metadata(metadata=data, name=name).write(builder)
        entry = MetadataIndex(offset=self.index.end, length=builder.count, name=name)
        self._put(builder.end())
        self.index.keep(entry)

    def add_attachment(self, name: str, media_type: str, data: bytes, log_time: int) -> None:
        builder = RecordBuilder()
        Attachment(log_time, log_time, name, media_type, data).write(builder)
        entry = AttachmentIndex(self.index.end, builder.count, log_time, log_time, len(data), name, media_type)
        self._put(builder.end())
        self.index.keep(entry)

    def close(self) -> None:
        """Raises OSError when even the summary could not be written; the file is then as good as killed."""
        if self._stream is None:
            return
        try:
            self.flush()
            self._put(self.index.summary())
        finally:
            self._stream.close()
            self._stream = None

    def _put_chunk(self, messages: ChunkBuilder) -> None:
        parts, entry = messages.built(at=self.index.end, compression=self._compression)
        self._put(*parts)
        self.index.keep(entry)
        self.index.counts.update(messages.counts())

    def _put(self, *parts: bytes) -> None:
        """All of it or none: what is there must stay readable."""
        assert self._stream is not None, "written to after close()"
        try:
            for part in parts:
                self._stream.write(part)
            self._stream.flush()
        except OSError:
            self._cut_back()
            raise
        self.index.end += sum(map(len, parts))

    def _cut_back(self) -> None:
        # The buffer would try again to write what did not fit: take the file from it.
        assert self._stream is not None
        descriptor = self._stream.fileno()
        os.ftruncate(descriptor, self.index.end)
        fresh = open(os.dup(descriptor), "r+b")  # noqa: SIM115  # closed by close()
        try:
            self._stream.close()
        except OSError:
            pass
        os.ftruncate(fresh.fileno(), self.index.end)
        fresh.seek(self.index.end)
        self._stream = fresh


class McapReader:
    """unclosed: read a file that was not closed up to its last whole chunk. Raises ConfigError for what is broken."""

    def __init__(self, path: Path, *, unclosed: bool) -> None:
        self.path = path
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            self._open(unclosed)
        except BaseException:
            self._stream.close()
            raise

    def _open(self, unclosed: bool) -> None:
        self.size = self._stream.seek(0, 2)
        if self._at(0, len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise ConfigError(
                f"{self.path}: not an MCAP file. Recordings are made by: python run_pipeline.py record, and import"
            )
        self.closed = (
            self._at(max(0, self.size - len(MCAP0_MAGIC)), 8) == MCAP0_MAGIC and self.size >= _FOOTER_BYTES + 8
        )
        if not self.closed and not unclosed:
            raise ConfigError(f"{self.path}: {NOT_CLOSED} {self.path}")
        self.index = self._summary() if self.closed else self.walked()
        self.torn_bytes = 0 if self.closed else self.size - self.index.end
        self.metadata: list[Metadata] = [
            self._record(Metadata, entry.offset, entry.length) for entry in self.index.metadata
        ]

    def broken(self, what: str, why: object) -> ConfigError:
        return ConfigError(f"{self.path}: broken: {what} cannot be read: {why}. Copy it anew, or make it again")

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
                raise ValueError("it lies outside of the file")
            stream = ReadDataStream(BytesIO(self._at(offset, length)))
            _, size = RECORD.unpack(stream.read(RECORD.size))
            if size != length - RECORD.size:
                raise ValueError(f"a record of {size} bytes where one of {length - RECORD.size} should be")
            return kind.read(stream)
        except Exception as error:  # the library raises struct.error, UnicodeDecodeError, and its own
            raise self.broken(f"a {kind.__name__} at byte {offset}", error) from error

    def _summary(self) -> Index:
        """The index as the file's end has it."""
        footer_at = self.size - _FOOTER_BYTES
        footer = self._record(Footer, footer_at, _FOOTER_BYTES - len(MCAP0_MAGIC))
        if not 0 < footer.summary_start <= footer_at:
            raise ConfigError(f"{self.path}: an MCAP file without an index, so no recording of Sensorium. Import it")
        raw = self._at(footer.summary_start, footer_at - footer.summary_start)
        if footer.summary_crc and zlib.crc32(self._at(footer_at, 25), zlib.crc32(raw)) != footer.summary_crc:
            raise self.broken("its index", "the checksum does not fit")
        try:
            index = Index.read(raw)
        except Exception as error:  # the library raises struct.error, UnicodeDecodeError, and its own
            raise self.broken("its index", error) from error
        index.end = self.size
        return index

    def walked(self) -> Index:
        """The index as a file without an end has it: record by record, up to the last whole one. Reads no payload."""
        index, at = Index(), len(MCAP0_MAGIC)
        chunk: ChunkIndex | None = None
        kept = {Opcode.SCHEMA: Schema, Opcode.CHANNEL: Channel}
        while at + RECORD.size <= self.size:
            opcode, length = RECORD.unpack(self._at(at, RECORD.size))
            whole = RECORD.size + length
            known = opcode in (
                Opcode.HEADER,
                Opcode.ATTACHMENT,
                Opcode.METADATA,
                Opcode.MESSAGE_INDEX,
                Opcode.CHUNK,
                *kept,
            )
            if at + whole > self.size or not known:
                break
            if opcode in kept:
                index.keep(self._record(kept[opcode], at, whole))
            elif opcode == Opcode.METADATA:
                index.keep(MetadataIndex(length=whole, name=self._record(Metadata, at, whole).name, offset=at))
            elif opcode == Opcode.ATTACHMENT:
                found = self._record(Attachment, at, whole)
                index.keep(
                    AttachmentIndex(
                        at, whole, found.log_time, found.create_time, len(found.data), found.name, found.media_type
                    )
                )
            elif opcode == Opcode.CHUNK:
                chunk = self._chunk_index(at, whole)
                index.keep(chunk)
            elif opcode == Opcode.MESSAGE_INDEX and chunk is not None:
                entries = self._record(MessageIndex, at, whole)
                chunk.message_index_offsets[entries.channel_id] = at
                chunk.message_index_length += whole
                index.counts[entries.channel_id] += len(entries.records)
            at += whole
        # A chunk without its message indexes is whole, but its messages could not be counted: it is given up.
        if chunk is not None and not chunk.message_index_offsets:
            index.chunks.pop()
            at = chunk.chunk_start_offset
        index.end = at
        return index

    def _chunk_index(self, at: int, whole: int) -> ChunkIndex:
        try:
            return entry_of(self._at(at + RECORD.size, HEAD_BYTES), at=at, length=whole)
        except (struct.error, UnicodeDecodeError) as error:
            raise self.broken(f"the chunk at byte {at}", error) from error

    def messages(self, channels: Set[int], from_utc: int, to_utc: int) -> Iterator[tuple[int, int, bytes]]:
        """(log time, channel, data) in the order of log time, of the log times in [from, to)."""
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
                for order, (log_time, channel, data) in enumerate(self._inside(next_chunk, channels)):
                    if from_utc <= log_time < to_utc:
                        heapq.heappush(heap, (log_time, next_chunk.chunk_start_offset, order, channel, data))

    def _inside(self, entry: ChunkIndex, channels: Set[int]) -> list[tuple[int, int, bytes]]:
        where = f"the chunk at byte {entry.chunk_start_offset}"
        if entry.uncompressed_size > MAX_BYTES:
            raise self.broken(where, f"it claims to hold {entry.uncompressed_size} bytes")
        chunk = self._record(Chunk, entry.chunk_start_offset, entry.chunk_length)
        try:
            return messages_of(chunk, entry, channels)
        except Exception as error:  # of lz4, zstandard, struct: each has its own
            raise self.broken(where, error) from error

    def attachments(self) -> dict[str, bytes]:
        """Name → content."""
        return {e.name: self._record(Attachment, e.offset, e.length).data for e in self.index.attachments}

    def repair(self) -> None:
        """Cut off what is torn and write the end that its writer could not."""
        try:
            with self.path.open("r+b") as file:
                file.truncate(self.index.end)
                file.seek(self.index.end)
                file.write(self.index.summary())
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be closed: {error.strerror}") from error
