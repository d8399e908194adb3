"""Reads point clouds and depth pictures from files, and pairs pictures with clouds of the same moment.

Files belong together when their names without the suffix are equal, or else when they end in the same number. A 16-bit
PNG is a depth picture in millimetres: it counts as a cloud.

Example:
    points_m = read_points(Path("velodyne/0000000003.bin"))     # also .pcd, .npy, .csv, .txt, .xyz
    for pair in pairs_in(Path("capture")): pair.name, pair.picture, pair.cloud
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from calibration.pose import Floats
from pipeline.array_files import load_npy
from pipeline.errors import ConfigError
from pipeline.files import read_bytes
from pipeline.picture_files import decode_picture

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
CLOUDS = (".bin", ".pcd", ".npy", ".csv", ".txt", ".xyz")
# TYPE and SIZE of a PCD file → numpy's.
PCD_TYPES = {f"{kind}{size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)} | {
    "F4": "<f4",
    "F8": "<f8",
}
MAX_COUNT = 1024  # numbers of a field in a point: a descriptor has some hundred
MAX_BYTES = 1 << 30  # of a cloud
FIX = "A capture is a folder with a picture and a cloud per moment, named alike: images/3.png and clouds/3.pcd"


class FilePair(NamedTuple):
    name: str
    picture: Path
    cloud: Path


def read_points(path: Path) -> Floats:
    """(n, 3) metres, without points that are not finite or lie at the sensor itself. ConfigError says what is wrong."""
    try:
        points = _READERS[path.suffix.lower()](path)
    except KeyError:
        raise ConfigError(
            f"{path}: this is not a point cloud file that can be read. Known suffixes: {', '.join(CLOUDS)}"
        ) from None
    except (ValueError, IndexError) as error:  # a text that is no table, a header that does not match
        raise ConfigError(f"{path}: cannot be read as a point cloud: {error}") from error
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] < 3:
        raise ConfigError(f"{path}: found an array of shape {points.shape}, expected a row x y z per point")
    points = points[:, :3]
    points = points[np.isfinite(points).all(1) & (np.abs(points).max(1, initial=0) > 0)]
    if not len(points):
        raise ConfigError(f"{path}: it has no finite point")
    return points


def _read_bin(path: Path) -> np.ndarray:
    """KITTI: float32 x y z reflectance."""
    data = read_bytes(path, most=MAX_BYTES)
    if len(data) % 16:
        raise ValueError(f"{len(data)} bytes are not rows of four float32, x y z reflectance")
    return np.frombuffer(data, np.float32).reshape(-1, 4)


def _read_npy(path: Path) -> np.ndarray:
    return load_npy(path)


def _read_text(path: Path) -> np.ndarray:
    lines = [re.split(r"[,;\s]+", line.strip()) for line in _text(path).splitlines() if line.strip()]
    rows = [line[:3] for line in lines if re.match(r"^[-+.\d]", line[0])]  # the first lines may name the columns
    return np.array(rows, np.float64)


def _text(path: Path) -> str:
    return read_bytes(path, most=MAX_BYTES).decode()


def _read_pcd(path: Path) -> np.ndarray:
    """PCD 0.7, ascii or binary (pointclouds.org); x, y, z are identified by name."""
    data = read_bytes(path, most=MAX_BYTES)
    head, _, rest = data.partition(b"DATA ")
    kind, _, body = rest.partition(b"\n")
    words = {line.split()[0]: line.split()[1:] for line in head.decode("ascii", "replace").splitlines() if line.split()}
    try:
        fields, sizes, types = words["FIELDS"], words["SIZE"], words["TYPE"]
        counts, n = words.get("COUNT", ["1"] * len(fields)), int(words["POINTS"][0])
    except KeyError as error:
        raise ValueError(f"its header has no {error}") from None
    if not 0 <= n <= len(body):
        raise ValueError(f"its header says {n} points, and {len(body)} bytes follow")
    if kind.strip() == b"ascii":
        rows = np.array([line.split() for line in body.decode().splitlines()], np.float64)
        first = np.cumsum([0, *map(int, counts)])
        return rows[:, [first[fields.index(axis)] for axis in "xyz"]]
    if kind.strip() != b"binary":
        raise ValueError(f"DATA {kind.decode().strip()} is not known. Save it as binary or ascii")
    columns = list(zip(fields, sizes, types, map(int, counts), strict=True))
    for name, size, kind_, count in columns:
        if kind_ + size not in PCD_TYPES or not 1 <= count <= MAX_COUNT:
            raise ValueError(f"its field {name} has {count} numbers of type {kind_} and {size} bytes")
    dtype = np.dtype([(f"{f}{i}", PCD_TYPES[t + s], (c,)) for i, (f, s, t, c) in enumerate(columns)])
    packed = np.frombuffer(body, dtype, n)
    return np.column_stack([packed[f"{axis}{fields.index(axis)}"][:, 0] for axis in "xyz"])


_READERS = {
    ".bin": _read_bin,
    ".npy": _read_npy,
    ".pcd": _read_pcd,
    ".csv": _read_text,
    ".txt": _read_text,
    ".xyz": _read_text,
}


def is_depth_picture(path: Path) -> bool:
    """A 16-bit PNG, by its header: bit depth 16, grey."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[24] == 16 and header[25] == 0


def read_depth_m(path: Path) -> Floats:
    """(h, w) metres, 0 where there is none."""
    depth = decode_picture(read_bytes(path, most=MAX_BYTES), cv2.IMREAD_UNCHANGED)
    if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
        raise ConfigError(f"{path}: not a 16-bit grey picture, the format of depth in millimetres")
    return depth / 1000.0


def read_picture(path: Path) -> np.ndarray:
    image = decode_picture(read_bytes(path, most=MAX_BYTES), cv2.IMREAD_COLOR)
    if image is None:
        raise ConfigError(f"{path}: cannot be decoded as a picture. Is the file truncated?")
    return image


def pairs_in(folder: Path) -> list[FilePair]:
    """Sorted by name. ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. {FIX}")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.suffix.lower() in PICTURES]
    depths = [p for p in pictures if p.suffix.lower() == ".png" and is_depth_picture(p)]
    clouds = [
        p for p in files if p.suffix.lower() in CLOUDS and p.stem not in ("timestamps", "times", "calib")
    ] + depths
    pictures = [p for p in pictures if p not in depths]
    if not pictures or not clouds:
        counts = f"{len(pictures)} pictures and {len(clouds)} clouds or depth pictures"
        raise ConfigError(f"{folder}: found {counts}. {FIX}")
    clouds.sort(
        key=lambda c: -CLOUDS.index(c.suffix.lower()) if c.suffix.lower() in CLOUDS else 1
    )  # text may be something else
    named = {c.stem: c for c in clouds}
    numbered = {_number(c): c for c in clouds if _number(c) is not None}
    pairs = []
    for picture in pictures:
        cloud = named.get(picture.stem) or (numbered.get(_number(picture)) if _number(picture) is not None else None)
        if cloud is not None:
            pairs.append(FilePair(picture.stem, picture, cloud))
    if not pairs:
        raise ConfigError(
            f"{folder}: no picture and cloud have the same name or number: {pictures[0].name}, {clouds[0].name}. {FIX}"
        )
    return pairs


def _number(path: Path) -> int | None:
    match = re.search(r"(\d+)$", path.stem)
    return int(match[1]) if match else None
