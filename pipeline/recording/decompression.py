"""lz4, zstd and bz2 → bytes, no more than were announced: a kilobyte of anybody's file can stand for gigabytes.

Example:
    decompressed(data, "lz4", size=4096)            # exactly 4096 bytes, or ValueError
"""

from __future__ import annotations

import bz2

import lz4.frame
import zstandard

MAX_BYTES = 1 << 29  # of one chunk or message: more in a file is taken for damage
MAX_WINDOW_BYTES = 1 << 27  # of zstd, which allocates it: what `zstd --long` writes


def decompressed(data: bytes, compression: str, *, size: int | None = None) -> bytes:
    """The content of `data`.

    Args:
        data: The compressed bytes.
        compression: "lz4", "zstd", "bz2", or "" for none.
        size: How many bytes were announced; None: any number up to MAX_BYTES.

    Raises:
        ValueError: It is not so compressed, or holds another number of bytes.
    """
    most = MAX_BYTES if size is None else size
    if not 0 <= most <= MAX_BYTES:
        raise ValueError(f"its size is {most} bytes, expected at most {MAX_BYTES}")
    try:
        content = _at_most(data, compression, most + 1)
    except (RuntimeError, OSError, EOFError, zstandard.ZstdError) as error:  # RuntimeError: lz4's, OSError: bz2's
        raise ValueError(f"it cannot be decompressed: {error}") from error
    if len(content) > most or (size is not None and len(content) < size):
        raise ValueError(f"it holds {'more' if len(content) > most else 'fewer'} bytes than the {most} it should")
    return content


def _at_most(data: bytes, compression: str, count: int) -> bytes:
    if compression == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=count))
    if compression == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(data).read(count)
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(data, max_length=count)
    if compression:
        raise ValueError(f"compression '{compression[:20]}' is not known")
    return data
