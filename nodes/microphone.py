"""Microphone: mono sound in chunks, each with the capture time of its first sample.

Example:
    microphone: {use: microphone, sample_rate_hz: 16000, chunk_ms: 20, optional: true}
    microphone: {use: microphone, device: "USB Audio"}
    microphone: {use: microphone, device: clip.mp4}          # the sound track of the camera's file

A device's sound is timestamped by counting its samples (pipeline/sensors/audio.py); a file's by its own timestamps from
clock.start_ns on, so that it agrees with the camera reading the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline import assets
from pipeline.clock import NS, Clock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.node import Finding, Source
from pipeline.sensors import audio, media

LOST_AFTER_S = 2.0  # without sound for this long, the device counts as gone
POLL_S = 0.25  # how often a wait checks whether the run is being stopped
GAP_NS = 2_000_000  # some formats round timestamps to 1 ms; a larger step means that sound is missing


class Microphone(Source):
    """One microphone, or the sound of a file.

    Args:
        device: null (the system's default input), an index or part of a name as `doctor` lists them, a path, or
            asset:NAME.
        sample_rate_hz: Of the delivered sound (4000 to 192000 Hz); a device with another rate is resampled. Default
            16000: what the voice models take.
        chunk_ms: Length of a frame (5 to 1000 ms). Default 20: shorter chunks cost more CPU, longer ones delay
            predictions.
        realtime: Deliver a file's sound at its own times; false: as fast as readers take it.
        loop: Start a file again at its end.
        offset_ms: Added to every capture time, for a delay that no clock sees; `calibrate time` measures it.
        rig: A rig file that holds this offset under the node's name, in place of offset_ms.
    """

    def __init__(
        self,
        *,
        device: int | str | None = None,
        sample_rate_hz: int = 16000,
        chunk_ms: int = 20,
        realtime: bool = True,
        loop: bool = False,
        offset_ms: float | None = None,
        rig: str | None = None,
    ) -> None:
        super().__init__(offset_ms=offset_ms, rig=rig)
        if not 4000 <= sample_rate_hz <= 192_000:
            raise ConfigError(f"sample_rate_hz must be from 4000 to 192000, not {sample_rate_hz}.")
        if not 5 <= chunk_ms <= 1000:
            raise ConfigError(f"chunk_ms must be from 5 to 1000, not {chunk_ms}.")
        assets.check(device)
        self.device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self.sample_rate_hz, self.chunk_ms = sample_rate_hz, chunk_ms
        self.realtime, self.loop = realtime, loop
        self._chunk_samples = sample_rate_hz * chunk_ms // 1000
        self._file: media.OpenFile | None = None
        self._input: audio.AudioInput | None = None
        self._description = ""

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        try:
            inputs = list_devices()
        except DeviceError:
            yield Finding(False, "PyAudio (PortAudio) is not installed", audio.SETUP)
            return
        for index, name in inputs:
            yield Finding(True, f"microphone {index}: {name}")
        if not inputs:
            yield Finding(False, "no microphone", audio.PLUG_IN)

    def open(self) -> None:
        super().open()
        name = self.device
        if isinstance(name, str) and media.looks_like_file(name):
            self._file = self._open_file()
            self._description = self._file.path.name
        else:
            self._input = audio.AudioInput(name, self.sample_rate_hz, self.chunk_ms, self.context.clock, self._where)
            self._description = self._input.description
        self.context.metrics.facts["device"] = self._description

    def close(self) -> None:
        if self._input is not None:
            self._input.close()
        if self._file is not None:
            self._file.close()
        self._input = self._file = None

    def info(self) -> StreamInfo:
        """rate_hz is the rate of the chunks; the sample rate is len(data) / duration."""
        what = f"{self._description}, {self.sample_rate_hz} Hz mono"
        return StreamInfo(self.name, "pcm_f32", 1000 / self.chunk_ms, 1, self.name, what)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return self._file_frames(clock) if self._file is not None else self._device_frames(clock)

    @property
    def is_live(self) -> bool:
        return not (isinstance(self.device, str) and media.looks_like_file(self.device))

    @property
    def _where(self) -> str:
        return f"microphone '{self.name}'"

    def _frame(self, samples: np.ndarray, capture_ns: int, clock_error_ns: int) -> Frame:
        duration_ns = self._length_ns(len(samples))
        return Frame(
            self.name, -1, capture_ns, "pcm_f32", samples, duration_ns=duration_ns, clock_error_ns=clock_error_ns
        )

    # Files

    def _open_file(self) -> media.OpenFile:
        return media.open_file(str(self.device), "audio", where=self._where)

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
                # A chunk is complete once its last sample was captured.
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
        """(samples, time of the first one since the file's start); a gap in its timestamps ends a chunk early."""
        assert self._file is not None
        pending = np.empty(0, np.float32)
        origin_ns, sent = 0, 0  # time of the first sample since the last gap, samples since then
        for samples, time_ns in self._resampled():
            expected_ns = origin_ns + self._length_ns(sent + len(pending))
            if time_ns is not None and abs(time_ns - expected_ns) > GAP_NS:
                if len(pending):
                    yield pending, origin_ns + self._length_ns(sent)
                pending, origin_ns, sent = samples, time_ns, 0
            else:
                pending = np.concatenate([pending, samples])
            while len(pending) >= self._chunk_samples:
                yield pending[: self._chunk_samples].copy(), origin_ns + self._length_ns(sent)
                pending, sent = pending[self._chunk_samples :], sent + self._chunk_samples
        if len(pending):
            yield pending.copy(), origin_ns + self._length_ns(sent)

    def _length_ns(self, samples: int) -> int:
        return samples * NS // self.sample_rate_hz

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
        source.take_lost()  # losses before the run began do not count
        while not context.stopping.is_set():
            chunk = source.take(POLL_S)
            if chunk is None:
                waited_s += POLL_S
                if waited_s >= LOST_AFTER_S or not source.active:
                    raise DeviceError(
                        f"{self._where}: {self._description} stopped sending. Was it unplugged?", retry=True
                    )
                continue
            waited_s = 0.0
            if lost := source.take_lost():
                self.dropped(lost, "overload")
            if chunk.overflow:
                self.dropped(1, "overflow")
            # Sound from while other nodes were still loading has trained the clock, and is discarded.
            if len(chunk.samples) and chunk.arrival_ns >= began_ns:
                context.metrics.facts["clock"] = source.clock_fact
                yield self._frame(chunk.samples, chunk.capture_ns, chunk.clock_error_ns)


def list_devices() -> list[tuple[int, str]]:
    """(index, name) of every input. DeviceError where PyAudio is not installed."""
    return audio.inputs()
