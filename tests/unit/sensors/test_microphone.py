"""Microphone: what was said, and when. Here from files; test_microphone_device has the sound cards."""

from __future__ import annotations

import builtins
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.microphone import Microphone
from nodes.synthetic import chirp
from pipeline.clock import NS, ManualClock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame
from pipeline.node import Context

MS = 1_000_000
RATE_HZ = 16000


def opened(start_ns: int = 0, **options: Any) -> Microphone:
    microphone = Microphone(**options)
    microphone.context = Context("microphone", clock=ManualClock(start_ns))
    microphone.open()
    return microphone


def all_frames(microphone: Microphone) -> list[Frame]:
    frames = list(microphone.frames(microphone.context.clock))
    microphone.close()
    return frames


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def test_wav_file_comes_in_chunks_on_the_run_s_timeline(tmp_path: Path) -> None:
    clip = chirp(0, 4000, RATE_HZ)  # a quarter of a second: twelve chunks and a half
    microphone = opened(7 * NS, device=str(write_wav(tmp_path / "clip.wav", clip, RATE_HZ)))
    frames = all_frames(microphone)
    assert [f.capture_ns for f in frames] == [7 * NS + k * 20 * MS for k in range(13)]
    assert [len(f.data) for f in frames] == [320] * 12 + [160]
    assert [f.duration_ns for f in frames] == [20 * MS] * 12 + [10 * MS]
    assert {(f.encoding, f.data.dtype.str, f.clock_error_ns) for f in frames} == {("pcm_f32", "<f4", 0)}
    np.testing.assert_allclose(np.concatenate([f.data for f in frames]), clip, atol=1e-4)


def test_chunk_of_a_file_is_published_when_its_last_sample_was_captured(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", chirp(0, 1600, RATE_HZ), RATE_HZ)
    microphone = opened(device=str(path))
    clock = microphone.context.clock
    for frame in microphone.frames(clock):
        assert clock.now_ns() == frame.end_ns
    fast = opened(device=str(path), realtime=False)
    assert len(all_frames(fast)) == 5
    assert fast.context.clock.now_ns() == 0


def test_file_of_another_rate_and_two_channels_is_resampled_without_moving(tmp_path: Path) -> None:
    import av

    path = tmp_path / "stereo.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=44100, layout="stereo")
        samples = (chirp(0, 44100, 44100) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    frames = all_frames(opened(device=str(path), realtime=False))
    sound = np.concatenate([f.data for f in frames])
    assert abs(len(sound) - RATE_HZ) <= 1
    assert np.corrcoef(sound[:15900], chirp(0, RATE_HZ, RATE_HZ)[:15900])[0, 1] > 0.999


def test_looped_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", chirp(0, 1600, RATE_HZ), RATE_HZ)
    microphone = opened(device=str(path), loop=True)
    frames = microphone.frames(microphone.context.clock)
    assert [next(frames).capture_ns for _ in range(12)] == [k * 20 * MS for k in range(12)]
    microphone.close()


def test_node_started_again_in_mid_run_goes_on_at_the_present(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", np.zeros(5 * RATE_HZ, np.float32), RATE_HZ)
    microphone = opened(device=str(path))
    microphone.context.clock = ManualClock()
    microphone.context.clock.advance(4 * NS)
    frames = all_frames(microphone)
    assert frames[0].capture_ns >= 3 * NS - 20 * MS
    missed = microphone.context.metrics.dropped()["microphone"]["missed while restarting"]
    assert missed + len(frames) == 250


def test_gap_in_a_file_leaves_the_sound_behind_it_in_its_place(tmp_path: Path) -> None:
    import av

    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for at in (*range(0, 5), *range(10, 15)):  # 100 ms each; half a second is missing
            samples = np.full((1, 1600), 1000 * (at + 1), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, at * 1600
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = all_frames(opened(device=str(path), realtime=False))
    for frame in frames:
        at = round(float(frame.data[-1]) * 32768 / 1000) - 1
        assert at * 100 * MS - 2 * MS <= frame.end_ns - frame.duration_ns <= (at + 1) * 100 * MS + 2 * MS
    assert sum(len(f.data) for f in frames) == 16000
    assert abs(frames[-1].end_ns - 1500 * MS) <= 2 * MS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clp.wav", None, "no file"),
        ("broken.mp4", b"not a film" * 500, "cannot be read as audio"),
        ("silent.mp4", "picture only", "has no audio in it"),
        ("folder.wav", "folder", "is a folder"),
    ],
)
def test_bad_file_is_the_users_and_says_what_is_wrong(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    write_wav(tmp_path / "clip.wav", np.zeros(10), RATE_HZ)
    if content == "picture only":
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height = 64, 64
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="bgr24")
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        opened(device=str(path))
    assert str(path) in str(caught.value) and "microphone 'microphone'" in str(caught.value)
    if content is None:
        assert "Did you mean 'clip.wav'?" in str(caught.value)


@pytest.mark.parametrize("options", [{"sample_rate_hz": 0}, {"chunk_ms": 1}])
def test_impossible_option_is_refused_before_anything_is_opened(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be from"):
        Microphone(**options)


def test_missing_pyaudio_names_the_setup_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_pyaudio(name: str, *rest: Any) -> Any:
        if name == "pyaudio":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyaudio)
    with pytest.raises(DeviceError, match="scripts/setup mic") as caught:
        opened()
    assert not caught.value.retry
    assert [(f.works, f.fix) for f in Microphone.doctor()] == [(False, "scripts/setup mic")]
