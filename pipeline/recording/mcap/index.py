"""The index of an MCAP file: what its chunks hold and where, and the summary that ends the file. Opens no file.

Example:
    index = Index(packed=True)
    index.add(record)                   # each schema, channel, chunk index … as it is written
    index.summary()                     # the bytes that end the file
    Index.read(summary).chunks          # where each is, and which times it spans
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from io import BytesIO
from typing import Any

from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.opcode import Opcode
from mcap.records import AttachmentIndex, Channel, ChunkIndex, DataEnd, Footer, MetadataIndex, Schema, Statistics
from mcap.writer import MCAP0_MAGIC

RECORD = struct.Struct("<BQ")  # how each record begins: opcode, length


class Index:
    """The index of one file, read from its summary, collected by a scan, or growing while the file is written.

    Args:
        packed: Store chunk entries as the bytes that will be written: a tenth of the memory, for the 100,000 entries
            that an hour of video adds to a file being written. They cannot be listed then.
    """

    def __init__(self, *, packed: bool = False) -> None:
        self._packed = bytearray() if packed else None
        self._packed_count, self._first, self._last = 0, 1 << 64, 0
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self.chunks: list[ChunkIndex] = []
        self.metadata: list[MetadataIndex] = []
        self.attachments: list[AttachmentIndex] = []
        self.counts: Counter[int] = Counter()  # messages by channel
        self.end = 0  # byte after the last whole record

    def add(self, record: Any) -> None:
        if isinstance(record, Schema):
            self.schemas[record.id] = record
        elif isinstance(record, Channel):
            self.channels[record.id] = record
        elif isinstance(record, ChunkIndex) and self._packed is not None:
            self._pack(record)
        elif isinstance(record, ChunkIndex):
            self.chunks.append(record)
        elif isinstance(record, MetadataIndex):
            self.metadata.append(record)
        elif isinstance(record, AttachmentIndex):
            self.attachments.append(record)
        elif isinstance(record, Statistics):
            self.counts.update(record.channel_message_counts)

    def pack(self) -> None:
        """Store chunk entries packed from now on: the file will be written."""
        self._packed, chunks, self.chunks = bytearray(), self.chunks, []
        for chunk in chunks:
            self._pack(chunk)

    def _pack(self, chunk: ChunkIndex) -> None:
        assert self._packed is not None
        builder = RecordBuilder()
        chunk.write(builder)
        self._packed += builder.end()
        self._packed_count += 1
        self._first, self._last = min(self._first, chunk.message_start_time), max(self._last, chunk.message_end_time)

    def summary(self) -> bytes:
        """The records that end a file, footer and magic included."""
        builder = RecordBuilder()
        DataEnd(0).write(builder)
        start = self.end + builder.count
        data_end = builder.end()
        if self._packed is None:
            self.pack()
        assert self._packed is not None
        first, last = (self._first, self._last) if self._packed_count else (0, 0)
        statistics = Statistics(
            attachment_count=len(self.attachments),
            channel_count=len(self.channels),
            chunk_count=self._packed_count,
            channel_message_counts=dict(self.counts),
            message_count=self.counts.total(),
            message_start_time=first,
            message_end_time=last,
            metadata_count=len(self.metadata),
            schema_count=len(self.schemas),
        )
        for group in (self.schemas.values(), self.channels.values(), [statistics], self.attachments, self.metadata):
            for record in group:  # type: ignore[attr-defined]
                record.write(builder)
        builder.write(self._packed)
        summary = builder.end()
        footer_head = RECORD.pack(Opcode.FOOTER, 20) + struct.pack("<QQ", start, 0)
        Footer(start, 0, zlib.crc32(footer_head, zlib.crc32(summary))).write(builder)
        end: bytes = data_end + summary + builder.end() + MCAP0_MAGIC
        return end

    @classmethod
    def read(cls, summary: bytes) -> Index:
        """From the records that end a file, without the footer. Raises what the library raises for broken records."""
        index = cls()
        kinds: dict[int, Any] = {
            Opcode.SCHEMA: Schema,
            Opcode.CHANNEL: Channel,
            Opcode.CHUNK_INDEX: ChunkIndex,
            Opcode.STATISTICS: Statistics,
            Opcode.METADATA_INDEX: MetadataIndex,
            Opcode.ATTACHMENT_INDEX: AttachmentIndex,
        }
        stream = ReadDataStream(BytesIO(summary))
        while stream.count < len(summary):
            opcode, length = RECORD.unpack(stream.read(RECORD.size))
            end = stream.count + length
            if opcode in kinds:
                index.add(kinds[opcode].read(stream))
            if end > stream.count:
                stream.read(end - stream.count)
        return index
