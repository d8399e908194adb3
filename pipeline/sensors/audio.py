"""Sound from a sound card through PortAudio: timestamped mono chunks.

Owns the callback, the device's rate and channels, and the capture time of a sample. Knows nothing of nodes and frames.

Example:
    source = AudioInput("USB Audio", rate_hz=16000, chunk_ms=20, clock=clock, where="microphone 'mic'")
    chunk = source.take(timeout_s=0.25)       # None: no chunk arrived

A sound card's time comes from counting samples, not from single callbacks. Measured through PulseAudio against a known
clip on a busy machine: arrivals are 0.3 ms late (p50), up to 23 ms, and never early; PortAudio's own
`input_buffer_adc_time` is off by −14…+17 ms. So the arrivals give the line (clock.SampleClock fits their floor), and
the ADC time, by its median, gives only what no arrival can show: the delay inside the driver.
"""

from __future__ import annotations

import contextlib
import os
import queue
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.clock import NS, Clock, SampleClock, offset_to_monotonic, utc_offset_ns
from pipeline.errors import DeviceError
from pipeline.installation import setup_command

MAX_QUEUED_S = 5.0  # sound that waits for a loop that does not read
# ADC times are erratic in the first second; the median over the second after it is used, once.
ADC_FROM_S, ADC_UNTIL_S = 1.0, 2.0
MAX_DRIVER_DELAY_NS = NS // 2  # an ADC time further back than this is not a valid one
UNKNOWN_DELAY_NS = 20_000_000  # until then: the usual delay of a sound server or driver
SETUP = setup_command("mic")
PLUG_IN = "Plug one in, or choose one with --set nodes.microphone.device=…, or go on without: optional: true"


class _Callback(NamedTuple):
    """What PortAudio's callback records: nothing is computed there."""

    data: bytes
    first_index: int  # samples the device had delivered before
    arrival_ns: int
    adc_s: float
    overflow: bool


class Chunk(NamedTuple):
    samples: np.ndarray
    capture_ns: int
    clock_error_ns: int
    arrival_ns: int
    overflow: bool


