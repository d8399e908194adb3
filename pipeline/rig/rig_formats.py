"""Other programs' calibration files ↔ the rig: ROS camera_info, Kalibr camchain, KITTI calib.

What a format cannot hold is refused with the reason, never dropped: Kalibr's radtan has no k3, KITTI's cameras no
distortion.

Example:
    # camera_calibration's file, or `ros2 topic echo` of the message
    name, intrinsics = read_camera_info("left.yaml")
    rig = read_kalibr("camchain-imucam.yaml")
    rig = read_kitti("000007.txt", size=(1242, 375))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bounded_yaml import MAX_BYTES
from pipeline.errors import ConfigError, nearest
from pipeline.files import read_text
from pipeline.rig.intrinsics import MODELS, Intrinsics
from pipeline.rig.rig import Pose, Rig, TimeOffset
from pipeline.rig.transforms import rigid
from pipeline.rig.yaml_table import Table, array, read_yaml, write_yaml

ROS_MODELS = {"plumb_bob": "radtan", "rational_polynomial": "rational", "equidistant": "fisheye", "fisheye": "fisheye"}
ROS_NAMES = {"radtan": "plumb_bob", "rational": "rational_polynomial", "fisheye": "equidistant"}
SAME_PLACE_M, SAME_TURN = 1e-4, 1e-5  # rounding differences between two entries of one pose
IMU = "imu"

# --- ROS --------------------------------------------------------------------------------------------------------------


def read_camera_info(path: str | Path) -> tuple[str, Intrinsics]:
    """(the camera's name, "" where the file has none; its intrinsics). K and D are read; R and P rectify a pair, and
    follow from the poses of a rig.
    """
    table = read_yaml(Path(path), kind="a ROS camera_info")
    name = table.text("camera_name") if "camera_name" in table else ""
    width_px = table.whole("image_width" if "image_width" in table else "width")
    height_px = table.whole("image_height" if "image_height" in table else "height")
    matrix = _ros_array(table, ("camera_matrix", "K", "k"))
    if len(matrix) != 9:
        raise ConfigError(f"{table.where}: K: found {len(matrix)} numbers, expected 9")
    fx_px, skew, cx_px, _, fy_px, cy_px = matrix[:6]
    if abs(skew) > 1e-9:
        raise ConfigError(
            f"{table.where}: K has a skew of {skew:g}; cameras here have none. Calibrate again without it"
        )
    ros_model = table.text("distortion_model") if table.value.get("distortion_model") else "plumb_bob"
    if ros_model not in ROS_MODELS:
        known = ", ".join(ROS_MODELS)
        raise ConfigError(
            f"{table.at('distortion_model')}: there is no '{ros_model}'. "
            f"Known: {known}.{nearest(ros_model, ROS_MODELS)}"
        )
    coefficients = _coefficients(
        ROS_MODELS[ros_model],
        _ros_array(table, ("distortion_coefficients", "D", "d")),
        table.at("distortion_coefficients"),
    )
    return name, _lens(table, ROS_MODELS[ros_model], (width_px, height_px), (fx_px, fy_px, cx_px, cy_px), coefficients)


def write_camera_info(intrinsics: Intrinsics, path: str | Path, *, name: str = "camera") -> None:
    """In the layout of camera_calibration_parsers, which image_proc and camera_info_manager read."""

    def matrix(rows: int, columns: int, data: np.ndarray) -> dict[str, Any]:
        return {"rows": rows, "cols": columns, "data": data.ravel()}

    count = len(intrinsics.distortion)
    tree = {
        "image_width": intrinsics.width_px,
        "image_height": intrinsics.height_px,
        "camera_name": name,
        "camera_matrix": matrix(3, 3, intrinsics.matrix),
        "distortion_model": ROS_NAMES[intrinsics.model],
        "distortion_coefficients": matrix(1, count, np.array(intrinsics.distortion)),
        "rectification_matrix": matrix(3, 3, np.eye(3)),
        "projection_matrix": matrix(3, 4, np.column_stack([intrinsics.matrix, np.zeros(3)])),
    }
    write_yaml(tree, Path(path))


def _ros_array(table: Table, names: tuple[str, ...]) -> list[float]:
    """The file's dialects: {rows, cols, data} or a plain list."""
    key = next((n for n in names if n in table), names[0])
    value = table.get(key)
    if isinstance(value, dict):
        return [float(v) for v in table.table(key).array("data", -1)]
    return [float(v) for v in array(value, table.at(key), (-1,))]


# --- Kalibr -----------------------------------------------------------------------------------------------------------


def read_kalibr(path: str | Path) -> Rig:
    """A camchain: cameras, their chain, and, where the file has them, pose and time shift against the IMU.

    A camera is called what its topic is (/left/image_raw: left), or cam0 … where there is none.
    """
    table = read_yaml(Path(path), kind="a Kalibr camchain")
    rig, last = Rig(where=str(path)), ""
    for key in sorted(table.names(), key=lambda k: (len(k), k)):
        entry = table.table(key)
        if not re.fullmatch(r"cam\d+", key):
            raise ConfigError(f"{entry.where}: expected cam0, cam1 …: is this a camchain?")
        name = _name_of_topic(entry.text("rostopic")) if "rostopic" in entry else key
        if name in rig.intrinsics:
            name = key
        if (kind := entry.text("camera_model")) != "pinhole":
            raise ConfigError(
                f"{entry.at('camera_model')}: '{kind}' is not known here, only pinhole (with radtan or equidistant)"
            )
        kalibr_model = entry.text("distortion_model")
        model = {"radtan": "radtan", "equidistant": "fisheye", "none": "radtan"}.get(kalibr_model)
        if model is None:
            raise ConfigError(
                f"{entry.at('distortion_model')}: '{kalibr_model}' is not known here. Known: radtan, equidistant, none"
            )
        coefficients = [] if kalibr_model == "none" else [float(v) for v in entry.array("distortion_coeffs", 4)]
        fx_px, fy_px, cx_px, cy_px = entry.array("intrinsics", 4)
        width_px, height_px = entry.array("resolution", 2)
        distortion = _coefficients(model, coefficients, entry.at("distortion_coeffs"))
        rig = rig.with_intrinsics(
            name, _lens(entry, model, (int(width_px), int(height_px)), (fx_px, fy_px, cx_px, cy_px), distortion)
        )
        if "T_cn_cnm1" in entry and last:
            rig = rig.with_pose(_matrix_pose(entry, "T_cn_cnm1", name, last))
        if "T_cam_imu" in entry:
            rig = _with_imu(rig, _matrix_pose(entry, "T_cam_imu", name, IMU), entry)
        if "timeshift_cam_imu" in entry:  # Kalibr: t_imu = t_cam + shift, seconds
            rig = rig.with_time_offset(TimeOffset(name, IMU, 1000.0 * entry.number("timeshift_cam_imu")))
        last = name
    if not rig.intrinsics:
        raise ConfigError(f"{path}: no camera in it, expected cam0, cam1 …")
    return rig


def write_kalibr(rig: Rig, path: str | Path) -> None:
    """Every camera of the rig in its order; ConfigError where no chain of poses connects two consecutive ones."""
    tree: dict[str, Any] = {}
    last = ""
    for i, (name, lens) in enumerate(rig.intrinsics.items()):
        entry: dict[str, Any] = {"camera_model": "pinhole", "intrinsics": lens.parameters[:4]}
        if lens.model == "rational" or (lens.model == "radtan" and lens.distortion[4] != 0.0):
            which = "the rational model" if lens.model == "rational" else f"k3 = {lens.distortion[4]:g}"
            raise ConfigError(
                f"{path}: camera '{name}' has {which}, which Kalibr's radtan cannot hold. "
                "Calibrate it again with --model radtan4"
            )
        entry |= {"distortion_model": "equidistant" if lens.model == "fisheye" else "radtan"}
        entry |= {"distortion_coeffs": lens.distortion[:4], "resolution": [lens.width_px, lens.height_px]}
        entry |= {"rostopic": f"/{name}/image_raw"}
        if last:
            entry["T_cn_cnm1"] = rig.transform(name, last)
        if IMU in rig.frames:
            entry["T_cam_imu"] = rig.transform(name, IMU)
            if name in rig.time_offsets and rig.time_offsets[name].reference == IMU:
                entry["timeshift_cam_imu"] = rig.offset_ms(name, IMU).offset_ms / 1000.0
        tree[f"cam{i}"] = entry
        last = name
    if not tree:
        raise ConfigError(f"{path}: {rig.where} has no camera to write")
    write_yaml(tree, Path(path))


def _name_of_topic(topic: str) -> str:
    return re.sub(r"/(image_raw|image_rect|image_mono|image|compressed)(?=/|$)", "", topic).strip("/") or topic.strip(
        "/"
    )


def _with_imu(rig: Rig, pose: Pose, entry: Table) -> Rig:
    """Kalibr states camera-to-IMU for every camera; a tree holds one of them, if the others agree."""
    if IMU not in rig.frames or not any(IMU in (p.target, p.source) for p in rig.poses):
        return rig.with_pose(pose)
    off = rig.transform(pose.target, IMU) - pose.target_from_source
    if np.abs(off[:3, 3]).max() > SAME_PLACE_M or np.abs(off[:3, :3]).max() > SAME_TURN:
        raise ConfigError(
            f"{entry.at('T_cam_imu')}: contradicts the chain of the cameras before it by {np.abs(off).max():.2g}"
        )
    return rig


def _matrix_pose(entry: Table, key: str, target: str, source: str) -> Pose:
    try:
        return Pose(target, source, entry.array(key, 4, 4))
    except ValueError as error:
        raise ConfigError(f"{entry.at(key)}: {error}") from error


# --- KITTI ------------------------------------------------------------------------------------------------------------


def read_kitti(
    path: str | Path, *, size: tuple[int, int], names: Mapping[int, str] | None = None, lidar: str = "lidar"
) -> Rig:
    """KITTI's calib text, of the object benchmark (P2, R0_rect, Tr_velo_to_cam) or as raw data is often joined
    (P_rect_02, …).

    size: (width, height) in px of the rectified pictures, which the file does not hold. names: camera's number → name
    (default camera_0 …). All cameras are rectified: no distortion, and their poses differ by a translation only.
    """
    lines = _kitti_lines(Path(path))
    where, rig = str(path), Rig(where=str(path))
    root = (names or {}).get(0, "camera_0")
    for key, values in lines.items():
        if not (match := re.fullmatch(r"P(?:_rect_0)?(\d)", key)):
            continue
        number = int(match[1])
        name = (names or {}).get(number, f"camera_{number}")
        matrix = _shaped(values, 3, 4, f"{where}: {key}")
        k = matrix[:, :3]
        lens = _lens(Table({}, f"{where}: {key}"), "radtan", size, (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), ())
        rig = rig.with_intrinsics(name, lens)
        if name != root:  # P = K·[I | t] of the rectified frame of camera 0
            rig = rig.with_pose(Pose(name, root, rigid(np.eye(3), np.linalg.solve(k, matrix[:, 3]))))
    if not rig.intrinsics:
        raise ConfigError(
            f"{where}: no camera in it, expected lines such as 'P2: …' or 'P_rect_02: …'. Here: {', '.join(lines)}"
        )
    try:
        if rectify := _first(lines, "R0_rect", "R_rect_00", "R_rect"):
            rotation = rigid(_shaped(lines[rectify], 3, 3, f"{where}: {rectify}"), (0, 0, 0))
            rig = rig.with_pose(Pose(root, f"{root}_unrectified", rotation))
        if velodyne := _first(lines, "Tr_velo_to_cam", "Tr_velo_cam", "Tr"):
            matrix = np.vstack([_shaped(lines[velodyne], 3, 4, f"{where}: {velodyne}"), (0, 0, 0, 1)])
            rig = rig.with_pose(Pose(f"{root}_unrectified" if rectify else root, lidar, matrix))
        if imu := _first(lines, "Tr_imu_to_velo", "Tr_imu_velo"):
            rig = rig.with_pose(
                Pose(lidar, IMU, np.vstack([_shaped(lines[imu], 3, 4, f"{where}: {imu}"), (0, 0, 0, 1)]))
            )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return rig


def write_kitti(rig: Rig, path: str | Path, *, lidar: str = "lidar") -> None:
    """The object benchmark's text. Cameras must be called camera_0 … and be rectified to camera_0."""
    entries = []
    for name, lens in rig.intrinsics.items():
        number = name.removeprefix("camera_")
        if not number.isdecimal() or any(lens.distortion):
            why = "has distortion" if number.isdecimal() else "is not called camera_0, camera_1 …"
            raise ConfigError(f"{path}: camera '{name}' {why}: KITTI's text holds rectified cameras by number only")
        offset = rig.transform(name, "camera_0") if number != "0" else np.eye(4)
        if np.abs(offset[:3, :3] - np.eye(3)).max() > SAME_TURN:
            raise ConfigError(
                f"{path}: camera '{name}' is turned against camera_0: KITTI's text holds rectified cameras only"
            )
        entries.append((f"P{number}", np.column_stack([lens.matrix, lens.matrix @ offset[:3, 3]])))
    unrectified = "camera_0_unrectified"
    if unrectified in rig.frames:
        entries.append(("R0_rect", rig.transform("camera_0", unrectified)[:3, :3]))
    if lidar in rig.frames:
        entries.append(
            ("Tr_velo_to_cam", rig.transform(unrectified if unrectified in rig.frames else "camera_0", lidar)[:3])
        )
    if IMU in rig.frames:
        entries.append(("Tr_imu_to_velo", rig.transform(lidar, IMU)[:3]))
    text = "".join(f"{key}: {' '.join(f'{v:.17g}' for v in matrix.ravel())}\n" for key, matrix in entries)
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}. Name a place you may write to") from error


