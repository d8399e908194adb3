"""RealSense cameras: depth aligned to colour, each picture with its own capture time, one device shared by several
nodes.

A device can be opened by one process only, so nodes that want its depth and its colour share it: `attach` opens it for
the first and shares it with the next, `Tap.release` closes it after the last. Owns the SDK's timestamps and lenses;
knows no nodes.

Example:
    tap = attach("", Mode(640, 480, 30), "depth", clock, where="depth 'depth'", borrow=np.empty)
    if tap.wait(0.25): pictures = list(tap.take())     # [Picture((480, 640) uint16 mm, capture_ns, clock_error_ns)]
    # Intrinsics of the colour camera, into which the depth is aligned
    tap.lens

Where `capture_ns` comes from: the SDK's timestamp, moved from the picture's transmission to the middle of its exposure
where the camera reports that. global_time and system_time are UTC on this host and are converted to monotonic;
hardware_clock counts from the camera's own start and is tied to its least delayed arrival (clock.PtsClock).
"""

from __future__ import annotations

import threading
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS, Clock, PtsClock, utc_offset_ns
from pipeline.errors import ConfigError, DeviceError, missing_package
from pipeline.installation import COMMAND
from pipeline.rig.intrinsics import Intrinsics
from pipeline.sensors.camera.picture import LOST_AFTER_S, Borrow, Picture
from pipeline.sensors.camera.reader import MAX_QUEUED, PictureQueue

Kind = Literal["depth", "colour"]

GLOBAL_ERROR_NS = 2_000_000  # the SDK fits the camera's clock to the host's by requests over USB
SYSTEM_ERROR_NS = 20_000_000  # stamped on arrival: exposure and transfer usually take less than this
MAX_AGE_NS = NS  # a timestamp further from its arrival belongs to another clock than it claims
LENS_ERROR_PX = 0.1  # a lens that the rig file cannot describe this closely is refused


class Mode(NamedTuple):
    width_px: int
    height_px: int
    rate_hz: int


class Tap(PictureQueue):
    """The pictures of one kind that one node gets from a shared device."""

    def __init__(self, camera: _Camera, kind: Kind, borrow: Borrow) -> None:
        super().__init__()
        self._camera, self.kind, self.borrow = camera, kind, borrow
        self.lens, self.description = camera.lens, camera.description

    def release(self) -> None:
        self._camera.release(self)


_open: dict[str, _Camera] = {}  # serial number → the device that this process has open
_lock = threading.Lock()


def attach(serial: str, mode: Mode, kind: Kind, clock: Clock, *, where: str, borrow: Borrow = np.empty) -> Tap:
    """Opens the device, or shares the one that is open in this process.

    serial: of the device; "": the first one. Raises DeviceError where there is none or it is busy, ConfigError where it
        has no such picture or is already open in another mode.
    """
    sdk = load_sdk(where)
    with _lock:
        device = _find(sdk, serial, where)
        number = device.get_info(sdk.camera_info.serial_number)
        camera = _open.get(number)
        if camera is not None and camera.mode != mode:
            raise ConfigError(
                f"{where}: the camera {number} is open at {_shown(camera.mode)} for another node. Depth and colour "
                "come from one device: give both nodes the same width_px, height_px and rate_hz."
            )
        if camera is None:
            camera = _open[number] = _Camera(sdk, device, number, mode, clock, where)
        return camera.tap(kind, borrow)


def load_sdk(where: str) -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise missing_package("pyrealsense2", where, "depth") from error
    return pyrealsense2


def devices(sdk: Any) -> list[Any]:
    """Every connected RealSense device."""
    return list(sdk.context().query_devices())


def _find(sdk: Any, serial: str, where: str) -> Any:
    connected = {device.get_info(sdk.camera_info.serial_number): device for device in devices(sdk)}
    if serial and serial in connected:
        return connected[serial]
    if connected and not serial:
        return next(iter(connected.values()))
    names = (f"{number} ({device.get_info(sdk.camera_info.name)})" for number, device in connected.items())
    here = ", ".join(names) or "none"
    problem = f"no RealSense camera with the serial number {serial}" if serial else "no RealSense camera"
    raise DeviceError(
        f"{where}: {problem}. Cameras here: {here}. Plug it in, into a USB 3 socket, or list what is connected: "
        f"{COMMAND} doctor",
        retry=True,
    )


