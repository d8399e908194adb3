"""What the tests of the camera share: a node, and a film whose every picture is numbered."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.camera import Camera
from nodes.synthetic import picture
from pipeline.clock import LiveClock, ManualClock
from pipeline.node import Context

av = pytest.importorskip("av", reason="PyAV is not installed: scripts/setup")
pytest.importorskip("cv2", reason="OpenCV is not installed: scripts/setup")

MS = 1_000_000
WIDTH, HEIGHT = 192, 96


def camera(clock: LiveClock | ManualClock | None = None, **options: Any) -> Camera:
    node = Camera(**options)
    node.context = Context("camera", clock=clock or ManualClock())
    return node


def write_film(
    path: Path, *, n: int = 50, rate: int = 25, sound_at: float | None = None, starts_at: float = 0.0
) -> Path:
    """Numbered pictures; with sound_at, a white flash and a beep begin at that second and last 200 ms.

    starts_at: the time stamp of the first picture and sample, as a recorder writes that has been running for a while.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=48000, layout="mono") if sound_at is not None else None
        for k in range(n):
            flash = sound_at is not None and sound_at <= k / rate < sound_at + 0.2
            image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8) if flash else picture(k, WIDTH, HEIGHT)
            if sound_at is not None and not flash:
                image[:] = 0
            shot = av.VideoFrame.from_ndarray(image, format="bgr24")
            shot.pts, shot.time_base = k + round(starts_at * rate), Fraction(1, rate)
            container.mux(video.encode(shot))
        container.mux(video.encode(None))
        if audio is not None and sound_at is not None:
            t_s = np.arange(48000 * n // rate) / 48000
            beep = 0.8 * np.sin(2 * np.pi * 1000 * t_s) * ((t_s >= sound_at) & (t_s < sound_at + 0.2))
            frame = av.AudioFrame.from_ndarray(beep.astype(np.float32).reshape(1, -1), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = (
                48000,
                round(starts_at * 48000),
            )  # without a pts the encoder's own delay goes into the file
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path
