"""Recordings of other programs: `import` from the file to ours, with rig, config and report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import importing

from pipeline.cli.import_source import import_source
from pipeline.errors import ConfigError
from pipeline.recording.reader import Reader as Recording
from tests.fuzz.harness import Reader, target
from tests.fuzz.targets.recordings import mended_mcap


def _imported(source: Path, folder: Path) -> object:
    """What `import` writes can be read; what it refuses leaves nothing behind."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        import_source(source, out / "x.mcap", say=lambda line: None)
        with Recording(out / "x.mcap") as reader:
            return sum(1 for _ in reader.messages())
    except ConfigError:
        assert not list(out.iterdir()), "an import that was refused left a file behind"
        raise
    finally:
        for path in out.iterdir():
            path.unlink()


def _file(folder: Path, name: str, make_file: Callable[[Path], Path], **more: Any) -> Reader:
    (folder / "samples").mkdir()
    (folder / "in").mkdir()
    sample, path = make_file(folder / "samples" / name).read_bytes(), folder / "in" / name

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return _imported(path, folder)

    return Reader([sample], read, names=name, **more)


def _folder(folder: Path, make_folder: Callable[[Path], Path], tables: list[str]) -> Reader:
    """One of the folder's files at a time: the first byte says which."""
    source = make_folder(folder / "x")
    whole = [(source / table).read_bytes() for table in tables]

    def read(data: bytes) -> object:
        which = data[0] % len(tables) if data else 0
        table = source / tables[which]
        table.write_bytes(data[1:])
        try:
            return _imported(source, folder)
        finally:
            table.write_bytes(whole[which])

    return Reader([bytes([i]) + raw for i, raw in enumerate(whole)], read, names="/x")


@target("import-bag", weight=3)
def bag(folder: Path) -> Reader:
    """ROS 1 bags."""
    return _file(folder, "x.bag", importing.ros1_bag)


@target("import-db3", weight=3)
def db3(folder: Path) -> Reader:
    """ROS 2 bags (SQLite)."""
    return _file(folder, "x.db3", lambda path: importing.ros2_bag(path.with_name("bag")) / "bag.db3")


@target("import-ros2-folder", weight=3)
def ros2_folder(folder: Path) -> Reader:
    """Folders of ROS 2 bags."""
    return _folder(folder, importing.ros2_bag, ["metadata.yaml", "x.db3"])


@target("import-ros2-mcap", weight=3)
def ros2_mcap(folder: Path) -> Reader:
    """MCAP files of ROS 2."""
    return _file(folder, "x.mcap", importing.ros2_mcap, mend=mended_mcap)


@target("import-foxglove", weight=6)
def foxglove(folder: Path) -> Reader:
    """MCAP files with Foxglove's schemas."""
    return _file(folder, "x.mcap", importing.foxglove_mcap, mend=mended_mcap)


@target("import-pcap", weight=12)
def pcap(folder: Path) -> Reader:
    """Network captures."""
    packets = [importing.udp_packet(bytes([i]) * 60, id=i) for i in range(12)]
    halves = [importing.ip_packet(bytes(64), id=99, more=True), importing.ip_packet(bytes(9), id=99, offset=64)]
    packets += [b"\0" * 12 + b"\x08\x00" + half for half in halves]
    return _file(folder, "x.pcap", lambda path: importing.pcap(path, packets))


@target("import-media", weight=2)
def media(folder: Path) -> Reader:
    """Media files."""
    return _file(folder, "x.mp4", lambda path: importing.video(path, 4))


@target("import-euroc", weight=4)
def euroc(folder: Path) -> Reader:
    """EuRoC MAV folders."""
    tables = ["mav0/cam0/data.csv", "mav0/imu0/data.csv", "mav0/cam0/sensor.yaml"]
    return _folder(folder, lambda path: importing.euroc(path, 2), tables)


@target("import-tum", weight=5)
def tum(folder: Path) -> Reader:
    """TUM RGB-D folders."""
    return _folder(folder, importing.tum, ["rgb.txt", "depth.txt", "groundtruth.txt", "depth/0.png"])


@target("import-kitti", weight=5)
def kitti(folder: Path) -> Reader:
    """KITTI's raw drives."""

    def drive(path: Path) -> Path:
        from tests.fuzz.targets.settings import KITTI

        whole = importing.kitti_raw(path.with_name("raw"))
        shutil.copytree(whole, path)
        (path / "calib.txt").write_bytes(KITTI + b"rate_hz: 10.0\n")
        return path

    tables = [
        *("image_02/timestamps.txt", "velodyne_points/timestamps_start.txt", "oxts/timestamps.txt", "calib.txt"),
        *("velodyne_points/data/0000000001.bin", "oxts/data/0000000001.txt", "image_02/data/0000000000.png"),
    ]
    return _folder(folder, drive, tables)


@target("import-pictures", weight=5)
def picture_folder(folder: Path) -> Reader:
    """Folders of pictures with a table of times."""
    return _folder(folder, importing.pictures, ["timestamps.txt", "001.jpg"])
