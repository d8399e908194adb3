"""Pictures from a live camera, USB or network, each with the host time at which the world looked like that.

Owns the blocking libraries (OpenCV's V4L2, HTTP, PyAV), their time stamps and their ways of failing, and the thread
that keeps them from blocking the run. Knows nothing of nodes and frames: nodes/camera.py is the user's side.

    reader = Reader(usb("/dev/video0", ...))
    while reader.wait(0.25):                # raises the DeviceError that ended the reading
        for picture in reader.take(): ...

A generator of pictures yields Picture, or the reason for which one was lost, and raises DeviceError when the source is
gone. It opens its device at the first `next` and releases it when closed, all in the reader's thread.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS, Clock, HeaderClock, PtsClock
from pipeline.errors import ConfigError, DeviceError, SensoriumError, missing_package
from pipeline.sensors import media

OPEN_TIMEOUT_S = 10.0  # an RTSP handshake over a slow link; a webcam's first picture takes one to two seconds
LOST_AFTER_S = 2.0  # no picture for so long: the source is gone
KEY_FRAME_NS = 5 * NS  # a stream that has no key frame for so long may never send one (gradual refresh)
WAITING = 4  # pictures between the reading thread and the run: a reader that is later than that has lost them anyway
V4L2_ERROR_NS = 1_000_000  # the driver stamps in its interrupt; USB frames are 1 ms
# Nothing but the arrival is known: exposure, transfer and decoding of a webcam are usually within this.
ARRIVAL_ERROR_NS = 50_000_000
LINUX = sys.platform.startswith("linux")
JOIN_GROUP = "Join its group, then log in again: sudo usermod -aG video $USER"


class Picture(NamedTuple):
    image: np.ndarray  # (h, w, 3) uint8, BGR, never reused
    capture_ns: int
    clock_error_ns: int


Pictures = Iterator[Picture | str]
Borrow = Callable[[tuple[int, ...], npt.DTypeLike], np.ndarray]  # Source.borrow: where a picture is best put


class Newest:
    """The newest few pictures of a device's thread, for the run: what was lost, by reason, and what ended it."""

    def __init__(self) -> None:
        self._kept: deque[Picture] = deque()
        self._lost: dict[str, int] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, picture: Picture) -> None:
        with self._changed:
            if len(self._kept) == WAITING:
                self._kept.popleft()
                self.lose("overload")
            self._kept.append(picture)
            self._changed.notify()

    def lose(self, reason: str, count: int = 1) -> None:
        with self._changed:
            self._lost[reason] = self._lost.get(reason, 0) + count

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = error
            self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is a picture. Raises what ended the reading, once the pictures before it are taken."""
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
        """The newest picture, which stays; only after wait()."""
        with self._changed:
            return self._kept[-1]

    def forget(self) -> None:
        """Throw away what was read so far: it belongs to the time before the run."""
        with self._changed:
            self._kept.clear()
            self._lost.clear()

    def take_lost(self) -> dict[str, int]:
        """Pictures lost since the last call, by reason."""
        with self._changed:
            lost, self._lost = self._lost, {}
        return lost


class Reader(Newest):
    """Reads pictures in a thread of its own."""

    def __init__(self, pictures: Pictures) -> None:
        super().__init__()
        self._pictures = pictures
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for picture in self._pictures:
                if self._stopping.is_set():
                    return
                if isinstance(picture, str):
                    self.lose(picture)
                else:
                    self.put(picture)
        except BaseException as caught:
            error = caught
        finally:
            self._pictures.close()  # type: ignore[attr-defined]  # a generator: releases the device
            self.end(error)

    def stop(self) -> None:
        """The thread ends at its next picture, or when the library's own timeout ends its wait."""
        self._stopping.set()
        self._thread.join(1.0)


