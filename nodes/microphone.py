"""Microphone: mono sound in chunks, each stamped with the time of its first sample.

    microphone: {use: microphone, sample_rate_hz: 16000, chunk_ms: 20, optional: true}
    microphone: {use: microphone, device: "USB Audio"}
    microphone: {use: microphone, device: clip.mp4}          # the sound track of the file the camera plays

A sound card's time comes from counting samples, not from single callbacks: their arrival is late by 0 to 20 ms on a busy
machine, but never early, so clock.SampleClock finds the floor. Measured through PulseAudio against a known clip: arrival
0.3 ms p50 and never early by more than its own jitter, PortAudio's `input_buffer_adc_time` −14…+17 ms. So arrivals give
the line, and the ADC time, by its median, only what arrivals cannot see: how long the driver held the sound back.
"""

from __future__ import annotations

import contextlib
import os
import queue
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline import media
from pipeline.clock import NS, Clock, SampleClock, offset_to_monotonic
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Finding, Source

LOST_AFTER_S = 2.0  # no sound for so long: the device is gone
LOOK_UP_S = 0.25  # how often a wait looks whether the run is being stopped
WAITING_S = 5.0  # sound kept for a loop that is not reading
# ADC times are wild in the first second; the median of the second after it is used, once.
ADC_FROM_S, ADC_UNTIL_S = 1.0, 2.0
MOST_HELD_BACK_NS = NS // 2  # an ADC time further back than this is not one
UNKNOWN_DELAY_NS = 20_000_000  # until then: what a sound server or driver usually holds back
GAP_NS = 2_000_000  # a file's stamps are rounded to 1 ms in some formats; beyond this sound is missing
SETUP = "scripts/setup mic"


class _Callback(NamedTuple):
    """What PortAudio's callback notes: nothing is computed there."""

    data: bytes
    first_index: int  # samples the device had delivered before
    arrival_ns: int
    adc_s: float
    overflow: bool


