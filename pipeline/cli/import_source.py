"""The verb `import`: a recording of another format becomes ours, with the config that replays it and a report.

python run_pipeline.py import drive.bag OUT.mcap --map /velodyne_points=lidar
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.cli.import_config import write_config
from pipeline.installation import COMMAND
from pipeline.recording.importers.importer import Imported, import_recording, listed
from pipeline.recording.reader import Reader


def import_source(
    source: Path, out: Path, *, mapping: Sequence[str] = (), raw: bool = False, say: Callable[[str], None] = print
) -> None:
    """Write `out` and, beside it, the config that replays it; report what is in it and what is not.

    Args:
        source: A file or folder of a supported format.
        out: The recording, OUT.mcap. A file that exists is refused.
        mapping: "/velodyne_points=lidar": a topic or stream and its name in the recording.
        raw: Keep a media file's pictures to the bit, not as JPEG, and its sound at its own rate.
        say: Called with each line of the report.

    Raises:
        ConfigError: As import_recording.
    """
    imported = import_recording(source, out, mapping=mapping, raw=raw)
    config = write_config(out, imported.encodings, imported.lidars, imported.rig)
    _report(out, config, imported, say)


def _report(out: Path, config: Path, imported: Imported, say: Callable[[str], None]) -> None:
    with Reader(out) as reader:
        begin_ns, end_ns = reader.span_ns
        say(f"  {out}: {imported.format}, {(end_ns - begin_ns) / 1e9:.1f} s, {reader.size_bytes / 1e6:.1f} MB")
        for name, info in reader.streams.items():
            say(f"  {name:<24} {reader.counts[name]:>7} {info.encoding:<16} {info.description}")
    for note in imported.notes:
        say(f"  note: {note}")
    if imported.left_out:
        say(f"  not in it:{listed(imported.left_out)}")
    say(f"  replay it with: {COMMAND} replay {config} {out}")
