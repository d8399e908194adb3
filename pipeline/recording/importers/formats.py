"""Which format a file or folder has, and the importer that opens it: chosen by content first, then by the name.

Example:
    for frame in open_source(Path("drive.bag")).frames: ...
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError, nearest
from pipeline.files import open_regular
from pipeline.recording.importers.file_frames import pictures_in
from pipeline.recording.importers.source import ImportSource
from pipeline.sensors.media import SUFFIXES as MEDIA_SUFFIXES

MCAP_MAGIC = b"\x89MCAP0\r\n"
FORMATS = (
    "media files, folders of pictures with timestamps, KITTI raw and object folders, EuRoC, TUM RGB-D, ROS 1 .bag, "
    "ROS 2 .db3 and .mcap, Foxglove .mcap, .pcap"
)


def open_source(source: Path, *, raw: bool = False) -> ImportSource:
    """Open a recording of any supported format.

    Args:
        source: A file or folder.
        raw: Keep a media file's pictures to the bit, not as JPEG, and its sound at its own rate.

    Raises:
        ConfigError: The source does not exist, has no supported format, or is damaged.
    """
    if not source.exists():
        siblings = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise ConfigError(f"import: there is no {source}.{nearest(source.name, siblings)}")
    opened = _open_folder(source) if source.is_dir() else _open_file(source, raw)
    if opened is None:
        raise ConfigError(f"import: {source} has no format that is supported. Formats: {FORMATS}")
    return opened


def _open_file(source: Path, raw: bool) -> ImportSource | None:
    from pipeline.recording.importers import foxglove_file, pcap, ros, video

    with open_regular(source) as file:
        head = file.read(16)
    suffix = source.suffix.lower()
    if head.startswith(b"#ROSBAG"):
        return ros.open_ros(source)
    if suffix == ".bag":
        raise ConfigError(f"import: {source} cannot be read as a ROS bag: it does not begin like one. Copy it again")
    if head.startswith(b"SQLite format 3") or suffix == ".db3":
        return ros.open_ros(source)
    if head[:8] == MCAP_MAGIC or suffix == ".mcap":
        return foxglove_file.open_mcap(source) if foxglove_file.looks_like(source) else ros.open_ros(source)
    if head[:4] in (*pcap.MAGICS, pcap.PCAPNG) or suffix in (".pcap", ".pcapng"):
        return pcap.open_pcap(source)
    return video.open_video(source, raw=raw) if suffix in MEDIA_SUFFIXES else None


def _open_folder(folder: Path) -> ImportSource | None:
    from pipeline.recording.importers import euroc, kitti, picture_folder, ros, tum

    if (folder / "metadata.yaml").is_file():
        return ros.open_ros(folder)
    if (root := euroc.root(folder)) is not None:
        return euroc.open_euroc(root)
    if tum.looks_like(folder):
        return tum.open_tum(folder)
    if kitti.looks_like(folder):
        return kitti.open_kitti(folder)
    return picture_folder.open_pictures(folder) if pictures_in(folder) else None