def _shown(mode: Mode) -> str:
    return f"{mode.width_px}×{mode.height_px} at {mode.rate_hz} Hz"


class _Camera:
    """One open device. Its thread waits for pictures, aligns depth to colour and passes both to the taps."""

    def __init__(self, sdk: Any, device: Any, number: str, mode: Mode, clock: Clock, where: str) -> None:
        self._sdk, self._number, self._clock, self.mode, self._where = sdk, number, clock, mode, where
        self.description = f"{device.get_info(sdk.camera_info.name)} {number}"
        self._taps: list[Tap] = []
        self._stopping = threading.Event()
        self._queue = sdk.frame_queue(4 * MAX_QUEUED)
        # Depth is aligned to the colour camera's pose and lens, whatever its picture shows. So the newest colour
        # picture serves every depth picture, and none waits for a partner, as it would in the SDK's own pairs.
        self._colour: Any = None
        self._pairs, self._paired = sdk.processing_block(self._pair), sdk.frame_queue(1)
        self._pairs.start(self._paired)
        self._align = sdk.align(sdk.stream.color)
        self._stamps = {sdk.stream.depth: Stamps(sdk, clock), sdk.stream.color: Stamps(sdk, clock)}
        self._numbers: dict[Any, int] = {}
        self._started: list[Any] = []
        kinds = (sdk.stream.depth, sdk.format.z16), (sdk.stream.color, sdk.format.bgr8)
        chosen = [self._profile(device, stream, form) for stream, form in kinds]
        self.lens = lens(sdk, chosen[1][1].as_video_stream_profile().get_intrinsics(), where)
        try:
            # Some models deliver both pictures from one sensor, which is opened once.
            for name in dict.fromkeys(name for name, _ in chosen):
                sensor = next(s for s in device.query_sensors() if s.get_info(sdk.camera_info.name) == name)
                # Otherwise colour slows down in the dark, and depth with it.
                if sensor.supports(sdk.option.auto_exposure_priority):
                    sensor.set_option(sdk.option.auto_exposure_priority, 0)
                sensor.open([profile for owner, profile in chosen if owner == name])
                self._started.append(sensor)
                sensor.start(self._queue)
        except RuntimeError as error:
            self._stop_sensors()
            raise DeviceError(
                f"{where}: {self.description} cannot be started ({error}). Another program may have it open; two nodes "
                "share it where both have the same `process:`.",
                retry=True,
            ) from error
        self._thread = threading.Thread(target=self._run, name=f"realsense {number}", daemon=True)
        self._thread.start()

    def _profile(self, device: Any, stream: Any, form: Any) -> tuple[str, Any]:
        """(its sensor's name, the profile) of the requested size and rate."""
        available: list[str] = []
        for sensor in device.query_sensors():
            for profile in sensor.get_stream_profiles():
                if profile.stream_type() != stream or profile.format() != form:
                    continue
                video = profile.as_video_stream_profile()
                candidate = Mode(video.width(), video.height(), profile.fps())
                if candidate == self.mode:
                    return sensor.get_info(self._sdk.camera_info.name), profile
                available.append(_shown(candidate))
        raise ConfigError(
            f"{self._where}: {self.description} has no {stream.name} picture of {_shown(self.mode)}. "
            f"It has: {', '.join(dict.fromkeys(available)) or 'none'}."
        )

    def tap(self, kind: Kind, borrow: Borrow) -> Tap:
        tap = Tap(self, kind, borrow)
        self._taps.append(tap)
        return tap

    def release(self, tap: Tap) -> None:
        with _lock:
            if tap in self._taps:
                self._taps.remove(tap)
            if self._taps or self._stopping.is_set():
                return
            self._close()
        self._thread.join(LOST_AFTER_S + 1)

    def _close(self) -> None:
        """With the lock held."""
        self._stopping.set()
        if _open.get(self._number) is self:
            del _open[self._number]
        self._stop_sensors()

    def _stop_sensors(self) -> None:
        for sensor in self._started:
            try:
                sensor.stop()
                sensor.close()
            except RuntimeError:
                pass  # unplugged: there is nothing left to stop
        self._started = []

    def _run(self) -> None:
        why = f"has sent no picture for {LOST_AFTER_S:.0f} s"
        try:
            while not self._stopping.is_set():
                arrived, frame = self._queue.try_wait_for_frame(round(LOST_AFTER_S * 1000))
                if self._stopping.is_set():
                    return
                if not arrived:
                    break
                self._hand_out(frame, self._clock.now_ns())
        except RuntimeError as error:  # the SDK's only error
            why = f"broke off ({error})"
        failure = DeviceError(f"{self._where}: {self.description} {why}. Was it unplugged?", retry=True)
        with _lock:
            taps = list(self._taps)
            self._close()
        for tap in taps:
            tap.end(failure)

    def _pair(self, depth: Any, source: Any) -> None:
        source.frame_ready(source.allocate_composite_frame([depth, self._colour]))

    def _hand_out(self, frame: Any, arrival_ns: int) -> None:
        stream = frame.get_profile().stream_type()
        kind = "colour" if stream == self._sdk.stream.color else "depth"
        capture_ns, clock_error_ns = self._stamps[stream].of(frame, arrival_ns)
        readers = [tap for tap in list(self._taps) if tap.kind == kind]
        missed = self._missed(stream, frame.get_frame_number())
        if kind == "colour":
            self._colour, picture = frame, np.asanyarray(frame.get_data())
        elif not readers or self._colour is None:
            return  # at the very start
        else:
            self._pairs.invoke(frame)
            aligned = self._align.process(self._paired.wait_for_frame(1000).as_frameset()).get_depth_frame()
            picture = millimetres(np.asanyarray(aligned.get_data()), aligned.get_units())
        for tap in readers:
            if missed:
                tap.lose("lost by the camera", missed)
            tap.put(Picture(_copied(picture, tap.borrow), capture_ns, clock_error_ns))

    def _missed(self, stream: Any, number: int) -> int:
        before = self._numbers.get(stream)
        self._numbers[stream] = number
        return max(0, number - before - 1) if before is not None else 0


