"""Camera: pictures from a USB camera, a file or an address, with the time at which the world looked like that.

    camera: {use: camera, device: 0, width_px: 1280, rate_hz: 30}
    camera: {use: camera, device: clip.mp4}
    camera: {use: camera, device: "rtsp://192.168.1.20/stream"}

Where `capture_ns` comes from:
    USB        the driver's stamp (V4L2: CLOCK_MONOTONIC, start of exposure); the arrival where that is implausible
    file       clock.start_ns + the picture's time in the file: the microphone reading the same file agrees
    rtsp, udp  the stream's time stamps, tied to their least delayed arrival (clock.PtsClock)
    MJPEG      the part's header `X-Timestamp`, where there is one; else the arrival
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from pipeline import media
from pipeline.clock import NS, Clock, HeaderClock, PtsClock
from pipeline.errors import ConfigError, DeviceError, SensoriumError, missing_package
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Finding, Source

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "rtp", "srt")
_LINUX = sys.platform.startswith("linux")
LOST_AFTER_S = 2.0  # no picture for so long: the source is gone
OPEN_TIMEOUT_S = 10.0  # an RTSP handshake over a slow link; a webcam's first picture takes one to two seconds
LOOK_UP_S = 0.25  # how often a wait looks whether the run is being stopped
WAITING = 4  # pictures between the reading thread and the loop; a picture a reader is this late for is lost anyway
V4L2_ERROR_NS = 1_000_000  # the driver stamps in its interrupt; USB frames are 1 ms
# Nothing but the arrival is known: exposure, transfer and decoding of a webcam are usually within this.
ARRIVAL_ERROR_NS = 50_000_000


class Picture(NamedTuple):
    image: np.ndarray  # (h, w, 3) uint8, BGR, never reused
    capture_ns: int
    clock_error_ns: int


class Camera(Source):
    """One camera.

    device: 0 or /dev/video0 (USB) · a path · asset:NAME · an address (rtsp://, http://, udp://, tcp://, srt://).
    width_px, height_px, rate_hz: asked of a USB camera, which takes the nearest it has. Files and streams keep their
    rate; what is wider or higher is scaled down, in its own proportions.
    realtime: false gives a file's pictures as fast as readers take them. loop: begin a file again at its end.
    """

    def __init__(
        self,
        *,
        device: int | str = 0,
        width_px: int | None = None,
        height_px: int | None = None,
        rate_hz: float | None = None,
        realtime: bool = True,
        loop: bool = False,
    ) -> None:
        for option, value in (("width_px", width_px), ("height_px", height_px), ("rate_hz", rate_hz)):
            if value is not None and value <= 0:
                raise ConfigError(f"{option} must be above 0, not {value}.")
        self.device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self.width_px, self.height_px, self.rate_hz = width_px, height_px, rate_hz
        self.realtime, self.loop = realtime, loop
        scheme = urlsplit(self.device).scheme if isinstance(self.device, str) and "://" in self.device else ""
        if scheme and scheme not in SCHEMES:
            raise ConfigError(f"device: no way to read '{scheme}://'. Addresses may begin with: {', '.join(SCHEMES)}.")
        self._is_address = bool(scheme)
        self._is_usb = isinstance(self.device, int) or self.device.startswith("/dev/")
        self._file: media.OpenFile | None = None
        self._first: Any = None  # a file's first picture, decoded at open
        self._reader: _Reader | None = None
        self._info: StreamInfo | None = None

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        cameras = list_devices()
        for path, card in cameras:
            readable = os.access(path, os.R_OK | os.W_OK)
            yield Finding(readable, f"camera {path}: {card}", "" if readable else _GROUP)
        if not cameras:
            yield Finding(False, "no USB camera", "Plug one in, or give a file or an address: device: clip.mp4")

    def open(self) -> None:
        if self._is_address or self._is_usb:
            self._open_live()
        else:
            self._open_file()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
        if self._file is not None:
            self._file.close()
        self._reader = self._file = self._first = None

    def info(self) -> StreamInfo:
        assert self._info is not None, "info() before open()"
        return self._info

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return self._live_frames() if self._reader is not None else self._file_frames(clock)

    @property
    def _where(self) -> str:
        return f"camera '{self.name}'"

    def _frame(self, picture: Picture) -> Frame:
        return Frame(
            self.name, -1, picture.capture_ns, "bgr8", picture.image, clock_error_ns=picture.clock_error_ns
        )

    def _describe(self, what: str, image: np.ndarray, rate_hz: float | None) -> None:
        height_px, width_px = image.shape[:2]
        at = f" at {rate_hz:.2f} Hz" if rate_hz else ""
        self._info = StreamInfo(self.name, "bgr8", rate_hz, 3, self.name, f"{what}, {width_px}×{height_px}{at}")
        self.context.metrics.facts["device"] = self._info.description

    # Files

    def _open_file(self) -> None:
        self._file, self._first = self._begin_file()
        rate = self._file.stream.average_rate
        self._describe(self._file.path.name, self._to_bgr(self._first), float(rate) if rate else None)

    def _begin_file(self) -> tuple[media.OpenFile, Any]:
        name = str(self.device)
        if name.startswith("asset:"):
            from pipeline import assets

            name = str(assets.resolve(name))
        file = media.open_file(name, "video", where=self._where)
        file.stream.thread_type = "AUTO"  # the delay of frame threads does not matter: files are decoded ahead
        first = next((frame for frame in file.frames() if frame is not None), None)
        if first is None:
            file.close()
            raise ConfigError(f"{self._where}: {file.path} has no picture that can be decoded: it is broken or cut off.")
        return file, first

    def _file_frames(self, clock: Clock) -> Iterator[Frame]:
        assert self._file is not None and self._first is not None
        began_ns, turn_ns, last_ns = clock.now_ns(), 0, 0
        while True:
            for frame in self._from_first():
                if frame is None:
                    self.dropped(1, "undecodable")
                    continue
                time_ns = self._file.time_ns(frame)
                if time_ns is None:
                    time_ns = last_ns + self._period_ns()
                last_ns = time_ns
                capture_ns = clock.start_ns + turn_ns + time_ns
                if self.realtime and capture_ns < began_ns - NS:
                    self.dropped(1, "missed while restarting")
                    continue
                image = self._to_bgr(frame)  # before the wait, so that decoding is not part of the latency
                if self.realtime and not clock.sleep_until(capture_ns, self.context.stopping):
                    return
                yield self._frame(Picture(image, capture_ns, 0))
            if not self.loop:
                return
            turn_ns += self._file.duration_ns or last_ns + self._period_ns()
            self._file.close()
            self._file, self._first = self._begin_file()

    def _from_first(self) -> Iterator[Any]:
        assert self._file is not None
        yield self._first
        yield from self._file.frames()

    def _period_ns(self) -> int:
        assert self._file is not None
        return round(NS / (self._file.stream.average_rate or self.rate_hz or 25))

    def _to_bgr(self, frame: Any) -> np.ndarray:
        turned = frame.rotation % 180 != 0  # a telephone held upright
        width_px, height_px = self._fit(*((frame.height, frame.width) if turned else (frame.width, frame.height)))
        size = (height_px, width_px) if turned else (width_px, height_px)
        image: np.ndarray = frame.to_ndarray(format="bgr24", width=size[0], height=size[1])
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))) if frame.rotation else image

    def _fit(self, width_px: int, height_px: int) -> tuple[int, int]:
        """The size a picture is scaled to: inside width_px × height_px, never enlarged, in its own proportions."""
        scale = min(1.0, (self.width_px or width_px) / width_px, (self.height_px or height_px) / height_px)
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))

    # USB cameras and addresses: a thread reads, because the libraries block

    def _open_live(self) -> None:
        clock = self.context.clock
        self._reader = reader = _Reader(self._usb(clock) if self._is_usb else self._address(clock), self.name)
        opened_by_ns = clock.now_ns() + round(OPEN_TIMEOUT_S * NS)
        while not (ready := reader.wait(LOOK_UP_S)) and clock.now_ns() < opened_by_ns:
            if self.context.stopping.is_set():
                return
        if not ready:
            raise DeviceError(
                f"{self._where}: {self._shown()} gave no picture in {OPEN_TIMEOUT_S:.0f} s. Is it sending?", retry=True
            )
        picture = reader.newest()
        rate_hz = reader.rate_hz or self.rate_hz
        self._describe(self._shown(), picture.image, rate_hz)

    def _live_frames(self) -> Iterator[Frame]:
        reader, context = self._reader, self.context
        assert reader is not None
        reader.forget()  # what was seen while other nodes were still loading
        waited_s = 0.0
        while not context.stopping.is_set():
            for reason, count in reader.take_lost():
                self.dropped(count, reason)
            if reader.wait(LOOK_UP_S):
                waited_s = 0.0
                for picture in reader.take():
                    yield self._frame(picture)
            elif (waited_s := waited_s + LOOK_UP_S) >= LOST_AFTER_S:
                raise DeviceError(f"{self._where}: {self._shown()} sent no picture for {LOST_AFTER_S:.0f} s.", retry=True)

    def _shown(self) -> str:
        return f"/dev/video{self.device}" if isinstance(self.device, int) else media.shown(self.device)

    def _usb(self, clock: Clock) -> Iterator[Picture | str]:
        # Must be set before OpenCV first waits for a picture; its default of 10 s would keep a pulled camera a secret.
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(round(LOST_AFTER_S)))
        try:
            import cv2
        except ImportError as error:
            raise missing_package("opencv-python-headless", self._where) from error

        path = self._shown()
        self._check_usb(path)
        capture = cv2.VideoCapture(self.device, cv2.CAP_V4L2 if _LINUX else cv2.CAP_ANY)
        try:
            if not capture.isOpened():
                raise DeviceError(f"{self._where}: {path} is busy. See who holds it: fuser {path}", retry=True)
            if self.width_px or self.height_px:
                # Raw pictures beyond 640×480 do not fit through USB 2 at 30 Hz.
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.width_px or round((self.height_px or 0) * 16 / 9))
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.height_px or round((self.width_px or 0) * 9 / 16))
            if self.rate_hz:
                capture.set(cv2.CAP_PROP_FPS, self.rate_hz)
            while capture.grab():
                arrival_ns = clock.now_ns()
                stamp_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                decoded, image = capture.retrieve()
                if not decoded:
                    yield "undecodable"
                elif 0 < arrival_ns - stamp_ns < NS:
                    yield Picture(image, stamp_ns, V4L2_ERROR_NS)
                else:
                    yield Picture(image, arrival_ns, ARRIVAL_ERROR_NS)
            raise DeviceError(f"{self._where}: {path} stopped sending. Was it unplugged?", retry=True)
        finally:
            capture.release()

    def _check_usb(self, path: str) -> None:
        if not _LINUX:
            return  # OpenCV numbers the cameras itself
        if not os.path.exists(path):
            here = ", ".join(f"{p} ({card})" for p, card in list_devices()) or "none"
            raise DeviceError(
                f"{self._where}: no camera at {path}. Cameras here: {here}. Plug it in, or choose one with "
                f"--set nodes.{self.name}.device=…",
                retry=True,
            )
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeviceError(f"{self._where}: {path} may not be read by this user. {_GROUP}")
        if _card(path) is None:
            raise DeviceError(f"{self._where}: {path} is no camera. Cameras here: {_names()}.")

    def _address(self, clock: Clock) -> Iterator[Picture | str]:
        if str(self.device).startswith("http"):
            response = self._request()
            if response.headers.get_content_type().startswith("multipart/"):
                return (yield from self._mjpeg(response, clock))
            response.close()
        yield from self._av_stream(clock)

    def _request(self) -> Any:
        parts = urlsplit(str(self.device))
        host = parts.netloc.rpartition("@")[2]
        address = parts._replace(netloc=host).geturl()
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if parts.username is not None:
            passwords.add_password(None, address, parts.username, parts.password or "")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # cameras stand in one's own network
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPDigestAuthHandler(passwords),
        )
        try:
            return opener.open(address, timeout=LOST_AFTER_S)
        except urllib.error.HTTPError as error:
            fix = " Write it as http://user:password@host/…" if error.code in (401, 403) else ""
            raise DeviceError(
                f"{self._where}: {self._shown()} answered {error.code} {error.reason}.{fix}", retry=error.code >= 500
            ) from error
        except (OSError, ValueError) as error:  # URLError is one
            raise DeviceError(
                f"{self._where}: {self._shown()} cannot be reached: {getattr(error, 'reason', error)}.", retry=True
            ) from error

    def _mjpeg(self, response: Any, clock: Clock) -> Iterator[Picture | str]:
        try:
            import cv2
        except ImportError as error:
            raise missing_package("opencv-python-headless", self._where) from error

        header_clock = HeaderClock(clock, same_host=_is_same_host(response))
        arrival_ns = 0
        with response:
            try:
                for headers, body in media.multipart(response, response.headers.get_param("boundary", "")):
                    if not body:
                        # The part has begun: its length must not count as delay.
                        arrival_ns = clock.now_ns()
                        continue
                    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
                    if image is None:
                        yield "undecodable"
                        continue
                    size = self._fit(image.shape[1], image.shape[0])
                    if size != (image.shape[1], image.shape[0]):
                        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                    stamped = header_clock.stamp(headers.get("x-timestamp"), arrival_ns)
                    yield Picture(image, *(stamped or (arrival_ns, ARRIVAL_ERROR_NS)))
            except (OSError, ValueError) as error:
                raise DeviceError(f"{self._where}: {self._shown()} broke off: {error}.", retry=True) from error
        raise DeviceError(f"{self._where}: {self._shown()} closed the connection.", retry=True)

    def _av_stream(self, clock: Clock) -> Iterator[Picture | str]:
        try:
            import av
        except ImportError as error:
            raise missing_package("av", self._where) from error

        options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
        if str(self.device).startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # over UDP one lost packet smears every picture up to the next key frame
        try:
            container = av.open(str(self.device), options=options, timeout=(OPEN_TIMEOUT_S, LOST_AFTER_S))
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DeviceError(f"{self._where}: {self._shown()} cannot be opened: {reason}.", retry=True) from error
        with container:
            if not container.streams.video:
                raise DeviceError(f"{self._where}: {self._shown()} has no picture in it.")
            if str(self.device).startswith("http") and container.duration:
                raise ConfigError(f"{self._where}: {self._shown()} is a file, not a stream. Save it and name its path.")
            stream = container.streams.video[0]
            pts_clock, seen = PtsClock(), False
            try:
                for packet in container.demux(stream):
                    arrival_ns = clock.now_ns()
                    try:
                        frames = packet.decode()
                    except av.error.InvalidDataError:
                        if seen:  # before the first key frame nothing can be decoded, and nothing is lost
                            yield "undecodable"
                        continue
                    for frame in frames:
                        seen = True
                        if frame.is_corrupt:
                            yield "corrupt"
                        elif frame.pts is None:
                            yield Picture(self._to_bgr(frame), arrival_ns, ARRIVAL_ERROR_NS)
                        else:
                            pts_ns = frame.pts * frame.time_base.numerator * NS // frame.time_base.denominator
                            capture_ns = pts_clock.stamp_frame(pts_ns, arrival_ns)
                            yield Picture(self._to_bgr(frame), capture_ns, pts_clock.error_ns)
            except (av.error.FFmpegError, OSError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DeviceError(f"{self._where}: {self._shown()} broke off: {reason}.", retry=True) from error
        raise DeviceError(f"{self._where}: {self._shown()} ended.", retry=True)


class _Reader:
    """Reads pictures in a thread and keeps the newest few. What it meets last, an error, is raised by the one who waits."""

    def __init__(self, pictures: Iterator[Picture | str], name: str) -> None:
        self._pictures = pictures
        self._kept: deque[Picture] = deque()
        self._lost: dict[str, int] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._times_ns: deque[int] = deque(maxlen=30)
        self._thread = threading.Thread(target=self._run, name=f"{name} reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for picture in self._pictures:
                with self._changed:
                    if self._stopping:
                        return
                    if isinstance(picture, str):
                        self._lost[picture] = self._lost.get(picture, 0) + 1
                        continue
                    if len(self._kept) == WAITING:
                        self._kept.popleft()
                        self._lost["overload"] = self._lost.get("overload", 0) + 1
                    self._kept.append(picture)
                    self._times_ns.append(picture.capture_ns)
                    self._changed.notify()
        except BaseException as caught:
            error = caught
        finally:
            self._pictures.close()  # type: ignore[attr-defined]  # a generator: releases the device in this thread
            with self._changed:
                self._error = error
                self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is a picture. Raises what ended the reading, once all pictures before it are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._kept or self._error, timeout_s)
            if self._error is not None and not self._kept:
                if isinstance(self._error, SensoriumError):
                    raise self._error
                raise RuntimeError("the camera's reading thread failed") from self._error
            return bool(self._kept)

    def take(self) -> Iterator[Picture]:
        while True:
            with self._changed:
                if not self._kept:
                    return
                picture = self._kept.popleft()
            yield picture

    def newest(self) -> Picture:
        with self._changed:
            return self._kept[-1]

    def forget(self) -> None:
        with self._changed:
            self._kept.clear()
            self._lost.clear()

    def take_lost(self) -> list[tuple[str, int]]:
        with self._changed:
            lost, self._lost = self._lost, {}
        return list(lost.items())

    @property
    def rate_hz(self) -> float | None:
        with self._changed:
            if len(self._times_ns) < 10:
                return None
            return (len(self._times_ns) - 1) * NS / (self._times_ns[-1] - self._times_ns[0])

    def stop(self) -> None:
        """The thread ends at its next picture, or when the library's own timeout ends its wait."""
        with self._changed:
            self._stopping = True
        self._thread.join(1.0)


def _is_same_host(response: Any) -> bool:
    try:
        connection = response.fp.raw._sock
        return bool(connection.getpeername()[0] == connection.getsockname()[0])
    except (AttributeError, OSError):
        return False


# V4L2's struct v4l2_capability: driver[16] card[32] bus_info[32] version capabilities device_caps reserved[3]
_VIDIOC_QUERYCAP, _CAPABILITY = 0x80685600, struct.Struct("16s32s32s3I12x")
_VIDEO_CAPTURE = 0x00000001
_GROUP = "Join its group, then log in again: sudo usermod -aG video $USER"


def list_devices() -> list[tuple[str, str]]:
    """("/dev/video0", "HD Webcam C525") of every camera here; "not readable" where its name may not be asked for."""
    found = []
    for path in sorted(Path("/dev").glob("video*"), key=lambda p: (len(p.name), p.name)):
        if not os.access(path, os.R_OK | os.W_OK):
            found.append((str(path), "not readable"))
        elif card := _card(str(path)):
            found.append((str(path), card))
    return found


def _names() -> str:
    return ", ".join(f"{path} ({card})" for path, card in list_devices()) or "none"


def _card(path: str) -> str | None:
    """The camera's name; None if it is no camera (a webcam also has a device for its metadata)."""
    import fcntl

    answer = bytearray(_CAPABILITY.size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return "in use"
    try:
        fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, answer)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    _, card, _, _, _, device_caps = _CAPABILITY.unpack(answer)
    return card.rstrip(b"\0").decode(errors="replace") if device_caps & _VIDEO_CAPTURE else None
