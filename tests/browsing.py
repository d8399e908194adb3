"""What the tests of the web page ask of it in a browser. The browser itself is conftest's fixture `chromium`."""

from typing import Any


def says(page: Any, selector: str, words: str) -> None:
    """Waits until the element's text holds the words."""
    page.wait_for_function("([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words], timeout=10_000)


def coloured(page: Any, canvas: str, x: float, y: float) -> bool:
    """Whether anything is drawn within 4 % around a point of a canvas, given in fractions of its size."""
    script = """([id, x, y]) => { const c = document.getElementById(id), r = .04;
        const d = c.getContext("2d").getImageData((x - r) * c.width, (y - r) * c.height, 2 * r * c.width, 2 * r * c.height);
        return d.data.some((v, i) => i % 4 === 3 && v > 0); }"""
    return bool(page.evaluate(script, [canvas, x, y]))