def fit(size: tuple[int, int], within: tuple[int | None, int | None]) -> tuple[int, int]:
    """(width, height) scaled down into `within`, in its own proportions; never enlarged. None: no bound."""
    width_px, height_px = size
    scale = min(1.0, (within[0] or width_px) / width_px, (within[1] or height_px) / height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def to_bgr(frame: Any, within: tuple[int | None, int | None], borrow: Borrow = np.empty) -> np.ndarray:
    """PyAV's frame as a borrowed (h, w, 3) uint8 array, upright (a telephone's clip carries its rotation) and scaled down."""
    quarters = round(frame.rotation / 90)  # a damaged file says any angle
    turned = quarters % 2 != 0
    size = fit((frame.height, frame.width) if turned else (frame.width, frame.height), within)
    width_px, height_px = size[::-1] if turned else size
    plane = frame.reformat(width=width_px, height=height_px, format="bgr24").planes[0]
    # Its rows are padded; to_ndarray would copy them together, and the picture would be copied once more to be sent.
    rows: np.ndarray = np.ndarray((height_px, width_px, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
    image = borrow((size[1], size[0], 3), np.uint8)
    np.copyto(image, np.rot90(rows, quarters))
    return image


def usb(
    device: int | str,
    within: tuple[int | None, int | None],
    rate_hz: float | None,
    clock: Clock,
    where: str,
    borrow: Borrow = np.empty,
) -> Pictures:
    """A USB camera by index or path; `within` and rate_hz are asked of it, and it takes the nearest it has."""
    # Must be set before OpenCV first waits for a picture; its default of 10 s would keep a pulled camera a secret.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(round(LOST_AFTER_S)))
    cv2 = _import_cv2(where)
    path = usb_path(device)
    if LINUX:  # elsewhere OpenCV numbers the cameras itself
        _check_v4l2(path, where)
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if LINUX else cv2.CAP_ANY)
    try:
        if not capture.isOpened():
            raise DeviceError(f"{where}: {path} is busy. See who holds it: fuser {path}", retry=True)
        width_px, height_px = within
        if width_px or height_px:
            # Raw pictures beyond 640×480 do not fit through USB 2 at 30 Hz.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, width_px or round((height_px or 0) * 16 / 9))
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height_px or round((width_px or 0) * 9 / 16))
        if rate_hz:
            capture.set(cv2.CAP_PROP_FPS, rate_hz)
        shape: tuple[int, ...] | None = None
        while capture.grab():
            arrival_ns = clock.now_ns()
            driver_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            # OpenCV fills the array it is given when the picture fits, and returns another when it does not.
            decoded, image = capture.retrieve(borrow(shape, np.uint8)) if shape else capture.retrieve()
            if decoded:
                shape = image.shape
            if not decoded:
                yield "undecodable"
            elif 0 <= arrival_ns - driver_ns < NS:
                yield Picture(image, driver_ns, V4L2_ERROR_NS)
            else:  # not CLOCK_MONOTONIC: some drivers give 0, some their own counter
                yield Picture(image, arrival_ns, ARRIVAL_ERROR_NS)
        raise DeviceError(f"{where}: {path} stopped sending. Was it unplugged?", retry=True)
    finally:
        capture.release()


def network(
    address: str, within: tuple[int | None, int | None], clock: Clock, where: str, borrow: Borrow = np.empty
) -> Pictures:
    """Anything PyAV opens by address; MJPEG over HTTP is read here, because only its part headers carry a time."""
    if address.startswith("http"):
        response = _request(address, where)
        if response.headers.get_content_type().startswith("multipart/"):
            return (yield from _mjpeg(response, address, within, clock, where))
        response.close()
    yield from _av_stream(address, within, clock, where, borrow)


def _mjpeg(response: Any, address: str, within: tuple[int | None, int | None], clock: Clock, where: str) -> Pictures:
    cv2 = _import_cv2(where)
    header_clock = HeaderClock(clock, same_host=_is_same_host(response))
    arrival_ns = 0
    with response:
        try:
            for headers, body in media.multipart(response, response.headers.get_param("boundary", "")):
                if body is None:
                    arrival_ns = clock.now_ns()  # the part has begun: its length must not count as delay
                    continue
                image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) if body else None
                if image is None:
                    yield "undecodable"
                    continue
                size = (image.shape[1], image.shape[0])
                if fit(size, within) != size:
                    image = cv2.resize(image, fit(size, within), interpolation=cv2.INTER_AREA)
                stamped = header_clock.stamp(headers.get("x-timestamp"), arrival_ns)
                yield Picture(image, *(stamped or (arrival_ns, ARRIVAL_ERROR_NS)))
        except (OSError, ValueError) as error:
            raise DeviceError(f"{where}: {media.shown(address)} broke off: {error}.", retry=True) from error
    raise DeviceError(f"{where}: {media.shown(address)} closed the connection.", retry=True)


