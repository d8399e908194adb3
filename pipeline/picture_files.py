"""JPEG, PNG and other picture files → pixels, in bounded memory, whoever wrote them.

OpenCV raises its own error for a header that claims more pixels than it may decode (OPENCV_IO_MAX_IMAGE_PIXELS, which
pipeline/__init__.py sets), or more memory than there is; a damaged file is None.

Example:
    decode_picture(data, cv2.IMREAD_COLOR)           # (h, w, 3) uint8, or None
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def decode_picture(data: npt.NDArray[Any] | bytes, flags: int) -> npt.NDArray[Any] | None:
    """None for anything that is no whole picture, and for one of too many pixels.

    Args:
        data: A picture file's content.
        flags: OpenCV's: cv2.IMREAD_COLOR, …
    """
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    if not raw.size:
        return None
    try:
        decoded: npt.NDArray[Any] | None = cv2.imdecode(raw, flags)
    except cv2.error:
        return None
    return decoded
