"""The config that is written beside an imported recording: its streams as sources, aligned, with a line on the console.

Packets of a lidar that is known become sweeps in a node of their own. What has no place in a set of moments (other packets,
calibration, texts) stands there as a comment, to be taken in where something reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.frame import POINTS
from pipeline.installation import COMMAND

# Encodings in the order in which a stream is taken as the anchor: pictures before sweeps before sound before numbers.
ANCHORS = ("bgr8", "jpeg", "points_xyzi_f32", "points_xyzit_f32", "depth_u16_mm", "pcm_f32", "imu_f64", "series_f32")
SYNC = {"pcm_f32": "{policy: window, before_ms: 1000}"}  # of all others: the nearest frame, by the stream's own rhythm


class LidarPackets(NamedTuple):
    """A stream of packets that a decoder of pipeline/sensors/lidar/ reads."""

    sensor: str
    metadata: str = ""  # the stream that holds the sensor's, where it needs one
    gives: str = "points_xyzit_f32"


def config_text(
    recording: Path,
    encodings: Mapping[str, str],
    lidars: Mapping[str, LidarPackets] | None = None,
    rig: Path | None = None,
) -> str:
    """encodings: by stream. lidars: which of them hold a known lidar's packets. rig: of the sensors. A graph that `check` takes
    and `replay` plays: with points or depth it looks for what is around, with pictures and sound for people."""
    lidars = lidars or {}
    sweeps = _decoded_names(encodings, lidars)
    read = {*lidars, *(lidar.metadata for lidar in lidars.values())}
    streams = encodings
    encodings = {**encodings, **{name: lidars[stream].gives for stream, name in sweeps.items()}}
    keys = {name: key(name) for name in encodings}
    width = max(map(len, keys.values())) + 1
    added = ("align", "emotion", "scene", "console", "page")
    own = {node: node if node not in encodings else f"{node}-of-{recording.stem}" for node in added}
    command = f"{COMMAND} replay {recording.with_suffix('.yaml').name} {recording.name}"
    lines = [f"# The streams of {recording.name}. Replay them: {command}", "nodes:"]
    aligned = sorted((n for n, e in encodings.items() if e in ANCHORS), key=lambda name: ANCHORS.index(encodings[name]))
    for name, encoding in streams.items():
        mark = "  " if name in aligned or name in read or not aligned else "  # "
        lines.append(
            f"{mark}{f'{keys[name]}:':<{width}} {{use: replay, path: {quoted(str(recording.resolve()))}}}   # {encoding}"
        )
    for stream, name in sweeps.items():
        inputs = ", ".join(keys[n] for n in filter(None, (stream, lidars[stream].metadata)))
        lines.append(
            f"  {f'{keys[name]}:':<{width}} {{use: sweeps, sensor: {lidars[stream].sensor}, inputs: [{inputs}]}}"
        )
    if aligned:
        lines += [
            f"  {own['align']}:",
            "    use: align",
            f"    inputs: [{', '.join(keys[n] for n in aligned)}]",
            f"    anchor: {keys[aligned[0]]}",
            "    max_wait_ms: null   # each set waits for proof: the same sets at every speed",
        ]
        rules = [f"{keys[name]}: {SYNC[encodings[name]]}" for name in aligned[1:] if encodings[name] in SYNC]
        lines += [f"    sync: {{{', '.join(rules)}}}"] if rules else []
    pictures = [name for name in aligned if encodings[name] in ("bgr8", "jpeg")]
    sounds = [name for name in aligned if encodings[name] == "pcm_f32"]
    points = [name for name in aligned if encodings[name] in POINTS]
    around = any(encodings[name] != "depth_u16_mm" for name in points) or (
        points and rig is not None
    )  # depth needs its lens
    if around:
        known = f", rig: {quoted(str(rig.resolve()))}" if rig else ""
        shown = ", ".join(f"{{from: {keys[name]}, queue: latest}}" for name in (*pictures, *points))
        lines += [
            f"  {own['scene']}:",
            f"    {{use: infer, task: scene, inputs: [{{from: {own['align']}, queue: 2}}], "
            f"process: {own['align']}{f', options: {{{known[2:]}}}' if rig else ''}}}",
            f"  {own['page']}: {{use: dashboard, inputs: [{own['scene']}, health, {shown}]{known}}}",
        ]
    elif pictures and sounds:  # a picture and a sound track: people are looked for
        lines += [
            f"  {own['emotion']}:",
            f"    {{use: infer, task: emotion, inputs: [{{from: {own['align']}, queue: 2}}], "
            f"process: {own['align']}, backend: auto}}",
        ]
    predicting = [own["scene"]] if around else [own["emotion"]] if pictures and sounds else []
    lines += [f"  {own['console']}: {{use: console, inputs: [{', '.join([*predicting, 'health'])}]}}"]
    return "\n".join(lines) + "\n"


def _decoded_names(encodings: Mapping[str, str], lidars: Mapping[str, LidarPackets]) -> dict[str, str]:
    """Stream of packets → the node that decodes it: "points" of the only lidar, else STREAM-points."""
    names = {
        stream: f"{stream}-{'points' if lidar.gives.startswith('points') else 'rates'}"
        for stream, lidar in lidars.items()
    }
    lidar, *others = [stream for stream, name in names.items() if name.endswith("-points")] or [""]
    return names | ({lidar: "points"} if lidar and not others and "points" not in encodings else {})


def write_config(
    recording: Path,
    encodings: Mapping[str, str],
    lidars: Mapping[str, LidarPackets] | None = None,
    rig: Path | None = None,
) -> Path:
    """Beside the recording; one that is there already, and may be somebody's own, is kept, and the new one is numbered."""
    text = config_text(recording, encodings, lidars, rig)
    for path in (recording.with_suffix(".yaml"), *(recording.with_suffix(f".{n}.yaml") for n in range(1, 1000))):
        try:
            with path.open("x") as file:
                file.write(text)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    raise ConfigError(f"{recording.with_suffix('.yaml')}: it and a thousand others are there already. Remove some")


def key(name: str) -> str:
    """As YAML reads it back as a text: 2024 and yes would be something else."""
    plain = re.fullmatch(r"[A-Za-z_][\w/.-]*", name) and name.lower() not in (
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
        "null",
        "y",
        "n",
    )
    return name if plain else quoted(name)


def quoted(text: str) -> str:
    """A YAML scalar that holds any path."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
