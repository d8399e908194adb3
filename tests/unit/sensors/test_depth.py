"""The depth camera, on the SDK's own software device: aligned to colour, true capture times, one device for two
nodes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.depth import Depth
from nodes.replay import Replay
from pipeline.clock import LiveClock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Context
from pipeline.recording.writer import Writer
from pipeline.rig.rig_file import load_rig
from pipeline.rig.transforms import apply
from pipeline.sensors import realsense
from pipeline.sensors.realsense import millimetres
from pipeline.testing import play

WIDE, HIGH, RATE_HZ = 64, 48, 30
BASELINE_M = 0.05


@pytest.fixture
def sdk() -> Any:
    return pytest.importorskip("pyrealsense2", reason="pyrealsense2 is not installed: scripts/setup depth")


class Soft:
    """A camera made of the SDK's software device: two lenses 5 cm apart, fed at 30 Hz by a thread."""

    def __init__(self, sdk: Any, *, domain: str = "global_time", unit_m: float = 0.001, offset_ms: float = 0.0) -> None:
        self.sdk, self.domain, self.unit_m = sdk, getattr(sdk.timestamp_domain, domain), unit_m
        self.device = sdk.software_device()
        self.device.register_info(sdk.camera_info.serial_number, "1234")
        self.device.register_info(sdk.camera_info.name, "Soft")
        stereo, rgb = self.device.add_sensor("Stereo Module"), self.device.add_sensor("RGB Camera")
        stereo.add_read_only_option(sdk.option.depth_units, unit_m)
        depth = stereo.add_video_stream(self._stream(sdk.stream.depth, 0, sdk.format.z16, 2, 40.0))
        colour = rgb.add_video_stream(self._stream(sdk.stream.color, 1, sdk.format.bgr8, 3, 50.0))
        between = sdk.extrinsics()
        between.rotation, between.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [BASELINE_M, 0, 0]
        depth.register_extrinsics_to(colour, between)
        self.device.create_matcher(sdk.matchers.default)
        self.parts = ((stereo, depth, 2), (rgb, colour, 3))
        self.offset_ms = offset_ms  # of its stamps against UTC
        self.skip: set[int] = set()
        self.sent: dict[int, float] = {}  # frame number → the colour stamp, ms
        self.going = threading.Event()
        self.going.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _stream(self, kind: Any, uid: int, form: Any, bytes_a_pixel: int, focal_px: float) -> Any:
        lens = self.sdk.intrinsics()
        lens.width, lens.height, lens.ppx, lens.ppy, lens.fx, lens.fy = (
            WIDE,
            HIGH,
            WIDE / 2,
            HIGH / 2,
            focal_px,
            focal_px,
        )
        lens.model, lens.coeffs = self.sdk.distortion.brown_conrady, [0.0] * 5
        stream = self.sdk.video_stream()
        stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = kind, 0, uid, form, bytes_a_pixel
        stream.width, stream.height, stream.fps, stream.intrinsics = WIDE, HIGH, RATE_HZ, lens
        return stream

    def _feed(self) -> None:
        number = 0
        while not self._ended.wait(1 / RATE_HZ):
            number += 1
            if not self.going.is_set() or number in self.skip:
                continue
            stamp_ms = time.time() * 1000 - 5 + self.offset_ms
            self.sent[number] = stamp_ms
            depth = np.zeros((HIGH, WIDE), np.uint16)
            depth[20:28, 28:36] = round(1.0 / self.unit_m)  # a board in the middle, 1 m away
            for (sensor, profile, size), pixels in zip(
                self.parts, (depth, np.full((HIGH, WIDE, 3), number % 200, np.uint8)), strict=True
            ):
                frame = self.sdk.software_video_frame()
                frame.pixels, frame.bpp, frame.stride, frame.frame_number = pixels, size, WIDE * size, number
                frame.timestamp, frame.domain, frame.profile = stamp_ms, self.domain, profile.as_video_stream_profile()
                if size == 2:
                    frame.depth_units = self.unit_m
                try:
                    sensor.on_video_frame(frame)
                except RuntimeError:
                    pass  # nobody has started it

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def soft(sdk: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soft]:
    camera = Soft(sdk)
    monkeypatch.setattr(realsense, "devices", lambda _: [camera.device])
    yield camera
    camera.end()


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    for camera in list(realsense._open.values()):  # of a test that failed
        for tap in list(camera._taps):
            tap.release()


def opened(node: Depth, name: str) -> Depth:
    node.context = Context(name, LiveClock())
    node.open()
    return node


