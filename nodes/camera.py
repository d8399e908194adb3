"""Camera: pictures from a USB camera, a file or an address, each with the time of its exposure.

Example:
    camera: {use: camera, device: 0, width_px: 1280, rate_hz: 30}
    camera: {use: camera, device: clip.mp4}
    camera: {use: camera, device: "rtsp://192.168.1.20/stream"}

Where `capture_ns` comes from:

| device | timestamp |
|---|---|
| USB | the driver's (V4L2: CLOCK_MONOTONIC, start of exposure); the arrival where that is implausible |
| file | clock.start_ns + the picture's time in the file: a microphone that reads the same file agrees |
| RTSP, UDP, SRT | the stream's, tied to its least delayed arrival (clock.PtsClock) |
| MJPEG | the part's header `X-Timestamp`, where there is one (clock.HeaderClock); else the arrival |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pipeline import assets
from pipeline.clock import NS, Clock
from pipeline.credentials import without_credentials
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Finding, Source
from pipeline.sensors import media
from pipeline.sensors.camera.network import network_pictures
from pipeline.sensors.camera.picture import LOST_AFTER_S, OPEN_TIMEOUT_S, to_bgr
from pipeline.sensors.camera.reader import PictureReader
from pipeline.sensors.camera.usb import JOIN_GROUP, list_usb_cameras, usb_path, usb_pictures

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "rtp", "srt")
POLL_S = 0.25  # how often a wait checks whether the run is being stopped


class Camera(Source):
    """One camera.

    Args:
        device: 0 or /dev/video0 (USB), a path, asset:NAME, or an address (rtsp://, http://, udp://, tcp://, srt://).
        width_px: Requested of a USB camera, which delivers the nearest mode it has; files and streams are scaled down
            to it, aspect ratio kept. Default: as the device delivers.
        height_px: Likewise for the height.
        rate_hz: Pictures a second, requested of a USB camera. Files and streams keep their own rate.
        realtime: Deliver a file's pictures at their own times; false: as fast as readers take them.
        loop: Start a file again at its end.
        offset_ms: Added to every capture time, for a delay that no clock sees; `calibrate time` measures it.
        rig: A rig file that holds this offset under the node's name, in place of offset_ms.
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
        offset_ms: float | None = None,
        rig: str | None = None,
    ) -> None:
        super().__init__(offset_ms=offset_ms, rig=rig)
        for option, value in (("width_px", width_px), ("height_px", height_px), ("rate_hz", rate_hz)):
            if value is not None and value <= 0:
                raise ConfigError(f"{option} must be above 0, not {value}.")
        assets.check(device)
        self.device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self.within = (width_px, height_px)
        self.rate_hz, self.realtime, self.loop = rate_hz, realtime, loop
        scheme = urlsplit(self.device).scheme if isinstance(self.device, str) and "://" in self.device else ""
        if scheme and scheme not in SCHEMES:
            raise ConfigError(f"device: '{scheme}://' is not supported. Addresses begin with: {', '.join(SCHEMES)}.")
        self._is_address = bool(scheme)
        self._is_usb = isinstance(self.device, int) or self.device.startswith("/dev/")
        self._file: media.OpenFile | None = None
        self._first: Any = None  # a file's first picture, decoded at open to check that there is one
        self._reader: PictureReader | None = None
        self._info: StreamInfo | None = None

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        cameras = list_devices()
        for path, card in cameras:
            usable = os.access(path, os.R_OK | os.W_OK)
            yield Finding(usable, f"camera {path}: {card}", "" if usable else JOIN_GROUP)
        if not cameras:
            yield Finding(
                False, "no USB camera", "Plug one in, or use a file or an address: nodes.camera.device=clip.mp4"
            )

    def open(self) -> None:
        super().open()
        if self._is_address or self._is_usb:
            self._open_live()
        else:
            self._file, self._first = self._begin_file()
            rate = self._file.stream.average_rate
            self._describe(self._file.path.name, to_bgr(self._first, self.within), float(rate) if rate else None)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
        if self._file is not None:
            self._file.close()
        self._reader = self._file = self._first = None

    def info(self) -> StreamInfo:
        return self._info or StreamInfo(self.name, "bgr8", self.rate_hz, 3, self.name, self._shown)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return self._file_frames(clock) if self._file is not None else self._live_frames()

    @property
    def is_live(self) -> bool:
        return self._is_usb or self._is_address

    @property
    def _where(self) -> str:
        return f"camera '{self.name}'"

    @property
    def _shown(self) -> str:
        return usb_path(self.device) if self._is_usb else without_credentials(str(self.device))

    def _describe(self, what: str, image: np.ndarray, rate_hz: float | None) -> None:
        height_px, width_px = image.shape[:2]
        at = f" at {rate_hz:.2f} Hz" if rate_hz else ""
        self._info = StreamInfo(self.name, "bgr8", rate_hz, 3, self.name, f"{what}, {width_px}×{height_px}{at}")
        self.context.metrics.facts["device"] = self._info.description

    def _frame(self, image: np.ndarray, capture_ns: int, clock_error_ns: int = 0) -> Frame:
        return Frame(self.name, -1, capture_ns, "bgr8", image, clock_error_ns=clock_error_ns)

    # Files

    def _begin_file(self) -> tuple[media.OpenFile, Any]:
        file = media.open_file(str(self.device), "video", where=self._where)
        first = next((frame for frame in file.frames() if frame is not None), None)
        if first is None:
            file.close()
            raise ConfigError(
                f"{self._where}: {file.path} has no picture that can be decoded: it is broken or cut off."
            )
        return file, first

    def _file_frames(self, clock: Clock) -> Iterator[Frame]:
        assert self._file is not None
        began_ns, turn_ns = clock.now_ns(), 0
        while True:
            period_ns = round(NS / (self._file.stream.average_rate or self.rate_hz or 25))
            next_ns = 0
            for frame in self._from_first(self._file):
                if frame is None:
                    self.dropped(1, "undecodable")
                    continue
                time_ns = self._file.time_ns(frame)
                time_ns = next_ns if time_ns is None else time_ns
                next_ns = time_ns + period_ns
                capture_ns = clock.start_ns + turn_ns + time_ns
                if self.realtime and capture_ns < began_ns - NS:
                    self.dropped(1, "missed while restarting")
                    continue
                # Decoded before the wait: decoding must not count as latency.
                image = to_bgr(frame, self.within, self.borrow)
                if self.realtime and not clock.sleep_until(capture_ns, self.context.stopping):
                    return
                yield self._frame(image, capture_ns)
            if not self.loop:
                return
            turn_ns += self._file.duration_ns or next_ns
            self._file.close()
            self._file, self._first = self._begin_file()

    def _from_first(self, file: media.OpenFile) -> Iterator[Any]:
        yield self._first
        yield from file.frames()

    # USB cameras and addresses

    def _open_live(self) -> None:
        clock = self.context.clock
        if self._is_usb:
            pictures = usb_pictures(self.device, self.within, self.rate_hz, clock, self._where, self.borrow)
        else:
            pictures = network_pictures(str(self.device), self.within, clock, self._where, self.borrow)
        self._reader = reader = PictureReader(pictures)
        until_ns = clock.now_ns() + round(OPEN_TIMEOUT_S * NS)
        while not reader.wait(POLL_S):
            if self.context.stopping.is_set():
                return
            if clock.now_ns() > until_ns:
                waited = f"{OPEN_TIMEOUT_S:.0f} s"
                raise DeviceError(f"{self._where}: {self._shown} sent no picture for {waited}. Is it on?", retry=True)
        self._describe(self._shown, reader.newest().image, self.rate_hz)

    def _live_frames(self) -> Iterator[Frame]:
        reader = self._reader
        assert reader is not None, "frames() before open()"
        reader.clear()  # pictures from while other nodes were still loading
        waited_s = 0.0
        while not self.context.stopping.is_set():
            arrived = reader.wait(POLL_S)
            for reason, count in reader.take_lost().items():
                self.dropped(count, reason)
            if arrived:
                waited_s = 0.0
                for picture in reader.take():
                    yield self._frame(*picture)
            elif (waited_s := waited_s + POLL_S) >= LOST_AFTER_S:
                waited = f"{LOST_AFTER_S:.0f} s"
                raise DeviceError(f"{self._where}: {self._shown} has sent no picture for {waited}.", retry=True)


def list_devices() -> list[tuple[str, str]]:
    """("/dev/video0", "HD Webcam C525") of every USB camera here."""
    return list_usb_cameras()
