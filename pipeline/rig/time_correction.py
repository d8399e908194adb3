"""The time offset of a sensor, from its node's options: a number, or the entry of a rig file.

Example:
    correction = time_correction("microphone", offset_ms=None, rig="rig.yaml")
    frame = correction.apply(frame)              # capture times moved, error bounds widened

Delays between devices that no clock can see (a webcam's pipeline, a sound card's buffer) are measured by `calibrate
time`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pipeline.errors import ConfigError, nearest
from pipeline.frame import FOREVER_NS, Frame

SIGMAS = 2.0  # an error bound holds nearly always
MAX_MS = 10_000.0


class TimeCorrection(NamedTuple):
    """offset_ns is added to capture times; error_ns bounds the error of the offset."""

    offset_ns: int = 0
    error_ns: int = 0

    def apply(self, frame: Frame) -> Frame:
        """Watermarks move too: a stream silent until t is silent until the corrected t."""
        if self == TimeCorrection() or frame.capture_ns >= FOREVER_NS:
            return frame
        return msgspec.structs.replace(
            frame, capture_ns=frame.capture_ns + self.offset_ns, clock_error_ns=frame.clock_error_ns + self.error_ns
        )


def check_offset(offset_ms: float | None, rig: str | None) -> None:
    """ConfigError for options that contradict each other or make no sense; opens nothing."""
    if offset_ms is not None and rig is not None:
        raise ConfigError("offset_ms and rig both set the time correction: leave one of them out.")
    if offset_ms is not None and not abs(offset_ms) <= MAX_MS:
        raise ConfigError(f"offset_ms must be from {-MAX_MS:.0f} to {MAX_MS:.0f}, not {offset_ms}.")


def time_correction(sensor: str, *, offset_ms: float | None, rig: str | None) -> TimeCorrection:
    """sensor: its name in the rig file. A sensor that others are measured against has no offset."""
    if offset_ms is not None:
        return TimeCorrection(round(offset_ms * 1e6))
    if rig is None:
        return TimeCorrection()
    from pipeline.rig.rig_file import load_rig

    loaded = load_rig(rig)
    offset = loaded.time_offsets.get(sensor)
    if offset is None:
        known = {*loaded.frames, *(o.reference for o in loaded.time_offsets.values())}
        if sensor not in known:
            here = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{rig}: no sensor called '{sensor}'. Sensors here: {here}.{nearest(sensor, known)}")
        return TimeCorrection()
    return TimeCorrection(round(offset.offset_ms * 1e6), round(SIGMAS * (offset.sigma_ms or 0.0) * 1e6))
