"""A sound card through PortAudio: a fake one for what cannot be provoked, a private PulseAudio for what is real."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sound_server
from sound_server import RATE_HZ, SoundServer

from nodes.microphone import Microphone, list_devices
from nodes.synthetic import chirp
from pipeline.clock import NS, LiveClock, ManualClock
from pipeline.errors import DeviceError
from pipeline.frame import Frame
from pipeline.node import Context
from pipeline.sensors import audio

MS = 1_000_000


class FakeCard:
    """PyAudio's module and object in one: a card of given abilities whose callback the test calls."""

    paFloat32, paInputOverflow, paContinue = 1, 2, 0

    def __init__(
        self, *, rate_hz: int = 16000, channels: int = 1, names: tuple[str, ...] = ("Built-in", "USB Audio")
    ) -> None:
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

    def open(
        self, rate: int, channels: int, *_: Any, input_device_index: int, stream_callback: Any, **__: Any
    ) -> FakeCard:
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
    monkeypatch.setattr(audio, "_import_pyaudio", lambda where: card)
    clock = ManualClock()
    microphone = Microphone(**options)
    microphone.context = Context("microphone", clock=clock)
    microphone.open()
    return microphone, clock


def test_device_is_selected_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard()
    with_card(monkeypatch, card, device="usb")
    assert card.opened_with == (16000, 1, 1)
    with_card(monkeypatch, card, device="0")
    assert card.opened_with == (16000, 1, 0)
    assert list_devices() == [(0, "Built-in"), (1, "USB Audio")]


def test_unknown_device_names_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DeviceError, match="no microphone 'rode'. Microphones here: 0: Built-in, 1: USB Audio"
    ) as caught:
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
    monkeypatch.setattr(audio, "_import_pyaudio", lambda where: card)
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
def test_base_of_the_card_s_clock_is_determined_at_open(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    clock = LiveClock()
    base_s = {"monotonic": 0.0, "UTC": time.time() - clock.now_ns() / NS, "its own": 4711.0}[base]
    card = FakeCard()
    stale_s = 0.0 if base == "its own" else 0.02  # since the last interrupt
    monkeypatch.setattr(card, "get_time", lambda: clock.now_ns() / NS + base_s - stale_s)
    monkeypatch.setattr(audio, "_import_pyaudio", lambda where: card)
    source = audio.AudioInput(None, RATE_HZ, 20, clock, "microphone 'microphone'")
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


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    if missing := sound_server.why_not():
        pytest.skip(missing)
    for name, value in sound_server.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    server = SoundServer(tmp_path)
    yield server
    server.stop()


@pytest.mark.system
@pytest.mark.paced
def test_clip_played_into_a_microphone_is_captured_at_its_time(sound: SoundServer) -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    microphone = Microphone()
    microphone.context = Context("microphone", clock=LiveClock())
    microphone.open()
    frames: list[Frame] = []
    try:
        for frame in microphone.frames(microphone.context.clock):
            frames.append(frame)
            if len(frames) == 125:  # 2.5 s: the clock has settled
                sound.play(clip)
            if len(frames) == 225:
                break
    finally:
        microphone.close()
    recorded = np.concatenate([f.data for f in frames])
    at = int(np.correlate(recorded, clip, "valid").argmax())
    assert np.corrcoef(recorded[at : at + len(clip)], clip)[0, 1] >= 0.99
    frame = frames[at // 320]
    detected_ns = frame.capture_ns + (at % 320) * NS // RATE_HZ
    assert sound.played_ns is not None
    error_ns = detected_ns - sound.played_ns
    print(f"clip found {error_ns / MS:+.2f} ms off, stated bound {frame.clock_error_ns / MS:.2f} ms")
    assert abs(error_ns) <= 40 * MS
    assert {len(f.data) for f in frames} == {320}
    assert all(b.capture_ns >= a.capture_ns for a, b in itertools.pairwise(frames))
    assert microphone.context.metrics.dropped() == {}


@pytest.mark.system
@pytest.mark.paced
def test_sound_server_that_dies_is_lost_within_seconds(sound: SoundServer) -> None:
    microphone = Microphone()
    microphone.context = Context("microphone", clock=LiveClock())
    microphone.open()
    source = microphone.frames(microphone.context.clock)
    next(source)
    sound.unplug()
    began_s = time.monotonic()
    with pytest.raises(DeviceError, match="stopped sending") as caught:
        for _ in source:
            pass
    assert caught.value.retry
    assert time.monotonic() - began_s < 4
    microphone.close()
