"""The rig's own file: YAML that people can read and write. What is written is read back to the last bit.

Example:
    version: 1
    intrinsics:
      camera: {model: radtan, width_px: 640, height_px: 480, fx_px: 535.4, fy_px: 535.7, cx_px: 342.6, cy_px: 234.6,
               distortion: [-0.28, 0.07, 0.001, 0.0, 0.1], sigma: [0.4, 0.4, 0.6, 0.7, 0.003, 0.02, 0.0002, 0.0002,
                   0.03]}
    poses:
      - {target: base, source: lidar, translation_m: [1.2, 0, 1.6], roll_pitch_yaw_deg: [0, 2, 0], sigma_deg: 0.5,
      sigma_m: 0.01}
    time_offsets:
      microphone: {reference: camera, offset_ms: -21.5, sigma_ms: 1.4}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND, CONFIGS, shipped
from pipeline.rig.intrinsics import LENS, MODELS, Intrinsics
from pipeline.rig.rig import BASE, Pose, Rig, TimeOffset
from pipeline.rig.transforms import rigid, rotation_from_quaternion, rotation_from_vector
from pipeline.rig.yaml_table import Table, read_yaml, write_yaml

VERSION = 1
NO_FILE = f" A rig comes from: {COMMAND} calibrate (docs/calibration-sensors.md); or leave the option out"


def locate_rig(path: str | Path) -> Path:
    """The path of a rig file: one that comes with Sensorium is found from any folder, as configs/rigs/NAME.yaml or
    NAME.yaml.
    """
    return shipped(path, CONFIGS / "rigs")


# --- reading ----------------------------------------------------------------------------------------------------------


def load_rig(path: str | Path) -> Rig:
    """Reads a rig file. ConfigError names the file, the field and the fix."""
    path = locate_rig(path)
    table = read_yaml(path, kind="a rig", missing_hint=NO_FILE).only(
        ("version", "base", "intrinsics", "poses", "time_offsets", "provenance")
    )
    if (version := table.whole("version")) != VERSION:
        raise ConfigError(
            f"{table.at('version')}: found {version}, and this program reads {VERSION}. Update it, or calibrate again"
        )
    names = table.table("intrinsics").names() if "intrinsics" in table else []
    intrinsics = dict(zip(names, map(_intrinsics, table.tables("intrinsics")), strict=True))
    poses = tuple(
        _pose(Table(entry, f"{table.at('poses')}[{i}]"))
        for i, entry in enumerate(table.list("poses") if "poses" in table else [])
    )
    offsets = {}
    for entry in table.tables("time_offsets"):
        entry.only(("reference", "offset_ms", "sigma_ms"))
        name = entry.where.partition("time_offsets.")[2]
        sigma_ms = entry.number("sigma_ms") if "sigma_ms" in entry else None
        offsets[name] = TimeOffset(name, entry.text("reference"), entry.number("offset_ms"), sigma_ms)
    provenance = {}
    if "provenance" in table:
        lines = table.table("provenance")
        provenance = {key: lines.text(key) for key in lines.names()}
    base = table.text("base") if "base" in table else BASE
    return Rig(intrinsics, poses, offsets, provenance, base, str(path))


def _intrinsics(table: Table) -> Intrinsics:
    table.only(("model", "width_px", "height_px", *LENS, "distortion", "sigma", "covariance", "rms_px"))
    model = table.text("model")
    if model not in MODELS:
        raise ConfigError(
            f"{table.at('model')}: there is no '{model}'. Known: {', '.join(MODELS)}.{nearest(model, MODELS)}"
        )
    count = len(LENS) + len(MODELS[model])
    covariance = None
    if "covariance" in table:
        covariance = table.array("covariance", count, count)
    elif "sigma" in table:
        covariance = np.diag(table.array("sigma", count) ** 2)
    distortion = tuple(table.array("distortion", len(MODELS[model]))) if "distortion" in table else ()
    width_px, height_px = table.whole("width_px"), table.whole("height_px")
    fx_px, fy_px, cx_px, cy_px = (table.number(name) for name in LENS)
    rms_px = table.number("rms_px") if "rms_px" in table else None
    try:
        return Intrinsics(model, width_px, height_px, fx_px, fy_px, cx_px, cy_px, distortion, covariance, rms_px)
    except ValueError as error:
        raise ConfigError(f"{table.where}: {error}") from error


def _pose(table: Table) -> Pose:
    rotations = ("matrix", "quaternion_xyzw", "roll_pitch_yaw_deg")
    table.only(("target", "source", *rotations, "translation_m", "covariance", "sigma_deg", "sigma_m"))
    target, source = table.text("target"), table.text("source")
    present = [key for key in rotations if key in table]
    if len(present) > 1:
        raise ConfigError(f"{table.where}: {' and '.join(present)} both hold the rotation. Leave one of them out")
    covariance = None
    if "covariance" in table:
        covariance = table.array("covariance", 6, 6)
    elif "sigma_deg" in table and "sigma_m" in table:
        sigma = [np.deg2rad(table.number("sigma_deg"))] * 3 + [table.number("sigma_m")] * 3
        covariance = np.diag(np.square(sigma))
    elif "sigma_deg" in table or "sigma_m" in table:
        raise ConfigError(f"{table.where}: sigma_deg and sigma_m belong together; one of them is missing")
    try:
        if present == ["matrix"]:
            if "translation_m" in table:
                raise ConfigError(
                    f"{table.at('translation_m')}: the matrix has a translation already. Leave one of them out"
                )
            return Pose(target, source, table.array("matrix", 4, 4), covariance)
        rotation = np.eye(3)
        if present == ["quaternion_xyzw"]:
            rotation = rotation_from_quaternion(*table.array("quaternion_xyzw", 4))
        elif present:
            roll, pitch, yaw = np.deg2rad(table.array("roll_pitch_yaw_deg", 3))
            x, y, z = np.eye(3)  # about the fixed axes x, y, z in this order, as in ROS and aviation
            rotation = rotation_from_vector(z * yaw) @ rotation_from_vector(y * pitch) @ rotation_from_vector(x * roll)
        return Pose(target, source, rigid(rotation, table.array("translation_m", 3)), covariance)
    except ValueError as error:
        raise ConfigError(f"{table.where}: {error}") from error


# --- writing ----------------------------------------------------------------------------------------------------------


def save_rig(rig: Rig, path: str | Path) -> None:
    """Writes YAML that load_rig() reads back to the last bit."""
    tree: dict[str, Any] = {"version": VERSION, "base": rig.base}
    if rig.intrinsics:
        tree["intrinsics"] = {name: _lens_tree(lens) for name, lens in rig.intrinsics.items()}
    if rig.poses:
        tree["poses"] = [_pose_tree(pose) for pose in rig.poses]
    if rig.time_offsets:
        tree["time_offsets"] = {
            name: _without_none({"reference": o.reference, "offset_ms": o.offset_ms, "sigma_ms": o.sigma_ms})
            for name, o in rig.time_offsets.items()
        }
    if rig.provenance:
        tree["provenance"] = dict(rig.provenance)
    write_yaml(tree, Path(path))


def _lens_tree(lens: Intrinsics) -> dict[str, Any]:
    return _without_none(
        {
            "model": lens.model,
            "width_px": lens.width_px,
            "height_px": lens.height_px,
            **{name: getattr(lens, name) for name in LENS},
            "distortion": lens.distortion,
            "rms_px": lens.rms_px,
            **_uncertainty(lens.covariance),
        }
    )


def _uncertainty(covariance: np.ndarray | None) -> dict[str, Any]:
    if covariance is None:
        return {}
    return {"sigma": np.sqrt(np.diag(covariance)), "covariance": covariance}


def _pose_tree(pose: Pose) -> dict[str, Any]:
    return _without_none(
        {"target": pose.target, "source": pose.source, "matrix": pose.target_from_source, "covariance": pose.covariance}
    )


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}
