"""Depth camera (RealSense): depth aligned to its colour picture, and the colour picture too, with the times of their exposure.

    depth:  {use: depth, process: rgbd, width_px: 640, height_px: 480, rate_hz: 30}
    camera: {use: depth, process: rgbd, width_px: 640, height_px: 480, rate_hz: 30, colour: true}

One device can be opened by one process: a node for its depth and one for its colour share it where both have the same
`process:`. A pixel of the depth is the same pixel of the colour picture, so both have one lens, which `save_rig` writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.clock import Clock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Encoding, Frame, StreamInfo
from pipeline.node import Finding, Source
from pipeline.rig.rig import BASE, Pose, Rig
from pipeline.rig.rig_file import load_rig, save_rig
from pipeline.rig.transforms import rigid
from pipeline.sensors import realsense
from pipeline.sensors.camera.picture import LOST_AFTER_S

LOOK_UP_S = 0.25  # how often a wait looks whether the run is being stopped
# Base (x forward, y left, z up) from camera (x right, y down, z forward), looking straight ahead.
AHEAD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_saving = threading.Lock()


class Depth(Source):
    """One stream of a RealSense camera: depth in millimetres, 0 where there is no reading.

    serial: its serial number; the first camera when left empty. width_px, height_px, rate_hz: of depth and colour alike; they
    must be a size that the camera has. colour: the colour picture instead of the depth.
    save_rig: a rig file into which what the camera says of its lens is written at every start, under this node's name; a
    place that the file has not is taken for straight ahead, height_m above the base's origin.
    offset_ms: added to every capture time, or rig: a rig file that has it under this node's name.
    """

    def __init__(
        self,
        *,
        serial: str | int = "",
        width_px: int = 640,
        height_px: int = 480,
        rate_hz: int = 30,
        colour: bool = False,
        save_rig: str | None = None,
        height_m: float = 0.0,
        offset_ms: float | None = None,
        rig: str | None = None,
    ) -> None:
        super().__init__(offset_ms=offset_ms, rig=rig)
        for option, value in (("width_px", width_px), ("height_px", height_px), ("rate_hz", rate_hz)):
            if value <= 0:
                raise ConfigError(f"{option} must be above 0, not {value}.")
        self.serial = str(serial)  # YAML reads digits as a number
        self.mode = realsense.Mode(width_px, height_px, rate_hz)
        self.colour, self.save_rig, self.height_m = colour, save_rig, height_m
        self._tap: realsense.Tap | None = None

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        try:
            sdk = realsense.load_sdk("depth cameras")
        except ConfigError as error:
            yield Finding(False, "depth cameras", str(error).partition(": ")[2])
            return
        found = realsense.devices(sdk)
        for device in found:
            usb = (
                device.get_info(sdk.camera_info.usb_type_descriptor)
                if device.supports(sdk.camera_info.usb_type_descriptor)
                else ""
            )
            slow = (
                "It hangs on USB 2, which is too slow for most sizes: use a USB 3 cable and socket"
                if usb.startswith("2")
                else ""
            )
            what = f"{device.get_info(sdk.camera_info.name)} {device.get_info(sdk.camera_info.serial_number)}"
            yield Finding(not slow, what, slow)
        if not found:
            yield Finding(False, "no RealSense camera", "Plug one in, or replay a recording")

    def open(self) -> None:
        super().open()
        where = f"depth camera '{self.name}'"
        kind: realsense.Kind = "colour" if self.colour else "depth"
        self._tap = realsense.attach(self.serial, self.mode, kind, self.context.clock, where=where, borrow=self.borrow)
        lens = self._tap.lens
        self.context.metrics.facts["device"] = self._tap.description
        self.context.metrics.facts["lens"] = (
            f"fx {lens.fx_px:.1f} fy {lens.fy_px:.1f} cx {lens.cx_px:.1f} cy {lens.cy_px:.1f} px"
        )
        if self.save_rig:
            save_lens(Path(self.save_rig), self.name, self._tap, height_m=self.height_m)

    def close(self) -> None:
        if self._tap is not None:
            self._tap.release()
        self._tap = None

    @property
    def is_live(self) -> bool:
        return True

    def info(self) -> StreamInfo:
        width_px, height_px, rate_hz = self.mode
        what = f"{self._tap.description}, " if self._tap else ""
        described = f"{what}{width_px}×{height_px} at {rate_hz} Hz"
        return StreamInfo(self.name, self._encoding, float(rate_hz), 3 if self.colour else 1, self.name, described)

    @property
    def _encoding(self) -> Encoding:
        return "bgr8" if self.colour else "depth_u16_mm"

    def frames(self, clock: Clock) -> Iterator[Frame]:
        tap, encoding = self._tap, self._encoding
        assert tap is not None, "frames() before open()"
        tap.clear()  # what was seen while other nodes were still loading
        waited_s = 0.0
        while not self.context.stopping.is_set():
            there = tap.wait(LOOK_UP_S)
            for reason, count in tap.take_lost().items():
                self.dropped(count, reason)
            waited_s = 0.0 if there else waited_s + LOOK_UP_S
            if waited_s >= LOST_AFTER_S:  # the other stream of the device may go on
                kind = "colour" if self.colour else "depth"
                raise DeviceError(
                    f"depth camera '{self.name}': {tap.description} has sent no {kind} for {LOST_AFTER_S:.0f} s.",
                    retry=True,
                )
            for image, capture_ns, clock_error_ns in tap.take():
                yield Frame(self.name, -1, capture_ns, encoding, image, clock_error_ns=clock_error_ns)


def save_lens(path: Path, name: str, tap: realsense.Tap, *, height_m: float = 0.0) -> None:
    """Into the rig file, which may know other sensors too."""
    with _saving:  # two nodes of one device start at the same time
        known = load_rig(path) if path.is_file() else Rig()
        rig = known.with_intrinsics(name, tap.lens, f"what {tap.description} says of itself")
        if not any(name in (pose.target, pose.source) for pose in rig.poses):
            pose = Pose(BASE, name, rigid(AHEAD, (0.0, 0.0, height_m)))
            rig = rig.with_pose(pose, f"not measured: taken for straight ahead, {height_m:g} m above the base's origin")
        save_rig(rig, path)