def _request(address: str, where: str) -> Any:
    import urllib.error  # here: a start without such a camera saves their 40 ms
    import urllib.request

    parts = urlsplit(address)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        passwords.add_password(None, plain, parts.username, parts.password or "")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # cameras stand in one's own network
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
    )
    try:
        return opener.open(plain, timeout=LOST_AFTER_S)
    except urllib.error.HTTPError as error:
        fix = " Write it as http://user:password@host/…" if error.code in (401, 403) else ""
        message = f"{where}: {media.shown(address)} answered {error.code} {error.reason}.{fix}"
        raise DeviceError(message, retry=error.code >= 500) from error
    except (OSError, ValueError) as error:  # URLError is one
        reason = getattr(error, "reason", error)
        raise DeviceError(f"{where}: {media.shown(address)} cannot be reached: {reason}.", retry=True) from error


def _is_same_host(response: Any) -> bool:
    try:
        connection = response.fp.raw._sock
        return bool(connection.getpeername()[0] == connection.getsockname()[0])
    except (AttributeError, OSError):
        return False


def _av_stream(
    address: str, within: tuple[int | None, int | None], clock: Clock, where: str, borrow: Borrow
) -> Pictures:
    try:
        import av
    except ImportError as error:
        raise missing_package("av", where) from error

    shown = media.shown(address)
    options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
    if address.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # over UDP one lost packet smears every picture up to the next key frame
    try:
        container = av.open(address, options=options, timeout=(OPEN_TIMEOUT_S, LOST_AFTER_S))
    except (av.error.FFmpegError, OSError) as error:
        raise DeviceError(f"{where}: {shown} cannot be opened: {media.reason(error)}.", retry=True) from error
    with container:
        if not container.streams.video:
            raise DeviceError(f"{where}: {shown} has no picture in it.")
        if address.startswith("http") and container.duration:
            raise ConfigError(f"{where}: {shown} is a file, not a stream. Save it and name its path.")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads hold a picture back per thread
        stream.codec_context.flags |= av.codec.context.Flags.low_delay  # nor is one held back to be put in order
        pts_clock, seen, began_ns = PtsClock(), False, clock.now_ns()
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
                    # Joined in mid-stream, some decoders give grey pictures until the first key frame.
                    seen = seen or frame.key_frame or arrival_ns - began_ns > KEY_FRAME_NS
                    if not seen:
                        continue
                    pts_ns = media.pts_ns(frame)
                    if frame.is_corrupt:
                        yield "corrupt"
                    elif pts_ns is None:
                        yield Picture(to_bgr(frame, within, borrow), arrival_ns, ARRIVAL_ERROR_NS)
                    else:
                        capture_ns = pts_clock.stamp_frame(pts_ns, arrival_ns)
                        yield Picture(to_bgr(frame, within, borrow), capture_ns, pts_clock.error_ns)
        except (av.error.FFmpegError, OSError) as error:
            raise DeviceError(f"{where}: {shown} broke off: {media.reason(error)}.", retry=True) from error
    raise DeviceError(f"{where}: {shown} ended.", retry=True)


def _import_cv2(where: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise missing_package("opencv-python-headless", where) from error
    return cv2


# V4L2's struct v4l2_capability: driver[16] card[32] bus_info[32] version capabilities device_caps reserved[3]
_VIDIOC_QUERYCAP, _CAPABILITY = 0x80685600, struct.Struct("16s32s32s3I12x")
_VIDEO_CAPTURE = 0x00000001


def usb_path(device: int | str) -> str:
    return f"/dev/video{device}" if isinstance(device, int) else device


def usb_cameras() -> list[tuple[str, str]]:
    """("/dev/video0", "HD Webcam C525") of every USB camera here; Linux only."""
    paths = sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    named = ((str(path), _card(str(path))) for path in paths)
    return [(path, card) for path, card in named if card is not None]


def _check_v4l2(path: str, where: str) -> None:
    here = ", ".join(f"{p} ({card})" for p, card in usb_cameras()) or "none"
    if not os.path.exists(path):
        raise DeviceError(
            f"{where}: no camera at {path}. Cameras here: {here}. Plug one in, or set `device` to another, a file or an "
            f"address.",
            retry=True,  # it may have been pulled
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise DeviceError(f"{where}: {path} may not be read by this user. {JOIN_GROUP}")
    if _card(path) is None:
        raise DeviceError(f"{where}: {path} is not a camera. Cameras here: {here}.")


def _card(path: str) -> str | None:
    """The camera's name; None if it is no camera (a webcam also has a device for its metadata)."""
    import fcntl

    answer = bytearray(_CAPABILITY.size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return f"not readable: {error.strerror}"
    try:
        fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, answer)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    _, card, _, _, _, device_caps = _CAPABILITY.unpack(answer)
    return card.rstrip(b"\0").decode(errors="replace") if device_caps & _VIDEO_CAPTURE else None
