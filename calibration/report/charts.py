"""Small charts as SVG text, in the colours of the report's page, without a library or a script.

Example:
    bars(["left01", "left02"], [0.18, 0.22], unit="px", limit=0.5)
    scatter(dx_px, dy_px, unit="px", reach=1.0)
    heat(grid, unit="px", marks=corners, size=(640, 480))
    lines(x, {"measured": y}, x_label="s", y_label="ms")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

COLOURS = ("var(--one)", "var(--two)", "var(--pass)", "var(--fail)", "var(--soft)")


def bars(
    names: Sequence[str], values: Sequence[float], *, unit: str, limit: float | None = None, faded: Sequence[bool] = ()
) -> str:
    """One bar per name, with its value. faded: those that were not used. A line at `limit`."""
    top = max([*values, limit or 0.0, 1e-12])
    row, left, width = 19, 150, 420
    parts = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = i * row
        opacity = 0.35 if i < len(faded) and faded[i] else 1
        parts.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(name[-24:])}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{value / top * width:.1f}" height="{row - 7}" '
            f'fill="{COLOURS[0]}" opacity="{opacity}"/>'
            f'<text x="{left + value / top * width + 5:.1f}" y="{y + 13}">{value:.3f} {escape(unit)}</text>'
        )
    if limit is not None:
        x = left + limit / top * width
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{len(names) * row}" '
            'stroke="var(--fail)" stroke-dasharray="4 3"/>'
        )
    return _svg(left + width + 90, max(1, len(names)) * row, parts)


def scatter(x: np.ndarray, y: np.ndarray, *, unit: str, reach: float, group: np.ndarray | None = None) -> str:
    """Dots around the origin, with rings at half and all of `reach`; dots beyond it are drawn on the outer ring."""
    size, middle = 340, 170
    scale = (middle - 12) / reach
    parts = [
        f'<circle cx="{middle}" cy="{middle}" r="{r * scale:.1f}" class="axis"/>'
        f'<text x="{middle + 3}" y="{middle - r * scale + 11:.1f}">{r:g} {escape(unit)}</text>'
        for r in (reach / 2, reach)
    ]
    parts.append(f'<path d="M0 {middle}H{size}M{middle} 0V{size}" class="axis"/>')
    length = np.hypot(x, y)
    shrink = np.minimum(1.0, reach / np.maximum(length, 1e-12))
    for i, (px, py) in enumerate(zip(x * shrink, y * shrink, strict=True)):
        colour = COLOURS[int(group[i]) % len(COLOURS)] if group is not None else COLOURS[0]
        parts.append(
            f'<circle cx="{middle + px * scale:.1f}" cy="{middle + py * scale:.1f}" r="1.6" '
            f'fill="{colour}" opacity=".55"/>'
        )
    return _svg(size, size, parts)


def heat(
    grid: np.ndarray, *, unit: str, size: tuple[int, int], top: float | None = None, marks: np.ndarray | None = None
) -> str:
    """The picture's area in cells, darker where the value is larger; NaN cells stay empty. marks: pixels on top."""
    rows, columns = grid.shape
    width = 440
    height = width * size[1] / size[0]
    cell_w, cell_h = width / columns, height / rows
    most = top if top is not None else float(np.nanmax(grid, initial=1e-12))
    parts = []
    for r in range(rows):
        for c in range(columns):
            value = float(grid[r, c])
            if np.isnan(value):
                continue
            share = min(1.0, value / most) if most > 0 else 0.0
            parts.append(
                f'<rect x="{c * cell_w:.1f}" y="{r * cell_h:.1f}" width="{cell_w:.1f}" height="{cell_h:.1f}" '
                f'fill="var(--two)" opacity="{0.06 + 0.8 * share:.2f}"/>'
            )
            if columns <= 12:
                parts.append(
                    f'<text x="{(c + 0.5) * cell_w:.1f}" y="{(r + 0.5) * cell_h + 4:.1f}" text-anchor="middle" '
                    f'style="fill:var(--ink)">{value:.2g}</text>'
                )
    if marks is not None:
        for u, v in marks:
            x, y = (u + 0.5) * width / size[0], (v + 0.5) * height / size[1]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" fill="{COLOURS[0]}"/>')
    parts.append(f'<rect width="{width}" height="{height:.1f}" class="axis"/>')
    parts.append(f'<text x="0" y="{height + 15:.1f}">darkest: {most:.2g} {escape(unit)}</text>')
    return _svg(width, height + 20, parts)


def lines(
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    x_label: str,
    y_label: str,
    band: tuple[float, float] | None = None,
) -> str:
    """Curves over a common x; NaN interrupts a curve. band: the two y values of a shaded target range."""
    width, height, left, bottom = 560, 240, 52, 34
    every = np.concatenate([np.asarray(y, np.float64) for y in curves.values()] + ([np.array(band)] if band else []))
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    low, high = (low - 1, high + 1) if high - low < 1e-12 else (low - 0.05 * (high - low), high + 0.05 * (high - low))
    first, last = float(np.nanmin(x)), float(np.nanmax(x))
    last = last if last > first else first + 1

    def at(px: float, py: float) -> tuple[float, float]:
        return left + (px - first) / (last - first) * (width - left - 8), (high - py) / (high - low) * (
            height - bottom
        ) + 4

    parts = []
    if band:
        (_, upper), (_, lower) = at(first, max(band)), at(first, min(band))
        area = f'x="{left}" y="{upper:.1f}" width="{width - left - 8}" height="{lower - upper:.1f}"'
        parts.append(f'<rect {area} fill="var(--pass)" opacity=".12"/>')
    for value in np.linspace(low, high, 5):
        down = at(first, float(value))[1]
        parts.append(f'<path d="M{left} {down:.1f}H{width - 8}" class="axis"/>')
        parts.append(f'<text x="{left - 5}" y="{down + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for value in np.linspace(first, last, 6):
        parts.append(
            f'<text x="{at(float(value), low)[0]:.1f}" y="{height - 14}" text-anchor="middle">{value:.3g}</text>'
        )
    for i, (name, curve) in enumerate(curves.items()):
        path, pen_down = "", False
        for px, py in zip(x, curve, strict=True):
            if np.isnan(py):
                pen_down = False
                continue
            sx, sy = at(float(px), float(py))
            path += f"{'L' if pen_down else 'M'}{sx:.1f} {sy:.1f}"
            pen_down = True
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{left + 8}" y="{18 + 14 * i}" style="fill:{colour}">{escape(name)}</text>')
    parts.append(f'<text x="{width - 8}" y="{height - 1}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="2" y="12">{escape(y_label)}</text>')
    return _svg(width, height, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">{"".join(parts)}</svg>'
