"""Predictions → one live line on the terminal; where standard output is not a terminal, one line a second."""

from __future__ import annotations

import shutil
import sys
from typing import ClassVar

from pipeline.clock import NS
from pipeline.frame import Health, Prediction
from pipeline.node import Arrival, Sink
from pipeline.scene_state import SceneState

REDRAW_NS = NS // 12
BAR = " ▏▎▍▌▋▊▉█"
GOOD = ("running", "ready", "finished", "stopped", "starting")


class Console(Sink):
    """lines: print a line a second even on a terminal."""

    consumes: ClassVar[tuple[type, ...]] = (Prediction, Health)
    is_display: ClassVar[bool] = True

    def __init__(self, *, lines: bool = False) -> None:
        self._live = sys.stdout.isatty() and not lines
        self._period_ns = REDRAW_NS if self._live else NS
        self._next_ns = 0
        self._troubles: dict[str, str] = {}

    def consume(self, arrival: Arrival) -> None:
        message = arrival.message
        if isinstance(message, Health):
            self._troubles = {n.node: n.state for n in message.nodes if n.state not in GOOD}
        elif isinstance(message, Prediction) and arrival.arrival_ns >= self._next_ns:
            self._next_ns = arrival.arrival_ns + self._period_ns
            self._show(line(message, self.context.clock.start_ns, self._troubles))

    def finish(self) -> None:
        if self._live:
            print(flush=True)

    def _show(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns
            print(f"\r\x1b[K{text[: width - 1]}", end="", flush=True)
        else:
            print(text, flush=True)


def line(prediction: Prediction, start_ns: int, troubles: dict[str, str]) -> str:
    """What a person wants to see of a prediction: when, what, how sure, who, how late, what is missing."""
    at_s = (prediction.capture_ns - start_ns) / NS
    p = float(prediction.probs.max()) if prediction.label else 0.0
    answer = f"{prediction.label or '—':<9}{f'{p:4.0%}' if prediction.label else '    '} {_bar(p)}"
    parts = [f"{at_s:7.1f} s", answer]
    if prediction.surroundings is None:
        faces = len(prediction.subjects)
        parts.append(
            f"{'no face' if not faces else f'face {prediction.subjects[0].id}' if faces == 1 else f'{faces} faces':<8}"
        )
    else:
        parts.append(_around(prediction.surroundings))
    if prediction.speaking is not None:
        parts.append("speaking" if prediction.speaking else "quiet   ")
    if (total_ns := prediction.timing_ns.get("total", 0)) >= 0:  # faster than it happened, in a replay: no latency
        parts.append(f"{total_ns / 1e6:4.0f} ms")
    if prediction.missing:
        parts.append(f"missing: {', '.join(prediction.missing)}")
    parts += [f"{node}: {state}" for node, state in troubles.items() if node not in prediction.missing]
    return "  ".join(parts)


def _around(surroundings: SceneState) -> str:
    ahead, events = surroundings.ahead, [sound.label for sound in surroundings.sounds[:1]]
    nearest = "" if ahead.nearest_m is None else f" {ahead.nearest_m:.1f} m"
    return "  ".join([f"ahead {ahead.state + nearest:<15}", f"{len(surroundings.obstacles):2d} obstacles", *events])


def _bar(share: float, cells: int = 10) -> str:
    eighths = round(share * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BAR[rest] if rest else "")).ljust(cells)
