"""Messages ↔ one chunk of an MCAP file. Bytes and values; no file.

Example:
    builder = ChunkBuilder(); builder.add(channel, sequence, log_time, publish_time, data)
    parts, entry = builder.build(at=4096, compression="lz4")   # the bytes for that place; their entry in the index
    messages_of(chunk, entry, {channel})                       # [(log time, channel, data), …]
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Set
from typing import Literal

import lz4.frame
import zstandard
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import Chunk, ChunkIndex, MessageIndex

from pipeline.recording.decompression import decompressed
from pipeline.recording.mcap.index import RECORD

Compression = Literal["none", "lz4", "zstd"]
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_HEAD = struct.Struct("<QQQI")  # first and last log time, size and CRC of the uncompressed content
HEAD_BYTES = _HEAD.size + 4 + 16 + 8  # of a chunk after its record header: all that chunk_index_of() reads


class ChunkBuilder:
    """Collects the messages of one chunk."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._entries: dict[int, list[tuple[int, int]]] = {}  # by channel: log time, offset in the chunk

    def add(self, channel: int, sequence: int, log_time: int, publish_time: int, data: bytes) -> None:
        self._entries.setdefault(channel, []).append((log_time, self.size))
        head = RECORD.pack(Opcode.MESSAGE, _MESSAGE.size + len(data)) + _MESSAGE.pack(
            channel, sequence, log_time, publish_time
        )
        self._parts += [head, data]
        self.size += len(head) + len(data)

    def counts(self) -> dict[int, int]:
        """Channel → how many messages."""
        return {channel: len(entries) for channel, entries in self._entries.items()}

    def build(self, *, at: int, compression: Compression) -> tuple[tuple[bytes, ...], ChunkIndex]:
        """The bytes of the chunk and its message indexes, for byte `at` of the file, and their entry in the index."""
        content = b"".join(self._parts)
        data = _compressed(content, compression)
        times = [log_time for entries in self._entries.values() for log_time, _ in entries]
        name = "" if compression == "none" else compression
        builder = RecordBuilder()
        head = _HEAD.pack(min(times), max(times), len(content), zlib.crc32(content))
        head += struct.pack("<I", len(name)) + name.encode() + struct.pack("<Q", len(data))
        chunk = (RECORD.pack(Opcode.CHUNK, len(head) + len(data)), head, data)
        length = sum(map(len, chunk))
        offsets = {}
        for channel, entries in self._entries.items():
            offsets[channel] = at + length + builder.count
            MessageIndex(channel_id=channel, records=entries).write(builder)
        entry = ChunkIndex(
            chunk_length=length,
            chunk_start_offset=at,
            compression=name,
            compressed_size=len(data),
            message_end_time=max(times),
            message_index_length=builder.count,
            message_index_offsets=offsets,
            message_start_time=min(times),
            uncompressed_size=len(content),
        )
        return (*chunk, builder.end()), entry


def _compressed(data: bytes, compression: Compression) -> bytes:
    if compression == "lz4":
        return bytes(lz4.frame.compress(data))
    return zstandard.ZstdCompressor(level=1).compress(data) if compression == "zstd" else data


def chunk_index_of(head: bytes, *, at: int, length: int) -> ChunkIndex:
    """The index entry of a chunk whose record begins at byte `at`, without its message indexes.

    head: its first HEAD_BYTES, or fewer at the file's end. Raises struct.error or UnicodeDecodeError for other bytes.
    """
    first, last, size, _ = _HEAD.unpack_from(head)
    (name_bytes,) = struct.unpack_from("<I", head, _HEAD.size)
    name = head[_HEAD.size + 4 :][:name_bytes].decode()
    return ChunkIndex(
        chunk_length=length,
        chunk_start_offset=at,
        compression=name,
        compressed_size=length - RECORD.size - _HEAD.size - 4 - name_bytes - 8,
        message_end_time=last,
        message_index_length=0,
        message_index_offsets={},
        message_start_time=first,
        uncompressed_size=size,
    )


def messages_of(chunk: Chunk, entry: ChunkIndex, channels: Set[int]) -> list[tuple[int, int, bytes]]:
    """(log time, channel, data) in the chunk's order.

    Raises ValueError, and struct.error, when it is broken.
    """
    if chunk.uncompressed_size != entry.uncompressed_size or chunk.compression not in ("", "lz4", "zstd"):
        raise ValueError("its size or compression differs from the index")
    content = decompressed(chunk.data, chunk.compression, size=chunk.uncompressed_size)
    if chunk.uncompressed_crc and zlib.crc32(content) != chunk.uncompressed_crc:
        raise ValueError("its checksum does not match")
    at, messages = 0, []
    while at < len(content):
        opcode, length = RECORD.unpack_from(content, at)
        at += RECORD.size
        if at + length > len(content):
            raise ValueError("a message extends past its end")
        if opcode == Opcode.MESSAGE:
            channel, _, log_time, _ = _MESSAGE.unpack_from(content, at)
            if channel in channels:
                messages.append((log_time, channel, content[at + _MESSAGE.size : at + length]))
        at += length
    return messages
