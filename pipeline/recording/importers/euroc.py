"""EuRoC MAV: mav0/ with cam0, imu0, … each a data.csv (nanoseconds first), a data/ folder and a sensor.yaml.

Grey pictures become "bgr8" (the same number three times); sensor.yaml stays the text that it is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.importers.file_frames import (
    numbers,
    picture_frame,
    read_bytes,
    read_lines,
    series_frame,
    text_frame,
    whole_ns,
)
from pipeline.recording.importers.source import ImportSource, Item, from_items, rate_hz


def root(folder: Path) -> Path | None:
    """The folder that holds the sensors; None when `folder` is not of this format."""
    for candidate in (folder / "mav0", folder):
        if any(candidate.glob("cam*/data.csv")) or any(candidate.glob("imu*/data.csv")):
            return candidate
    return None


def open_euroc(folder: Path) -> ImportSource:
    """folder: as `root` returned it. Raises ConfigError with the line for a table that cannot be read."""
    infos, items = [], []
    for table in sorted(folder.glob("*/data.csv")):
        sensor = table.parent
        rows = [_row(line, where=f"{table}:{i + 1}") for i, line in enumerate(read_lines(table))]
        if not rows:
            continue
        times_ns = [at_ns for at_ns, _ in rows]
        is_camera, is_imu = sensor.name.startswith("cam"), sensor.name.startswith("imu")
        encoding = "bgr8" if is_camera else "imu_f64" if is_imu else "series_f32"
        infos.append(
            StreamInfo(sensor.name, encoding, rate_hz(times_ns), 3 if is_camera else 1, sensor.name, str(table))
        )
        for i, (at_ns, rest) in enumerate(rows):
            if is_camera:
                read = partial(picture_frame, sensor.name, at_ns, sensor / "data" / Path(rest).name, publish_ns=at_ns)
            elif is_imu:
                read = partial(_imu, sensor.name, at_ns, rest, where=f"{table}: row {i + 1}")
            else:
                read = partial(series_frame, sensor.name, at_ns, rest, where=f"{table}: row {i + 1}")
            items.append(Item(at_ns, sensor.name, read))
        if (sensor / "sensor.yaml").is_file():
            name = f"{sensor.name}/sensor"
            infos.append(StreamInfo(name, "calibration", None, 1, sensor.name, "sensor.yaml, unchanged"))
            items.append(Item(times_ns[0], name, partial(_yaml, name, times_ns[0], sensor / "sensor.yaml")))
    return from_items("EuRoC", infos, items)


def _row(line: str, *, where: str) -> tuple[int, str]:
    first, _, rest = line.partition(",")
    if not first.strip().isdecimal() or not rest.strip():
        raise ConfigError(f"{where}: found '{line[:40]}', expected nanoseconds, a comma, and a file name or numbers")
    return whole_ns(first.strip(), where=where), rest.strip()


def _imu(stream: str, at_ns: int, line: str, *, where: str) -> Frame:
    """EuRoC writes angular velocity, then acceleration; our order is the reverse."""
    values = numbers(line, where=where, count=6)
    return Frame(stream, -1, at_ns, "imu_f64", np.concatenate([values[3:], values[:3]]), publish_ns=at_ns)


def _yaml(stream: str, at_ns: int, path: Path) -> Frame:
    return text_frame(stream, at_ns, read_bytes(path))
