"""One self-contained HTML page about a calibration: the verdict, its reasons, pictures, and the provenance.

It has no knowledge of calibration: the caller adds sections in order. Nothing is loaded from a network, so a page can
be mailed. Charts come from calibration/report/charts.py as SVG.

Example:
    report = Report("Camera intrinsics", verdict)
    report.section("Residuals", "Where the model and the corners disagree, enlarged 50 times.")
    report.chart(charts.scatter(x, y, ...), "Each dot is a corner.")
    report.picture(image_bgr, "left03.jpg, detected and projected corners")
    report.provenance(files=paths, command="calibrate camera left --board 9x6")
    report.write("report.html")                     # ConfigError if it cannot be written
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from calibration.verdict import Level, Verdict
from pipeline.errors import ConfigError

PICTURE_WIDTH_PX = 720  # wide enough to see corners on a laptop, small enough to mail twenty of them
JPEG_QUALITY = 80
PACKAGES = ("numpy", "opencv-python-headless", "sensorium")
MARK = {Level.PASS: "✓", Level.WARN: "!", Level.FAIL: "✗"}

STYLE = """
:root { color-scheme: light dark; --ink: #1b2228; --soft: #5d6b76; --line: #d8dee3; --paper: #fff; --panel: #f5f7f9;
  --pass: #18794e; --warn: #9a6700; --fail: #c62a2f; --one: #2563b0; --two: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaed; --soft: #97a5b0; --line: #33404a; --paper: #14191d;
  --panel: #1c2329; --pass: #4cc38a; --warn: #e2a336; --fail: #ff6369; --one: #6ea8fe; --two: #f0995d; } }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.verdict { border-left: 6px solid var(--level); background: var(--panel); padding: .9rem 1.2rem; border-radius: 4px; }
.verdict b { color: var(--level); font-size: 1.2rem; } .verdict p { margin: .2rem 0; }
ul.checks { list-style: none; padding: 0; } ul.checks li { padding: .25rem 0 .25rem 1.7rem; text-indent: -1.7rem; }
ul.checks i { font-style: normal; font-weight: 700; display: inline-block; width: 1.7rem; text-indent: 0;
  color: var(--level); }
.PASS { --level: var(--pass); } .WARN { --level: var(--warn); } .FAIL { --level: var(--fail); }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; } figure { margin: .6rem 0; min-width: 0; }
.row figure { flex: 1 1 320px; }
img, svg { max-width: 100%; height: auto; display: block; border-radius: 4px; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg .axis { stroke: var(--line); fill: none; }
code { font: .88rem ui-monospace, monospace; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
"""


class Report:
    def __init__(self, title: str, verdict: Verdict) -> None:
        self.title, self.verdict = title, verdict
        self._parts: list[str] = []
        self._row: list[str] | None = None

    def section(self, heading: str, text: str = "") -> None:
        self._close_row()
        self._parts.append(f"<h2>{escape(heading)}</h2>" + (f"<p>{escape(text)}</p>" if text else ""))

    def text(self, text: str) -> None:
        self._close_row()
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Cells are shown as they are; a column whose cells all begin like numbers is right-aligned."""
        self._close_row()
        texts = [[str(cell) for cell in row] for row in rows]
        numeric = [bool(texts) and all(row[i][:1] in "+-−0123456789±≤<–" for row in texts) for i in range(len(header))]

        def cells(row: Sequence[str], tag: str) -> str:
            kinds = (' class="n"' if n else "" for n in numeric)
            return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in zip(row, kinds, strict=True)) + "</tr>"

        body = "".join(cells(row, "td") for row in texts)
        self._parts.append(f'<div class="wide"><table>{cells(header, "th")}{body}</table></div>')

    def chart(self, svg: str, caption: str) -> None:
        self._figure(svg, caption)

    def picture(self, image: np.ndarray, caption: str, *, lossless: bool = False) -> None:
        """image: (h, w) or (h, w, 3) uint8, BGR; scaled down to PICTURE_WIDTH_PX, never up."""
        if image.shape[1] > PICTURE_WIDTH_PX:
            height_px = round(image.shape[0] * PICTURE_WIDTH_PX / image.shape[1])
            image = cv2.resize(image, (PICTURE_WIDTH_PX, height_px), interpolation=cv2.INTER_AREA)
        suffix = ".png" if lossless else ".jpg"
        _, coded = cv2.imencode(suffix, image, [] if lossless else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        kind = "png" if lossless else "jpeg"
        data = base64.b64encode(coded.tobytes()).decode()
        self._figure(f'<img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">', caption)

    def provenance(
        self, *, files: Iterable[Path] = (), command: str | None = None, notes: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Where the numbers come from: the command, the versions, and every file with its SHA-256."""
        self.section("Provenance", "These files, versions and this command reproduce the numbers above.")
        line = command or "python " + shlex.join(sys.argv)
        versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
        rows = [("command", line), ("versions", f"Python {platform.python_version()}, {versions}"), *notes]
        facts = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in rows)
        hashes = "".join(
            f"<tr><td><code>{escape(str(p))}</code></td><td><code>{sha256(p)}</code></td></tr>"
            for p in files
            if p.is_file()
        )
        self._parts.append(f'<div class="wide"><table>{facts}</table>')
        if hashes:
            self._parts.append(f"<details><summary>Files and their SHA-256</summary><table>{hashes}</table></details>")
        self._parts.append("</div>")

    def html(self) -> str:
        self._close_row()
        verdict = self.verdict
        checks = "".join(
            f'<li class="{c.level.name}"><i>{MARK[c.level]}</i>{escape(c.finding)}'
            f"{f'<span class=soft> → {escape(c.next_step)}</span>' if c.next_step else ''}</li>"
            for c in sorted(verdict.checks, key=lambda c: -c.level)
        )
        next_step = f"<p>Next: {escape(verdict.next_step)}.</p>" if verdict.next_step else ""
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{verdict.level.name}: {escape(self.title)}</title><style>{STYLE}</style>"
            f"<h1>{escape(self.title)}</h1>"
            f'<div class="verdict {verdict.level.name}"><b>{verdict.level.name}</b>'
            f"<p>{escape(verdict.reason)}.</p>{next_step}</div>"
            f'<ul class="checks">{checks}</ul>{"".join(self._parts)}</html>\n'
        )

    def write(self, path: str | Path) -> None:
        try:
            Path(path).write_text(self.html(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--report {path}: cannot be written: {error.strerror}. Use a path you can write to"
            ) from error

    def _figure(self, inner: str, caption: str) -> None:
        """Consecutive figures form a row."""
        if self._row is None:
            self._row = []
        self._row.append(f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>")

    def _close_row(self) -> None:
        if self._row:
            self._parts.append(f'<div class="row">{"".join(self._row)}</div>')
        self._row = None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
