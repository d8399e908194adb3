"""calibrate convert: other programs' calibration files to a rig, and a rig to theirs.

The kind of file is detected from its content. If the rig exists already, only what the other file contains is replaced.

Example:
    python run_pipeline.py calibrate convert rig.yaml left.yaml --to ros --name left
    python run_pipeline.py calibrate convert camchain.yaml rig.yaml --to rig
    python run_pipeline.py calibrate convert 000007.txt rig.yaml --to rig --size 1242x375
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import load_rig, save_rig
from pipeline.rig.rig_formats import (
    read_camera_info,
    read_kalibr,
    read_kitti,
    write_camera_info,
    write_kalibr,
    write_kitti,
)
from pipeline.rig.yaml_table import read_yaml


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="rig.yaml, ROS camera_info, Kalibr camchain or KITTI text")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--to", required=True, choices=("rig", "ros", "kalibr", "kitti"), help="format of the file to write"
    )
    parser.add_argument("--name", help="name in the rig of the camera of a ROS file")
    parser.add_argument("--size", metavar="1242x375", help="size of the pictures, which KITTI's files do not contain")


def run(args: argparse.Namespace) -> None:
    rig = read(args.source, name=args.name, size=args.size)
    if args.to == "rig":
        if args.out.exists():
            rig = _added(load_rig(args.out), rig)
        save_rig(rig, args.out)
    elif args.to == "ros":
        name = args.name or (next(iter(rig.intrinsics)) if len(rig.intrinsics) == 1 else "")
        if not name:
            raise ConfigError(
                f"{args.source}: a ROS file holds one camera, and this has: {', '.join(rig.intrinsics) or 'none'}. "
                "Select one with --name"
            )
        write_camera_info(rig.camera(name), args.out, name=name)
    else:
        (write_kalibr if args.to == "kalibr" else write_kitti)(rig, args.out)
    print(
        f"  {args.out}: cameras {', '.join(rig.intrinsics) or 'none'}; {len(rig.poses)} poses; "
        f"{len(rig.time_offsets)} time offsets"
    )


def read(path: Path, *, name: str | None = None, size: str | None = None) -> Rig:
    """Reads a file of any of these formats, detected from its content. ConfigError if it is none of them."""
    if path.suffix == ".txt":
        match = re.fullmatch(r"(\d+)[x×](\d+)", size or "")
        if not match:
            raise ConfigError(
                f"{path}: KITTI's text does not contain the size of the pictures. Add it, such as --size 1242x375"
            )
        return read_kitti(path, size=(int(match[1]), int(match[2])))
    table = read_yaml(path, kind="a rig, a ROS camera_info or a Kalibr camchain")
    if "cam0" in table:
        return read_kalibr(path)
    if any(key in table for key in ("camera_matrix", "K", "k")):
        called, lens = read_camera_info(path)
        return Rig({name or called or "camera": lens}, where=str(path))
    return load_rig(path)


def _added(rig: Rig, more: Rig) -> Rig:
    for name, lens in more.intrinsics.items():
        rig = rig.with_intrinsics(name, lens, f"from {more.where}")
    for pose in more.poses:
        rig = rig.with_pose(pose, f"from {more.where}")
    for offset in more.time_offsets.values():
        rig = rig.with_time_offset(offset, f"from {more.where}")
    return rig