class AudioInput:
    """PortAudio's stream in callback mode: bytes in, timestamped mono chunks out."""

    def __init__(self, device: int | str | None, rate_hz: int, chunk_ms: int, clock: Clock, where: str) -> None:
        self._pyaudio = pyaudio = _import_pyaudio(where)
        self._clock = clock
        self._queue: queue.SimpleQueue[_Callback] = queue.SimpleQueue()
        self._max_queued = max(10, round(MAX_QUEUED_S * 1000 / chunk_ms))
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
                f"{where}: '{_named(device)}' cannot be opened: {error}. Another program may use it: "
                "fuser -v /dev/snd/*",
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
        self._driver_delay_ns, self._driver_delay_error_ns = 0, UNKNOWN_DELAY_NS
        self._adc_delays_ns: list[int] | None = []
        self._adc_offset_ns = self._adc_clock_offset_ns(clock)

    def _supported(self, chosen: dict[str, Any], rate_hz: int) -> tuple[int, int]:
        """(rate, channels) the device can do, the nearest to mono at rate_hz."""
        max_channels = max(1, int(chosen["maxInputChannels"]))
        own_rate_hz = round(chosen["defaultSampleRate"])
        tries = [(rate, channels) for channels in (1, 2, max_channels) for rate in (rate_hz, own_rate_hz, 48000, 44100)]
        for rate, channels in tries:
            with contextlib.suppress(ValueError), _quiet():
                if channels <= max_channels and self._audio.is_format_supported(
                    rate,
                    input_device=int(chosen["index"]),
                    input_channels=channels,
                    input_format=self._pyaudio.paFloat32,
                ):
                    return rate, channels
        return own_rate_hz, 1  # opening it raises the actual error

    def _adc_clock_offset_ns(self, clock: Clock) -> int:
        """Added to an ADC time, gives host time: PulseAudio's run on UTC, a kernel card's on the monotonic clock.

        A card's get_time() may be as old as its last interrupt, so it only decides which of the two it is.
        """
        measured_ns, _ = offset_to_monotonic(lambda: round(self._stream.get_time() * NS), clock)
        utc_ns, _ = utc_offset_ns(clock)
        return next((known_ns for known_ns in (0, -utc_ns) if abs(measured_ns - known_ns) < NS // 2), measured_ns)

    def _make_resampler(self) -> Any:
        import av

        return av.AudioResampler(format="flt", layout="mono", rate=self._output_rate_hz)

    def _callback(self, data: bytes, count: int, times: dict[str, Any], status: int) -> tuple[None, int]:
        arrival_ns = self._clock.now_ns()
        overflow = bool(status & self._pyaudio.paInputOverflow)
        self._queue.put(_Callback(data, self._delivered, arrival_ns, times["input_buffer_adc_time"], overflow))
        self._delivered += count
        if self._queue.qsize() > self._max_queued:
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
        return self._sample_clock.error_ns + self._driver_delay_error_ns

    def take_lost(self) -> int:
        lost, self._lost = self._lost, 0
        return lost

    def take(self, timeout_s: float) -> Chunk | None:
        """The next chunk; None when none arrived in time."""
        try:
            data, first_index, arrival_ns, adc_s, overflow = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._sent += (first_index - self._received) * self._output_rate_hz // self._rate_hz  # chunks that overflowed
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
        capture_ns = self._sample_clock.stamp(sent_ns, received_ns, arrival_ns - self._driver_delay_ns)
        return Chunk(samples, capture_ns, self._error_ns, arrival_ns, overflow)

    def _learn_delay(self, arrival_ns: int, adc_s: float, count: int) -> None:
        if self._adc_delays_ns is None or adc_s <= 0 or self._received < ADC_FROM_S * self._rate_hz:
            return
        adc_ns = round(adc_s * NS) + self._adc_offset_ns
        self._adc_delays_ns.append(arrival_ns - count * NS // self._rate_hz - adc_ns)
        if self._received >= ADC_UNTIL_S * self._rate_hz:
            early_ns, middle_ns, late_ns = (round(q) for q in statistics.quantiles(self._adc_delays_ns, n=4))
            if abs(middle_ns) < MAX_DRIVER_DELAY_NS:  # otherwise it is no valid time
                self._driver_delay_ns = max(0, middle_ns)
                # A capture after its arrival is impossible: the ADC time is wrong by at least that much.
                self._driver_delay_error_ns = (late_ns - early_ns) // 2 + max(0, -middle_ns)
            self._adc_delays_ns = None

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        import av

        assert self._resampler is not None
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        frame.sample_rate = self._rate_hz
        resampled = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        return np.concatenate(resampled) if resampled else np.empty(0, np.float32)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a device that was unplugged
            self._stream.close()
        self._audio.terminate()


def _import_pyaudio(where: str) -> Any:
    try:
        import pyaudio
    except ImportError as error:
        raise DeviceError(f"{where}: PyAudio (PortAudio) is not installed. Install it with: {SETUP}.") from error
    return pyaudio


def inputs() -> list[tuple[int, str]]:
    """(index, name) of every input. DeviceError where PyAudio is not installed."""
    pyaudio = _import_pyaudio("microphone")
    with _quiet():
        audio = pyaudio.PyAudio()
    try:
        return [(int(info["index"]), str(info["name"])) for info in _all_inputs(audio)]
    finally:
        audio.terminate()


def _all_inputs(audio: Any) -> list[dict[str, Any]]:
    devices = [audio.get_device_info_by_index(index) for index in range(audio.get_device_count())]
    return [info for info in devices if info["maxInputChannels"] > 0]


def _choose(audio: Any, device: int | str | None, where: str) -> dict[str, Any]:
    available = _all_inputs(audio)
    here = ", ".join(f"{info['index']}: {info['name']}" for info in available) or "none"
    if device is None:
        with contextlib.suppress(OSError):
            return dict(audio.get_default_input_device_info())
        if available:
            return available[0]
        raise DeviceError(f"{where}: no microphone here. {PLUG_IN}", retry=True)
    for info in available:
        if device == info["index"] or device == info["name"]:
            return info
    for info in available:
        if isinstance(device, str) and device.lower() in info["name"].lower():
            return info
    raise DeviceError(f"{where}: no microphone '{device}'. Microphones here: {here}. {PLUG_IN}", retry=True)


def _named(device: int | str | None) -> str:
    return "the default input" if device is None else str(device)


_quiet_lock = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ALSA and JACK write dozens of lines about absent devices to file descriptor 2; there is no other switch."""
    with _quiet_lock, tempfile.TemporaryFile() as sink:
        sys.stderr.flush()
        stderr_fd = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(stderr_fd, 2)
            os.close(stderr_fd)
