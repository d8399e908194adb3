"""A folder of pictures, with times from a table beside them or from their names.

    timestamps.txt, times.txt     a time a line, in the order of the names
    timestamps.csv, any .csv      "name,time" or "time,name"; a first line of words is skipped
    1403636579763555584.png       else the names are the times

Times are seconds, milli-, micro- or nanoseconds since 1970, or dates (file_frames.time_ns). JPEG files stay unchanged.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.frame import StreamInfo
from pipeline.recording.importers.file_frames import picture_frame, pictures_in, read_lines, time_ns
from pipeline.recording.importers.source import ImportSource, Item, from_items, rate_hz

LISTS = ("timestamps.txt", "times.txt")
FIX = "Put a timestamps.txt beside them: a time a line, such as 12.345 (seconds), in the order of their names"


def open_pictures(folder: Path) -> ImportSource:
    """Raises ConfigError when the pictures have no times, or the numbers of times and pictures differ."""
    paths = pictures_in(folder)
    times = _from_list(folder, paths) or _from_table(folder) or _from_names(folder, paths)
    untimed = [p.name for p in paths if p.name not in times]
    if untimed:
        raise ConfigError(
            f"{folder}: {len(untimed)} of {len(paths)} pictures have no time, such as {untimed[0]}. {FIX}"
        )
    name = folder.name if folder.name.replace("_", "").replace("-", "").isalnum() else "camera"
    is_jpeg = paths[0].suffix.lower() in (".jpg", ".jpeg")
    times_ns = sorted(times[p.name] for p in paths)
    about = f"{folder}, {len(paths)} pictures"
    info = StreamInfo(name, "jpeg" if is_jpeg else "bgr8", rate_hz(times_ns), 3, name, about)
    items = [Item(t, name, partial(picture_frame, name, t, p, publish_ns=t)) for p in paths for t in [times[p.name]]]
    return from_items("folder of pictures", [info], items)


def _from_list(folder: Path, paths: list[Path]) -> dict[str, int]:
    for table in (folder / name for name in LISTS if (folder / name).is_file()):
        lines = read_lines(table)
        if len(lines) != len(paths):
            raise ConfigError(f"{table}: {len(lines)} times for {len(paths)} pictures. {FIX}")
        times = [time_ns(line, where=f"{table}:{i + 1}") for i, line in enumerate(lines)]
        return {p.name: t for p, t in zip(paths, times, strict=True)}
    return {}


def _from_table(folder: Path) -> dict[str, int]:
    times: dict[str, int] = {}
    for table in sorted(folder.glob("*.csv")):
        for i, line in enumerate(read_lines(table)):
            first, _, second = (word.strip().strip('"') for word in line.partition(","))
            name, at = (first, second) if Path(first).suffix else (second, first)
            if (folder / Path(name).name).is_file():
                times[Path(name).name] = time_ns(at.partition(",")[0], where=f"{table}:{i + 1}")
            elif i:  # the first line may hold the names of the columns
                raise ConfigError(
                    f"{table}:{i + 1}: found '{line[:60]}', expected the name of a picture in {folder} and a time"
                )
    return times


def _from_names(folder: Path, paths: list[Path]) -> dict[str, int]:
    """Times from the pictures' names; 000001.png is a number, not a time."""
    stems = [p.stem for p in paths]
    if not all(stem.replace(".", "", 1).isdecimal() and len(stem.partition(".")[0]) >= 10 for stem in stems):
        raise ConfigError(f"{folder}: its {len(paths)} pictures have no times. {FIX}")
    return {p.name: time_ns(p.stem, where=str(p)) for p in paths}
