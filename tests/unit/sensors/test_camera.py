"""Camera: what was picture_node, and when. Here from files; test_camera_usb, _http and _rtsp have the devices."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cameras import HEIGHT, MS, WIDTH, camera, write_film

from nodes.camera import Camera
from nodes.microphone import Microphone
from nodes.synthetic import picture_number
from pipeline.clock import NS, LiveClock, ManualClock
from pipeline.errors import ConfigError
from pipeline.node import Context
from pipeline.sensors.camera.picture import to_bgr

av = pytest.importorskip("av", reason="PyAV is not installed: scripts/setup")


def test_every_picture_of_a_file_comes_at_its_time(tmp_path: Path) -> None:
    clock = ManualClock(9 * NS)
    node = camera(clock, device=str(write_film(tmp_path / "film.mp4")))
    node.open()
    frames = []
    for frame in node.frames(clock):
        assert clock.now_ns() == frame.capture_ns  # not before it happened
        frames.append(frame)
    node.close()
    assert [f.capture_ns for f in frames] == [9 * NS + k * 40 * MS for k in range(50)]
    assert [picture_number(f.data) for f in frames] == list(range(50))
    assert {(f.encoding, f.data.shape, f.data.dtype.str, f.clock_error_ns) for f in frames} == {
        ("bgr8", (HEIGHT, WIDTH, 3), "|u1", 0)
    }
    assert not frames[0].data.flags.writeable
    assert len({f.data.ctypes.data for f in frames}) == 50  # no buffer is used twice
    assert node.info().rate_hz == 25.0
    assert node.context.metrics.dropped() == {}


@pytest.mark.paced
def test_file_is_paced_in_real_time_by_default(tmp_path: Path) -> None:
    path = str(write_film(tmp_path / "film.mp4", n=13))
    clock = LiveClock()
    node = camera(clock, device=path)
    node.open()
    clock.start_ns = clock.now_ns()
    late_ns = [clock.now_ns() - f.capture_ns for f in node.frames(clock)]
    assert min(late_ns) >= 0 and np.median(late_ns) < 5 * MS
    assert clock.now_ns() - clock.start_ns >= 480 * MS

    fast = camera(device=path, realtime=False)
    fast.open()
    assert len(list(fast.frames(fast.context.clock))) == 13
    assert fast.context.clock.now_ns() == 0


def test_picture_and_sound_of_a_file_share_one_timeline(tmp_path: Path) -> None:
    for suffix, starts_at in (("mp4", 0.0), ("mkv", 0.0), ("ts", 0.0), ("mkv", 100.0), ("ts", 100.0)):
        path = str(write_film(tmp_path / f"film.{suffix}", n=100, sound_at=2.0, starts_at=starts_at))
        picture_node = camera(ManualClock(5 * NS), device=path)
        picture_node.open()
        bright = [f.capture_ns for f in picture_node.frames(picture_node.context.clock) if f.data.mean() > 127]
        sound_node = Microphone(device=path)
        sound_node.context = Context("microphone", clock=ManualClock(5 * NS))
        sound_node.open()
        loud = [f.capture_ns for f in sound_node.frames(sound_node.context.clock) if np.abs(f.data).max() > 0.2]
        assert abs(bright[0] - loud[0]) <= 20 * MS, path  # one audio chunk
        assert abs(bright[0] - 7 * NS) <= 40 * MS, path
        assert len(bright) == 5


def test_looped_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    node = camera(device=str(write_film(tmp_path / "film.mp4", n=5)), loop=True)
    node.open()
    frames = list(islice(node.frames(node.context.clock), 12))
    assert [f.capture_ns for f in frames] == [k * 40 * MS for k in range(12)]
    assert [picture_number(f.data) for f in frames] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_file_larger_than_asked_is_scaled_down_and_a_smaller_one_left_alone(tmp_path: Path) -> None:
    path = str(write_film(tmp_path / "film.mp4", n=3))
    for options, shape in (
        ({"width_px": 96}, (48, 96, 3)),
        ({"width_px": 1280}, (96, 192, 3)),
        ({"height_px": 24}, (24, 48, 3)),
    ):
        node = camera(device=path, **options)
        node.open()
        assert next(iter(node.frames(node.context.clock))).data.shape == shape
        node.close()


def test_film_of_a_telephone_held_upright_is_turned() -> None:
    class Turned:
        width, height, rotation = 4, 2, 90

        def reformat(self, format: str, width: int, height: int) -> av.VideoFrame:
            assert (format, width, height) == ("bgr24", 4, 2)
            image = np.zeros((2, 4, 3), np.uint8)
            image[0, 3] = 255  # top right; turned counterclockwise by 90°: top left
            return av.VideoFrame.from_ndarray(image, format="bgr24")

    image = to_bgr(Turned(), (None, None))
    assert image.shape == (4, 2, 3) and image[0, 0, 0] == 255


def test_node_started_again_in_mid_run_goes_on_at_the_present(tmp_path: Path) -> None:
    clock = ManualClock()
    node = camera(clock, device=str(write_film(tmp_path / "film.mp4", n=100)))
    node.open()
    clock.advance(3 * NS)
    frames = list(node.frames(clock))
    assert [picture_number(f.data) for f in frames] == list(range(50, 100))
    assert node.context.metrics.dropped() == {"camera": {"missed while restarting": 50}}


def test_file_can_be_opened_again_after_close(tmp_path: Path) -> None:
    node = camera(device=str(write_film(tmp_path / "film.mp4", n=3)), realtime=False)
    for _ in range(2):
        node.open()
        assert len(list(node.frames(node.context.clock))) == 3
        node.close()


def test_file_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.ts", n=100)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    node = camera(device=str(cut), realtime=False)
    node.open()
    frames = list(node.frames(node.context.clock))
    assert 20 < len(frames) < 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fim.mp4", None, "no file .*Did you mean 'film.mp4'?"),
        ("nowhere/film.mp4", None, "there is no folder"),
        ("broken.mp4", b"not a film" * 500, "cannot be read as video"),
        ("empty.mp4", b"", "cannot be read as video"),
        ("sound.wav", "sound", "has no video in it, only: audio"),
        ("folder.mp4", "folder", "is a folder"),
    ],
)
def test_bad_file_is_the_users_and_says_what_is_wrong(tmp_path: Path, name: str, content: Any, message: str) -> None:
    write_film(tmp_path / "film.mp4", n=3)
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content == "sound":
        import wave

        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        camera(device=str(path)).open()
    assert "camera 'camera'" in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("options", [{"width_px": 0}, {"rate_hz": -1.0}, {"device": "gopher://camera"}])
def test_impossible_option_is_refused_before_anything_is_opened(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Camera(**options)
