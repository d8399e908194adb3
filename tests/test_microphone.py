"""Microphone: what was said, and when."""

from __future__ import annotations

import builtins
import itertools
import os
import shutil
import subprocess
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.microphone import Microphone, list_devices
from nodes.synthetic import chirp
from pipeline import portaudio
from pipeline.clock import NS, LiveClock, ManualClock
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


def test_chunk_of_a_file_is_published_when_its_last_sample_has_been_heard(tmp_path: Path) -> None:
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
    ("name", "content", "said"),
    [
        ("clp.wav", None, "no file"),
        ("broken.mp4", b"not a film" * 500, "cannot be read as audio"),
        ("silent.mp4", "picture only", "has no audio in it"),
        ("folder.wav", "folder", "is a folder"),
    ],
)
def test_bad_file_is_the_users_and_says_what_is_wrong(tmp_path: Path, name: str, content: Any, said: str) -> None:
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
    with pytest.raises(ConfigError, match=said) as caught:
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


# Below: PortAudio with a device. A fake one for what cannot be provoked, a private PulseAudio for what is real.


class FakeCard:
    """PyAudio's module and object in one: a card of given abilities whose callback the test calls."""

    paFloat32, paInputOverflow, paContinue = 1, 2, 0

    def __init__(self, *, rate_hz: int = 16000, channels: int = 1, names: tuple[str, ...] = ("Built-in", "USB Audio")) -> None:
        self.rate_hz, self.channels, self.names = rate_hz, channels, names
        self.opened_with: tuple[Any, ...] = ()
        self.active = True

    def PyAudio(self) -> FakeCard:
        return self

    def get_device_count(self) -> int:
        return len(self.names)

    def get_device_info_by_index(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "name": self.names[index],
            "maxInputChannels": self.channels,
            "defaultSampleRate": float(self.rate_hz),
        }

    def get_default_input_device_info(self) -> dict[str, Any]:
        if not self.names:
            raise OSError("No Default Input Device Available")
        return self.get_device_info_by_index(0)

    def is_format_supported(self, rate: int, *, input_channels: int, **_: Any) -> bool:
        if rate != self.rate_hz or input_channels != self.channels:
            raise ValueError("Invalid sample rate")
        return True

    def open(self, rate: int, channels: int, *_: Any, input_device_index: int, stream_callback: Any, **__: Any) -> FakeCard:
        self.opened_with = (rate, channels, input_device_index)
        self.callback = stream_callback
        return self

    def get_time(self) -> float:
        return time.time()

    def is_active(self) -> bool:
        return self.active

    def close(self) -> None: ...

    def terminate(self) -> None: ...

    def deliver(self, samples: np.ndarray, *, adc_s: float = 0.0, status: int = 0) -> None:
        data = np.repeat(samples.astype(np.float32), self.channels).tobytes()
        self.callback(data, len(samples), {"input_buffer_adc_time": adc_s}, status)


def with_card(monkeypatch: pytest.MonkeyPatch, card: FakeCard, **options: Any) -> tuple[Microphone, ManualClock]:
    monkeypatch.setattr(portaudio, "_import_pyaudio", lambda where: card)
    microphone = opened(**options)
    clock = microphone.context.clock
    assert isinstance(clock, ManualClock)
    return microphone, clock


def test_device_is_found_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard()
    with_card(monkeypatch, card, device="usb")
    assert card.opened_with == (16000, 1, 1)
    with_card(monkeypatch, card, device="0")
    assert card.opened_with == (16000, 1, 0)
    assert list_devices() == [(0, "Built-in"), (1, "USB Audio")]


def test_unknown_device_names_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no microphone 'rode'. Microphones here: 0: Built-in, 1: USB Audio") as caught:
        with_card(monkeypatch, FakeCard(), device="rode")
    assert caught.value.retry


def test_no_device_at_all_can_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="optional: true") as caught:
        with_card(monkeypatch, FakeCard(names=()))
    assert caught.value.retry
    assert [f.works for f in Microphone.doctor()] == [False]


