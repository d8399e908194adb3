"""Fault injection: recorded streams as a slow, lossy, noisy, drifting or unplugged sensor would have sent them.

    replay CONFIG REC.mcap --realign --fault 'microphone: delay=120ms, drop=5%, noise=10dB, drift=80ppm, cut=3s@10s'

    fault      meaning
    delay      every frame arrives this much later; its capture_ns stays correct
    offset     capture_ns is wrong by this much, as of a device whose delay was not calibrated (may be negative)
    drift      the sensor's clock runs fast by this many parts in a million (negative: slow), from the start on
    drop       this share of the frames is lost at random; their numbers stay gaps in `seq`
    noise      white noise at this signal-to-noise ratio, in sound, pictures, IMU and series; 0 dB: equal power
    cut        no frames for this long from that time of the recording on; may be repeated
    seed       of the random numbers (default 0)

Pure: an iterator of recorded messages in, one out, in the order of their new arrival. The same faults and seed give
the same frames, to the bit, wherever a replay begins and however fast it runs: the random numbers depend on a frame's
`seq` alone.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError, nearest
from pipeline.frame import FOREVER_NS, Frame
from pipeline.picture_files import decode_picture

UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": NS, "min": 60 * NS}
NAMES = ("delay", "offset", "drift", "drop", "noise", "cut", "seed")
EXAMPLE = "'microphone: delay=120ms, offset=-40ms, drift=80ppm, drop=5%, noise=10dB, cut=3s@10s'"
NOISY = ("bgr8", "jpeg", "pcm_f32", "imu_f64", "series_f32")
JPEG_QUALITY = 95
PPM = 1_000_000
DROPPED, CUT = "lost on purpose", "cut on purpose"  # drop reasons
MAX_DELAY_NS = 600 * NS  # delayed frames are held in memory


@dataclass(frozen=True)
class Fault:
    """The faults of one stream. drift_ppm and offset_ns change capture_ns; delay_ns changes the arrival."""

    stream: str
    delay_ns: int = 0
    offset_ns: int = 0
    drift_ppm: float = 0.0
    drop: float = 0.0  # share, 0 to 1
    noise_db: float | None = None  # signal-to-noise ratio
    cuts: tuple[tuple[int, int], ...] = ()  # (from, to), ns since the recording's start
    seed: int = 0

    def __str__(self) -> str:
        parts = [f"delay={self.delay_ns / 1e6:g}ms"] if self.delay_ns else []
        parts += [f"offset={self.offset_ns / 1e6:g}ms"] if self.offset_ns else []
        parts += [f"drift={self.drift_ppm:g}ppm"] if self.drift_ppm else []
        parts += [f"drop={self.drop * 100:g}%"] if self.drop else []
        parts += [] if self.noise_db is None else [f"noise={self.noise_db:g}dB"]
        parts += [f"cut={(to - begin) / 1e9:g}s@{begin / 1e9:g}s" for begin, to in self.cuts]
        parts += [f"seed={self.seed}"] if self.seed else []
        return f"{self.stream}: {', '.join(parts)}"


class Recorded(Protocol):
    """reader.Recorded, or another NamedTuple of a stream's name, its message and its log time."""

    @property
    def stream(self) -> str: ...
    @property
    def message(self) -> Any: ...
    @property
    def log_ns(self) -> int: ...


Item = TypeVar("Item", bound=Recorded)


