"""Files of anybody: opened, decoded and decompressed within bounds, or refused with the place and the reason."""

from __future__ import annotations

import bz2
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import lz4.frame
import numpy as np
import pytest
import zstandard

from pipeline.array_files import load_npy, load_npz
from pipeline.bounded_yaml import MAX_BYTES, load
from pipeline.errors import MAX_MESSAGE, ConfigError, printable
from pipeline.files import open_regular, read_bytes, read_text
from pipeline.picture_files import decode_picture
from pipeline.recording.decompression import decompressed

# --- files ------------------------------------------------------------------------------------------------------------


def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ConfigError, match=f"{path}: cannot be read: it is {kind}"):
            open_regular(path)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "drive.bag").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"drvie\.bag: there is no such file\. Did you mean 'drive\.bag'"):
        open_regular(tmp_path / "drvie.bag")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_regular(Path("a\0b"))


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ConfigError, match=r"hole: it has 4096 MiB, expected at most 1 MiB"):
        read_bytes(tmp_path / "hole", most=1 << 20)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="bytes: cannot be read: it holds no text"):
        read_text(tmp_path / "bytes", most=100)


def test_a_message_that_quotes_a_file_can_be_printed() -> None:
    assert printable("a\x1b[31m\ud800é\n\tb") == "a\\x1b[31m\\ud800é\n\tb"
    long = str(ConfigError("x" * 10**6 + "the fix"))
    assert len(long) <= MAX_MESSAGE and long.endswith("the fix") and long.startswith("xxx")


# --- YAML -------------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000, "nested more than 50 times.*\n.*line 1, column 51"),
        ("- " * 10_000, "nested more than 50 times"),
        (LAUGHS, "with its aliases it holds more than 150,000 values"),
        ("x: &x [*x]", "with its aliases it holds more"),
        ("at: 2001-99-99", "'2001-99-99' cannot be read as timestamp: month must be in 1..12"),
        ("at: !!timestamp soon", "'soon' cannot be read as timestamp"),
        ("n: " + "9" * 5000, "cannot be read as int"),
        ("n: !!float x", "'x' cannot be read as float"),
        ("x: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("x" * (MAX_BYTES + 1), "256 KiB of text, expected at most 256"),
    ],
)
def test_yaml_is_read_in_bounds(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(text)


def test_yaml_within_the_bounds_is_read() -> None:
    assert load("a: &a {b: [1, 2.5, x]}\nc: *a\nd: {<<: *a, e: null}") == {
        "a": {"b": [1, 2.5, "x"]},
        "c": {"b": [1, 2.5, "x"]},
        "d": {"b": [1, 2.5, "x"], "e": None},
    }


# --- numpy ------------------------------------------------------------------------------------------------------------


def npy(header: str, content: bytes = b"") -> bytes:
    raw = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + content


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, order: str) -> None:
    array = np.asarray(np.arange(12, dtype="<f4").reshape(3, 4), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array, b=np.array(["x", "yz"]))
    np.savez_compressed(tmp_path / "c.npz", a=array)
    np.testing.assert_array_equal(load_npy(tmp_path / "a.npy"), array)
    np.testing.assert_array_equal(load_npz(tmp_path / "a.npz")["b"], ["x", "yz"])
    np.testing.assert_array_equal(load_npz(tmp_path / "c.npz")["a"], array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(16)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n(S'id'\ntR."),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(16)),
        npy("{'descr': 'zz', 'fortran_order': False, 'shape': (1,)}"),
        npy("(" * 300),
        npy("\0"),
        npy("{'descr': (\n", b"'"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.npy: not arrays of numpy, or damaged"):
        load_npy(tmp_path / "a.npy")


def test_a_bomb_of_zeros_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999,)}", bytes(1 << 20)))
    with pytest.raises(ConfigError, match=r"a\.npz: .*its header says 399,999,996 bytes, and it holds 1,"):
        load_npz(tmp_path / "a.npz")


# --- what is compressed -----------------------------------------------------------------------------------------------

PACK = {
    "lz4": lz4.frame.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
}


@pytest.mark.parametrize("kind", PACK)
def test_bytes_are_decompressed_to_what_was_announced_and_no_further(kind: str) -> None:
    bomb = PACK[kind](bytes(1 << 24))
    assert decompressed(bomb, kind, size=1 << 24) == bytes(1 << 24)
    assert len(bomb) < 1 << 17
    for size, message in ((4096, "more bytes than the 4096"), ((1 << 24) + 1, "fewer bytes"), (1 << 60, "at most")):
        with pytest.raises(ValueError, match=message):
            decompressed(bomb, kind, size=size)
    with pytest.raises(ValueError, match="cannot be decompressed|fewer"):
        decompressed(b"nothing of the kind", kind, size=5)


def test_a_picture_of_a_thousand_million_pixels_is_none() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 16))), (b"IEND", b"")]
    png = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    png.seek(0, 2)
    for name, data in chunks:
        png.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    assert decode_picture(png.getvalue(), cv2.IMREAD_COLOR) is None
    assert decode_picture(b"", cv2.IMREAD_COLOR) is None and decode_picture(b"\xff\xd8", cv2.IMREAD_COLOR) is None