class Microphone(Source):
    """One microphone, or the sound of a file.

    device: null (the system's default input) · an index or part of a name, as `doctor` lists them · a path · asset:NAME.
    sample_rate_hz: what is delivered; a device that cannot is resampled. chunk_ms: length of a frame.
    realtime: false gives a file's sound as fast as readers take it. loop: begin a file again at its end.
    """

    def __init__(
        self,
        *,
        device: int | str | None = None,
        sample_rate_hz: int = 16000,
        chunk_ms: int = 20,
        realtime: bool = True,
        loop: bool = False,
    ) -> None:
        if not 4000 <= sample_rate_hz <= 192_000:
            raise ConfigError(f"sample_rate_hz must be from 4000 to 192000, not {sample_rate_hz}.")
        if not 5 <= chunk_ms <= 1000:
            raise ConfigError(f"chunk_ms must be from 5 to 1000, not {chunk_ms}.")
        self.device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self.sample_rate_hz, self.chunk_ms = sample_rate_hz, chunk_ms
        self.realtime, self.loop = realtime, loop
        self._chunk_samples = sample_rate_hz * chunk_ms // 1000
        self._file: media.OpenFile | None = None
        self._input: _Input | None = None
        self._description = ""

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        try:
            inputs = list_devices()
        except DeviceError as error:
            yield Finding(False, str(error), SETUP)
            return
        for index, name in inputs:
            yield Finding(True, f"microphone {index}: {name}")
        if not inputs:
            yield Finding(False, "no microphone", _PLUG_IN)

    def open(self) -> None:
        name = self.device
        if isinstance(name, str) and (name.startswith("asset:") or media.looks_like_file(name)):
            self._file = self._open_file()
            self._description = self._file.path.name
        else:
            self._input = _Input(name, self.sample_rate_hz, self.chunk_ms, self.context.clock, self._where)
            self._description = self._input.description
        self.context.metrics.facts["device"] = self._description

    def close(self) -> None:
        if self._input is not None:
            self._input.close()
        if self._file is not None:
            self._file.close()
        self._input = self._file = None

    def info(self) -> StreamInfo:
        """rate_hz is that of the chunks; the rate of the samples is len(data) / duration."""
        what = f"{self._description}, {self.sample_rate_hz} Hz mono"
        return StreamInfo(self.name, "pcm_f32", 1000 / self.chunk_ms, 1, self.name, what)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return self._file_frames(clock) if self._file is not None else self._device_frames(clock)

    @property
    def _where(self) -> str:
        return f"microphone '{self.name}'"

    def _frame(self, samples: np.ndarray, capture_ns: int, clock_error_ns: int) -> Frame:
        duration_ns = len(samples) * NS // self.sample_rate_hz
        return Frame(
            self.name, -1, capture_ns, "pcm_f32", samples, duration_ns=duration_ns, clock_error_ns=clock_error_ns
        )

    # Files

    def _open_file(self) -> media.OpenFile:
        name = str(self.device)
        if name.startswith("asset:"):
            from pipeline import assets

            name = str(assets.resolve(name))
        return media.open_file(name, "audio", where=self._where)

    def _file_frames(self, clock: Clock) -> Iterator[Frame]:
        assert self._file is not None
        began_ns, turn_ns = clock.now_ns(), 0
        while True:
            end_ns = 0
            for samples, time_ns in self._file_chunks():
                capture_ns = clock.start_ns + turn_ns + time_ns
                frame = self._frame(samples, capture_ns, 0)
                end_ns = time_ns + frame.duration_ns
                if self.realtime and frame.end_ns < began_ns - NS:
                    self.dropped(1, "missed while restarting")
                    continue
                # A chunk exists once its last sample has been heard.
                if self.realtime and not clock.sleep_until(frame.end_ns, self.context.stopping):
                    return
                yield frame
            if not end_ns and not turn_ns:
                raise ConfigError(f"{self._where}: {self._file.path} has no sound that can be decoded.")
            if not self.loop:
                return
            turn_ns += self._file.duration_ns or end_ns
            self._file.close()
            self._file = self._open_file()

    def _file_chunks(self) -> Iterator[tuple[np.ndarray, int]]:
        """(samples, time of the first one since the file's start); a gap in the file's stamps ends a chunk early."""
        assert self._file is not None
        waiting = np.empty(0, np.float32)
        first_ns = 0  # of `waiting`
        for samples, time_ns in self._resampled():
            expected_ns = first_ns + len(waiting) * NS // self.sample_rate_hz
            if time_ns is not None and abs(time_ns - expected_ns) > GAP_NS:
                if len(waiting):
                    yield waiting, first_ns
                waiting, first_ns = samples, time_ns
            else:
                waiting = np.concatenate([waiting, samples])
            while len(waiting) >= self._chunk_samples:
                yield waiting[: self._chunk_samples].copy(), first_ns
                waiting = waiting[self._chunk_samples :]
                first_ns += self._chunk_samples * NS // self.sample_rate_hz
        if len(waiting):
            yield waiting.copy(), first_ns

    def _resampled(self) -> Iterator[tuple[np.ndarray, int | None]]:
        import av

        assert self._file is not None
        resampler = av.AudioResampler(format="flt", layout="mono", rate=self.sample_rate_hz)
        for frame in self._file.frames():
            if frame is None:
                self.dropped(1, "undecodable")
                continue
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray()[0], self._file.time_ns(resampled)
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray()[0], self._file.time_ns(resampled)

    # Devices

    def _device_frames(self, clock: Clock) -> Iterator[Frame]:
        source, context = self._input, self.context
        assert source is not None
        began_ns, waited_s = clock.now_ns(), 0.0
        source.take_lost()  # of the sound before the run began
        while not context.stopping.is_set():
            chunk = source.take(LOOK_UP_S)
            if chunk is None:
                waited_s += LOOK_UP_S
                if waited_s >= LOST_AFTER_S or not source.active:
                    raise DeviceError(f"{self._where}: {self._description} stopped sending. Was it unplugged?", retry=True)
                continue
            waited_s = 0.0
            if lost := source.take_lost():
                self.dropped(lost, "overload")
            if chunk.overflow:
                self.dropped(1, "overflow")
            # What was heard while other nodes were still loading has trained the clock, and goes no further.
            if len(chunk.samples) and chunk.arrival_ns >= began_ns:
                context.metrics.facts["clock"] = source.clock_fact
                yield self._frame(chunk.samples, chunk.capture_ns, chunk.clock_error_ns)


