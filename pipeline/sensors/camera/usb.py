"""USB cameras through OpenCV: their pictures, dated by the driver, and the list of those connected (Linux: V4L2)."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clock import NS, Clock
from pipeline.errors import DeviceError, missing_package
from pipeline.sensors.camera.picture import ARRIVAL_ERROR_NS, LOST_AFTER_S, Borrow, Picture, Pictures, Size

V4L2_ERROR_NS = 1_000_000  # the driver stamps in its interrupt; USB frames last 1 ms
LINUX = sys.platform.startswith("linux")
JOIN_GROUP = "Join its group, then log in again: sudo usermod -aG video $USER"


def usb_pictures(
    device: int | str,
    within: Size,
    rate_hz: float | None,
    clock: Clock,
    where: str,
    borrow: Borrow = np.empty,
) -> Pictures:
    """A USB camera by index or path; it is asked for `within` and rate_hz, and delivers the nearest mode it has."""
    # OpenCV reads this before its first wait. Its default of 10 s would hide for that long that a camera was unplugged.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(round(LOST_AFTER_S)))
    cv2 = import_cv2(where)
    path = usb_path(device)
    if LINUX:  # elsewhere OpenCV numbers the cameras itself
        _check_v4l2(path, where)
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if LINUX else cv2.CAP_ANY)
    try:
        if not capture.isOpened():
            raise DeviceError(f"{where}: {path} is busy. See which process uses it: fuser {path}", retry=True)
        _request_mode(cv2, capture, within, rate_hz)
        shape: tuple[int, ...] | None = None
        while capture.grab():
            arrival_ns = clock.now_ns()
            driver_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            # OpenCV fills the array that it gets when the picture fits, and returns another when it does not.
            decoded, image = capture.retrieve(borrow(shape, np.uint8)) if shape else capture.retrieve()
            if decoded:
                shape = image.shape
            if not decoded:
                yield "undecodable"
            elif 0 <= arrival_ns - driver_ns < NS:
                yield Picture(image, driver_ns, V4L2_ERROR_NS)
            else:  # not CLOCK_MONOTONIC: some drivers report 0, some their own counter
                yield Picture(image, arrival_ns, ARRIVAL_ERROR_NS)
        raise DeviceError(f"{where}: {path} stopped sending. Was it unplugged?", retry=True)
    finally:
        capture.release()


def _request_mode(cv2: Any, capture: Any, within: Size, rate_hz: float | None) -> None:
    width_px, height_px = within
    if width_px or height_px:
        # Raw pictures beyond 640×480 do not fit through USB 2 at 30 Hz.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width_px or round((height_px or 0) * 16 / 9))
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height_px or round((width_px or 0) * 9 / 16))
    if rate_hz:
        capture.set(cv2.CAP_PROP_FPS, rate_hz)


def import_cv2(where: str) -> Any:
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


def list_usb_cameras() -> list[tuple[str, str]]:
    """("/dev/video0", "HD Webcam C525") of every USB camera connected; Linux only."""
    paths = sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    named = ((str(path), _card(str(path))) for path in paths)
    return [(path, card) for path, card in named if card is not None]


def _check_v4l2(path: str, where: str) -> None:
    connected = ", ".join(f"{p} ({card})" for p, card in list_usb_cameras()) or "none"
    if not os.path.exists(path):
        raise DeviceError(
            f"{where}: no camera at {path}. Cameras here: {connected}. Plug one in, or set `device` to another, a file "
            "or an address.",
            retry=True,  # it may have been unplugged
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise DeviceError(f"{where}: {path} may not be read by this user. {JOIN_GROUP}")
    if _card(path) is None:
        raise DeviceError(f"{where}: {path} is not a camera. Cameras here: {connected}.")


def _card(path: str) -> str | None:
    """The camera's name; None if it is no camera (a webcam also has a device for its metadata)."""
    import fcntl

    reply = bytearray(_CAPABILITY.size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        return f"not readable: {error.strerror}"
    try:
        fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, reply)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    _, card, _, _, _, device_caps = _CAPABILITY.unpack(reply)
    return card.rstrip(b"\0").decode(errors="replace") if device_caps & _VIDEO_CAPTURE else None