def _kitti_lines(path: Path) -> dict[str, list[str]]:
    text = read_text(path, most=MAX_BYTES)
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key.strip(): values.split() for key, _, values in pairs}


def _shaped(values: list[str], rows: int, columns: int, where: str) -> np.ndarray:
    return array(values, where, (rows * columns,)).reshape(rows, columns)


def _first(lines: dict[str, list[str]], *keys: str) -> str | None:
    return next((key for key in keys if key in lines), None)


# --- all --------------------------------------------------------------------------------------------------------------


def _coefficients(model: str, values: list[float], where: str) -> tuple[float, ...]:
    """As many as the model has: missing ones at the end are 0, and more are refused unless they are 0."""
    count = len(MODELS[model])
    if any(values[count:]):
        raise ConfigError(f"{where}: {len(values)} coefficients, and {model} has {count}: {', '.join(MODELS[model])}")
    return tuple([*values[:count], *[0.0] * (count - len(values))])


def _lens(
    table: Table, model: str, size: tuple[int, int], lens: tuple[float, ...], distortion: tuple[float, ...]
) -> Intrinsics:
    fx_px, fy_px, cx_px, cy_px = map(float, lens)
    try:
        return Intrinsics(model, *size, fx_px, fy_px, cx_px, cy_px, distortion)
    except ValueError as error:
        raise ConfigError(f"{table.where}: {error}") from error
