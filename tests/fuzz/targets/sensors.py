"""What sensors and their makers send: lidar packets, metadata, files of angles, media files, pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import importing
import lidars
import numpy as np

from calibration.pictures import pictures
from pipeline.errors import ConfigError
from pipeline.recording.importers.file_frames import picture_frame
from pipeline.sensors import media
from pipeline.sensors.lidar.packet_decoder import MALFORMED, PacketDecoder, make, recognise
from tests.fuzz.harness import Reader, target
from tests.fuzz.targets.settings import file_reader

PACKET_EVERY_NS = 10**6


def _decoder(decoder: Callable[[], PacketDecoder], packets: list[bytes], size: int) -> Reader:
    """Several packets at a time, as a run of bytes: every `size` bytes are one; each is understood, or counted."""

    def read(data: bytes) -> object:
        decodes, sweeps, sent = decoder(), [], 0
        for i, at in enumerate(range(0, min(len(data), 40 * size), size)):
            sent += 1
            recognise(data[at : at + size])
            sweeps += decodes.take(data[at : at + size], (i + 1) * PACKET_EVERY_NS)
        sweeps += decodes.finish()
        for sweep in sweeps:
            assert np.isfinite(sweep.data).all() and isinstance(sweep.capture_ns, int), "a sweep of other than numbers"
            assert 0 <= sweep.duration_ns < 10**12, "a sweep of an impossible duration"
        lost = decodes.take_lost()
        assert all(count >= 0 for count in lost.values()), f"a negative count: {lost}"
        if not sweeps:
            raise ConfigError(f"nothing of {sent} packets was understood: {lost[MALFORMED]} malformed")
        return sweeps

    joined = [b"".join(packets[at : at + n]) for at, n in ((0, 1), (1, 2), (3, 8), (0, 30))]
    return Reader(joined, read)


def _example_of(sensor: str, metadata: str = "", **options: Any) -> Callable[[], PacketDecoder]:
    def build() -> PacketDecoder:
        decoder = make(sensor, options, where="lidar")
        decoder.open()
        if metadata:
            decoder.take_metadata(metadata)
        return decoder

    return build


@target("velodyne", weight=30)
def velodyne(folder: Path) -> Reader:
    """Velodyne's packets."""
    import velodyne_decoder

    assert velodyne_decoder
    return _decoder(_example_of("velodyne"), lidars.vlp16(40)[0], 1206)


@target("hesai", weight=60)
def hesai(folder: Path) -> Reader:
    """Hesai's packets."""
    return _decoder(_example_of("hesai"), lidars.xt32(40)[0], 1080)


@target("ouster", weight=10)
def ouster(folder: Path) -> Reader:
    """Ouster's packets."""
    import ouster.sdk.core

    assert ouster.sdk.core
    metadata, packets, _ = lidars.ouster(1)
    return _decoder(_example_of("ouster", metadata), packets, len(packets[0]))


@target("ouster-metadata", weight=10)
def ouster_metadata(folder: Path) -> Reader:
    """Ouster's metadata (JSON)."""
    import json

    import ouster.sdk.core

    assert ouster.sdk.core
    metadata, packets, _ = lidars.ouster(1)

    def read(data: bytes) -> object:
        decoder = make("ouster", {}, where="lidar")
        decoder.open()
        decoder.take_metadata(data.decode("utf-8", "replace"))
        decoder.take(packets[0], 10**9)
        return decoder.describe()

    return Reader([metadata.encode()], read, [json.loads(metadata)], lambda tree: json.dumps(tree).encode())


@target("angles", weight=20)
def angles(folder: Path) -> Reader:
    """A lidar's own file of angles (CSV)."""
    lines = ["Laser id,Elevation,Azimuth", *(f"{i + 1},{15 - i},{0.1 * i:.2f}" for i in range(32))]

    def read(path: Path) -> object:
        decoder = make("hesai", {"calibration": str(path)}, where="lidar")
        decoder.open()
        return decoder

    return file_reader(folder, "angles.csv", read, ["\n".join(lines).encode()])


# --- pictures and media -----------------------------------------------------------------------------------------------


@target("pictures", weight=40)
def picture_files(folder: Path) -> Reader:
    """Picture files, by import and by calibrate."""
    gray, depth = importing.shade(3)[:, :, 2], np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)
    samples = [cv2.imencode(".png", image)[1].tobytes() for image in (importing.shade(3), gray, depth)]
    samples += [cv2.imencode(kind, importing.shade(4))[1].tobytes() for kind in (".jpg", ".bmp", ".tif", ".ppm")]

    def read(path: Path) -> object:
        frame = picture_frame("camera", 0, path)
        assert frame.data.nbytes < 1 << 29
        (picture,) = pictures([str(path)])
        assert picture.gray is not None or picture.problem
        return frame

    return file_reader(folder, "x.png", read, samples)


def _media(folder: Path, name: str, make_file: Callable[[Path], object]) -> Reader:
    make_file(folder / f"sample{Path(name).suffix}")
    sample = (folder / f"sample{Path(name).suffix}").read_bytes()

    def read(path: Path) -> object:
        counts = []
        for kind in ("video", "audio"):
            with media.open_file(str(path), kind, where="camera 'camera'") as opened:  # type: ignore[arg-type]
                times = [opened.time_ns(frame) for frame in opened.frames() if frame is not None]
                assert opened.duration_ns is None or isinstance(opened.duration_ns, int)
                counts.append(len(times))
        return counts

    return file_reader(folder, name, read, [sample])


@target("mp4", weight=6)
def mp4(folder: Path) -> Reader:
    """MP4 files (PyAV)."""
    return _media(folder, "x.mp4", lambda path: importing.video(path, 4))


@target("mkv", weight=6)
def mkv(folder: Path) -> Reader:
    """Matroska files (PyAV)."""
    return _media(folder, "x.mkv", lambda path: importing.video(path, 4, codec="mjpeg"))
