"""Sound against picture by a person who talks: the opening of the mouth against the loudness of the voice.

No clapper is needed, and the result is coarser: mouths open 0 to 80 ms before the voice is loudest, differently from
person to person (Schwartz and Savariaux 2014). The mean is subtracted, and the spread is part of the interval.

Example:
    mouth, voice = Mouth(), Voice()
    mouth.add(image_bgr, track.face.landmarks_px, frame.capture_ns)      # of one face, every picture
    voice.add(frame.data, frame.capture_ns, frame.duration_ns)
    lag = compare(mouth, voice)
    lag.offset_ms           # ADDED to the microphone's times; positive: the sound's timestamps are too early
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration.pose import Floats
from calibration.time.lag import NOTHING, Lag, Series, find_lag

PATCH = 24  # side in px of the aligned patch around the mouth, whose corners are always at the same two pixels
MOUTH_ROWS, MOUTH_COLUMNS = slice(8, 19), slice(6, 18)  # of the patch: between the corners, down to an open lower lip
LEVEL_MS = 10
LOUDNESS = 0.3  # exponent from power to perceived loudness
MOUTH_LEADS_MS, PERSONS_MS = 40.0, 20.0  # mean, which is subtracted; standard deviation, which is part of the interval
MAX_S = 0.5
MIN_MOUTH_PX = 6.0
MIN_VOICE_DB = -60.0  # the loudest part of a voice is above this


@dataclass
class Mouth:
    """The opening of one mouth in each picture."""

    times_s: list[float] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)

    def add(self, image: np.ndarray, landmarks_px: np.ndarray, capture_ns: int) -> None:
        """image: (h, w, 3) BGR. landmarks_px: (5, 2) eyes, nose, mouth corners, as in faces.Face."""
        opening = mouth_opening(image, landmarks_px)
        if opening is not None:
            self.times_s.append(capture_ns / 1e9)
            self.opening.append(opening)


def mouth_opening(image: np.ndarray, landmarks_px: np.ndarray) -> float | None:
    """How much darker the mouth is than the skin around it: 0 closed, about 0.5 wide open; None if it is too small."""
    left, right = np.asarray(landmarks_px[3], np.float64), np.asarray(landmarks_px[4], np.float64)
    across = right - left
    width_px = float(np.linalg.norm(across))
    if width_px < MIN_MOUTH_PX:
        return None
    # The line through the corners of the mouth becomes row 11 of the patch, from column 4 to 20.
    unit = across / width_px * (width_px / 16)
    down = np.array([-unit[1], unit[0]])
    origin = left - 4 * unit - 11 * down
    image_from_patch = np.column_stack([unit, down, origin])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(image, image_from_patch, (PATCH, PATCH), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    grey = patch.astype(np.float64).mean(2) if patch.ndim == 3 else patch.astype(np.float64)
    around = np.ones((PATCH, PATCH), bool)
    around[MOUTH_ROWS, MOUTH_COLUMNS] = False
    skin = float(np.median(grey[around]))
    if skin < 10:
        return None
    return float(np.mean(np.maximum(skin - grey[MOUTH_ROWS, MOUTH_COLUMNS], 0)) / skin)


@dataclass
class Voice:
    """The loudness, every 10 ms."""

    times_s: list[Floats] = field(default_factory=list)
    loudness: list[Floats] = field(default_factory=list)
    loudest: float = 0.0

    def add(self, samples: np.ndarray, capture_ns: int, duration_ns: int) -> None:
        if len(samples) < 2 or duration_ns <= 0:
            return
        rate_hz = len(samples) * 1e9 / duration_ns
        size = max(1, round(rate_hz * LEVEL_MS / 1000))
        count = len(samples) // size
        if not count:
            return
        power = (samples[: count * size].astype(np.float64) ** 2).reshape(count, size).mean(1)
        self.times_s.append(np.asarray(capture_ns / 1e9 + (np.arange(count) + 0.5) * size / rate_hz))
        self.loudness.append(np.asarray(power**LOUDNESS, np.float64))
        self.loudest = max(self.loudest, float(power.max()))


def compare(mouth: Mouth, voice: Voice) -> Lag:
    """The lag between mouth and voice; its interval includes the differences between persons."""
    if not mouth.times_s:
        return NOTHING._replace(unknown="no face is large enough to measure its mouth")
    if not voice.times_s or 10 * math.log10(voice.loudest + 1e-12) < MIN_VOICE_DB:
        return NOTHING._replace(unknown="the microphone is silent")
    openings = Series(np.array(mouth.times_s), np.array(mouth.opening))
    times, loudness = np.concatenate(voice.times_s), np.concatenate(voice.loudness)
    # Smoothed to the speed of a mouth: 80 ms, which is also about the resolution of consecutive pictures.
    window = np.hanning(10)[1:-1]
    loudnesses = Series(times, np.convolve(loudness, window / window.sum(), "same"))
    lag = find_lag(openings, loudnesses, max_s=MAX_S)
    if lag.unknown:
        return lag
    # The mouth leads the voice, so aligning both would make the sound too early by that much.
    return lag._replace(offset_ms=lag.offset_ms + MOUTH_LEADS_MS, sigma_ms=math.hypot(lag.sigma_ms, PERSONS_MS))
