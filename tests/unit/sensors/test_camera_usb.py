"""USB cameras, through a fake of OpenCV's VideoCapture: a container has no module for a virtual camera."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cameras import HEIGHT, MS, WIDTH, camera, write_film

from nodes.camera import Camera, list_devices
from pipeline.clock import LiveClock
from pipeline.errors import DeviceError
from pipeline.sensors.camera import usb
from pipeline.sensors.camera.picture import ARRIVAL_ERROR_NS, Picture
from pipeline.sensors.camera.reader import PictureReader

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: scripts/setup")


class FakeCapture:
    """A webcam that gives `pictures` pictures and is then unplugged. stamp_ms: the driver's stamp, given now in ms."""

    def __init__(
        self, *, pictures: int = 5, opens: bool = True, stamp_ms: Callable[[float], float] = lambda now_ms: now_ms - 12
    ):
        self.left, self.opens, self.stamp_ms = pictures, opens, stamp_ms
        self.asked: dict[int, float] = {}
        self.released = False

    def __call__(self, device: int | str, backend: int) -> FakeCapture:
        self.device = device
        return self

    def isOpened(self) -> bool:
        return self.opens

    def set(self, option: int, value: float) -> None:
        self.asked[option] = value

    def get(self, option: int) -> float:
        return self.stamp_ms(time.monotonic_ns() / MS)

    def grab(self) -> bool:
        time.sleep(0.01)
        self.left -= 1
        return self.left >= 0

    def retrieve(self, into: np.ndarray | None = None) -> tuple[bool, np.ndarray | None]:
        if self.left == 1:
            return False, None
        image = np.empty((HEIGHT, WIDTH, 3), np.uint8) if into is None else into
        image.fill(self.left)
        return True, image

    def release(self) -> None:
        self.released = True


def plug_in(monkeypatch: pytest.MonkeyPatch, webcam: FakeCapture) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", webcam)
    monkeypatch.setattr(usb, "_check_v4l2", lambda path, where: None)


def test_usb_pictures_carry_the_driver_s_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    webcam = FakeCapture(pictures=20)
    plug_in(monkeypatch, webcam)
    clock = LiveClock()
    node = camera(clock, device="2", width_px=1280, rate_hz=30.0)
    node.open()
    frames = []
    with pytest.raises(DeviceError, match="unplugged") as caught:
        for frame in node.frames(clock):
            assert 11 * MS < clock.now_ns() - frame.capture_ns < 60 * MS
            frames.append(frame)
    assert caught.value.retry and webcam.released
    assert {f.clock_error_ns for f in frames} == {usb.V4L2_ERROR_NS}
    assert webcam.device == 2
    assert (webcam.asked[cv2.CAP_PROP_FRAME_WIDTH], webcam.asked[cv2.CAP_PROP_FRAME_HEIGHT]) == (1280, 720)
    assert webcam.asked[cv2.CAP_PROP_FPS] == 30.0
    assert node.context.metrics.dropped() == {"camera": {"undecodable": 1}}
    node.close()


def test_pictures_are_decoded_into_borrowed_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a USB camera from the second on: the first tells how large they are."""
    lent: list[np.ndarray] = []

    def borrow(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        lent.append(np.empty(shape, dtype))
        return lent[-1]

    plug_in(monkeypatch, FakeCapture(pictures=5))
    film = str(write_film(tmp_path / "film.mp4", n=5))
    images = [
        p.image
        for p in islice(usb.usb_pictures(0, (None, None), None, LiveClock(), "camera", borrow), 3)
        if not isinstance(p, str)
    ]
    assert all(image is array for image, array in zip(images[1:], lent, strict=True))
    lent.clear()
    node = camera(device=film)
    node.context.borrow = borrow
    node.open()
    file = [frame.data for frame in node.frames(node.context.clock)]
    assert all(image is array for image, array in zip(file, lent, strict=True))


@pytest.mark.parametrize(
    "stamp_ms", [lambda now: 0.0, lambda now: now + 90_000, lambda now: 1.7e12], ids=["0", "ahead", "UTC"]
)
def test_usb_stamp_of_another_clock_is_not_believed(monkeypatch: pytest.MonkeyPatch, stamp_ms: Any) -> None:
    plug_in(monkeypatch, FakeCapture(pictures=200, stamp_ms=stamp_ms))
    clock = LiveClock()
    node = camera(clock)
    node.open()
    frame = next(iter(node.frames(clock)))
    assert 0 <= clock.now_ns() - frame.capture_ns < 50 * MS
    assert frame.clock_error_ns == ARRIVAL_ERROR_NS
    node.close()


def test_busy_usb_camera_names_the_command_that_shows_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, FakeCapture(opens=False))
    with pytest.raises(
        DeviceError, match="/dev/video0 is busy. See which process uses it: fuser /dev/video0"
    ) as caught:
        camera(LiveClock()).open()
    assert caught.value.retry


@pytest.mark.skipif(not usb.LINUX or bool(list_devices()), reason="this machine has a camera, or is not Linux")
def test_no_camera_says_so_and_is_an_error_of_a_device() -> None:
    with pytest.raises(DeviceError, match="no camera at /dev/video0. Cameras here: none") as caught:
        camera(LiveClock()).open()
    assert caught.value.exit_code == 3
    assert [f.works for f in Camera.doctor()] == [False]


@pytest.mark.skipif(not usb.LINUX, reason="V4L2 is Linux's")
def test_device_that_is_no_camera_and_a_busy_one_differ() -> None:
    with pytest.raises(DeviceError, match="/dev/null is not a camera"):
        camera(LiveClock(), device="/dev/null").open()
    assert os.path.exists("/dev/null")


def test_bug_in_the_reading_thread_is_not_mistaken_for_a_lost_device() -> None:
    def pictures() -> Iterator[Picture | str]:
        raise ZeroDivisionError
        yield "unreachable"

    with pytest.raises(RuntimeError) as caught:
        PictureReader(pictures()).wait(1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
