"""The config that `import` writes beside a recording: its streams as sources, aligned, with tasks.

Packets of a known lidar become sweeps in a node of their own. Streams that have no place in a set (other packets,
calibration, texts) are comments in the file, for nodes that read them.

Example:
    write_config(Path("out.mcap"), {"camera": "jpeg", "microphone": "pcm_f32"})       # out.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.frame import POINTS
from pipeline.installation import COMMAND
from pipeline.recording.importers.lidar_streams import LidarPackets

# Encodings in the order in which a stream is chosen as the anchor: pictures before sweeps before sound before numbers.
ANCHORS = ("bgr8", "jpeg", "points_xyzi_f32", "points_xyzit_f32", "depth_u16_mm", "pcm_f32", "imu_f64", "series_f32")
# The sync policy by encoding; of all others the nearest frame, by the stream's own rate.
SYNC = {"pcm_f32": "{policy: window, before_ms: 1000}"}
ADDED_NODES = ("align", "emotion", "scene", "console", "page")
MAX_NUMBERED = 1000  # configs beside one recording


def write_config(
    recording: Path,
    encodings: Mapping[str, str],
    lidars: Mapping[str, LidarPackets] | None = None,
    rig: Path | None = None,
) -> Path:
    """Write the config beside the recording. One that exists may be edited, so it stays, and the new one is numbered.

    Args:
        recording: The recording.
        encodings: By stream.
        lidars: The streams that hold a known lidar's packets.
        rig: The rig file of the sensors.

    Raises:
        ConfigError: It cannot be written.
    """
    text = config_text(recording, encodings, lidars, rig)
    numbered = (recording.with_suffix(f".{n}.yaml") for n in range(1, MAX_NUMBERED))
    for path in (recording.with_suffix(".yaml"), *numbered):
        try:
            with path.open("x") as file:
                file.write(text)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    raise ConfigError(f"{recording.with_suffix('.yaml')}: it and {MAX_NUMBERED - 1} others exist already. Remove some")


def config_text(
    recording: Path,
    encodings: Mapping[str, str],
    lidars: Mapping[str, LidarPackets] | None = None,
    rig: Path | None = None,
) -> str:
    """A graph for `check` and `replay`, as YAML. The arguments are write_config's.

    With points, or depth and a rig, it has the scene task; with pictures and sound the emotion task.
    """
    lidars = lidars or {}
    sweeps = _sweep_nodes(encodings, lidars)
    sources, encodings = encodings, {**encodings, **{n: lidars[stream].decoded for stream, n in sweeps.items()}}
    keys = {name: key(name) for name in encodings}
    nodes = {node: node if node not in encodings else f"{node}-of-{recording.stem}" for node in ADDED_NODES}
    aligned = sorted((n for n, e in encodings.items() if e in ANCHORS), key=lambda name: ANCHORS.index(encodings[name]))
    command = f"{COMMAND} replay {recording.with_suffix('.yaml').name} {recording.name}"
    lines = [f"# The streams of {recording.name}. Replay them: {command}", "nodes:"]
    width = max(map(len, keys.values())) + 1
    read = {*aligned, *lidars, *(lidar.metadata for lidar in lidars.values())}
    for name, encoding in sources.items():
        mark = "  " if name in read or not aligned else "  # "
        path = quoted(str(recording.resolve()))
        lines.append(f"{mark}{f'{keys[name]}:':<{width}} {{use: replay, path: {path}}}   # {encoding}")
    for stream, name in sweeps.items():
        inputs = ", ".join(keys[n] for n in filter(None, (stream, lidars[stream].metadata)))
        options = f"use: sweeps, sensor: {lidars[stream].sensor}, inputs: [{inputs}]"
        lines.append(f"  {f'{keys[name]}:':<{width}} {{{options}}}")
    if aligned:
        lines += _align_node(nodes["align"], aligned, encodings, keys)
    task, task_lines = _task_nodes(aligned, encodings, keys, nodes, rig)
    readers = ", ".join([*task, "health"])
    return "\n".join([*lines, *task_lines, f"  {nodes['console']}: {{use: console, inputs: [{readers}]}}"]) + "\n"


def _sweep_nodes(encodings: Mapping[str, str], lidars: Mapping[str, LidarPackets]) -> dict[str, str]:
    """Stream of packets → the node that decodes it: "points" of the only lidar, else STREAM-points."""
    names = {
        stream: f"{stream}-{'points' if lidar.decoded.startswith('points') else 'rates'}"
        for stream, lidar in lidars.items()
    }
    lidar, *others = [stream for stream, name in names.items() if name.endswith("-points")] or [""]
    return names | ({lidar: "points"} if lidar and not others and "points" not in encodings else {})


def _align_node(node: str, aligned: list[str], encodings: Mapping[str, str], keys: Mapping[str, str]) -> list[str]:
    rules = [f"{keys[name]}: {SYNC[encodings[name]]}" for name in aligned[1:] if encodings[name] in SYNC]
    return [
        f"  {node}:",
        "    use: align",
        f"    inputs: [{', '.join(keys[n] for n in aligned)}]",
        f"    anchor: {keys[aligned[0]]}",
        "    max_wait_ms: null   # each set waits for proof: the same sets at every speed",
        *([f"    sync: {{{', '.join(rules)}}}"] if rules else []),
    ]


def _task_nodes(
    aligned: list[str],
    encodings: Mapping[str, str],
    keys: Mapping[str, str],
    nodes: Mapping[str, str],
    rig: Path | None,
) -> tuple[list[str], list[str]]:
    """(the predicting node, if any; the lines of YAML)."""
    pictures = [name for name in aligned if encodings[name] in ("bgr8", "jpeg")]
    points = [name for name in aligned if encodings[name] in POINTS]
    # Depth pictures become points by their lens, which stands in the rig.
    if any(encodings[name] != "depth_u16_mm" or rig is not None for name in points):
        rig_option = f"rig: {quoted(str(rig.resolve()))}" if rig else ""
        shown = ", ".join(f"{{from: {keys[name]}, queue: latest}}" for name in (*pictures, *points))
        options = f", options: {{{rig_option}}}" if rig_option else ""
        return [nodes["scene"]], [
            f"  {nodes['scene']}:",
            f"    {{use: infer, task: scene, inputs: [{{from: {nodes['align']}, queue: 2}}], "
            f"process: {nodes['align']}{options}}}",
            f"  {nodes['page']}: {{use: dashboard, inputs: [{nodes['scene']}, health, {shown}]"
            f"{f', {rig_option}' if rig_option else ''}}}",
        ]
    if pictures and any(encodings[name] == "pcm_f32" for name in aligned):
        return [nodes["emotion"]], [
            f"  {nodes['emotion']}:",
            f"    {{use: infer, task: emotion, inputs: [{{from: {nodes['align']}, queue: 2}}], "
            f"process: {nodes['align']}, backend: auto}}",
        ]
    return [], []


def key(name: str) -> str:
    """A YAML key that is read back as text: 2024 and yes would be something else."""
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
