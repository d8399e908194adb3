"""TUM RGB-D: rgb.txt and depth.txt (seconds, file), accelerometer.txt and groundtruth.txt (seconds, numbers).

Its depth pictures have 5000 units to a metre; they are rounded to the millimetre.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.frame import StreamInfo
from pipeline.recording.importers.file_frames import picture_frame, read_lines, seconds_ns, series_frame
from pipeline.recording.importers.source import ImportSource, Item, from_items, rate_hz

DEPTH_PER_MM = 5.0
TABLES = ("rgb.txt", "depth.txt", "accelerometer.txt", "groundtruth.txt")


def looks_like(folder: Path) -> bool:
    return (folder / "rgb.txt").is_file() or (folder / "depth.txt").is_file()


def open_tum(folder: Path) -> ImportSource:
    """Raises ConfigError for a line that is not seconds and a file, or seconds and numbers."""
    infos, items = [], []
    for table in (folder / name for name in TABLES if (folder / name).is_file()):
        rows = [_row(line, where=f"{table}:{i + 1}") for i, line in enumerate(read_lines(table))]
        if not rows:
            continue
        name = table.stem
        encoding = {"rgb": "bgr8", "depth": "depth_u16_mm"}.get(name, "series_f32")
        descriptions = {
            "accelerometer": "acceleration x y z, m/s²",
            "groundtruth": "position x y z in m, orientation x y z w",
        }
        times_ns = [at_ns for at_ns, _ in rows]
        infos.append(
            StreamInfo(
                name, encoding, rate_hz(times_ns), 3 if name == "rgb" else 1, name, descriptions.get(name, str(table))
            )
        )
        for i, (at_ns, rest) in enumerate(rows):
            if name in ("rgb", "depth"):
                path = folder / rest
                if "\0" in rest or not path.resolve().is_relative_to(folder.resolve()):
                    raise ConfigError(f"{table}: '{rest[:60]}' lies outside the folder. Correct the table")
                read = partial(picture_frame, name, at_ns, path, depth_per_mm=DEPTH_PER_MM, publish_ns=at_ns)
            else:
                read = partial(series_frame, name, at_ns, rest, where=f"{table}: row {i + 1}")
            items.append(Item(at_ns, name, read))
    return from_items(
        "TUM RGB-D",
        infos,
        items,
        ["depth: 5000 units to a metre in the files, rounded to the millimetre in the recording"],
    )


def _row(line: str, *, where: str) -> tuple[int, str]:
    first, _, rest = line.partition(" ")
    if not rest.strip():
        raise ConfigError(f"{where}: found '{line[:40]}', expected seconds, then a file or numbers")
    return seconds_ns(first, where=where), rest.strip()
