"""Console: predictions as one live line on the terminal; where standard output is no terminal, a line a second."""

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
HEALTHY = ("running", "ready", "finished", "stopped", "starting")


class Console(Sink):
    """The newest prediction and the nodes in trouble, as text.

    Args:
        lines: true: print a line a second on a terminal too. Default false: the line is redrawn in place.
    """

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
            self._troubles = {n.node: n.state for n in message.nodes if n.state not in HEALTHY}
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
    """Time, label, probability, faces, latency and missing streams of a prediction, for people."""
    at_s = (prediction.capture_ns - start_ns) / NS
    p = float(prediction.probs.max()) if prediction.label else 0.0
    label = f"{prediction.label or '—':<9}{f'{p:4.0%}' if prediction.label else '    '} {_bar(p)}"
    parts = [f"{at_s:7.1f} s", label]
    if prediction.surroundings is None:
        faces = len(prediction.subjects)
        parts.append(
            f"{'no face' if not faces else f'face {prediction.subjects[0].id}' if faces == 1 else f'{faces} faces':<8}"
        )
    else:
        parts.append(_scene(prediction.surroundings))
    if prediction.speaking is not None:
        parts.append("speaking" if prediction.speaking else "quiet   ")
    if (
        total_ns := prediction.timing_ns.get("total", 0)
    ) >= 0:  # negative in a replay that is faster than the recorded run
        parts.append(f"{total_ns / 1e6:4.0f} ms")
    if prediction.missing:
        parts.append(f"missing: {', '.join(prediction.missing)}")
    parts += [f"{node}: {state}" for node, state in troubles.items() if node not in prediction.missing]
    return "  ".join(parts)


def _scene(surroundings: SceneState) -> str:
    ahead, events = surroundings.ahead, [sound.label for sound in surroundings.sounds[:1]]
    distance = "" if ahead.nearest_m is None else f" {ahead.nearest_m:.1f} m"
    return "  ".join([f"ahead {ahead.state + distance:<15}", f"{len(surroundings.obstacles):2d} obstacles", *events])


def _bar(share: float, cells: int = 10) -> str:
    eighths = round(share * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BAR[rest] if rest else "")).ljust(cells)
