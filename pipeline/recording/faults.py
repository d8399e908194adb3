"""Faults on purpose: what a stream would have been with a slow, lossy, noisy, drifting or unplugged sensor.

    replay CONFIG REC.mcap --realign --fault 'microphone: delay=120ms, drop=5%, noise=10dB, drift=80ppm, cut=3s@10s'

    fault      means
    delay      every frame comes that much later; what it says of its capture stays true
    offset     capture_ns is wrong by that much, as of a device whose delay nobody calibrated (may be negative)
    drift      the sensor's clock runs fast by so many parts in a million (negative: slow), from the recording's beginning on
    drop       this share of the frames is lost, each by chance; their numbers stay gaps in `seq`
    noise      white noise at this ratio of signal to noise, in sound, pictures, IMU and series; 0 dB: as loud as the signal
    cut        nothing for so long from that time of the recording on; may be said several times
    seed       another number, other chance (default 0)

Pure: an iterator of recorded messages in, one out, in the order in which they then come. The same faults and seed give the
same frames, to the bit, wherever replay begins and however fast it goes: chance hangs on a frame's `seq` alone.
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

UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": NS, "min": 60 * NS}
NAMES = ("delay", "offset", "drift", "drop", "noise", "cut", "seed")
EXAMPLE = "'microphone: delay=120ms, offset=-40ms, drift=80ppm, drop=5%, noise=10dB, cut=3s@10s'"
NOISY = ("bgr8", "jpeg", "pcm_f32", "imu_f64", "series_f32")
JPEG_QUALITY = 95
PPM = 1_000_000
DROPPED, CUT = "lost on purpose", "cut on purpose"
MAX_DELAY_NS = 600 * NS  # what is delayed is held in memory


@dataclass(frozen=True)
class Fault:
    """Of one stream. drift_ppm and offset_ns move capture_ns; delay_ns moves the arrival."""

    stream: str
    delay_ns: int = 0
    offset_ns: int = 0
    drift_ppm: float = 0.0
    drop: float = 0.0  # share, 0 to 1
    noise_db: float | None = None  # signal to noise
    cuts: tuple[tuple[int, int], ...] = ()  # (from, to) since the recording's start
    seed: int = 0

    def __str__(self) -> str:
        told = [f"delay={self.delay_ns / 1e6:g}ms"] if self.delay_ns else []
        told += [f"offset={self.offset_ns / 1e6:g}ms"] if self.offset_ns else []
        told += [f"drift={self.drift_ppm:g}ppm"] if self.drift_ppm else []
        told += [f"drop={self.drop * 100:g}%"] if self.drop else []
        told += [] if self.noise_db is None else [f"noise={self.noise_db:g}dB"]
        told += [f"cut={(to - begin) / 1e9:g}s@{begin / 1e9:g}s" for begin, to in self.cuts]
        told += [f"seed={self.seed}"] if self.seed else []
        return f"{self.stream}: {', '.join(told)}"


class Recorded(Protocol):
    """recording.Recorded, or anything like it: a NamedTuple of a stream's name, its message, and when it came."""

    @property
    def stream(self) -> str: ...
    @property
    def message(self) -> Any: ...
    @property
    def log_ns(self) -> int: ...


Item = TypeVar("Item", bound=Recorded)


def parse(text: str) -> Fault:
    """ "STREAM: NAME=VALUE, …". Raises ConfigError that names the part, what was found and what is expected."""
    stream, colon, rest = text.partition(":")
    stream, parts = stream.strip(), [part.strip() for part in rest.split(",") if part.strip()]
    if not colon or not stream or not parts:
        raise ConfigError(f"--fault {text!r}: expected a stream, a colon and what is wrong with it, such as {EXAMPLE}")
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
                fault = replace(fault, drift_ppm=_number(value, "ppm", where, least=-100_000, most=100_000))
            case "drop":
                fault = replace(fault, drop=_number(value, "%", where, least=0, most=100) / 100)
            case "noise":
                fault = replace(fault, noise_db=_number(value, "dB", where, least=-60, most=120))
            case "cut":
                length, at, begin = value.partition("@")
                span_ns, begin_ns = _time_ns(length, where), _time_ns(begin or "0s", where)
                if not at or span_ns <= 0 or begin_ns < 0:
                    raise ConfigError(f"{where}: expected how long and from when, such as cut=3s@10s")
                fault = replace(fault, cuts=(*fault.cuts, (begin_ns, begin_ns + span_ns)))
            case "seed":
                fault = replace(fault, seed=round(_number(value, "", where, least=0, most=2**31)))
            case _:
                raise ConfigError(
                    f"{where}: no fault called '{name}'. Known: {', '.join(NAMES)}.{nearest(name, NAMES)}"
                )
    return fault


