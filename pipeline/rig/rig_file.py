"""The rig's own file, YAML a person can write and read; and the careful reading that other formats share.

Every error names the file, the field, what was found and the nearest name. What is written is read back to the last bit.

    version: 1
    intrinsics:
      camera: {model: radtan, width_px: 640, height_px: 480, fx_px: 535.4, fy_px: 535.7, cx_px: 342.6, cy_px: 234.6,
               distortion: [-0.28, 0.07, 0.001, 0.0, 0.1], sigma: [0.4, 0.4, 0.6, 0.7, 0.003, 0.02, 0.0002, 0.0002, 0.03]}
    poses:
      - {target: base, source: lidar, translation_m: [1.2, 0, 1.6], roll_pitch_yaw_deg: [0, 2, 0], sigma_deg: 0.5, sigma_m: 0.01}
    time_offsets:
      microphone: {reference: camera, offset_ms: -21.5, sigma_ms: 1.4}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.errors import ConfigError, nearest
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import LENS, MODELS, Intrinsics
from pipeline.rig.rig import BASE, Pose, Rig, TimeOffset, rigid, rotation_from_quaternion, rotation_from_vector

VERSION = 1
NO_FILE = f" A rig comes from: {COMMAND} calibrate (docs/calibration-sensors.md); or leave the option out"


class Table:
    """A mapping of a file, with the place it stands at: `rig.yaml: intrinsics.camera`. Every getter raises ConfigError."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: found {a(value)}, expected a table")
        self.value, self.where = value, where

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def names(self) -> list[str]:
        for key in self.value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self.where}: YAML reads the name {key!r} as {type(key).__name__}. Put it in quotes"
                )
        return list(self.value)

    def only(self, known: Iterable[str]) -> Table:
        known = list(known)
        for key in self.value:
            if key not in known:
                raise ConfigError(
                    f"{self.where}: unknown key '{key}'. Known here: {', '.join(known)}.{nearest(str(key), known)}"
                )
        return self

    def at(self, key: str) -> str:
        return f"{self.where}{'.' if self.where.rpartition(': ')[1] else ': '}{key}"

    def get(self, key: str) -> Any:
        if key not in self:
            here = ", ".join(map(str, self.value)) or "nothing"
            close = nearest(key, map(str, self.value)).replace("Did you mean", "Is it")
            raise ConfigError(f"{self.at(key)}: missing. Here: {here}.{close}")
        return self.value[key]

    def table(self, key: str) -> Table:
        return Table(self.get(key), self.at(key))

    def tables(self, key: str) -> Iterator[Table]:
        """Of a table of tables, or none where the key is missing."""
        if key in self:
            table = self.table(key)
            yield from (table.table(name) for name in table.names())

    def list(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise ConfigError(f"{self.at(key)}: found {a(value)}, expected a list")
        return value

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self.at(key)}: found {a(value)}, expected a name")
        return value

    def number(self, key: str) -> float:
        return number(self.get(key), self.at(key))

    def whole(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise ConfigError(f"{self.at(key)}: found {value:g}, expected a whole number")
        return int(value)

    def array(self, key: str, *shape: int) -> np.ndarray:
        """Nested lists of exactly this shape → float64; −1 stands for any length."""
        return array(self.get(key), self.at(key), shape)


def number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        found = float(value)  # YAML takes 1e-5, without a point, for text
    except ValueError:
        raise ConfigError(f"{where}: found {a(value)}, expected a number") from None
    if not np.isfinite(found):
        raise ConfigError(f"{where}: found {found}, expected a finite number")
    return found


def array(value: Any, where: str, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.float64(number(value, where))  # type: ignore[return-value]
    wanted = " × ".join("n" if n < 0 else str(n) for n in shape)
    if not isinstance(value, list) or (shape[0] >= 0 and len(value) != shape[0]):
        found = f"a list of {len(value)}" if isinstance(value, list) else a(value)
        raise ConfigError(f"{where}: found {found}, expected {wanted} numbers")
    return np.array([array(entry, f"{where}[{i}]", shape[1:]) for i, entry in enumerate(value)], np.float64)


def a(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def read_yaml(path: Path, *, kind: str) -> Table:
    """The table that a YAML file holds. kind: what it should have been, for errors: "a rig"."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        beside = (
            [p.name for p in path.parent.glob("*") if p.suffix in (".yaml", ".yml", ".txt")]
            if path.parent.is_dir()
            else []
        )
        raise ConfigError(f"{path}: there is no such file.{nearest(path.name, beside) or NO_FILE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as {kind}: {error}") from error
    try:
        # OpenCV writes a directive of its own first line, and tags for its matrices; ROS writes plain YAML.
        tree = yaml.safe_load(text.replace("%YAML:1.0", "%YAML 1.1", 1) if text.startswith("%YAML:1.0") else text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file holds {a(tree)}, expected {kind}")
    return Table(tree, str(path))


# --- reading ----------------------------------------------------------------------------------------------------------


def read_rig(path: Path) -> Rig:
    table = read_yaml(path, kind="a rig").only(("version", "base", "intrinsics", "poses", "time_offsets", "provenance"))
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
        made = table.table("provenance")
        provenance = {key: made.text(key) for key in made.names()}
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
    turns = ("matrix", "quaternion_xyzw", "roll_pitch_yaw_deg")
    table.only(("target", "source", *turns, "translation_m", "covariance", "sigma_deg", "sigma_m"))
    target, source = table.text("target"), table.text("source")
    given = [key for key in turns if key in table]
    if len(given) > 1:
        raise ConfigError(f"{table.where}: {' and '.join(given)} both give the rotation. Leave one of them out")
    covariance = None
    if "covariance" in table:
        covariance = table.array("covariance", 6, 6)
    elif "sigma_deg" in table and "sigma_m" in table:
        sigma = [np.deg2rad(table.number("sigma_deg"))] * 3 + [table.number("sigma_m")] * 3
        covariance = np.diag(np.square(sigma))
    elif "sigma_deg" in table or "sigma_m" in table:
        raise ConfigError(f"{table.where}: sigma_deg and sigma_m belong together; one of them is missing")
    try:
        if given == ["matrix"]:
            if "translation_m" in table:
                raise ConfigError(
                    f"{table.at('translation_m')}: the matrix has a translation already. Leave one of them out"
                )
            return Pose(target, source, table.array("matrix", 4, 4), covariance)
        rotation = np.eye(3)
        if given == ["quaternion_xyzw"]:
            rotation = rotation_from_quaternion(*table.array("quaternion_xyzw", 4))
        elif given:
            roll, pitch, yaw = np.deg2rad(table.array("roll_pitch_yaw_deg", 3))
            x, y, z = np.eye(3)  # about the fixed axes x, y, z in this order, as ROS and airplanes have it
            rotation = rotation_from_vector(z * yaw) @ rotation_from_vector(y * pitch) @ rotation_from_vector(x * roll)
        return Pose(target, source, rigid(rotation, table.array("translation_m", 3)), covariance)
    except ValueError as error:
        raise ConfigError(f"{table.where}: {error}") from error


# --- writing ----------------------------------------------------------------------------------------------------------


def write_rig(rig: Rig, path: Path) -> None:
    tree: dict[str, Any] = {"version": VERSION, "base": rig.base}
    if rig.intrinsics:
        tree["intrinsics"] = {name: _lens_tree(lens) for name, lens in rig.intrinsics.items()}
    if rig.poses:
        tree["poses"] = [_pose_tree(pose) for pose in rig.poses]
    if rig.time_offsets:
        tree["time_offsets"] = {
            name: _known({"reference": o.reference, "offset_ms": o.offset_ms, "sigma_ms": o.sigma_ms})
            for name, o in rig.time_offsets.items()
        }
    if rig.provenance:
        tree["provenance"] = dict(rig.provenance)
    write_yaml(tree, path)


def write_yaml(tree: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all: a rig that a crash cut in two would lose what was calibrated before."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(
            yaml.safe_dump(plain(tree), sort_keys=False, default_flow_style=None, width=140, allow_unicode=True)
        )
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}. Name a place you may write to") from error


def _lens_tree(lens: Intrinsics) -> dict[str, Any]:
    return _known(
        {
            "model": lens.model,
            "width_px": lens.width_px,
            "height_px": lens.height_px,
            **{name: getattr(lens, name) for name in LENS},
            "distortion": lens.distortion,
            "rms_px": lens.rms_px,
            **_spread(lens.covariance),
        }
    )


def _spread(covariance: np.ndarray | None) -> dict[str, Any]:
    if covariance is None:
        return {}
    return {"sigma": np.sqrt(np.diag(covariance)), "covariance": covariance}


def _pose_tree(pose: Pose) -> dict[str, Any]:
    return _known(
        {"target": pose.target, "source": pose.source, "matrix": pose.target_from_source, "covariance": pose.covariance}
    )


def _known(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def plain(value: Any) -> Any:
    """numpy's numbers and arrays, and tuples, as what YAML knows."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value
