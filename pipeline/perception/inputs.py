"""The inputs of a task in an aligned set: pictures and sound, recognised by their encoding, not by their stream's name.

Example:
    frames = first(aligned, PICTURES)
    image, wrong = picture(frames[-1]) if frames else (None, "")
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.frame import AlignedSet, Frame
from pipeline.picture_files import decode_picture

Image = npt.NDArray[np.uint8]

PICTURES, SOUNDS = ("bgr8", "jpeg"), ("pcm_f32",)

# A hand over the lens leaves a little glow and the sensor's noise; a dim room is brighter, or has contrast.
DARK_LEVEL, DARK_CONTRAST = 24.0, 8.0  # mean and standard deviation, of 255


def first(aligned: AlignedSet, encodings: tuple[str, ...]) -> tuple[Frame, ...]:
    """The frames of the set's first stream with one of the encodings; empty when there is none."""
    for frames in aligned.frames.values():
        fitting = tuple(frame for frame in frames if frame.encoding in encodings)
        if fitting:
            return fitting
    return ()


def latest(aligned: AlignedSet, encodings: tuple[str, ...]) -> Frame | None:
    """The newest of these."""
    frames = first(aligned, encodings)
    return frames[-1] if frames else None


def picture(frame: Frame) -> tuple[Image | None, str]:
    """The picture of a "bgr8" or "jpeg" frame, (h, w, 3) BGR; or None and why it cannot be used."""
    image: Any = frame.data
    if frame.encoding == "jpeg":
        image = decode_picture(image, cv2.IMREAD_COLOR)
        if image is None:
            return None, "picture is torn: its JPEG cannot be decoded"
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        return None, f"picture has the shape {image.shape}, expected (height, width, 3)"
    thinned = image[::8, ::8]
    if thinned.mean() < DARK_LEVEL and thinned.mean(axis=2).std() < DARK_CONTRAST:
        return None, "picture is dark: covered lens?"
    return image, ""


@dataclass(frozen=True)
class Picture:
    """A frame whose picture several consumers read: decoded once, on first use."""

    frame: Frame

    @cached_property
    def decoded(self) -> tuple[Image | None, str]:
        """As picture() returns it."""
        return picture(self.frame)
