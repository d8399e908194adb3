"""A recording → files that anything opens: pictures as MP4, sound as WAV, numbers and texts as CSV, sweeps as KITTI's .bin.

    export_recording(Path("talk.mcap"), Path("talk"))       # talk/camera.mp4, talk/camera.csv, talk/microphone.wav, …

Every stream of frames has a CSV with a line a frame: its number and times, so that nothing of them is lost; films and sounds
begin together, at the earliest capture of any of them. Predictions and aligned sets become a JSON object a line.
"""

from __future__ import annotations

import csv
import struct
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Message, Prediction
from pipeline.recording.reader import Reader

TIMES = ("seq", "capture_ns", "duration_ns", "publish_ns", "clock_error_ns")
FILM_HZ = 90_000  # ticks a second of an MP4: every usual frame rate falls on them
GAP_NS = 2_000_000
PCAP_PORT = 2368  # a recording keeps the packets, not where they were sent


class Out(Protocol):
    """Where the frames of one stream go. write: returns what its line of the CSV says beside the times."""

    def write(self, frame: Frame) -> list[Any]: ...
    def close(self) -> None: ...


def export_recording(recording: Path, folder: Path, *, say: Callable[[str], None] = print) -> None:
    """Raises ConfigError where the folder holds something already, or the recording cannot be read."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: it is there already, and not empty. Name another folder")
    with Reader(recording) as reader:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _Streams(reader, folder) as streams:
                for stream, message, _ in reader.messages():
                    streams.write(stream, message)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from error
        for path in sorted(folder.iterdir()):
            say(f"  {path}{'/' if path.is_dir() else ''}")
        for what, count in streams.left_out.items():
            say(f"  not exported: {what} ({count})")


class _Streams:
    def __init__(self, reader: Reader, folder: Path) -> None:
        self._folder, self._outs, self._tables, self._lines = folder, {}, {}, {}  # type: ignore[var-annotated]
        self._zero_ns, self.left_out = _begin_ns(reader), Counter[str]()
        self._names = _file_names(reader.streams)

    def write(self, stream: str, message: Message) -> None:
        if not isinstance(message, Frame):
            if (lines := self._lines.get(stream)) is None:
                lines = self._lines[stream] = (self._folder / f"{self._names[stream]}.jsonl").open("wb")
            lines.write(msgspec.json.encode(_record(message)) + b"\n")
            return
        if message.encoding == "none":
            self.left_out[f"{stream}: a moment at which nothing happened"] += 1
            return
        key = (stream, message.encoding)
        if key not in self._outs:
            name = (
                self._names[stream]
                if not any(s == stream for s, _ in self._outs)
                else f"{self._names[stream]}.{message.encoding}"
            )
            made = _out(self._folder / name, message, self._zero_ns)
            file = (self._folder / f"{name}.csv").open("w", newline="", encoding="utf-8")
            self._outs[key], self._tables[key] = made, (file, csv.writer(file))
            self._tables[key][1].writerow([*TIMES, *_columns(message)])
        try:
            more = self._outs[key].write(message)
        except ValueError as error:
            self.left_out[f"{stream}: {error}"] += 1
            return
        self._tables[key][1].writerow([*(getattr(message, name) for name in TIMES), *more])

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for out in self._outs.values():
            out.close()
        for file, _writer in self._tables.values():
            file.close()
        for lines in self._lines.values():
            lines.close()


def _record(message: Message) -> dict[str, Any]:
    if isinstance(message, Prediction):
        return message.record()
    plain: dict[str, Any] = msgspec.to_builtins(message, enc_hook=lambda array: array.tolist())
    if isinstance(message, AlignedSet):
        receipts = [msgspec.structs.asdict(receipt) for receipt in message.receipts]
        return {
            "anchor": message.anchor,
            "anchor_ns": message.anchor_ns,
            "missing": message.missing,
            "receipts": receipts,
        }
    return {"type": type(message).__name__, "fields": plain}


def _begin_ns(reader: Reader) -> int:
    """The earliest first capture of the streams that become films and sounds."""
    firsts = []
    for name, info in reader.streams.items():
        if info.encoding in ("bgr8", "jpeg", "pcm_f32"):
            firsts += [
                m.capture_ns
                for m in (
                    next(
                        (m for _, m, _ in reader.messages([name]) if isinstance(m, Frame) and m.encoding != "none"),
                        None,
                    ),
                )
                if m is not None
            ]
    return min(firsts, default=reader.span_ns[0])


def _file_names(streams: Any) -> dict[str, str]:
    names: dict[str, str] = {}
    for stream in streams:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in stream).lstrip(".") or "stream"
        while name in names.values():
            name += "_"
        names[stream] = name
    return names


def _columns(frame: Frame) -> list[str]:
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


def _out(path: Path, first: Frame, zero_ns: int) -> Out:
    match first.encoding:
        case "bgr8" | "jpeg":
            return Film(path.with_name(f"{path.name}.mp4"), zero_ns)
        case "pcm_f32":
            return Sound(path.with_name(f"{path.name}.wav"), zero_ns)
        case "packet":
            return Capture(path.with_name(f"{path.name}.pcap"))
        case "imu_f64" | "series_f32" | "text_utf8" | "label" | "calibration":
            return Cells()
        case _:
            return Folder(path)


class Film:
    """MP4 (H.264), each picture at its own capture time. A picture of another size is scaled to the first one's."""

    def __init__(self, path: Path, zero_ns: int) -> None:
        import av

        self._av, self._zero_ns, self._last = av, zero_ns, -1
        self._container = av.open(str(path), "w")
        self._stream: Any = None

    def write(self, frame: Frame) -> list[Any]:
        image: npt.NDArray[Any] | None = (
            frame.data if frame.encoding == "bgr8" else cv2.imdecode(frame.data, cv2.IMREAD_COLOR)
        )
        if image is None:
            raise ValueError("a JPEG that cannot be decoded")
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=30)
            # H.264 halves its colours: sides must be even.
            self._stream.width, self._stream.height = image.shape[1] // 2 * 2 or 2, image.shape[0] // 2 * 2 or 2
            self._stream.pix_fmt, self._stream.codec_context.time_base = "yuv420p", Fraction(1, FILM_HZ)
            self._stream.options = {"crf": "18"} if codec == "libx264" else {}
        size = (self._stream.width, self._stream.height)
        fits = image.shape[1] // 2 * 2 == size[0] and image.shape[0] // 2 * 2 == size[1]
        image = image[: size[1], : size[0]] if fits else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
        at = max(self._last + 1, round((frame.capture_ns - self._zero_ns) * FILM_HZ / NS))
        picture.pts, picture.time_base, self._last = at, Fraction(1, FILM_HZ), at
        self._container.mux(self._stream.encode(picture))
        return [f"{at / FILM_HZ:.6f}"]

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class Sound:
    """WAV of 32-bit floats, to the bit; where sound is missing it is silent, so that a sample's place tells its time."""

    def __init__(self, path: Path, zero_ns: int) -> None:
        self._file, self._zero_ns, self._rate_hz, self._samples = path.open("wb"), zero_ns, 0, 0
        self._file.write(bytes(44))  # the header comes last: it holds the length

    def write(self, frame: Frame) -> list[Any]:
        rate_hz = round(len(frame.data) * NS / frame.duration_ns) if frame.duration_ns else 0
        self._rate_hz = self._rate_hz or rate_hz
        if not rate_hz or abs(rate_hz - self._rate_hz) > 0.01 * self._rate_hz:
            raise ValueError(f"sound at {rate_hz} Hz in a stream of {self._rate_hz} Hz")
        at = round((frame.capture_ns - self._zero_ns) * self._rate_hz / NS)
        if at - self._samples > GAP_NS * self._rate_hz // NS:
            self._silence(at - self._samples)
        began = self._samples
        self._file.write(np.ascontiguousarray(frame.data, "<f4").data)
        self._samples += len(frame.data)
        return [f"{began / self._rate_hz:.6f}"]

    def _silence(self, samples: int) -> None:
        second = bytes(4 * self._rate_hz)
        for _ in range(samples // self._rate_hz):  # a second at a time: a pause may last for hours
            self._file.write(second)
        self._file.write(second[: samples % self._rate_hz * 4])
        self._samples += samples

    def close(self) -> None:
        size, largest = self._samples * 4, 0xFFFFFFFF  # beyond 4 GiB players go by the file's length
        form = struct.pack("<IHHIIHH", 16, 3, 1, self._rate_hz, self._rate_hz * 4, 4, 32)  # 3: IEEE floats
        head = b"RIFF" + struct.pack("<I", min(36 + size, largest)) + b"WAVEfmt " + form
        self._file.seek(0)
        self._file.write(head + b"data" + struct.pack("<I", min(size, largest)))
        self._file.close()


class Capture:
    """Packets as a network capture (IPv4, UDP), which lidar tools and our own import open."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb")
        self._file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 101))

    def write(self, frame: Frame) -> list[Any]:
        body = frame.data.tobytes()
        if len(body) > 0xFFFF - 28 or not 0 <= frame.capture_ns // NS <= 0xFFFFFFFF:
            raise ValueError("a packet too large, or before 1970, for a capture")
        udp = struct.pack(">4H", PCAP_PORT, PCAP_PORT, 8 + len(body), 0)
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, bytes([127, 0, 0, 1]), bytes([127, 0, 0, 1])
        )
        whole = ip + udp + body
        self._file.write(struct.pack("<4I", *divmod(frame.capture_ns, NS), len(whole), len(whole)) + whole)
        return [self._path.name]

    def close(self) -> None:
        self._file.close()


class Cells:
    """Numbers and texts: all of a frame is in its line of the CSV."""

    def write(self, frame: Frame) -> list[Any]:
        if frame.encoding in ("imu_f64", "series_f32"):
            return [repr(v) for v in frame.data.ravel().tolist()]
        return [frame.data.tobytes().decode("utf-8", "replace")]

    def close(self) -> None:
        pass


class Folder:
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
