"""Other people's recordings → ours: one format a file of this package, chosen by looking at what is there.

    python run_pipeline.py import drive.bag OUT.mcap --map /velodyne_points=lidar

Owns the choice, the names, the writing and the report; each importer (source.Opened) only reads. What could not be decoded is
listed, and a config that replays the rest is written beside the recording. Nothing is left behind when an import fails.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.frame import Frame, StreamInfo
from pipeline.installation import COMMAND
from pipeline.recording.importers.config import LidarPackets, write_config
from pipeline.recording.importers.source import Opened, pictures_in
from pipeline.recording.part import refuse_existing
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer
from pipeline.rig.rig import save
from pipeline.runtime.config import HEALTH
from pipeline.sensors.lidar.packet_decoder import is_ouster, recognise
from pipeline.sensors.media import SUFFIXES as MEDIA_SUFFIXES

MCAP_MAGIC = b"\x89MCAP0\r\n"
KNOWN = (
    "media files, folders of pictures with timestamps, KITTI raw and object folders, EuRoC, TUM RGB-D, ROS 1 .bag, ROS 2 .db3 and "
    ".mcap, Foxglove .mcap, .pcap"
)
PROGRESS_EVERY_S = 0.5


def open_source(source: Path, *, raw: bool = False) -> Opened:
    """Whatever `source` is, opened. raw: a media file's pictures to the bit, not as JPEG. ConfigError when it is nothing known."""
    if not source.exists():
        here = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise ConfigError(f"import: nothing at {source}.{nearest(source.name, here)}")
    opened = _open_folder(source) if source.is_dir() else _open_file(source, raw)
    if opened is None:
        raise ConfigError(f"import: {source} is none of what can be read. Formats: {KNOWN}")
    return opened


def _open_file(source: Path, raw: bool) -> Opened | None:
    from pipeline.recording.importers import foxglove_file, pcap, ros, video

    try:
        with source.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ConfigError(f"import: {source} cannot be read: {error.strerror}") from error
    suffix = source.suffix.lower()
    if head.startswith(b"#ROSBAG") or suffix == ".bag":
        return ros.open_ros(source)
    if head.startswith(b"SQLite format 3") or suffix == ".db3":
        return ros.open_ros(source)
    if head[:8] == MCAP_MAGIC or suffix == ".mcap":
        return foxglove_file.open_mcap(source) if foxglove_file.looks_like(source) else ros.open_ros(source)
    if head[:4] in (*pcap.MAGICS, pcap.PCAPNG) or suffix in (".pcap", ".pcapng"):
        return pcap.open_pcap(source)
    return video.open_video(source, raw=raw) if suffix in MEDIA_SUFFIXES else None


def _open_folder(folder: Path) -> Opened | None:
    from pipeline.recording.importers import euroc, kitti, pictures, ros, tum

    if (folder / "metadata.yaml").is_file():
        return ros.open_ros(folder)
    if (root := euroc.root(folder)) is not None:
        return euroc.open_euroc(root)
    if tum.looks_like(folder):
        return tum.open_tum(folder)
    if kitti.looks_like(folder):
        return kitti.open_kitti(folder)
    return pictures.open_pictures(folder) if pictures_in(folder) else None


def import_source(
    source: Path, out: Path, *, mapping: Sequence[str] = (), raw: bool = False, say: Callable[[str], None] = print
) -> None:
    """Write `out` and, beside it, the config that replays it; say what is in it and what is not.

    mapping: "/velodyne_points=lidar", a topic or stream and the name it gets. Raises ConfigError and leaves nothing.
    """
    if out.suffix != ".mcap":
        raise ConfigError(f"import: {out} is to be a recording: call it OUT.mcap")
    refuse_existing(out)
    opened = open_source(source, raw=raw)
    names = _Names(mapping, opened)
    partial = out.with_name(f".{out.stem}.part.mcap")
    partial.unlink(missing_ok=True)
    about = {
        "run": secrets.token_hex(8),
        "utc_offset_ns": 0,
        "made_by": "import",
        "source": source.name,
        "format": opened.format,
    }
    try:
        with Writer(partial, about=about) as writer:
            lidars = _Lidars()
            encodings = _write(writer, lidars.watched(names.renamed(_with_progress(opened, source))), opened, names)
            left_out = {where: dict(why) for where, why in opened.left_out.items() if why}
            names.check_all_met()
            if not writer.counts:
                raise ConfigError(f"import: {source}: nothing in it could be read.{_listed(left_out)}")
            writer.note("import", {"left_out": left_out, "notes": opened.notes})
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    rig = _write_rig(out, opened, names)
    config = write_config(out, encodings, lidars.found(), rig)
    _report(out, config, opened, left_out, say)


def _write_rig(out: Path, opened: Opened, names: _Names) -> Path | None:
    """Beside the recording, where the source says where its sensors sit, and where none lies already."""
    path = out.with_suffix(".rig.yaml")
    if opened.rig is None or path.exists():
        return path if path.exists() else None
    try:
        save(opened.rig(names.ours), path)
    except ConfigError as error:  # a calibration that is not as KITTI has it: the recording holds it as it is
        opened.notes.append(f"no rig file: {error}")
        return None
    return path