def parse(text: str) -> Fault:
    """Parse "STREAM: NAME=VALUE, …". Raises ConfigError that names the part, what was found and what is expected."""
    stream, colon, rest = text.partition(":")
    stream, parts = stream.strip(), [part.strip() for part in rest.split(",") if part.strip()]
    if not colon or not stream or not parts:
        raise ConfigError(f"--fault {text!r}: expected a stream, a colon and its faults, such as {EXAMPLE}")
    fault = Fault(stream)
    for part in parts:
        name, _, value = (word.strip() for word in part.partition("="))
        where = f"--fault {stream}: {part}"
        match name:
            case "delay":
                delay_ns = _time_ns(value, where)
                if not 0 <= delay_ns <= MAX_DELAY_NS:
                    raise ConfigError(
                        f"{where}: expected 0 to {MAX_DELAY_NS // NS} s. To move capture times use offset"
                    )
                fault = replace(fault, delay_ns=delay_ns)
            case "offset":
                fault = replace(fault, offset_ns=_time_ns(value, where))
            case "drift":
                fault = replace(fault, drift_ppm=_number(value, "ppm", where, min_value=-100_000, max_value=100_000))
            case "drop":
                fault = replace(fault, drop=_number(value, "%", where, min_value=0, max_value=100) / 100)
            case "noise":
                fault = replace(fault, noise_db=_number(value, "dB", where, min_value=-60, max_value=120))
            case "cut":
                length, at, begin = value.partition("@")
                span_ns, begin_ns = _time_ns(length, where), _time_ns(begin or "0s", where)
                if not at or span_ns <= 0 or begin_ns < 0:
                    raise ConfigError(f"{where}: expected how long and from when, such as cut=3s@10s")
                fault = replace(fault, cuts=(*fault.cuts, (begin_ns, begin_ns + span_ns)))
            case "seed":
                fault = replace(fault, seed=round(_number(value, "", where, min_value=0, max_value=2**31)))
            case _:
                raise ConfigError(
                    f"{where}: no fault called '{name}'. Known: {', '.join(NAMES)}.{nearest(name, NAMES)}"
                )
    return fault