def depth_node(**options: Any) -> Depth:
    return Depth(width_px=WIDE, height_px=HIGH, rate_hz=RATE_HZ, **options)


def take(node: Depth, count: int) -> list[Frame]:
    frames = []
    for frame in node.frames(node.context.clock):
        frames.append(frame)
        if len(frames) == count:
            break
    return frames


def test_depth_is_where_the_colour_picture_shows_it_in_millimetres(soft: Soft) -> None:
    node = opened(depth_node(), "depth")
    frame, info = take(node, 3)[-1], node.info()
    node.close()
    rows, columns = np.nonzero(frame.data)
    assert frame.encoding == "depth_u16_mm" and set(np.unique(frame.data)) == {0, 1000}
    # A ray of the depth camera through x = 0 at 1 m is 5 cm to the right of the colour camera: 50 px × 0.05.
    assert abs(columns.mean() - (WIDE / 2 + 50 * BASELINE_M - 0.5)) < 1 and abs(rows.mean() - (HIGH / 2 - 0.5)) < 1
    assert info.encoding == "depth_u16_mm" and info.description == "Soft 1234, 64×48 at 30 Hz"


def test_capture_time_is_the_cameras_own_stamp_on_the_monotonic_clock(soft: Soft) -> None:
    node = opened(depth_node(), "depth")
    offset_ns = time.time_ns() - time.monotonic_ns()
    frames = take(node, 5)
    node.close()
    sent_ns = np.array([round(ms * 1e6) for ms in soft.sent.values()]) - offset_ns
    off_ns = [int(np.abs(sent_ns - frame.capture_ns).min()) for frame in frames]
    assert max(off_ns) < 1_000_000 and all(0 < f.clock_error_ns <= 3_000_000 for f in frames)
    assert all(a.capture_ns < b.capture_ns for a, b in itertools.pairwise(frames))


@pytest.mark.paced
@pytest.mark.parametrize("domain", ["hardware_clock", "global_time"])
def test_stamps_of_another_epoch_are_tied_to_their_arrival(
    sdk: Any, monkeypatch: pytest.MonkeyPatch, domain: str
) -> None:
    soft = Soft(sdk, domain=domain, offset_ms=-time.time() * 1000 + 7_000)  # counts from its own start
    monkeypatch.setattr(realsense, "devices", lambda _: [soft.device])
    node = opened(depth_node(), "depth")
    now_ns = time.monotonic_ns()
    frames = take(node, 5)
    node.close()
    soft.end()
    assert all(now_ns - 500_000_000 < f.capture_ns < time.monotonic_ns() for f in frames)
    steps_ms = np.diff([f.capture_ns for f in frames]) / 1e6
    assert (steps_ms > 0).all() and abs(np.median(steps_ms) - 1000 / RATE_HZ) < 15


