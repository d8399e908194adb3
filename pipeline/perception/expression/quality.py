"""How good the evidence is: a weight from 0 to 1 for a face's picture and for a stretch of sound, with the reason.

Pure functions. The weight goes to the fusion, the reason to the prediction.

Example:
    face_quality(crop, side_px=14)              # (0.5, "small: 14 px")
    voice_quality(samples, present)             # (0.0, "nothing but noise: 2 dB above it")
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.preprocessing import face_tensor

MIN_WEIGHT = 0.05  # a poor face is still the best evidence where it is the only one

# Variance of the Laplacian of the standardised 48-pixel crop. Held-back faces blurred by σ = 1.5 px of 48 lie around
# the first and still add 10 points to the voice; by σ = 3 px around the second, and take some away (evaluate
# degradation).
SHARP, BLURRED = 0.02, 0.005
BRIGHT, DARK = 45.0, 15.0  # mean grey level: one in a hundred of FER2013's faces is below the first
WELL_SIZED_PX, SMALL_PX = 20.0, 8.0  # the network sees 48 px; faces of 20 px still add 12 points to the voice

FRAME = 320  # samples: 20 ms at 16 kHz
CLEAR_DB, NOISY_DB = 12.0, 2.0  # loud tenth above the quiet tenth
CLIPPED_AT = 0.985  # of full scale
FEW_CLIPPED, MANY_CLIPPED = 0.002, 0.05  # share of samples


def face_quality(crop: npt.NDArray[np.uint8], *, side_px: float) -> tuple[float, str]:
    """crop: (48, 48) grey, as preprocessing.face_crop returns it. side_px: of the face in the picture."""
    sharpness = float(cv2.Laplacian(face_tensor(crop)[0], cv2.CV_32F).var())
    brightness = float(crop.mean())
    measures = (
        (_between(sharpness, BLURRED, SHARP), f"blurred: sharpness {sharpness:.2f}"),
        (_between(brightness, DARK, BRIGHT), f"dark: level {brightness:.0f} of 255"),
        (_between(side_px, SMALL_PX, WELL_SIZED_PX), f"small: {side_px:.0f} px"),
    )
    weight, reason = min(measures, key=lambda each: each[0])
    return max(MIN_WEIGHT, weight), reason if weight < 1 else ""


def voice_quality(samples: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]) -> tuple[float, str]:
    """samples, present: (n,) at 16 kHz, as preprocessing.audio_window returns them. Pauses between words show the
    noise."""
    whole = len(samples) // FRAME * FRAME
    complete = present[:whole].reshape(-1, FRAME).all(axis=1)
    frames = samples[:whole].reshape(-1, FRAME)[complete]
    if len(frames) < 10:
        return 0.0, "too little sound"
    level_db = 10 * np.log10((frames**2).mean(axis=1) + 1e-10)
    above_db = float(np.percentile(level_db, 90) - np.percentile(level_db, 10))
    clipped = float((np.abs(frames) >= CLIPPED_AT).mean())
    measures = (
        (_between(above_db, NOISY_DB, CLEAR_DB), f"noisy: speech {above_db:.0f} dB above the noise"),
        (1 - _between(clipped, FEW_CLIPPED, MANY_CLIPPED), f"clipped: {100 * clipped:.1f} % of the samples"),
    )
    weight, reason = min(measures, key=lambda each: each[0])
    return weight, reason if weight < 1 else ""


def _between(value: float, none: float, full: float) -> float:
    return min(1.0, max(0.0, (value - none) / (full - none)))