def test_card_that_cannot_do_the_rate_is_resampled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard(rate_hz=44100, channels=2)
    microphone, clock = with_card(monkeypatch, card)
    assert card.opened_with == (44100, 2, 0)
    frames, source = [], microphone.frames(clock)
    for k in range(50):
        clock.advance(20 * MS)
        card.deliver(chirp(k * 882, 882, 44100))
        frames.append(next(source))
    sound = np.concatenate([f.data for f in frames])
    assert np.corrcoef(sound, chirp(0, len(sound), RATE_HZ))[0, 1] > 0.999
    assert [len(f.data) for f in frames[1:]] == [320] * 49
    for frame, following in itertools.pairwise(frames):
        assert abs(following.capture_ns - frame.end_ns) < 2  # gapless
    assert frames[0].capture_ns == 0


def test_overflow_and_a_loop_that_does_not_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard()
    microphone, clock = with_card(monkeypatch, card)
    source = microphone.frames(clock)
    chunk = np.zeros(320, np.float32)
    for k in range(400):  # 8 s, where 5 s are kept
        clock.advance(20 * MS)
        card.deliver(chunk, status=card.paInputOverflow if k == 399 else 0)
        if k == 0:
            next(source)
    frames = [next(source) for _ in range(250)]
    assert microphone.context.metrics.dropped()["microphone"] == {"overload": 149, "overflow": 1}
    assert frames[-1].capture_ns == 399 * 20 * MS  # what was lost left its place in time


def test_driver_s_own_delay_is_taken_from_adc_times_once_they_are_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard()
    random = np.random.default_rng(1)
    monkeypatch.setattr(card, "get_time", lambda: 1_700_000_000.0 + microphone_clock.now_ns() / NS)
    microphone_clock = ManualClock()
    monkeypatch.setattr(portaudio, "_import_pyaudio", lambda where: card)
    microphone = Microphone()
    microphone.context = Context("microphone", clock=microphone_clock)
    microphone.open()
    source = microphone.frames(microphone_clock)
    held_back_ns = 30 * MS
    for k in range(200):
        microphone_clock.advance(20 * MS)
        adc_ns = microphone_clock.now_ns() - 20 * MS - held_back_ns
        wild_ns = random.normal(0, 8 * MS) + (500 * MS if k < 20 else 0)
        card.deliver(np.zeros(320), adc_s=1_700_000_000.0 + (adc_ns + wild_ns) / NS)
        frame = next(source)
        true_ns = adc_ns
        if k > 150:
            assert abs(frame.capture_ns - true_ns) < 5 * MS
        if k > 5:
            assert abs(frame.capture_ns - true_ns) <= frame.clock_error_ns + 15 * MS


