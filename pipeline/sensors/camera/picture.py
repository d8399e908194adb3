"""A picture of a live camera with the host time of its exposure, and how pictures are scaled and turned. Pure.

A generator of pictures (`Pictures`) yields a Picture, or the reason why one was lost, and raises DeviceError when the
source ends. It opens its device at the first `next` and releases it when closed, both in the reader's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

OPEN_TIMEOUT_S = 10.0  # an RTSP handshake over a slow link; a webcam's first picture takes one to two seconds
LOST_AFTER_S = 2.0  # without a picture for this long, the source counts as gone
# Where only the arrival is known: exposure, transfer and decoding of a webcam usually take less than this.
ARRIVAL_ERROR_NS = 50_000_000

Size = tuple[int | None, int | None]  # (width_px, height_px); None: no bound


class Picture(NamedTuple):
    image: np.ndarray  # (h, w, 3) uint8, BGR, never reused
    capture_ns: int
    clock_error_ns: int  # bound on the error of capture_ns


Pictures = Iterator[Picture | str]
Borrow = Callable[[tuple[int, ...], npt.DTypeLike], np.ndarray]  # Source.borrow: memory that is sent without a copy


def fit(size: tuple[int, int], within: Size) -> tuple[int, int]:
    """(width, height) scaled down into `within`, aspect ratio kept; never enlarged."""
    width_px, height_px = size
    scale = min(1.0, (within[0] or width_px) / width_px, (within[1] or height_px) / height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def to_bgr(frame: Any, within: Size, borrow: Borrow = np.empty) -> np.ndarray:
    """PyAV's frame as a borrowed (h, w, 3) uint8 array, upright (phone clips carry a rotation) and scaled down."""
    quarters = round(frame.rotation / 90)  # a damaged file may hold any angle
    turned = quarters % 2 != 0
    size = fit((frame.height, frame.width) if turned else (frame.width, frame.height), within)
    width_px, height_px = size[::-1] if turned else size
    plane = frame.reformat(width=width_px, height=height_px, format="bgr24").planes[0]
    # Its rows are padded. to_ndarray would make a packed copy, and sending the picture would make another.
    rows: np.ndarray = np.ndarray((height_px, width_px, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
    image = borrow((size[1], size[0], 3), np.uint8)
    np.copyto(image, np.rot90(rows, quarters))
    return image