class _Lidars:
    """Which streams hold a known lidar's packets, and which its metadata: told by what they hold, as they pass."""

    LOOKED_AT = 4  # packets of a stream: the first may be a sensor's telemetry

    def __init__(self) -> None:
        self._sensors: dict[str, str] = {}
        self._looked: Counter[str] = Counter()
        self._metadata: list[str] = []  # of Ousters

    def watched(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.encoding == "packet":
                self._looked[frame.stream] += 1
                if not self._sensors.get(frame.stream) and self._looked[frame.stream] <= self.LOOKED_AT:
                    self._sensors[frame.stream] = recognise(frame.data.tobytes())
            elif (
                frame.encoding in ("calibration", "text_utf8")
                and frame.stream not in self._metadata
                and len(frame.data) > 500
            ):
                self._metadata += [frame.stream] if is_ouster(frame.data.tobytes().decode(errors="replace")) else []
            yield frame

    def found(self) -> dict[str, LidarPackets]:
        known = {stream: LidarPackets(sensor) for stream, sensor in self._sensors.items() if sensor}
        for metadata in self._metadata:
            # Beside it in name: ouster/metadata and ouster/lidar_packets of ROS drivers, lidar/metadata and lidar of our captures.
            place = metadata.rpartition("/")[0]
            rest = [s for s in self._sensors if s not in known]
            beside = [s for s in rest if s == place or s.rpartition("/")[0] == place]
            lidars = [s for s in beside or rest if "imu" not in s]
            rates = [s for s in rest if "imu" in s and s.rpartition("/")[0] in (place, place.rpartition("/")[0])]
            known |= {stream: LidarPackets("ouster", metadata) for stream in lidars[:1]}
            known |= {stream: LidarPackets("ouster_imu", metadata, "imu_f64") for stream in rates[:1] if lidars}
        return known


class _Names:
    """Streams by the names that the user wants for them."""

    def __init__(self, mapping: Sequence[str], opened: Opened) -> None:
        self._wanted: dict[str, str] = {}
        self._met: dict[str, str] = {}  # their name → ours
        for pair in mapping:
            theirs, equals, ours = pair.partition("=")
            if (
                not equals
                or not theirs.strip("/ ")
                or not ours.replace("_", "").replace("-", "").replace("/", "").isalnum()
            ):
                raise ConfigError(f"--map {pair}: expected THEIRS=OURS, such as /velodyne_points=lidar")
            if ours == HEALTH:
                raise ConfigError(f"--map {pair}: '{HEALTH}' is the launcher's own stream. Choose another name")
            self._wanted[theirs.strip("/ ")] = ours
        if opened.infos:  # a capture's streams are known only once it is read
            self._check(opened.infos)
        self._opened = opened

    def renamed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            ours = self._met.get(frame.stream) or self.meet(frame.stream)
            yield frame if ours == frame.stream else msgspec.structs.replace(frame, stream=ours)

    def meet(self, theirs: str) -> str:
        ours = self._wanted.get(theirs, theirs if theirs != HEALTH else f"{HEALTH}_theirs")
        if ours in self._met.values():
            raise ConfigError(
                f"--map: two streams would be called '{ours}'. Streams here: {', '.join(self._opened.infos)}"
            )
        self._met[theirs] = ours
        return ours

    def ours(self, theirs: str) -> str:
        return self._met.get(theirs, theirs)

    def theirs(self, ours: str) -> str:
        return next(theirs for theirs, name in self._met.items() if name == ours)

    def check_all_met(self) -> None:
        self._check(self._opened.infos)

    def _check(self, here: Mapping[str, StreamInfo]) -> None:
        for theirs in self._wanted:
            if theirs not in here:
                raise ConfigError(
                    f"--map {theirs}: no such stream. Streams here: {', '.join(here)}.{nearest(theirs, here)}"
                )


def _write(writer: Writer, frames: Iterator[Frame], opened: Opened, names: _Names) -> dict[str, str]:
    """Returns the encoding of each stream."""
    encodings: dict[str, str] = {}
    for frame in frames:
        if frame.stream not in encodings:
            info = opened.infos[names.theirs(frame.stream)]
            # What a topic's pictures are, PNG or depth or JPEG, the first of them tells.
            writer.stream(
                msgspec.structs.replace(info, stream=frame.stream, encoding=frame.encoding, sensor=frame.stream)
            )
            encodings[frame.stream] = frame.encoding
        writer.write(frame.stream, frame)
    return encodings


def _with_progress(opened: Opened, source: Path) -> Iterator[Frame]:
    """On a terminal, a line that is written over."""
    if not sys.stderr.isatty():
        yield from opened.frames
        return
    next_s = time.monotonic() + PROGRESS_EVERY_S
    for count, frame in enumerate(opened.frames, 1):
        yield frame
        if time.monotonic() >= next_s:
            next_s += PROGRESS_EVERY_S
            share = f", {min(100, 100 * count // opened.expected)} %" if opened.expected else ""
            print(f"\r  {source.name}: {count:,} frames{share}", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr)


def _report(
    out: Path, config: Path, opened: Opened, left_out: dict[str, dict[str, int]], say: Callable[[str], None]
) -> None:
    with Reader(out) as reader:
        begin_ns, end_ns = reader.span_ns
        say(f"  {out}: {opened.format}, {(end_ns - begin_ns) / 1e9:.1f} s, {reader.size_bytes / 1e6:.1f} MB")
        for name, info in reader.streams.items():
            say(f"  {name:<24} {reader.counts[name]:>7} {info.encoding:<16} {info.description}")
    for note in opened.notes:
        say(f"  note: {note}")
    if left_out:
        say(f"  not in it:{_listed(left_out)}")
    say(f"  replay it with: {COMMAND} replay {config} {out}")


def _listed(left_out: dict[str, dict[str, int]]) -> str:
    counted = Counter({f"{where}: {why}": n for where, reasons in left_out.items() for why, n in reasons.items()})
    lines = [f"\n    {what} ({n})" for what, n in counted.most_common(20)]
    return "".join(lines) + (f"\n    and {len(counted) - 20} more" if len(counted) > 20 else "")
