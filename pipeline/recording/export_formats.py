"""The files that an exported stream becomes: MP4, WAV, network capture, a folder of files, or its CSV alone.

Each format is one class with `write(frame)`, which returns the cells of the frame's CSV line besides its times, and
`close()`. export.py owns the folder, the CSV files and the choice of what is exported.

Example:
    file = stream_file(Path("talk/camera"), first_frame, zero_ns)
    cells = file.write(first_frame)
    file.close()
"""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.frame import Frame
from pipeline.picture_files import decode_picture

VIDEO_HZ = 90_000  # ticks a second of an MP4: every usual frame rate is a whole number of ticks
GAP_NS = 2_000_000  # a shorter pause in sound is jitter of its time stamps
MAX_WAV_BYTES = 0xFFFFFFFF  # beyond 4 GiB players go by the file's length
PCAP_PORT = 2368  # a recording holds the packets, not the port that they were sent to


class StreamFile(Protocol):
    """Where the frames of one stream go."""

    def write(self, frame: Frame) -> list[Any]:
        """Append a frame.

        Returns the cells of its CSV line. Raises ValueError for a frame that the format cannot hold.
        """
        ...

    def close(self) -> None: ...


def stream_file(path: Path, first: Frame, zero_ns: int) -> StreamFile:
    """The format for a stream's frames.

    path: without a suffix. zero_ns: the capture time at which video and sound begin.
    """
    match first.encoding:
        case "bgr8" | "jpeg":
            return VideoFile(path.with_name(f"{path.name}.mp4"), zero_ns)
        case "pcm_f32":
            return WavFile(path.with_name(f"{path.name}.wav"), zero_ns)
        case "packet":
            return PcapFile(path.with_name(f"{path.name}.pcap"))
        case "imu_f64" | "series_f32" | "text_utf8" | "label" | "calibration":
            return CsvOnly()
        case _:
            return FrameFolder(path)


def columns(frame: Frame) -> list[str]:
    """The names of the cells that `write` returns."""
    match frame.encoding:
        case "imu_f64":
            return ["ax_m_s2", "ay_m_s2", "az_m_s2", "wx_rad_s", "wy_rad_s", "wz_rad_s"]
        case "series_f32":
            return [f"value_{i}" for i in range(frame.data.size)]
        case "text_utf8" | "label" | "calibration":
            return ["text"]
        case "bgr8" | "jpeg" | "pcm_f32":
            return ["at_s"]
        case _:
            return ["file"]


MAX_PAUSE_S = 12 * 3600  # between two frames of a file: more is damage, and silence would fill the disk
MAX_SOUND_HZ = 1_000_000


