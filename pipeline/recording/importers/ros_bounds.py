"""Bounds for rosbags, which has none of its own: how long a bag's records are, and what its chunks decompress to.

Its functions of these names are replaced, once, by ones that do the same and refuse more than MAX_BYTES. A version of
rosbags that has others keeps its own.

Example:
    bound_rosbags()
"""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.recording.decompression import MAX_BYTES, decompressed


def bound_rosbags() -> None:
    """Idempotent. Raises ModuleNotFoundError without rosbags."""
    rosbag1 = importlib.import_module("rosbags.rosbag1.reader")
    mcap = importlib.import_module("rosbags.rosbag2.storage_mcap")
    rosbag2 = importlib.import_module("rosbags.rosbag2.reader")
    for name, compression in (("bz2_decompress", "bz2"), ("lz4_decompress", "lz4")):  # rosbags 0.9
        if hasattr(rosbag1, name):
            setattr(rosbag1, name, _whole(compression))
    for table in (
        value for value in vars(rosbag1).values() if isinstance(value, dict) and {"bz2", "lz4"} <= value.keys()
    ):
        table |= {compression: _whole(compression) for compression in ("bz2", "lz4")}  # 0.11
    read_bytes = getattr(rosbag1, "read_bytes", None)
    if read_bytes is not None and not hasattr(read_bytes, "is_bounded"):
        rosbag1.read_bytes = _bounded_read(read_bytes)  # type: ignore[attr-defined]
    for compression in ("lz4", "zstd"):
        if compression in getattr(mcap, "DECOMPRESSORS", {}):
            mcap.DECOMPRESSORS[compression] = _announced(compression)
    for name in ("zstandard", "zstd"):  # 0.9, 0.11
        if hasattr(rosbag2, name):
            setattr(rosbag2, name, _Zstandard(getattr(rosbag2, name)))


def _whole(compression: str) -> Any:
    return lambda data: decompressed(data, compression)


def _announced(compression: str) -> Any:
    return lambda data, size: decompressed(data, compression, size=size)


def _bounded_read(read_bytes: Any) -> Any:
    def read(source: Any, size: int) -> bytes:
        if size > MAX_BYTES:
            raise ValueError(f"a record of {size} bytes, expected at most {MAX_BYTES}")
        content: bytes = read_bytes(source, size)
        return content

    read.is_bounded = True  # type: ignore[attr-defined]
    return read


class _Zstandard:
    """In place of the package for zstd: the messages and files of a compressed ROS 2 bag. All else is the package's."""

    def __init__(self, package: Any) -> None:
        self._package = package.package() if isinstance(package, _Zstandard) else package

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)

    def package(self) -> Any:
        return self._package

    def decompress(self, data: bytes) -> bytes:
        return decompressed(data, "zstd")

    class ZstdDecompressor:
        def decompress(self, data: bytes) -> bytes:
            return decompressed(data, "zstd")

        def copy_stream(self, source: Any, target: Any) -> None:
            import zstandard

            written = 0
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(source) as reader:
                while part := reader.read(1 << 20):
                    written += len(part)
                    if written > MAX_FILE_BYTES:
                        raise ValueError(f"it decompresses to more than {MAX_FILE_BYTES >> 30} GiB")
                    target.write(part)


MAX_FILE_BYTES = 64 << 30  # of a file that is compressed as a whole: an hour of raw pictures
