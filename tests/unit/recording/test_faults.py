"""Fault injection: what is parsed, what is refused, and how frames change."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.frame import FOREVER_NS, Frame, silence
from pipeline.recording.faults import Fault, apply, parse, parse_all
from pipeline.recording.reader import Recorded

MS, S = 1_000_000, 1_000_000_000


def sound(seq, *, at_ms=None, loud=0.5):
    begin_ns = (seq * 20 if at_ms is None else at_ms) * MS
    samples = np.full(320, loud, np.float32)
    frame = Frame("microphone", seq, begin_ns, "pcm_f32", samples, 20 * MS, begin_ns + 20 * MS)
    return Recorded("microphone", frame, frame.publish_ns)


def picture(seq):
    frame = Frame("camera", seq, seq * 40 * MS, "bgr8", np.zeros((8, 8, 3), np.uint8), publish_ns=seq * 40 * MS)
    return Recorded("camera", frame, frame.publish_ns)


def injected(recorded, text):
    return list(apply(recorded, [parse(text)], start_ns=0))


def test_all_faults_of_a_stream_are_parsed():
    fault = parse("microphone: delay=120ms, drop=5%, noise=10dB, drift=80ppm, cut=3s@10s, cut=500ms@1min, offset=-40ms")
    assert fault == Fault(
        "microphone", 120 * MS, -40 * MS, 80.0, 0.05, 10.0, ((10 * S, 13 * S), (60 * S, 60 * S + 500 * MS))
    )
    assert parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("microphone", "a colon"),
        ("microphone:", "its faults"),
        (": delay=1ms", "expected a stream"),
        ("mic: dealy=3ms", "no fault called 'dealy'.*Did you mean 'delay'"),
        ("mic: delay=120", "found '120', expected a time with its unit"),
        ("mic: delay=-3s", "expected 0 to 600 s.*use offset"),
        ("mic: drop=150%", "found '150%', expected 0% to 100%"),
        ("mic: drop=0.5", "with the unit"),
        ("mic: noise=loud", "found 'loud'"),
        ("mic: cut=3s", "such as cut=3s@10s"),
        ("mic: cut=0s@3s", "such as cut=3s@10s"),
    ],
)
def test_an_invalid_fault_is_refused_with_what_is_expected(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_a_fault_of_an_unknown_stream_names_the_closest():
    with pytest.raises(ConfigError, match="no such stream.*Did you mean 'microphone'"):
        parse_all(["microfone: delay=1ms"], ["camera", "microphone"])
    with pytest.raises(ConfigError, match="given twice"):
        parse_all(["camera: delay=1ms", "camera: drop=1%"], ["camera"])


def test_a_delayed_stream_arrives_later_and_keeps_its_capture_times():
    recorded = sorted([picture(i) for i in range(4)] + [sound(i) for i in range(6)], key=lambda r: r.log_ns)
    delayed = injected(recorded, "microphone: delay=50ms")
    assert [r.log_ns for r in delayed] == sorted(r.log_ns for r in delayed)
    first = next(r for r in delayed if r.stream == "microphone")
    assert (first.log_ns, first.message.publish_ns, first.message.capture_ns) == (70 * MS, 70 * MS, 0)
    assert [r for r in delayed if r.stream == "camera"] == [r for r in recorded if r.stream == "camera"]


def test_lost_frames_leave_gaps_and_are_the_same_ones_wherever_replay_begins():
    recorded = [sound(i) for i in range(400)]
    seqs = [r.message.seq for r in injected(recorded, "microphone: drop=25%, seed=3")]
    assert 0.19 < 1 - len(seqs) / 400 < 0.31
    assert [r.message.seq for r in injected(recorded[200:], "microphone: drop=25%, seed=3")] == [
        s for s in seqs if s >= 200
    ]
    assert seqs != [r.message.seq for r in injected(recorded, "microphone: drop=25%, seed=4")]


def test_a_drifting_clock_shifts_each_capture_and_stretches_the_sound():
    first, *_, last = injected([sound(i) for i in range(50 * 100 + 1)], "microphone: drift=80ppm")
    assert first.message.capture_ns == 0 and first.log_ns == 20 * MS
    assert last.message.capture_ns == 100 * S + 8 * MS and last.message.duration_ns == 20 * MS + 1600


def test_no_frames_arrive_during_a_cut():
    seqs = [r.message.seq for r in injected([sound(i) for i in range(200)], "microphone: cut=1s@2s")]
    assert seqs == [*range(99), *range(149, 200)]  # by log time: 20 ms after their first sample


def test_noise_has_the_requested_ratio_to_the_sound():
    (noisy,) = injected([sound(0, loud=0.25)], "microphone: noise=10dB")
    power = float(np.mean((noisy.message.data - 0.25) ** 2))
    assert 10 * np.log10(0.25**2 / power) == pytest.approx(10, abs=0.7) and noisy.message.data.dtype == np.float32


def test_noise_in_pictures_and_in_silence():
    black, silent = (
        injected([picture(0)], "camera: noise=20dB"),
        injected([sound(0, loud=0.0)], "microphone: noise=0dB"),
    )
    assert not black[0].message.data.any() and not silent[0].message.data.any()
    bright = Recorded("camera", Frame("camera", 0, 0, "bgr8", np.arange(192, dtype=np.uint8).reshape(8, 8, 3)), 0)
    assert (injected([bright], "camera: noise=0dB")[0].message.data != bright.message.data).mean() > 0.9


def test_noise_in_points_is_refused():
    sweep = Recorded("lidar", Frame("lidar", 0, 0, "points_xyzi_f32", np.zeros((3, 4), np.float32)), 0)
    with pytest.raises(ConfigError, match="lidar: noise: its frames are points_xyzi_f32"):
        injected([sweep], "lidar: noise=10dB")


def test_the_end_of_a_stream_is_never_moved_or_dropped_by_chance():
    end = Recorded("microphone", silence("microphone", FOREVER_NS, "finished"), 5 * MS)
    (last,) = injected([end], "microphone: drop=100%, drift=80ppm, offset=-1s, delay=1ms")
    assert last.message.capture_ns == FOREVER_NS and last.log_ns == 6 * MS