class _Chunk(NamedTuple):
    samples: np.ndarray
    capture_ns: int
    clock_error_ns: int
    arrival_ns: int
    overflow: bool


class _Input:
    """PortAudio's stream in callback mode: bytes in, stamped mono chunks out."""

    def __init__(self, device: int | str | None, rate_hz: int, chunk_ms: int, clock: Clock, where: str) -> None:
        self._pyaudio = pyaudio = _import_pyaudio(where)
        self._clock = clock
        self._queue: queue.SimpleQueue[_Callback] = queue.SimpleQueue()
        self._most_waiting = max(10, round(WAITING_S * 1000 / chunk_ms))
        self._delivered = self._lost = 0  # by the callback: samples, chunks
        with _quiet():
            self._audio = pyaudio.PyAudio()
        try:
            chosen = _choose(self._audio, device, where)
            self._rate_hz, self._channels = self._supported(chosen, rate_hz)
            frames_per_buffer = self._rate_hz * chunk_ms // 1000
            with _quiet():
                self._stream = self._audio.open(
                    self._rate_hz,
                    self._channels,
                    pyaudio.paFloat32,
                    input=True,
                    input_device_index=int(chosen["index"]),
                    frames_per_buffer=frames_per_buffer,
                    stream_callback=self._callback,
                )
        except OSError as error:
            self._audio.terminate()
            raise DeviceError(
                f"{where}: '{_named(device)}' cannot be opened: {error}. Another program may hold it: fuser -v /dev/snd/*",
                retry=True,
            ) from error
        except DeviceError:
            self._audio.terminate()
            raise
        at_own_rate = "" if self._rate_hz == rate_hz else f", recorded at {self._rate_hz} Hz"
        self.description = f"{chosen['name']}{at_own_rate}"
        self._output_rate_hz = rate_hz
        self._resampler = self._make_resampler() if self._rate_hz != rate_hz else None
        self._sample_clock = SampleClock(self._rate_hz)
        self._received = self._sent = 0  # samples, at the device's rate and at ours
        self._held_back_ns, self._held_back_error_ns = 0, UNKNOWN_DELAY_NS
        self._adc_delays_ns: list[int] | None = []
        # Which clock the ADC time is on depends on the driver (PulseAudio: UTC, kernel cards: monotonic).
        self._adc_offset_ns, _ = offset_to_monotonic(lambda: round(self._stream.get_time() * NS), clock)

    def _supported(self, chosen: dict, rate_hz: int) -> tuple[int, int]:
        """(rate, channels) the device can do, the nearest to mono at rate_hz."""
        most_channels = max(1, int(chosen["maxInputChannels"]))
        own_rate_hz = round(chosen["defaultSampleRate"])
        tries = [(rate, channels) for channels in (1, 2, most_channels) for rate in (rate_hz, own_rate_hz, 48000, 44100)]
        for rate, channels in tries:
            with contextlib.suppress(ValueError), _quiet():
                if channels <= most_channels and self._audio.is_format_supported(
                    rate,
                    input_device=int(chosen["index"]),
                    input_channels=channels,
                    input_format=self._pyaudio.paFloat32,
                ):
                    return rate, channels
        return own_rate_hz, 1  # opening it will say what is wrong

    def _make_resampler(self) -> Any:
        import av

        return av.AudioResampler(format="flt", layout="mono", rate=self._output_rate_hz)

    def _callback(self, data: bytes, count: int, times: dict, status: int) -> tuple[None, int]:
        arrival_ns = self._clock.now_ns()
        overflow = bool(status & self._pyaudio.paInputOverflow)
        self._queue.put(_Callback(data, self._delivered, arrival_ns, times["input_buffer_adc_time"], overflow))
        self._delivered += count
        if self._queue.qsize() > self._most_waiting:
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
                self._lost += 1
        return None, self._pyaudio.paContinue

    @property
    def active(self) -> bool:
        return bool(self._stream.is_active())

    @property
    def clock_fact(self) -> str:
        clock = self._sample_clock
        jumps = f", {clock.steps} jumps" if clock.steps else ""
        return f"{clock.rate_error * 1e6:+.1f} ppm, within {self._error_ns / 1e6:.1f} ms{jumps}"

    @property
    def _error_ns(self) -> int:
        return self._sample_clock.error_ns + self._held_back_error_ns

    def take_lost(self) -> int:
        lost, self._lost = self._lost, 0
        return lost

    def take(self, timeout_s: float) -> _Chunk | None:
        """The next chunk; None when none came in time."""
        try:
            data, first_index, arrival_ns, adc_s, overflow = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._sent += (first_index - self._received) * self._output_rate_hz // self._rate_hz  # chunks thrown away
        self._received = first_index
        samples = np.frombuffer(data, np.float32)
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        self._received += len(samples)
        received_ns = self._received * NS // self._rate_hz
        self._learn_delay(arrival_ns, adc_s, len(samples))
        if self._resampler is not None:
            samples = self._resample(samples)
        sent_ns = self._sent * NS // self._output_rate_hz
        self._sent += len(samples)
        capture_ns = self._sample_clock.stamp(sent_ns, received_ns, arrival_ns - self._held_back_ns)
        return _Chunk(samples, capture_ns, self._error_ns, arrival_ns, overflow)

    def _learn_delay(self, arrival_ns: int, adc_s: float, count: int) -> None:
        if self._adc_delays_ns is None or adc_s <= 0 or self._received < ADC_FROM_S * self._rate_hz:
            return
        adc_ns = round(adc_s * NS) + self._adc_offset_ns
        self._adc_delays_ns.append(arrival_ns - count * NS // self._rate_hz - adc_ns)
        if self._received >= ADC_UNTIL_S * self._rate_hz:
            early_ns, middle_ns, late_ns = (round(q) for q in statistics.quantiles(self._adc_delays_ns, n=4))
            if abs(middle_ns) < MOST_HELD_BACK_NS:  # else it is no time at all
                self._held_back_ns = max(0, middle_ns)
                # Captured after it arrived: then the ADC time is wrong by at least that much.
                self._held_back_error_ns = (late_ns - early_ns) // 2 + max(0, -middle_ns)
            self._adc_delays_ns = None

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        import av

        assert self._resampler is not None
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = self._rate_hz
        resampled = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        return np.concatenate(resampled) if resampled else np.empty(0, np.float32)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a device that was pulled
            self._stream.close()
        self._audio.terminate()


_PLUG_IN = "Plug one in, or choose one with --set nodes.microphone.device=…, or go on without: optional: true"


def _import_pyaudio(where: str) -> Any:
    try:
        import pyaudio
    except ImportError as error:
        raise DeviceError(f"{where}: PyAudio (PortAudio) is not installed. Install it with: {SETUP}") from error
    return pyaudio


def list_devices() -> list[tuple[int, str]]:
    """(index, name) of every input. DeviceError where PyAudio is not installed."""
    pyaudio = _import_pyaudio("microphone")
    with _quiet():
        audio = pyaudio.PyAudio()
    try:
        return [(int(found["index"]), str(found["name"])) for found in _inputs(audio)]
    finally:
        audio.terminate()


def _inputs(audio: Any) -> list[dict]:
    found = [audio.get_device_info_by_index(index) for index in range(audio.get_device_count())]
    return [one for one in found if one["maxInputChannels"] > 0]


def _choose(audio: Any, device: int | str | None, where: str) -> dict:
    inputs = _inputs(audio)
    here = ", ".join(f"{one['index']}: {one['name']}" for one in inputs) or "none"
    if device is None:
        with contextlib.suppress(OSError):
            return dict(audio.get_default_input_device_info())
        if inputs:
            return inputs[0]
        raise DeviceError(f"{where}: no microphone here. {_PLUG_IN}", retry=True)
    for one in inputs:
        if device == one["index"] or device == one["name"]:
            return one
    for one in inputs:
        if isinstance(device, str) and device.lower() in one["name"].lower():
            return one
    raise DeviceError(f"{where}: no microphone '{device}'. Microphones here: {here}. {_PLUG_IN}", retry=True)


def _named(device: int | str | None) -> str:
    return "the default input" if device is None else str(device)


_quiet_lock = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ALSA and JACK write dozens of lines about devices nobody has to file descriptor 2; there is no other switch."""
    with _quiet_lock, tempfile.TemporaryFile() as sink:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
