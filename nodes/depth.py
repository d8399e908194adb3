"""Depth camera (RealSense): depth aligned to its colour picture, and the colour picture, both with exposure times.

Example:
    depth:  {use: depth, process: rgbd, width_px: 640, height_px: 480, rate_hz: 30}
    camera: {use: depth, process: rgbd, width_px: 640, height_px: 480, rate_hz: 30, colour: true}

One device can be opened by one process: a node for its depth and one for its colour share it where both have the same
`process:`. A pixel of the depth is the same pixel of the colour picture, so both have one lens, which `save_rig`
writes.
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

POLL_S = 0.25  # how often a wait checks whether the run is being stopped
# Base (x forward, y left, z up) from camera (x right, y down, z forward), looking straight ahead.
AHEAD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_saving = threading.Lock()


class Depth(Source):
    """One stream of a RealSense camera: depth in millimetres, 0 where there is no reading."""

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
        """
        Args:
            serial: Serial number of the camera. Empty: the first one.
            width_px: Width of depth and colour (px); the camera must have the size.
            height_px: Height of depth and colour (px).
            rate_hz: Frames per second of depth and colour (> 0); the camera must have the rate.
            colour: Send the colour picture instead of the depth.
            save_rig: A rig file to which the camera's own intrinsics are written at every start, under this node's
                name. If the file has no pose of it, the camera is assumed to look straight ahead, height_m above the
                base's origin.
            height_m: Height above the base's origin (m), for save_rig.
            offset_ms: Added to every capture time (ms), for a constant delay measured by `calibrate time`. null: as the
                rig has it, else 0.
            rig: A rig file that has the offset under this node's name.
        """
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
        devices = realsense.devices(sdk)
        for device in devices:
            usb = (
                device.get_info(sdk.camera_info.usb_type_descriptor)
                if device.supports(sdk.camera_info.usb_type_descriptor)
                else ""
            )
            slow = (
                "It is connected by USB 2, which is too slow for most sizes: use a USB 3 cable and socket"
                if usb.startswith("2")
                else ""
            )
            what = f"{device.get_info(sdk.camera_info.name)} {device.get_info(sdk.camera_info.serial_number)}"
            yield Finding(not slow, what, slow)
        if not devices:
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
        tap.clear()  # drop frames from before the start of the run
        waited_s = 0.0
        while not self.context.stopping.is_set():
            has_frames = tap.wait(POLL_S)
            for reason, count in tap.take_lost().items():
                self.dropped(count, reason)
            waited_s = 0.0 if has_frames else waited_s + POLL_S
            if waited_s >= LOST_AFTER_S:  # the other stream of the device may go on
                kind = "colour" if self.colour else "depth"
                raise DeviceError(
                    f"depth camera '{self.name}': {tap.description} has sent no {kind} for {LOST_AFTER_S:.0f} s.",
                    retry=True,
                )
            for image, capture_ns, clock_error_ns in tap.take():
                yield Frame(self.name, -1, capture_ns, encoding, image, clock_error_ns=clock_error_ns)


def save_lens(path: Path, name: str, tap: realsense.Tap, *, height_m: float = 0.0) -> None:
    """Write the lens to the rig file, which may have other sensors too."""
    with _saving:  # two nodes of one device start at the same time
        known = load_rig(path) if path.is_file() else Rig()
        rig = known.with_intrinsics(name, tap.lens, f"reported by {tap.description}")
        if not any(name in (pose.target, pose.source) for pose in rig.poses):
            pose = Pose(BASE, name, rigid(AHEAD, (0.0, 0.0, height_m)))
            rig = rig.with_pose(
                pose, f"not measured: assumed to look straight ahead, {height_m:g} m above the base's origin"
            )
        save_rig(rig, path)
