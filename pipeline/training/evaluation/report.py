"""Writes a table of scores as JSON and as a bar chart (SVG, drawn here: no plotting package).

Example:
    write(table, Path("runs/fusion/votes.json"), title="Human votes")        # also writes runs/fusion/votes.svg
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from pipeline.training.evaluation.scores import Scores

Table = Mapping[str, Mapping[str, Scores]]  # method → what is present → scores
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito's
LEFT_PX, WIDE_PX, ROW_PX, TOP_PX = 330, 460, 20, 64


def write(table: Table, out: Path, *, title: str) -> None:
    """`out`: the JSON file; the chart is written beside it, with the suffix .svg."""
    out.parent.mkdir(parents=True, exist_ok=True)
    plain = {method: {what: scores.record() for what, scores in row.items()} for method, row in table.items()}
    out.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    out.with_suffix(".svg").write_text(picture(table, title=title), encoding="utf-8")


def picture(table: Table, *, title: str) -> str:
    """SVG: accuracy of each method as a bar, its interval as a line, one colour for each set of present modalities."""
    present = list(dict.fromkeys(what for row in table.values() for what in row))
    colour = dict(zip(present, COLOURS * (len(present) // len(COLOURS) + 1), strict=False))
    drawn, y = [], TOP_PX
    for method, row in table.items():
        drawn.append(_text(LEFT_PX - 10, y + 14, method, anchor="end"))
        for what, scores in row.items():
            end = LEFT_PX + WIDE_PX * scores.accuracy
            drawn.append(
                f'<rect x="{LEFT_PX}" y="{y + 3}" width="{WIDE_PX * scores.accuracy:.1f}" height="{ROW_PX - 6}" '
                f'fill="{colour[what]}"><title>{escape(f"{method}, {what}: {scores.accuracy:.1%}")}</title></rect>'
            )
            low, high = (LEFT_PX + WIDE_PX * v for v in scores.interval.get("accuracy", (scores.accuracy,) * 2))
            drawn.append(f'<path d="M{low:.1f} {y + ROW_PX / 2}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
            drawn.append(_text(max(end, high) + 6, y + 14, f"{scores.accuracy:.1%}"))
            y += ROW_PX
        y += 6
    drawn += [
        f'<path d="M{LEFT_PX + WIDE_PX * t / 4} {TOP_PX - 4}V{y}" stroke="#ccc" stroke-width="0.5"/>' for t in range(5)
    ]
    drawn += [_text(LEFT_PX + WIDE_PX * t / 4, y + 14, f"{25 * t} %", anchor="middle") for t in range(5)]
    x = LEFT_PX
    for what in present:
        drawn.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{colour[what]}"/>')
        drawn.append(_text(x + 17, 44, what))
        x += 30 + 8 * len(what)
    head = _text(12, 22, f"{title}: accuracy, with 95 % intervals over speakers", size=15)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT_PX + WIDE_PX + 80}" height="{y + 26}" '
        f'font-family="sans-serif" role="img"><rect width="100%" height="100%" fill="#fff"/>{head}{"".join(drawn)}'
        "</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
