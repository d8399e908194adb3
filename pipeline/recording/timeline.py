"""A recording's timeline as an SVG picture: when each stream was present, its gaps and silences, the predictions.

Example:
    Path("timeline.svg").write_text(draw(Audit(Path("rec.mcap"))))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise
from statistics import median

from pipeline.clock import NS
from pipeline.recording.verify import Audit, StreamAudit, time_range
from pipeline.runtime.graph import EVENTS

WIDTH, LEFT, ROW, TOP, RIGHT = 1100, 150, 34, 46, 20
INK, QUIET, PRESENT, GAP, SILENT = "#15211f", "#566461", "#0b7285", "#b3261e", "#dde3e0"
# Okabe and Ito's colours, as on the page; an unknown label is grey.
HUES = {
    "angry": "#d55e00",
    "disgust": "#009e73",
    "fear": "#56b4e9",
    "happy": "#e69f00",
    "sad": "#0072b2",
    "surprise": "#cc79a7",
}
OTHER = "#8e9a96"
STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
Bar = tuple[int, int, str, str]  # from, to (ns), colour, title


def draw(audit: Audit) -> str:
    first_ns, last_ns = time_range(audit)
    span_ns = max(1, last_ns - first_ns)
    rows = list(_rows(audit))
    height = TOP + ROW * len(rows) + 40

    def x_of(ns: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(max(ns, first_ns), last_ns) - first_ns) / span_ns

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Inter, Arial, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="15" font-weight="600" fill="{INK}">{escape(audit.path.name)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="24" text-anchor="end" fill="{QUIET}">'
        "blue: present · red: missing · grey: silent or no answer</text>",
    ]
    for i, (name, note, bars) in enumerate(rows):
        y = TOP + ROW * i
        out.append(f'<text x="16" y="{y + 14}" font-weight="600" fill="{INK}">{escape(name)}</text>')
        out.append(f'<text x="16" y="{y + 27}" font-size="10" fill="{QUIET}">{escape(note)}</text>')
        for from_ns, to_ns, colour, what in bars:
            left, wide = x_of(from_ns), max(1.0, x_of(to_ns) - x_of(from_ns))
            at_s = (from_ns - first_ns) / NS
            out.append(
                f'<rect x="{left:.1f}" y="{y + 4}" width="{wide:.1f}" height="18" fill="{colour}">'
                f"<title>{escape(f'{name} {at_s:.2f} s: {what}')}</title></rect>"
            )
    axis = TOP + ROW * len(rows) + 8
    step_s = next((s for s in STEPS_S if span_ns / NS / s <= 12), STEPS_S[-1])
    for k in range(int(span_ns / NS / step_s) + 1):
        x = x_of(first_ns + round(k * step_s * NS))
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{axis}" stroke="{INK}" stroke-opacity=".12"/>')
        out.append(f'<text x="{x:.1f}" y="{axis + 14}" text-anchor="middle" fill="{QUIET}">{k * step_s:g} s</text>')
    return "\n".join([*out, "</svg>", ""])


def _rows(audit: Audit) -> Iterator[tuple[str, str, list[Bar]]]:
    """(name, note, bars) of every stream, aligner and predicting node."""
    for name, stream in audit.streams.items():
        if not name.endswith(EVENTS):
            yield name, f"{len(stream.captures_ns)} · {stream.encoding}", list(_of_stream(stream))
    for align, sets in audit.sent.items():
        complete = (
            (s.anchor_ns, GAP, f"missing: {', '.join(s.missing)}") if s.missing else (s.anchor_ns, PRESENT, "complete")
            for s in sets
        )
        yield align, f"{len(sets)} sets", list(_runs(complete))
    for node, predictions in audit.predictions.items():
        labels = (
            (p.capture_ns, HUES.get(p.label or "", OTHER if p.label else SILENT), p.label or "no answer")
            for p in predictions
        )
        yield node, f"{len(predictions)} predictions", list(_runs(labels))


def _of_stream(stream: StreamAudit) -> Iterator[Bar]:
    """A bar for consecutive frames, a red one for missing numbers, a grey one for a silence."""
    captures = stream.captures_ns
    steps = [b - a for a, b in pairwise(captures)]
    period_ns = round(median(steps)) if steps else NS // 10
    for until_ns, reason in stream.silences_ns:
        before = [c for c in captures if c < until_ns][-1:]
        yield (before[0] + period_ns if before else until_ns - period_ns), until_ns, SILENT, reason or "silent"
    began = 0
    for i in range(1, len(captures) + 1):
        if i == len(captures) or captures[i] - captures[i - 1] > 3 * period_ns:
            last_ns = captures[i - 1] + period_ns
            yield captures[began], last_ns, PRESENT, f"{i - began} frames, #{began} on"
            began = i
    for seq, count, after_ns in stream.missing:
        yield after_ns - (count + 1) * period_ns, after_ns, GAP, f"{count} missing from #{seq} on"


def _runs(points: Iterable[tuple[int, str, str]]) -> Iterator[Bar]:
    """Merge neighbours of one colour into one bar; each lasts until the next point."""
    run: Bar | None = None
    last_ns = 0
    for at_ns, colour, what in points:
        if run is not None and run[2:] != (colour, what):
            yield run[0], at_ns, run[2], run[3]
            run = None
        run = run or (at_ns, at_ns, colour, what)
        last_ns = at_ns
    if run is not None:
        yield run[0], last_ns, run[2], run[3]
