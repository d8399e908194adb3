"""KITTI: a raw drive (2011_09_26_drive_0052_sync) and the folders of its object benchmark.

    raw       image_00…03, velodyne_points (or velodyne), oxts, each with data/ and timestamps.txt; calib_*.txt
    object    image_2, velodyne, calib, label_2: unrelated moments, so they lie 1 s apart

A raw drive without timestamps.txt gets times from its frames' numbers and the rate in its calib.txt (`rate_hz: 10.0`),
else 10 Hz. Pictures and sweeps are stored to the bit, calibration and boxes as the text that they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.importers.file_frames import (
    numbers,
    picture_frame,
    pictures_in,
    read_bytes,
    read_lines,
    sweep_frame,
    text_frame,
    time_ns,
)
from pipeline.recording.importers.source import ImportSource, Item, from_items, rate_hz
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_formats import read_kitti
from pipeline.rig.transforms import rigid

DRIVE_HZ = 10.0
LIDAR_HEIGHT_M = 1.73  # of the Velodyne above the road, as KITTI published it
OBJECT_STEP_NS = NS
OXTS_TEXT = "oxts/text"
# Columns of an oxts line: acceleration forward, left and up (m/s²), and the angular velocity about these axes (rad/s).
OXTS_NUMBERS, ACCELERATION, TURNING = 30, slice(11, 14), slice(17, 20)


def looks_like(folder: Path) -> bool:
    sensors = [p.name for p in folder.iterdir() if p.is_dir()]
    return any(n.startswith(("velodyne", "image_0", "image_2")) for n in sensors) and (
        "calib" in sensors or _raw_sensors(folder) != []
    )


def open_kitti(folder: Path) -> ImportSource:
    """Raises ConfigError when there are fewer timestamps than frames.

    Only tables are read here; frames are read later.
    """
    return _open_object(folder) if (folder / "calib").is_dir() else _open_raw(folder)


def _raw_sensors(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name.startswith(("image_0", "velodyne", "oxts")))


def _open_raw(folder: Path) -> ImportSource:
    infos: list[StreamInfo] = []
    items: list[Item] = []
    notes: list[str] = []
    hz = _rate_of_calib(folder)
    for sensor in _raw_sensors(folder):
        files = _files(sensor)
        if not files:
            continue
        times_ns, ends_ns, has_timestamps = _times(sensor, files, hz)
        if not has_timestamps:
            notes.append(
                f"{sensor.name}: no timestamps.txt, so its times are the frames' numbers at {hz:g} Hz, from 0 on"
            )
        infos += _raw_infos(sensor, f"{folder.name}/{sensor.name}", rate_hz(times_ns))
        for path, at_ns, end_ns in zip(files, times_ns, ends_ns, strict=True):
            items += _raw_items(sensor.name, path, at_ns, end_ns)
    first_ns = min((item.capture_ns for item in items), default=0)
    calibration_infos, calibration = _calibration(folder, first_ns)
    label_infos, labels = _labels(folder, {int(p.stem): at for p, at in _pictures_at(folder, hz)})
    opened = from_items("KITTI raw", [*infos, *calibration_infos, *label_infos], [*calibration, *items, *labels], notes)
    if (calib := folder / "calib.txt").is_file():
        opened.rig = partial(_rig, calib, [info.stream for info in infos])
    return opened


def _files(sensor: Path) -> list[Path]:
    data = _data(sensor)
    is_camera = sensor.name.startswith("image")
    files = pictures_in(data) if is_camera else sorted(data.glob("*.bin")) + sorted(data.glob("*.txt"))
    return [p for p in files if p.stem.isdecimal()]


def _raw_infos(sensor: Path, description: str, hz: float | None) -> list[StreamInfo]:
    name = sensor.name
    encoding = {"i": "bgr8", "v": "points_xyzi_f32", "o": "imu_f64"}[name[0]]
    infos = [StreamInfo(name, encoding, hz, 1, name, description)]
    if name.startswith("oxts"):
        about = "position, speed and more, as KITTI's lines"
        infos.append(StreamInfo(OXTS_TEXT, "text_utf8", hz, 1, name, about))
    return infos


def _raw_items(stream: str, path: Path, at_ns: int, end_ns: int) -> list[Item]:
    """The frames of one file; end_ns: of a sweep."""
    match stream[0]:
        case "i":
            return [Item(at_ns, stream, partial(picture_frame, stream, at_ns, path, publish_ns=at_ns))]
        case "v":
            times = {"duration_ns": max(0, end_ns - at_ns), "publish_ns": max(at_ns, end_ns)}
            return [Item(at_ns, stream, partial(sweep_frame, stream, at_ns, path, **times))]
        case _:
            imu = Item(at_ns, stream, partial(_imu, stream, at_ns, path))
            return [imu, Item(at_ns, OXTS_TEXT, partial(_text, OXTS_TEXT, at_ns, path))]


def _rig(calib: Path, streams: list[str], ours: Callable[[str], str]) -> Rig:
    """The rig of the drive's cameras and lidar.

    The base frame lies on the ground below the lidar, as KITTI published it.
    """
    cameras = {int(s.removeprefix("image_")): s for s in streams if s.startswith("image_")}
    pictures = [path for stream in cameras.values() for path in pictures_in(_data(calib.parent / stream))]
    height_px, width_px = picture_frame("", 0, pictures[0]).data.shape[:2]
    lidar = ours(next((s for s in streams if s.startswith("velodyne")), "velodyne"))
    names = {number: ours(stream) for number, stream in cameras.items()}
    rig = read_kitti(calib, size=(width_px, height_px), names=names, lidar=lidar)
    return rig.with_pose(
        Pose(rig.base, lidar, rigid(np.eye(3), (0.0, 0.0, LIDAR_HEIGHT_M))),
        f"KITTI's setup: {LIDAR_HEIGHT_M} m above the ground",
    )


def _open_object(folder: Path) -> ImportSource:
    infos, items = [], []
    for sensor in sorted(p for p in folder.iterdir() if p.is_dir()):
        paths = [p for p in sorted(sensor.iterdir()) if p.stem.isdecimal()]
        timed = [(int(p.stem) * OBJECT_STEP_NS, p) for p in paths]
        name, about = sensor.name, f"{folder.name}/{sensor.name}"
        if name.startswith("image_"):
            infos.append(StreamInfo(name, "bgr8", NS / OBJECT_STEP_NS, 3, name, about))
            items += [Item(at, name, partial(picture_frame, name, at, p, publish_ns=at)) for at, p in timed]
        elif name == "velodyne":
            infos.append(StreamInfo(name, "points_xyzi_f32", NS / OBJECT_STEP_NS, 1, name, about))
            items += [Item(at, name, partial(sweep_frame, name, at, p, publish_ns=at)) for at, p in timed]
        elif name in ("calib", "label_2"):
            stream, encoding = ("calib", "calibration") if name == "calib" else ("boxes", "text_utf8")
            infos.append(StreamInfo(stream, encoding, NS / OBJECT_STEP_NS, 1, name, f"{about}, unchanged"))
            items += [Item(at, stream, partial(_text, stream, at, p)) for at, p in timed]
    return from_items(
        "KITTI object", infos, items, ["the moments of an object folder are unrelated: they lie 1 s apart, by number"]
    )


def _data(sensor: Path) -> Path:
    return sensor / "data" if (sensor / "data").is_dir() else sensor


def _rate_of_calib(folder: Path) -> float:
    calib = folder / "calib.txt"
    lines = read_lines(calib) if calib.is_file() else []
    rates = [
        numbers(line.partition(":")[2], where=str(calib), count=1)[0] for line in lines if line.startswith("rate_hz:")
    ]
    return float(rates[0]) if rates and rates[0] > 0 else DRIVE_HZ


def _times(sensor: Path, files: list[Path], hz: float) -> tuple[list[int], list[int], bool]:
    """When each file begins and ends, and whether the drive has timestamps."""
    begins = (
        sensor / "timestamps_start.txt" if (sensor / "timestamps_start.txt").is_file() else sensor / "timestamps.txt"
    )
    if not begins.is_file():
        times_ns = [round(int(path.stem) * NS / hz) for path in files]
        return times_ns, times_ns, False
    ends = sensor / "timestamps_end.txt" if (sensor / "timestamps_end.txt").is_file() else begins
    tables = [[time_ns(line, where=f"{t}:{i + 1}") for i, line in enumerate(read_lines(t))] for t in (begins, ends)]
    # A drive's lidar may lack a few sweeps: it has fewer files than lines, and the files' numbers are those of the
    # lines.
    last = max(int(path.stem) for path in files)
    if last >= min(map(len, tables)):
        raise ConfigError(
            f"{begins}: {len(tables[0])} times, but there is a file number {last}. "
            "The drive is incomplete: copy it again"
        )
    begun, ended = ([times[int(path.stem)] for path in files] for times in tables)
    return begun, ended, True


def _pictures_at(folder: Path, hz: float) -> list[tuple[Path, int]]:
    for sensor in (s for s in _raw_sensors(folder) if s.name in ("image_02", "velodyne", "velodyne_points")):
        data = _data(sensor)
        files = [p for p in sorted(data.iterdir()) if p.stem.isdecimal()]
        if files:
            return list(zip(files, _times(sensor, files, hz)[0], strict=True))
    return []


def _calibration(folder: Path, at_ns: int) -> tuple[list[StreamInfo], list[Item]]:
    """calib.txt of the drive, or the calib_*.txt one folder up, as KITTI publishes raw drives."""
    paths = sorted(folder.glob("calib*.txt")) or sorted(folder.parent.glob("calib_*.txt"))
    infos = [StreamInfo(f"calibration/{p.stem}", "calibration", None, 1, "", f"{p.name}, unchanged") for p in paths]
    return infos, [Item(at_ns, i.stream, partial(_text, i.stream, at_ns, p)) for i, p in zip(infos, paths, strict=True)]


def _labels(folder: Path, at_ns: dict[int, int]) -> tuple[list[StreamInfo], list[Item]]:
    paths = [p for p in sorted((folder / "label_2").glob("*.txt")) if p.stem.isdecimal() and int(p.stem) in at_ns]
    infos = [StreamInfo("boxes", "text_utf8", None, 1, "image_02", "label_2, unchanged")] if paths else []
    return infos, [Item(at, "boxes", partial(_text, "boxes", at, p)) for p in paths for at in [at_ns[int(p.stem)]]]


def _text(stream: str, at_ns: int, path: Path) -> Frame:
    return text_frame(stream, at_ns, read_bytes(path), "calibration" if stream.startswith("calib") else "text_utf8")


def _imu(stream: str, at_ns: int, path: Path) -> Frame:
    lines = read_lines(path)
    values = numbers(lines[0] if lines else "", where=str(path), count=OXTS_NUMBERS)
    return Frame(
        stream, -1, at_ns, "imu_f64", np.concatenate([values[ACCELERATION], values[TURNING]]), publish_ns=at_ns
    )