def test_depth_and_colour_of_one_device_are_two_nodes_with_the_same_times(soft: Soft) -> None:
    depth, colour = opened(depth_node(), "depth"), opened(depth_node(colour=True), "camera")
    pictures: list[Frame] = []
    thread = threading.Thread(target=lambda: pictures.extend(take(colour, 6)))
    thread.start()
    depths = take(depth, 6)
    thread.join(5)
    assert pictures[0].encoding == "bgr8" and pictures[0].data.shape == (HIGH, WIDE, 3)
    assert len({p.capture_ns // 1000 for p in pictures} & {d.capture_ns // 1000 for d in depths}) >= 4
    depth.close()
    assert take(colour, 2), "the device stays open for the other"
    colour.close()
    again = opened(depth_node(), "depth")
    assert take(again, 1), "and can be opened again"
    again.close()


def test_two_nodes_with_other_sizes_of_one_device_are_refused(soft: Soft) -> None:
    depth = opened(depth_node(), "depth")
    with pytest.raises(ConfigError, match="open at 64×48 at 30 Hz for another node.*same width_px"):
        opened(Depth(width_px=640, height_px=480, colour=True), "camera")
    depth.close()


def test_frames_that_the_camera_lost_are_counted(soft: Soft) -> None:
    node = opened(depth_node(), "depth")
    soft.skip = set(range(max(soft.sent, default=0) + 20, max(soft.sent, default=0) + 25))
    take(node, 35)
    node.close()
    assert node.context.metrics.dropped()["depth"]["lost by the camera"] == 5


def test_pulled_camera_is_lost_and_comes_back(soft: Soft) -> None:
    node = opened(depth_node(), "depth")
    take(node, 2)
    soft.going.clear()
    with pytest.raises(
        DeviceError, match="depth camera 'depth': Soft 1234 has sent no picture for 2 s. Was it unplugged"
    ) as lost:
        take(node, 200)
    assert lost.value.retry
    node.close()
    soft.going.set()
    node.open()
    assert len(take(node, 2)) == 2
    node.close()


def test_no_camera_wrong_serial_and_unknown_size_say_what_there_is(soft: Soft, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"serial number 99. Cameras here: 1234 \(Soft\)") as missing:
        opened(depth_node(serial=99), "depth")
    assert missing.value.retry
    with pytest.raises(ConfigError, match="no depth picture of 640×480 at 30 Hz. It has: 64×48 at 30 Hz"):
        opened(Depth(), "depth")
    assert [f.works for f in Depth.doctor()] == [True]
    monkeypatch.setattr(realsense, "devices", lambda _: [])
    with pytest.raises(DeviceError, match="no RealSense camera. Cameras here: none. Plug it in"):
        opened(depth_node(), "depth")
    assert [f.works for f in Depth.doctor()] == [False]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyrealsense2", None)
    with pytest.raises(ConfigError, match="'pyrealsense2' is not installed.*scripts/setup depth"):
        opened(depth_node(), "depth")
    assert [f.works for f in Depth.doctor()] == [False]


def test_lens_goes_into_the_rig_beside_what_it_holds(soft: Soft, tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    for name, node in (
        ("depth", depth_node(save_rig=str(path))),
        ("camera", depth_node(save_rig=str(path), colour=True)),
    ):
        opened(node, name).close()
    saved = load_rig(path)
    assert saved.intrinsics["depth"] == saved.intrinsics["camera"]
    assert saved.intrinsics["depth"].fx_px == 50 and saved.intrinsics["depth"].size == (WIDE, HIGH)
    ahead = apply(saved.transform("base", "depth"), np.array([[0.0, 0.0, 2.0]]))
    assert np.allclose(ahead, [[2, 0, 0]])


@pytest.mark.parametrize("model", ["brown_conrady", "inverse_brown_conrady", "modified_brown_conrady"])
def test_lens_models_of_the_sdk_become_ours_to_a_tenth_of_a_pixel(sdk: Any, model: str) -> None:
    reported = sdk.intrinsics()
    reported.width, reported.height, reported.ppx, reported.ppy, reported.fx, reported.fy = (
        640,
        480,
        322.0,
        241.0,
        610.0,
        609.0,
    )
    reported.model, reported.coeffs = getattr(sdk.distortion, model), [0.05, -0.08, 0.001, -0.0005, 0.01]
    ours = realsense.lens(sdk, reported, "here")
    for point in ([0.0, 0.0, 1.0], [0.3, -0.2, 1.0], [-0.45, 0.3, 1.0]):
        if model == "inverse_brown_conrady":  # the SDK's other direction is the exact one
            pixel = ours.project(np.array([point]))[0][0]
            back = sdk.rs2_deproject_pixel_to_point(reported, list(map(float, pixel)), 1.0)
            assert np.abs(np.array(back) - point).max() * 610 < 0.15
        else:
            assert (
                np.abs(ours.project(np.array([point]))[0][0] - sdk.rs2_project_point_to_pixel(reported, point)).max()
                < 0.1
            )


def test_other_depth_units_become_millimetres() -> None:
    depth_mm = millimetres(np.array([0, 4000, 65535], np.uint16), 0.00025)
    assert depth_mm.tolist() == [0, 1000, 16384]
    assert millimetres(np.array([0, 10, 50_000], np.uint16), 0.01).tolist() == [0, 100, 0]  # 500 m does not fit


def test_recorded_depth_replays_to_the_millimetre(tmp_path: Path) -> None:
    depth = np.arange(WIDE * HIGH, dtype=np.uint16).reshape(HIGH, WIDE)
    with Writer(tmp_path / "rec.mcap", about={}) as writer:
        writer.stream(StreamInfo("depth", "depth_u16_mm", 30.0, 1, "depth"))
        for seq in range(3):
            writer.write(
                "depth",
                Frame("depth", seq, seq * 33_000_000, "depth_u16_mm", depth + seq, publish_ns=seq * 33_000_000 + 1),
            )
    frames = play(Replay(path=str(tmp_path / "rec.mcap"), stream="depth", speed=0), count=3)
    assert [f.capture_ns for f in frames] == [0, 33_000_000, 66_000_000]
    assert all(np.array_equal(f.data, depth + f.seq) and f.data.dtype == np.uint16 for f in frames)
