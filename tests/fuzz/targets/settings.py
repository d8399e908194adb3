"""What people write: configs, rigs and other programs' calibrations, intervals of labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.recording import labels
from pipeline.rig import rig_formats
from pipeline.rig.rig_file import load_rig
from pipeline.runtime.yaml_text import parse
from tests.fuzz.harness import ROOT, Reader, target


def file_reader(folder: Path, name: str, read: Callable[[Path], object], samples: list[bytes], **more: Any) -> Reader:
    path = folder / name

    def read_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return Reader(samples, read_bytes, names=name, **more)


def _as_yaml(tree: object) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")


def _yaml_file(folder: Path, name: str, read: Callable[[Path], object], samples: list[bytes]) -> Reader:
    trees = [yaml.safe_load(sample.replace(b"%YAML:1.0\n---\n", b"")) for sample in samples]
    return file_reader(folder, name, read, samples, trees=trees, encode=_as_yaml)


@target("yaml", weight=20)
def yaml_text(folder: Path) -> Reader:
    """YAML text of configs."""

    def read(data: bytes) -> object:
        try:
            return parse(data.decode("utf-8", "replace"), name="x.yaml")
        except ValueError as error:  # which config.py reports
            raise ConfigError(str(error)) from error

    samples = [(ROOT / "configs" / name).read_bytes() for name in ("live.yaml",) if (ROOT / "configs" / name).is_file()]
    samples.append(
        b"nodes:\n  a: {use: camera, device: 0, rate: 1e3}\n  b: {use: align, inputs: [a], sync: {a: &x 3, b: *x}}\n"
    )
    return Reader(samples, read, [yaml.safe_load(sample) for sample in samples], _as_yaml)


RIG = b"""version: 1
base: base
intrinsics:
  camera: {model: radtan, width_px: 640, height_px: 480, fx_px: 535.4, fy_px: 535.7, cx_px: 342.6, cy_px: 234.6,
           distortion: [-0.28, 0.07, 0.001, 0.0, 0.1], sigma: [0.4, 0.4, 0.6, 0.7, 0.003, 0.02, 0.0002, 0.0002, 0.03]}
poses:
  - {target: base, source: lidar, translation_m: [1.2, 0, 1.6], roll_pitch_yaw_deg: [0, 2, 0], sigma_deg: 1, sigma_m: 1}
  - {target: lidar, source: camera, translation_m: [0, 0, 0.1], quaternion_xyzw: [0, 0, 0, 1]}
time_offsets:
  microphone: {reference: camera, offset_ms: -21.5, sigma_ms: 1.4}
provenance: {made: today}
"""
CAMERA_INFO = b"""image_width: 640
image_height: 480
camera_name: left
camera_matrix: {rows: 3, cols: 3, data: [535.4, 0, 342.6, 0, 535.7, 234.6, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.28, 0.07, 0.001, 0.0, 0.1]}
"""
KALIBR = b"""cam0:
  camera_model: pinhole
  distortion_coeffs: [-0.28, 0.07, 0.0002, 0.00002]
  distortion_model: radtan
  intrinsics: [458.6, 457.3, 367.2, 248.4]
  resolution: [752, 480]
  rostopic: /left/image_raw
  T_cam_imu: [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
  timeshift_cam_imu: 0.002
cam1:
  T_cn_cnm1: [[1, 0, 0, 0.1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
  camera_model: pinhole
  distortion_coeffs: [-0.28, 0.07, 0.0002, 0.00002]
  distortion_model: equidistant
  intrinsics: [458.6, 457.3, 367.2, 248.4]
  resolution: [752, 480]
"""
KITTI = b"""P0: 721.5 0 609.6 0 0 721.5 172.9 0 0 0 1 0
P1: 721.5 0 609.6 -387.6 0 721.5 172.9 0 0 0 1 0
P2: 721.5 0 609.6 44.9 0 721.5 172.9 0.2 0 0 1 0.003
P3: 721.5 0 609.6 -339.5 0 721.5 172.9 2.2 0 0 1 0.003
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27
Tr_imu_to_velo: 1 0 0 -0.81 0 1 0 0.32 0 0 1 -0.8
"""


@target("rig", weight=25)
def rig(folder: Path) -> Reader:
    """Rig files."""
    return _yaml_file(folder, "x.rig.yaml", load_rig, [RIG])


@target("camera-info", weight=25)
def camera_info(folder: Path) -> Reader:
    """ROS camera_info files."""
    return _yaml_file(folder, "left.yaml", rig_formats.read_camera_info, [CAMERA_INFO])


@target("kalibr", weight=25)
def kalibr(folder: Path) -> Reader:
    """Kalibr's camera chains."""
    return _yaml_file(folder, "camchain.yaml", rig_formats.read_kalibr, [KALIBR])


@target("kitti-calib", weight=40)
def kitti_calib(folder: Path) -> Reader:
    """KITTI's calibration files."""
    read = lambda path: rig_formats.read_kitti(path, size=(1242, 375))  # noqa: E731
    return file_reader(folder, "000007.txt", read, [KITTI])


@target("labels", weight=60)
def label_intervals(folder: Path) -> Reader:
    """Intervals of labels (CSV)."""
    sample = b"start_s,end_s,label\n0.0,2.5,sad\n3.0,4.0,happy\n9.5,,calm\n"
    return file_reader(folder, "x.csv", labels.read_csv, [sample, b'seconds,label\n1,sad\n2,"a, b"\n'])