class VideoFile:
    """MP4 (H.264), each picture at its own capture time. A picture of another size is scaled to the first one's."""

    def __init__(self, path: Path, zero_ns: int) -> None:
        import av

        self._av, self._zero_ns, self._last = av, zero_ns, -1
        self._container = av.open(str(path), "w")
        self._stream: Any = None

    def write(self, frame: Frame) -> list[Any]:
        image: npt.NDArray[Any] | None = (
            frame.data if frame.encoding == "bgr8" else decode_picture(frame.data, cv2.IMREAD_COLOR)
        )
        if image is None:
            raise ValueError("a JPEG that cannot be decoded")
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=30)
            # H.264 stores colours at half the size: width and height must be even.
            self._stream.width, self._stream.height = image.shape[1] // 2 * 2 or 2, image.shape[0] // 2 * 2 or 2
            self._stream.pix_fmt, self._stream.codec_context.time_base = "yuv420p", Fraction(1, VIDEO_HZ)
            self._stream.options = {"crf": "18"} if codec == "libx264" else {}
        size = (self._stream.width, self._stream.height)
        fits = image.shape[1] // 2 * 2 == size[0] and image.shape[0] // 2 * 2 == size[1]
        image = image[: size[1], : size[0]] if fits else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
        at = max(self._last + 1, round((frame.capture_ns - self._zero_ns) * VIDEO_HZ / NS))
        if at - max(self._last, 0) > MAX_PAUSE_S * VIDEO_HZ:
            raise ValueError(f"pictures that come more than {MAX_PAUSE_S // 3600} h after the one before")
        picture.pts, picture.time_base, self._last = at, Fraction(1, VIDEO_HZ), at
        self._container.mux(self._stream.encode(picture))
        return [f"{at / VIDEO_HZ:.6f}"]

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class WavFile:
    """WAV of 32-bit floats, to the bit.

    Where sound is missing it is silent, so that a sample's index gives its time.
    """

    def __init__(self, path: Path, zero_ns: int) -> None:
        self._file, self._zero_ns, self._rate_hz, self._samples = path.open("wb"), zero_ns, 0, 0
        self._file.write(bytes(44))  # the header is written at the end: it holds the length

    def write(self, frame: Frame) -> list[Any]:
        rate_hz = round(len(frame.data) * NS / frame.duration_ns) if frame.duration_ns else 0
        if rate_hz > MAX_SOUND_HZ:
            raise ValueError(f"sound at {rate_hz} Hz")
        self._rate_hz = self._rate_hz or rate_hz
        if not rate_hz or abs(rate_hz - self._rate_hz) > 0.01 * self._rate_hz:
            raise ValueError(f"sound at {rate_hz} Hz in a stream of {self._rate_hz} Hz")
        at = round((frame.capture_ns - self._zero_ns) * self._rate_hz / NS)
        if at - self._samples > MAX_PAUSE_S * self._rate_hz:
            raise ValueError(f"sound that comes more than {MAX_PAUSE_S // 3600} h after the one before")
        if at - self._samples > GAP_NS * self._rate_hz // NS:
            self._silence(at - self._samples)
        began = self._samples
        self._file.write(np.ascontiguousarray(frame.data, "<f4").data)
        self._samples += len(frame.data)
        return [f"{began / self._rate_hz:.6f}"]

    def _silence(self, samples: int) -> None:
        second = bytes(4 * self._rate_hz)
        for _ in range(samples // self._rate_hz):  # a second at a time, because a pause may last for hours
            self._file.write(second)
        self._file.write(second[: samples % self._rate_hz * 4])
        self._samples += samples

    def close(self) -> None:
        size = self._samples * 4
        form = struct.pack("<IHHIIHH", 16, 3, 1, self._rate_hz, self._rate_hz * 4, 4, 32)  # 3: IEEE floats
        header = b"RIFF" + struct.pack("<I", min(36 + size, MAX_WAV_BYTES)) + b"WAVEfmt " + form
        self._file.seek(0)
        self._file.write(header + b"data" + struct.pack("<I", min(size, MAX_WAV_BYTES)))
        self._file.close()


class PcapFile:
    """Packets as a network capture (IPv4, UDP), which lidar tools and our own import open."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 101))

    def write(self, frame: Frame) -> list[Any]:
        body = frame.data.tobytes()
        if len(body) > 0xFFFF - 28 or not 0 <= frame.capture_ns // NS <= 0xFFFFFFFF:
            raise ValueError("a packet that a network capture cannot hold: too large, or before 1970")
        udp = struct.pack(">4H", PCAP_PORT, PCAP_PORT, 8 + len(body), 0)
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, bytes([127, 0, 0, 1]), bytes([127, 0, 0, 1])
        )
        whole = ip + udp + body
        self._file.write(struct.pack("<4I", *divmod(frame.capture_ns, NS), len(whole), len(whole)) + whole)
        return [self._path.name]

    def close(self) -> None:
        self._file.close()


class CsvOnly:
    """Numbers and texts: the whole frame is in its CSV line."""

    def write(self, frame: Frame) -> list[Any]:
        if frame.encoding in ("imu_f64", "series_f32"):
            return [repr(v) for v in frame.data.ravel().tolist()]
        return [frame.data.tobytes().decode("utf-8", "replace")]

    def close(self) -> None:
        pass


class FrameFolder:
    """A file a frame: sweeps as KITTI's .bin, depth as 16-bit PNG, anything else as its bytes."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        path.mkdir()

    def write(self, frame: Frame) -> list[Any]:
        if frame.encoding == "depth_u16_mm":
            kind, content = "png", cv2.imencode(".png", frame.data)[1].tobytes()
        else:
            kind, content = {"depth_png": "png"}.get(frame.encoding, "bin"), frame.data.tobytes()
        name = f"{self._count:06d}.{kind}"
        (self._path / name).write_bytes(content)
        self._count += 1
        return [f"{self._path.name}/{name}"]

    def close(self) -> None:
        pass
