"""What the tests of the web page feed it and ask of it in a browser.

The page itself is opened by conftest's fixture `opened`.
"""

import threading
import time
from typing import Any

import numpy as np

from nodes.dashboard import Dashboard
from pipeline.frame import Frame
from pipeline.node import Context
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.transforms import rigid

MS = 1_000_000
LENS = Intrinsics("radtan", 640, 360, 400.0, 400.0, 319.5, 179.5)
OPTICAL_FROM_FORWARD = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float64)
# The lidar stands 1.5 m above the base frame and looks as it does; the camera is 0.5 m ahead of the lidar.
RIG = Rig(
    {"camera": LENS},
    (
        Pose("base", "lidar", rigid(np.eye(3), (0, 0, 1.5))),
        Pose("camera", "lidar", rigid(OPTICAL_FROM_FORWARD, OPTICAL_FROM_FORWARD @ (-0.5, 0, 0))),
    ),
)


def picture(seq: int = 0, width_px: int = 640, height_px: int = 360, capture_ns: int | None = None) -> Frame:
    noise = np.random.default_rng(seq).integers(0, 255, (height_px, width_px, 3), np.uint8)
    return Frame("camera", seq, seq * 40 * MS if capture_ns is None else capture_ns, "bgr8", noise)


def sweep(points_m: list[tuple[float, float, float]] | np.ndarray, seq: int = 0, capture_ns: int = 0) -> Frame:
    points = np.column_stack([np.asarray(points_m, np.float32).reshape(-1, 3), np.full(len(points_m), 0.5, np.float32)])
    return Frame("lidar", seq, capture_ns, "points_xyzi_f32", points, duration_ns=100 * MS)


class Show(threading.Thread):
    """Feeds a dashboard as a run would, every `every_s`. asked: what the page asked of the launcher."""

    every_s: float

    def __init__(self, page: Dashboard, **context: Any) -> None:
        super().__init__(daemon=True)
        self.asked: list[tuple[str, str]] = []
        self.over = threading.Event()
        self.page = page
        self.page.context = Context(
            "dashboard", request=lambda verb, argument: self.asked.append((verb, argument)), **context
        )
        self.page.open()

    def run(self) -> None:
        for seq in range(10_000):
            self.show(seq, time.monotonic_ns())
            if self.over.wait(self.every_s):
                return

    def show(self, seq: int, now_ns: int) -> None:
        """Give the page what arrives at now_ns."""
        raise NotImplementedError

    def end(self) -> None:
        self.over.set()
        if self.is_alive():
            self.join()
        self.page.close()


def says(page: Any, selector: str, words: str) -> None:
    """Waits until the element's text holds the words."""
    page.wait_for_function(
        "([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words], timeout=10_000
    )


def coloured(page: Any, canvas: str, x: float, y: float) -> bool:
    """Whether anything is drawn within 4 % around a point of a canvas, given in fractions of its size."""
    script = """([id, x, y]) => { const c = document.getElementById(id), r = .04;
        const [left, top, w, h] = [(x - r) * c.width, (y - r) * c.height, 2 * r * c.width, 2 * r * c.height];
        const d = c.getContext("2d").getImageData(left, top, w, h);
        return d.data.some((v, i) => i % 4 === 3 && v > 0); }"""
    return bool(page.evaluate(script, [canvas, x, y]))