@pytest.mark.parametrize("base", ["monotonic", "UTC", "its own"])
def test_base_of_the_card_s_clock_is_found_at_open(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    clock = LiveClock()
    base_s = {"monotonic": 0.0, "UTC": time.time() - clock.now_ns() / NS, "its own": 4711.0}[base]
    card = FakeCard()
    stale_s = 0.0 if base == "its own" else 0.02  # since the last interrupt
    monkeypatch.setattr(card, "get_time", lambda: clock.now_ns() / NS + base_s - stale_s)
    monkeypatch.setattr(portaudio, "_import_pyaudio", lambda where: card)
    source = portaudio.Input(None, RATE_HZ, 20, clock, "microphone 'microphone'")
    assert abs(source._adc_offset_ns + base_s * NS) < 1 * MS


def test_device_that_stops_is_lost_and_can_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard()
    microphone, clock = with_card(monkeypatch, card)
    card.active = False
    with pytest.raises(DeviceError, match="stopped sending") as caught:
        next(microphone.frames(clock))
    assert caught.value.retry


def test_stopping_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    microphone, clock = with_card(monkeypatch, FakeCard())
    threading.Timer(0.1, microphone.context.stopping.set).start()
    began_s = time.monotonic()
    assert list(microphone.frames(clock)) == []
    assert time.monotonic() - began_s < 0.6


class Pulse:
    """A private PulseAudio whose only microphone is a pipe that a paced thread fills: silence, or what `play` was given."""

    BLOCK = 160  # samples: 10 ms

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        socket, pipe = folder / "native", folder / "vmic.fifo"
        self.log = (folder / "log").open("w")
        self.server = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit"),
                *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"),
                *("-L", f"module-pipe-source source_name=vmic file={pipe} format=s16le rate={RATE_HZ} channels=1"),
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        deadline_s = time.monotonic() + 10
        while subprocess.run(["pactl", "set-default-source", "vmic"], capture_output=True).returncode:
            assert time.monotonic() < deadline_s, (folder / "log").read_text()
            time.sleep(0.1)
        self._pipe = os.open(pipe, os.O_WRONLY)
        self._queued = np.zeros(0, "<i2")
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.played_ns: int | None = None  # when the clip's first sample was spoken
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def play(self, samples: np.ndarray) -> None:
        with self._lock:
            self._queued = (samples * 32767).astype("<i2")
            self.played_ns = None

    def _feed(self) -> None:
        began_ns, block = time.monotonic_ns(), 0
        while not self._stopping.is_set():
            block += 1
            due_ns = began_ns + block * self.BLOCK * NS // RATE_HZ  # a block exists once its last sample was spoken
            time.sleep(max(0, due_ns - time.monotonic_ns()) / NS)
            with self._lock:
                if len(self._queued) and self.played_ns is None:
                    self.played_ns = due_ns - self.BLOCK * NS // RATE_HZ
                spoken, self._queued = self._queued[: self.BLOCK], self._queued[self.BLOCK :]
            os.write(self._pipe, np.pad(spoken, (0, self.BLOCK - len(spoken))).tobytes())

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._pipe)
        self.server.terminate()
        self.server.wait(10)
        self.log.close()


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    for program in ("pulseaudio", "pactl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install pulseaudio pulseaudio-utils libasound2-plugins")
    pytest.importorskip("pyaudio", reason="PyAudio is not installed: scripts/setup mic")
    monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/native")
    for name in ("HOME", "XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    server = Pulse(tmp_path)
    yield server
    server.stop()


@pytest.mark.system
@pytest.mark.paced
def test_clip_played_into_a_microphone_is_found_at_its_time(pulse: Pulse) -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    microphone = Microphone()
    microphone.context = Context("microphone", clock=LiveClock())
    microphone.open()
    frames: list[Frame] = []
    try:
        for frame in microphone.frames(microphone.context.clock):
            frames.append(frame)
            if len(frames) == 125:  # 2.5 s: the clock has settled
                pulse.play(clip)
            if len(frames) == 225:
                break
    finally:
        microphone.close()
    sound = np.concatenate([f.data for f in frames])
    at = int(np.correlate(sound, clip, "valid").argmax())
    assert np.corrcoef(sound[at : at + len(clip)], clip)[0, 1] >= 0.99
    frame = frames[at // 320]
    found_ns = frame.capture_ns + (at % 320) * NS // RATE_HZ
    assert pulse.played_ns is not None
    error_ns = found_ns - pulse.played_ns
    print(f"clip found {error_ns / MS:+.2f} ms off, stated bound {frame.clock_error_ns / MS:.2f} ms")
    assert abs(error_ns) <= 40 * MS
    assert {len(f.data) for f in frames} == {320}
    assert all(b.capture_ns >= a.capture_ns for a, b in itertools.pairwise(frames))
    assert microphone.context.metrics.dropped() == {}


@pytest.mark.system
@pytest.mark.paced
def test_sound_server_that_dies_is_lost_within_seconds(pulse: Pulse) -> None:
    microphone = Microphone()
    microphone.context = Context("microphone", clock=LiveClock())
    microphone.open()
    source = microphone.frames(microphone.context.clock)
    next(source)
    pulse._stopping.set()  # nobody speaks any more: the source stalls, like a device that was pulled
    began_s = time.monotonic()
    with pytest.raises(DeviceError, match="stopped sending") as caught:
        for _ in source:
            pass
    assert caught.value.retry
    assert time.monotonic() - began_s < 4
    microphone.close()