def _copied(picture: np.ndarray, borrow: Borrow) -> np.ndarray:
    """The SDK reuses its buffers."""
    copy = borrow(picture.shape, picture.dtype)
    np.copyto(copy, picture)
    return copy


def millimetres(depth: npt.NDArray[np.uint16], unit_m: float) -> npt.NDArray[np.uint16]:
    """Depth in millimetres. depth: in units of `unit_m` metres, 0 = no reading, which stays 0; so does what 16 bits
    cannot hold.
    """
    if abs(unit_m - 0.001) < 1e-6:
        return depth
    scaled = np.rint(depth * (unit_m * 1000.0))
    return np.where(scaled <= 65535, scaled, 0).astype(np.uint16)


class Stamps:
    """The SDK's timestamps of one stream → (capture_ns, clock_error_ns) on the host's monotonic clock, never
    decreasing.
    """

    def __init__(self, sdk: Any, clock: Clock) -> None:
        self._sdk, self._clock = sdk, clock
        self._pts_clock = PtsClock()
        self._offset_ns, self._offset_error_ns = utc_offset_ns(clock)
        self._last_ns = -(1 << 62)

    def of(self, frame: Any, arrival_ns: int) -> tuple[int, int]:
        stamp_ns = round(frame.get_timestamp() * 1e6) - self._after_exposure_ns(frame)
        domain, domains = frame.get_frame_timestamp_domain(), self._sdk.timestamp_domain
        if domain != domains.hardware_clock:
            capture_ns = stamp_ns - self._offset_ns
            if not 0 <= arrival_ns - capture_ns <= MAX_AGE_NS:  # the host's clock may have been set
                self._offset_ns, self._offset_error_ns = utc_offset_ns(self._clock)
                capture_ns = stamp_ns - self._offset_ns
            if -GLOBAL_ERROR_NS <= arrival_ns - capture_ns <= MAX_AGE_NS:
                error_ns = GLOBAL_ERROR_NS if domain == domains.global_time else SYSTEM_ERROR_NS
                return self._rising(min(capture_ns, arrival_ns), error_ns + self._offset_error_ns)
        capture_ns = self._pts_clock.stamp_frame(stamp_ns, arrival_ns)
        return self._rising(capture_ns, self._pts_clock.error_ns)

    def _after_exposure_ns(self, frame: Any) -> int:
        """How much later than the middle of the exposure the timestamp is; 0 where the camera does not report it."""
        values = self._sdk.frame_metadata_value
        if not all(frame.supports_frame_metadata(value) for value in (values.frame_timestamp, values.sensor_timestamp)):
            return 0
        after_us = frame.get_frame_metadata(values.frame_timestamp) - frame.get_frame_metadata(values.sensor_timestamp)
        return int(after_us) * 1000 if 0 <= after_us < 1_000_000 else 0

    def _rising(self, capture_ns: int, error_ns: int) -> tuple[int, int]:
        risen_ns = max(capture_ns, self._last_ns + 1)
        self._last_ns = risen_ns
        return risen_ns, error_ns + risen_ns - capture_ns


