"""numpy's files, .npy and .npz, of anybody: no pickle, and no more memory than the file holds.

numpy allocates what a header claims before it looks at the content, and raises what Python's parser raises for a header
that is no Python. Here both are a ConfigError with the file.

Example:
    load_npy(Path("cloud.npy"))                 # an array
    load_npz(Path("rows.npz"))["label"]
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.files import open_regular

MAX_BYTES = 4 << 30  # of one array
MAX_ARRAYS = 10_000
# What numpy and zipfile raise for damaged files.
_DAMAGED = (
    *(ValueError, TypeError, SyntaxError, RecursionError, EOFError, KeyError, OverflowError, NotImplementedError),
    *(OSError, RuntimeError, MemoryError, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)


def load_npy(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file. Raises ConfigError for anything else."""
    with open_regular(path) as file:
        try:
            size = file.seek(0, 2)
            file.seek(0)
            return _array(file, size)
        except _DAMAGED as error:
            raise _broken(path, error) from error


def load_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name. Raises ConfigError for anything else."""
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if len(members) > MAX_ARRAYS:
                    raise ValueError(f"{len(members):,} arrays, expected at most {MAX_ARRAYS:,}")
                arrays = {}
                for member in members:
                    with archive.open(member) as stored:
                        arrays[member.filename.removesuffix(".npy")] = _array(stored, member.file_size)  # type: ignore[arg-type]
                        if stored.read(1):  # the checksum is compared at the end
                            raise ValueError(f"{member.filename} holds more than its header says")
                return arrays
        except _DAMAGED as error:
            raise _broken(path, error) from error


def _array(file: BinaryIO, size: int) -> npt.NDArray[Any]:
    """size: of all that the file holds, header included, as far as its container says so."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a file of numpy's format {version}, expected 1.0 or 2.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and reading those could run a program")
    claimed = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or not claimed <= min(size, MAX_BYTES):
        raise ValueError(f"its header says {claimed:,} bytes, and it holds {size:,}")
    content = _exactly(file, claimed)
    array = np.frombuffer(content, dtype, math.prod(shape))
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


def _exactly(file: BinaryIO, count: int) -> bytearray:
    """Piece by piece: a container may claim more than there is."""
    content = bytearray()
    while len(content) < count:
        part = file.read(min(count - len(content), 1 << 20))
        if not part:
            raise EOFError(f"it ends after {len(content):,} of {count:,} bytes")
        content += part
    return content


def _broken(path: Path, error: BaseException) -> ConfigError:
    return ConfigError(f"{path}: not arrays of numpy, or damaged: {str(error) or type(error).__name__}. Copy it again")
