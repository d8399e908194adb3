"""What the tests of the web page feed it and ask of it in a browser. The page itself is opened by conftest's fixture `opened`."""

import threading
import time
from typing import Any

from nodes.dashboard import Dashboard
from pipeline.node import Context


class Show(threading.Thread):
    """Feeds a dashboard as a run would, every `every_s`. asked: what the page asked of the launcher."""

    every_s: float

    def __init__(self, page: Dashboard, **context: Any) -> None:
        super().__init__(daemon=True)
        self.asked: list[tuple[str, str]] = []
        self.over = threading.Event()
        self.page = page
        self.page.context = Context("dashboard", request=lambda verb, argument: self.asked.append((verb, argument)), **context)
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
    page.wait_for_function("([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words], timeout=10_000)


def coloured(page: Any, canvas: str, x: float, y: float) -> bool:
    """Whether anything is drawn within 4 % around a point of a canvas, given in fractions of its size."""
    script = """([id, x, y]) => { const c = document.getElementById(id), r = .04;
        const d = c.getContext("2d").getImageData((x - r) * c.width, (y - r) * c.height, 2 * r * c.width, 2 * r * c.height);
        return d.data.some((v, i) => i % 4 === 3 && v > 0); }"""
    return bool(page.evaluate(script, [canvas, x, y]))