def timing(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Without what changes payloads alone: for who wants to know only what came when."""
    return tuple(replace(fault, noise_db=None) for fault in faults)


def parse_all(texts: Sequence[str], streams: Iterable[str]) -> tuple[Fault, ...]:
    """streams: of the recording. ConfigError for one that is not there, or is named twice."""
    faults, here = [parse(text) for text in texts], list(streams)
    for fault in faults:
        if fault.stream not in here:
            raise ConfigError(
                f"--fault {fault.stream}: no such stream. Streams here: {', '.join(here)}.{nearest(fault.stream, here)}"
            )
        if sum(other.stream == fault.stream for other in faults) > 1:
            raise ConfigError(
                f"--fault {fault.stream}: said twice. Put all that is wrong with a stream after one colon"
            )
    return tuple(faults)


def apply(
    recorded: Iterable[Item],
    faults: Sequence[Fault],
    *,
    start_ns: int,
    lost: Callable[[str], None] = lambda reason: None,
) -> Iterator[Item]:
    """The recorded messages as they would have come, in the order of their log_ns; streams without a fault are untouched.

    start_ns: when the recording begins, by log_ns. lost: told of each frame that is taken away, and by what. Raises
    ConfigError for noise in what cannot be noisy.
    """
    spoilers = {fault.stream: Spoiler(fault, start_ns=start_ns, lost=lost) for fault in faults}
    waiting: list[tuple[int, int, Item]] = []  # what comes later than it came
    for count, item in enumerate(recorded):
        while waiting and waiting[0][0] <= item.log_ns:
            yield heapq.heappop(waiting)[2]
        spoiler = spoilers.get(item.stream)
        if spoiler is None or not isinstance(item.message, Frame):
            yield item
            continue
        if (frame := spoiler.spoil(item.message, item.log_ns)) is None:
            continue
        later: Any = item
        later = later._replace(message=frame, log_ns=item.log_ns + spoiler.fault.delay_ns)
        heapq.heappush(waiting, (later.log_ns, count, later))
        while waiting and waiting[0][0] <= item.log_ns:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


class Spoiler:
    """One stream's faults, frame by frame."""

    def __init__(self, fault: Fault, *, start_ns: int, lost: Callable[[str], None] = lambda reason: None) -> None:
        self.fault, self._lost = fault, lost
        self._start_ns, self._seed = start_ns, (fault.seed, zlib.crc32(fault.stream.encode()))

    def spoil(self, frame: Frame, log_ns: int) -> Frame | None:
        """None: it is lost. A watermark ("none") is delayed and shifted, and lost in a cut alone."""
        since_ns = log_ns - self._start_ns
        if any(begin <= since_ns < to for begin, to in self.fault.cuts):
            if frame.encoding != "none":
                self._lost(CUT)
            return None
        chance = np.random.default_rng((*self._seed, frame.seq & 0xFFFFFFFF))
        if frame.encoding != "none" and self.fault.drop and chance.random() < self.fault.drop:
            self._lost(DROPPED)
            return None
        frame = self._moved(frame)
        if self.fault.noise_db is None or frame.encoding == "none" or not frame.data.size:
            return frame
        if frame.encoding not in NOISY:
            can = f"Noise is for {', '.join(NOISY)}"
            raise ConfigError(f"--fault {self.fault.stream}: noise: its frames are {frame.encoding}. {can}")
        return msgspec.structs.replace(frame, data=noisy(frame.data, frame.encoding, self.fault.noise_db, chance))

    def _moved(self, frame: Frame) -> Frame:
        if frame.capture_ns >= FOREVER_NS:  # the source is finished: no clock moves that
            return frame

        def told(time_ns: int) -> int:
            return time_ns + self.fault.offset_ns + round((time_ns - self._start_ns) * self.fault.drift_ppm / PPM)

        begin_ns = told(frame.capture_ns)
        publish_ns = frame.publish_ns + self.fault.delay_ns if frame.publish_ns else 0
        return msgspec.structs.replace(
            frame, capture_ns=begin_ns, duration_ns=told(frame.end_ns) - begin_ns, publish_ns=publish_ns
        )


def noisy(data: npt.NDArray[Any], encoding: str, snr_db: float, chance: np.random.Generator) -> npt.NDArray[Any]:
    """White noise of the signal's own power, less snr_db. The power is that of this frame: of sound about 0, of pictures
    and numbers about their mean. A silent frame stays silent, as its ratio to any noise is not defined."""
    if encoding == "jpeg":
        import cv2

        image: npt.NDArray[Any] | None = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            return data
        encoded = cv2.imencode(".jpg", noisy(image, "bgr8", snr_db, chance), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[
            1
        ]
        return np.asarray(encoded).reshape(-1)
    values = data.astype(np.float64)
    power = float(np.mean(values**2) if encoding == "pcm_f32" else np.var(values))
    spoilt = values + chance.normal(0.0, np.sqrt(power * 10 ** (-snr_db / 10)), values.shape)
    if encoding == "bgr8":
        return np.clip(np.rint(spoilt), 0, 255).astype(np.uint8)
    return np.asarray(np.clip(spoilt, -1, 1) if encoding == "pcm_f32" else spoilt, data.dtype)


def _time_ns(text: str, where: str) -> int:
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*(us|ms|s|min)\s*", text)
    if found is None:
        raise ConfigError(f"{where}: found '{text.strip()}', expected a time with its unit, such as 120ms or 3s")
    return round(float(found[1]) * UNITS_NS[found[2]])


def _number(text: str, unit: str, where: str, *, least: float, most: float) -> float:
    found = re.fullmatch(rf"\s*([+-]?\d+(?:\.\d+)?)\s*{unit}\s*", text, re.IGNORECASE)
    if found is None or not least <= float(found[1]) <= most:
        raise ConfigError(f"{where}: found '{text.strip()}', expected {least:g}{unit} to {most:g}{unit}, with the unit")
    return float(found[1])
