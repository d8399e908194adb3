"""Writes an MCAP file in chunks that can be written out at any time. Knows nothing of what a message holds.

The MCAP library's own writer has one open chunk, which it writes out when it is full and not when it is asked to; so
its records are used, and the file is written here (chunk.py: what is inside a chunk; index.py: what ends a file).

Example:
    file = McapWriter(Path("out.mcap"), "lz4")
    channel = file.register(schema, "/camera", {"stream": "camera"})
    file.add(channel, seq, log_time, publish_time, data)
    file.close()
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from mcap.data_stream import RecordBuilder
from mcap.records import Attachment, AttachmentIndex, Channel, Header, Metadata, MetadataIndex, Schema
from mcap.writer import LIBRARY_IDENTIFIER, MCAP0_MAGIC

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.private_file import opener
from pipeline.recording.mcap import schemas
from pipeline.recording.mcap.chunk import ChunkBuilder, Compression
from pipeline.recording.mcap.file_reader import McapReader
from pipeline.recording.mcap.index import Index

PROFILE = "sensorium"
LARGE_BYTES = 64 << 10  # a message of this size has a chunk of its own
CHUNK_BYTES, CHUNK_NS = 256 << 10, NS  # a chunk of small messages is written out at this size or age


class McapWriter:
    """One MCAP file being written.

    Args:
        path: The file, for this user alone; FileExistsError when it exists.
        compression: Of chunks: "none", "lz4" or "zstd".
    """

    def __init__(self, path: Path, compression: Compression) -> None:
        self.path, self.index = path, Index(packed=True)
        self._compression = compression
        self._small = ChunkBuilder()
        self._small_since = 0
        self._stream: IO[bytes] | None = open(path, "xb", opener=opener)  # noqa: SIM115  # closed by close()
        builder = RecordBuilder()
        Header(PROFILE, LIBRARY_IDENTIFIER).write(builder)
        self._put(MCAP0_MAGIC + builder.end())

    @classmethod
    def resumed(cls, path: Path, compression: Compression) -> McapWriter:
        """Append to a closed file. When the writer is killed, the file is one that was not closed.

        Raises ConfigError when the file cannot be read or written.
        """
        with McapReader(path, unclosed=True) as reader:
            index = reader.scan()
        index.pack()
        writer = cls.__new__(cls)
        writer.path, writer.index, writer._compression = path, index, compression
        writer._small, writer._small_since = ChunkBuilder(), 0
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
        self.index.add(known)
        self.index.add(channel)
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
        """Write out the messages whose chunk is not full yet."""
        small, self._small = self._small, ChunkBuilder()
        if small.size:
            self._put_chunk(small)

    def add_metadata(self, name: str, data: dict[str, str]) -> None:
        builder = RecordBuilder()
        Metadata(metadata=data, name=name).write(builder)
        entry = MetadataIndex(offset=self.index.end, length=builder.count, name=name)
        self._put(builder.end())
        self.index.add(entry)

    def add_attachment(self, name: str, media_type: str, data: bytes, log_time: int) -> None:
        builder = RecordBuilder()
        Attachment(log_time, log_time, name, media_type, data).write(builder)
        entry = AttachmentIndex(self.index.end, builder.count, log_time, log_time, len(data), name, media_type)
        self._put(builder.end())
        self.index.add(entry)

    def close(self) -> None:
        """Raises OSError when the summary could not be written; the file is then one that was not closed."""
        if self._stream is None:
            return
        try:
            self.flush()
            self._put(self.index.summary())
        finally:
            self._stream.close()
            self._stream = None

    def _put_chunk(self, messages: ChunkBuilder) -> None:
        parts, entry = messages.build(at=self.index.end, compression=self._compression)
        self._put(*parts)
        self.index.add(entry)
        self.index.counts.update(messages.counts())

    def _put(self, *parts: bytes) -> None:
        """Write all of it or nothing, so that what is in the file stays readable."""
        assert self._stream is not None, "write after close()"
        try:
            for part in parts:
                self._stream.write(part)
            self._stream.flush()
        except OSError:
            self._cut_back()
            raise
        self.index.end += sum(map(len, parts))

    def _cut_back(self) -> None:
        # Closing the buffered stream tries again to write what did not fit, so the file is opened a second time first.
        assert self._stream is not None
        descriptor = self._stream.fileno()
        os.ftruncate(descriptor, self.index.end)
        reopened = open(os.dup(descriptor), "r+b")  # noqa: SIM115  # closed by close()
        try:
            self._stream.close()
        except OSError:
            pass
        os.ftruncate(reopened.fileno(), self.index.end)
        reopened.seek(self.index.end)
        self._stream = reopened