def lens(sdk: Any, reported: Any, where: str) -> Intrinsics:
    """The intrinsics that the SDK reports, as a rig file holds them.

    Distortion models that OpenCV does not have are fitted by the nearest one it has. Raises DeviceError where that fit
    is worse than a tenth of a pixel.
    """
    size, pinhole = (reported.width, reported.height), (reported.fx, reported.fy, reported.ppx, reported.ppy)
    models, coefficients = sdk.distortion, tuple(reported.coeffs)
    if reported.model == models.kannala_brandt4:
        return Intrinsics("fisheye", *size, *pinhole, coefficients[:4])
    if reported.model == models.none or not any(coefficients):
        return Intrinsics("radtan", *size, *pinhole)
    if reported.model == models.brown_conrady:
        return Intrinsics("radtan", *size, *pinhole, coefficients)
    if reported.model not in (models.inverse_brown_conrady, models.modified_brown_conrady):
        raise DeviceError(
            f"{where}: the camera's lens is described as {reported.model.name}, which a rig file cannot hold. "
            f"Calibrate it: {COMMAND} calibrate camera live"
        )
    ways = np.linspace(0, 1, 25)
    if reported.model == models.inverse_brown_conrady:  # defined from the pixel to the ray
        pixels = [[u * (reported.width - 1), v * (reported.height - 1)] for u in ways for v in ways]
        rays = [sdk.rs2_deproject_pixel_to_point(reported, pixel, 1.0)[:2] for pixel in pixels]
    else:
        rays = [
            [(u * reported.width - reported.ppx) / reported.fx, (v * reported.height - reported.ppy) / reported.fy]
            for u in ways
            for v in ways
        ]
        pixels = [sdk.rs2_project_point_to_pixel(reported, [*ray, 1.0]) for ray in rays]
    x, y = np.array(rays).T
    bent = (np.array(pixels) - (reported.ppx, reported.ppy)) / (reported.fx, reported.fy)  # (n, 2)
    r2 = x * x + y * y
    # Linear in k1, k2, p1, p2, k3: bent − straight = straight·(k1 r² + k2 r⁴ + k3 r⁶) + tangential.
    across = np.stack([x * r2, x * r2**2, 2 * x * y, r2 + 2 * x * x, x * r2**3], 1)
    down = np.stack([y * r2, y * r2**2, r2 + 2 * y * y, 2 * x * y, y * r2**3], 1)
    rows, target = np.concatenate([across, down]), np.concatenate([bent[:, 0] - x, bent[:, 1] - y])
    fitted = np.linalg.lstsq(rows, target, rcond=None)[0]
    off_px = float(np.abs(rows @ fitted - target).max() * max(reported.fx, reported.fy))
    if off_px > LENS_ERROR_PX:
        raise DeviceError(
            f"{where}: the camera's lens ({reported.model.name}) fits a rig's model to {off_px:.2f} px only. "
            f"Calibrate it: {COMMAND} calibrate camera live"
        )
    return Intrinsics("radtan", *size, *pinhole, tuple(map(float, fitted)))