def timing(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """The faults without noise, which changes payloads and no times."""
    return tuple(replace(fault, noise_db=None) for fault in faults)


def parse_all(texts: Sequence[str], streams: Iterable[str]) -> tuple[Fault, ...]:
    """Parse the faults of several streams.

    streams: of the recording. Raises ConfigError for a fault of another stream, or two texts for one stream.
    """
    faults, known = [parse(text) for text in texts], list(streams)
    for fault in faults:
        if fault.stream not in known:
            raise ConfigError(
                f"--fault {fault.stream}: no such stream. "
                f"Streams here: {', '.join(known)}.{nearest(fault.stream, known)}"
            )
        if sum(other.stream == fault.stream for other in faults) > 1:
            raise ConfigError(f"--fault {fault.stream}: given twice. Put all faults of a stream after one colon")
    return tuple(faults)


def apply(
    recorded: Iterable[Item],
    faults: Sequence[Fault],
    *,
    start_ns: int,
    lost: Callable[[str], None] = lambda reason: None,
) -> Iterator[Item]:
    """The recorded messages with faults, in the order of their new log_ns; streams without a fault are unchanged.

    Args:
        recorded: Messages in the order of log_ns.
        faults: At most one for each stream.
        start_ns: The log_ns at which the recording begins.
        lost: Called for each frame that is removed, with the reason.

    Raises:
        ConfigError: Noise in an encoding that cannot have any.
    """
    injectors = {fault.stream: FaultInjector(fault, start_ns=start_ns, lost=lost) for fault in faults}
    delayed: list[tuple[int, int, Item]] = []
    for count, item in enumerate(recorded):
        while delayed and delayed[0][0] <= item.log_ns:
            yield heapq.heappop(delayed)[2]
        injector = injectors.get(item.stream)
        if injector is None or not isinstance(item.message, Frame):
            yield item
            continue
        if (frame := injector.apply(item.message, item.log_ns)) is None:
            continue
        later: Any = item
        later = later._replace(message=frame, log_ns=item.log_ns + injector.fault.delay_ns)
        heapq.heappush(delayed, (later.log_ns, count, later))
        while delayed and delayed[0][0] <= item.log_ns:
            yield heapq.heappop(delayed)[2]
    while delayed:
        yield heapq.heappop(delayed)[2]


class FaultInjector:
    """Applies one stream's faults, frame by frame."""

    def __init__(self, fault: Fault, *, start_ns: int, lost: Callable[[str], None] = lambda reason: None) -> None:
        self.fault, self._lost = fault, lost
        self._start_ns, self._seed = start_ns, (fault.seed, zlib.crc32(fault.stream.encode()))

    def apply(self, frame: Frame, log_ns: int) -> Frame | None:
        """The frame with faults; None: it is lost.

        A watermark ("none") is delayed and shifted, and lost in a cut only.
        """
        since_ns = log_ns - self._start_ns
        if any(begin <= since_ns < to for begin, to in self.fault.cuts):
            if frame.encoding != "none":
                self._lost(CUT)
            return None
        random = np.random.default_rng((*self._seed, frame.seq & 0xFFFFFFFF))
        if frame.encoding != "none" and self.fault.drop and random.random() < self.fault.drop:
            self._lost(DROPPED)
            return None
        frame = self._shifted(frame)
        if self.fault.noise_db is None or frame.encoding == "none" or not frame.data.size:
            return frame
        if frame.encoding not in NOISY:
            supported = f"Noise is for {', '.join(NOISY)}"
            raise ConfigError(f"--fault {self.fault.stream}: noise: its frames are {frame.encoding}. {supported}")
        return msgspec.structs.replace(frame, data=noisy(frame.data, frame.encoding, self.fault.noise_db, random))

    def _shifted(self, frame: Frame) -> Frame:
        if frame.capture_ns >= FOREVER_NS:  # the source is finished: its last watermark stays
            return frame

        def shifted(time_ns: int) -> int:
            return time_ns + self.fault.offset_ns + round((time_ns - self._start_ns) * self.fault.drift_ppm / PPM)

        begin_ns = shifted(frame.capture_ns)
        publish_ns = frame.publish_ns + self.fault.delay_ns if frame.publish_ns else 0
        return msgspec.structs.replace(
            frame, capture_ns=begin_ns, duration_ns=shifted(frame.end_ns) - begin_ns, publish_ns=publish_ns
        )


def noisy(data: npt.NDArray[Any], encoding: str, snr_db: float, random: np.random.Generator) -> npt.NDArray[Any]:
    """Data with white noise at a signal-to-noise ratio.

    The signal's power is this frame's: of sound about 0, of pictures and numbers about their mean. A silent frame stays
    silent, because its ratio to any noise is undefined.
    """
    if encoding == "jpeg":
        import cv2

        image: npt.NDArray[Any] | None = decode_picture(data, cv2.IMREAD_COLOR)
        if image is None:
            return data
        encoded = cv2.imencode(".jpg", noisy(image, "bgr8", snr_db, random), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[
            1
        ]
        return np.asarray(encoded).reshape(-1)
    values = data.astype(np.float64)
    power = float(np.mean(values**2) if encoding == "pcm_f32" else np.var(values))
    with_noise = values + random.normal(0.0, np.sqrt(power * 10 ** (-snr_db / 10)), values.shape)
    if encoding == "bgr8":
        return np.clip(np.rint(with_noise), 0, 255).astype(np.uint8)
    return np.asarray(np.clip(with_noise, -1, 1) if encoding == "pcm_f32" else with_noise, data.dtype)


def _time_ns(text: str, where: str) -> int:
    match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(us|ms|s|min)\s*", text)
    if match is None:
        raise ConfigError(f"{where}: found '{text.strip()}', expected a time with its unit, such as 120ms or 3s")
    return round(float(match[1]) * UNITS_NS[match[2]])


def _number(text: str, unit: str, where: str, *, min_value: float, max_value: float) -> float:
    match = re.fullmatch(rf"\s*([+-]?\d+(?:\.\d+)?)\s*{unit}\s*", text, re.IGNORECASE)
    if match is None or not min_value <= float(match[1]) <= max_value:
        raise ConfigError(
            f"{where}: found '{text.strip()}', expected {min_value:g}{unit} to {max_value:g}{unit}, with the unit"
        )
    return float(match[1])
