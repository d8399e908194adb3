"""Media files through PyAV, with errors that name the fix; addresses with their passwords hidden.

Owns the timeline of a file: its pictures and its sound count from the container's own start, so that two nodes that
read one file agree. Knows nothing of nodes, pacing or devices; `av` is imported when a file is opened.

Example:
    with media.open_file("clip.mp4", "audio", where="microphone 'microphone'") as file:
        file.time_ns(frame)                      # since the container's start
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline import assets
from pipeline.errors import ConfigError, missing_package, nearest

NS = 1_000_000_000
# A name without a folder that ends so is a file, even when the file is missing.
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".mjpeg")
_AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
SUFFIXES = frozenset((*_VIDEO_SUFFIXES, *_AUDIO_SUFFIXES))


class OpenFile:
    """One stream of a media file, being decoded."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.path, self.container, self.stream = path, container, stream
        self._origin_ns = (container.start_time or 0) * 1000  # AV_TIME_BASE is microseconds

    def time_ns(self, frame: Any) -> int | None:
        """When the frame is presented, from the container's start; None where the file does not hold it."""
        time_ns = pts_ns(frame)
        return None if time_ns is None else time_ns - self._origin_ns

    @property
    def duration_ns(self) -> int | None:
        return self.container.duration * 1000 if self.container.duration else None

    def frames(self) -> Iterator[Any | None]:
        """Decoded frames; None for a packet that cannot be decoded. A file that breaks off ends there."""
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.FFmpegError):
                return
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                yield None
                continue
            yield from decoded

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pts_ns(frame: Any) -> int | None:
    """PyAV's presentation time stamp in nanoseconds, on the stream's own epoch."""
    if frame.pts is None or frame.time_base is None:
        return None
    return int(frame.pts * frame.time_base.numerator * NS // frame.time_base.denominator)


def reason(error: BaseException) -> str:
    """PyAV's error without its number and address."""
    return str(getattr(error, "strerror", None) or error)


def open_file(name: str, kind: Literal["video", "audio"], *, where: str) -> OpenFile:
    """Open a path or asset:NAME for its pictures or its sound. ConfigError when it is missing, no media file, or has
    none.

    where: begins the message: "camera 'camera'".
    """
    try:
        import av
    except ImportError as error:
        raise missing_package("av", where) from error
    path = Path(assets.resolve(name)).expanduser()
    if not path.is_file():
        raise ConfigError(f"{where}: {_missing(path)}")
    try:
        # Tags that are not UTF-8 must not refuse a file; PyAV 19 always replaces what it cannot decode.
        lenient = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
        container = av.open(str(path), **lenient)
    except (av.error.FFmpegError, OSError) as error:
        raise ConfigError(
            f"{where}: {path} cannot be read as {kind}: {reason(error)}. Does it play elsewhere? Then convert it."
        ) from error
    stream = next(iter(getattr(container.streams, kind)), None)
    if stream is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        container.close()
        raise ConfigError(f"{where}: {path} has no {kind} in it, only: {kinds}. Name another file.")
    if kind == "video":
        stream.thread_type = "AUTO"  # the delay of frame threads does not matter: files are decoded ahead
    return OpenFile(path, container, stream)


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder. Name a file in it."
    if path.exists():
        return f"{path} is not a regular file."
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent}."
    names = [p.name for p in path.parent.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES]
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    return f"no file {path}{where}." + nearest(path.name, names)


def looks_like_file(name: str) -> bool:
    """Whether a person who wrote `name` meant a file and not a device."""
    path = Path(name)
    return name.startswith((assets.PREFIX, "./", "../", "/", "~")) or path.suffix.lower() in SUFFIXES or path.is_file()
