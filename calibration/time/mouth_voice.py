"""Sound against picture by a person who talks: how open the mouth is, against how loud the voice is.

    mouth, voice = Mouth(), Voice()
    mouth.add(image_bgr, track.face.landmarks_px, frame.capture_ns)      # of one face, every picture
    voice.add(frame.data, frame.capture_ns, frame.duration_ns)
    lag = compare(mouth, voice)
    lag.offset_ms                       # what is ADDED to the microphone's times; positive: the sound is stamped too early

No clapper is needed, and the answer is coarser: mouths open 0 to 80 ms before what they say is loudest, differently from
person to person (Schwartz and Savariaux 2014), so that much stays open and is part of the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration.pose import Floats
from calibration.time.lag import NOTHING, Lag, Series, find_lag

PATCH = 24  # the mouth and its surroundings in so many pixels each way, the corners of the mouth always at the same two
MOUTH_ROWS, MOUTH_COLUMNS = slice(8, 19), slice(6, 18)  # of the patch: between the corners, down to an open lower lip
LEVEL_MS = 10
LOUDNESS = 0.3  # power to loudness: steps in soft speech count as they do for an ear
MOUTH_LEADS_MS, PERSONS_MS = 40.0, 20.0  # taken off; and its standard deviation, which stays in the interval
MAX_S = 0.5
SMALLEST_MOUTH_PX = 6.0
HEARD_DB = -60.0  # a voice is louder than this at times


@dataclass
class Mouth:
    """How open one mouth is, picture by picture."""

    times_s: list[float] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)

    def add(self, image: np.ndarray, landmarks_px: np.ndarray, capture_ns: int) -> None:
        """image: (h, w, 3) BGR. landmarks_px: (5, 2) eyes, nose, mouth corners, as faces.Face has them."""
        opening = mouth_opening(image, landmarks_px)
        if opening is not None:
            self.times_s.append(capture_ns / 1e9)
            self.opening.append(opening)


def mouth_opening(image: np.ndarray, landmarks_px: np.ndarray) -> float | None:
    """How much darker it is between the corners of the mouth than around: 0 closed, about 0.5 wide open. None: too small."""
    left, right = np.asarray(landmarks_px[3], np.float64), np.asarray(landmarks_px[4], np.float64)
    across = right - left
    width_px = float(np.linalg.norm(across))
    if width_px < SMALLEST_MOUTH_PX:
        return None
    # The line through the corners becomes row 11 of the patch, from column 4 to 20.
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
    """How loud it is, every 10 ms."""

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
    """A Lag whose interval holds what persons differ by; `unknown` says why where it cannot be told."""
    if not mouth.times_s:
        return NOTHING._replace(unknown="no face large enough to see its mouth")
    if not voice.times_s or 10 * math.log10(voice.loudest + 1e-12) < HEARD_DB:
        return NOTHING._replace(unknown="the microphone is silent")
    seen = Series(np.array(mouth.times_s), np.array(mouth.opening))
    times, loudness = np.concatenate(voice.times_s), np.concatenate(voice.loudness)
    # As slow as a mouth: 80 ms, which is also about what one picture after the other can show.
    window = np.hanning(10)[1:-1]
    heard = Series(times, np.convolve(loudness, window / window.sum(), "same"))
    lag = find_lag(seen, heard, max_s=MAX_S)
    if lag.unknown:
        return lag
    # The mouth leads: laid on it, the sound comes that much too early.
    return lag._replace(offset_ms=lag.offset_ms + MOUTH_LEADS_MS, sigma_ms=math.hypot(lag.sigma_ms, PERSONS_MS))
