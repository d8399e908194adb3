"""Synthetic: the truth about every frame is known, so what others are tested with is tested first."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest

from nodes.synthetic import Synthetic, chirp, picture, picture_number, series
from pipeline.clock import NS, LiveClock, ManualClock
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.node import Context

MS = 1_000_000


def generated(n: int | None = None, start_ns: int = 0, **options: Any) -> tuple[list[Frame], Synthetic]:
    node = Synthetic(**options)
    node.context = Context("made", clock=ManualClock(start_ns))
    node.open()
    frames = node.frames(node.context.clock)
    return list(frames if n is None else islice(frames, n)), node


@pytest.mark.parametrize("number", [0, 1, 29, 12345, 2**24 - 1])
@pytest.mark.parametrize("size", [(96, 32), (640, 360), (1920, 1080)])
def test_picture_shows_its_number_even_through_jpeg(number: int, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = picture(number, *size)
    assert picture_number(image) == number
    assert picture_number(cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)) == number


def test_frames_lie_on_an_even_grid_from_the_run_s_start() -> None:
    frames, node = generated(count=90, start_ns=5 * NS, rate_hz=30.0, width_px=96, height_px=32)
    assert [f.capture_ns for f in frames] == [5 * NS + round(k * NS / 30) for k in range(90)]
    assert [picture_number(f.data) for f in frames] == list(range(90))
    assert node.info().encoding == "bgr8" and node.info().rate_hz == 30.0


def test_sound_has_no_seam_at_any_rate() -> None:
    for rate_hz in (50.0, 30.0, 7.3):
        frames, _ = generated(100, encoding="pcm_f32", rate_hz=rate_hz)
        sound = np.concatenate([f.data for f in frames])
        np.testing.assert_array_equal(sound, chirp(0, len(sound), 16000))
        assert all(a.end_ns == b.capture_ns for a, b in pairwise(frames))


def test_sound_is_delivered_when_its_last_sample_has_happened_and_later_if_asked() -> None:
    node = Synthetic(encoding="pcm_f32", rate_hz=50.0, delay_ms=30.0)
    node.context = Context("made", clock=ManualClock())
    for frame in islice(node.frames(node.context.clock), 5):
        assert node.context.clock.now_ns() == frame.end_ns + 30 * MS


def test_series_tells_the_time_of_its_capture() -> None:
    frames, _ = generated(50, encoding="series_f32", rate_hz=200.0, jitter_ms=2.0, start_ns=NS, channels=3)
    for frame in frames:
        np.testing.assert_allclose(frame.data, np.full(3, series(frame.capture_ns - NS), np.float32))


@pytest.mark.parametrize(
    ("encoding", "shape", "dtype"),
    [
        ("bgr8", (32, 96, 3), np.uint8),
        ("pcm_f32", (1600,), np.float32),
        ("series_f32", (1,), np.float32),
        ("depth_u16_mm", (32, 96), np.uint16),
        ("points_xyzi_f32", (4096, 4), np.float32),
        ("imu_f64", (6,), np.float64),
    ],
)
def test_every_encoding_has_its_shape_and_type(encoding: Any, shape: tuple[int, ...], dtype: type) -> None:
    (frame,), _ = generated(1, encoding=encoding, rate_hz=10.0, width_px=96, height_px=32)
    assert (frame.encoding, frame.data.shape, frame.data.dtype) == (encoding, shape, dtype)


def test_jitter_stays_within_its_bound_and_keeps_the_order() -> None:
    frames, _ = generated(500, encoding="series_f32", rate_hz=30.0, jitter_ms=3.0)
    off_ns = np.array([f.capture_ns - round(k * NS / 30) for k, f in enumerate(frames)])
    assert 2 * MS < np.abs(off_ns).max() <= 3 * MS
    assert (np.diff([f.capture_ns for f in frames]) > 0).all()


def test_same_seed_gives_the_same_stream_and_losses_do_not_shift_it() -> None:
    options: dict[str, Any] = {"encoding": "series_f32", "count": 300, "jitter_ms": 3.0}
    whole, _ = generated(seed=1, **options)
    again, _ = generated(seed=1, **options)
    other, _ = generated(seed=2, **options)
    lossy, node = generated(seed=1, drop_percent=10.0, **options)
    times = [f.capture_ns for f in whole]
    assert times == [f.capture_ns for f in again] != [f.capture_ns for f in other]
    lost = node.context.metrics.dropped()["made"]["simulated loss"]
    assert 10 < lost < 60 and len(lossy) + lost == 300
    assert {f.capture_ns for f in lossy} < set(times)


def test_count_ends_the_stream_and_stopping_ends_the_wait() -> None:
    assert len(generated(count=7, encoding="series_f32")[0]) == 7
    node = Synthetic(encoding="series_f32", rate_hz=0.1, delay_ms=5000.0)
    node.context = Context("made", clock=LiveClock())
    node.context.stopping.set()
    assert list(node.frames(node.context.clock)) == []


def test_without_real_time_nothing_is_waited_for() -> None:
    _, node = generated(count=1000, encoding="series_f32", realtime=False)
    assert node.context.clock.now_ns() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"rate_hz": 0.0},
        {"width_px": 32},
        {"jitter_ms": 17.0},
        {"drop_percent": 100.0},
        {"encoding": "pcm_f32", "rate_hz": 100.0, "sample_rate_hz": 50},
    ],
)
def test_impossible_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Synthetic(**options)
