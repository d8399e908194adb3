"""PASS, WARN or FAIL, in plain words, with the reason and the next step: the answer of everything that calibrates.

A calibration is judged by checks, each of which found something good, doubtful or bad. The verdict is the worst of them,
and its reason names every check of that level, so that nobody has to interpret a number.

    checks = [Check(Level.PASS, "13 views agree to 0.2 px"), Check(Level.WARN, "no view reaches the left edge", "hold the board there")]
    verdict = judge(checks)
    print(verdict)          # WARN: no view reaches the left edge. Next: hold the board there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.IntEnum):
    PASS = 0
    WARN = 1  # usable, with a doubt that is told
    FAIL = 2  # not to be used; nothing is written


@dataclass(frozen=True)
class Check:
    """found: a clause without a full stop, with its figure and unit. next_step: what the person does about it."""

    level: Level
    found: str
    next_step: str = ""


@dataclass(frozen=True)
class Verdict:
    level: Level
    reason: str
    next_step: str
    checks: tuple[Check, ...] = ()

    @property
    def failed(self) -> bool:
        return self.level is Level.FAIL

    def __str__(self) -> str:
        step = f" Next: {self.next_step}." if self.next_step else ""
        return f"{self.level.name}: {self.reason}.{step}"


def judge(checks: Iterable[Check], *, then: str = "") -> Verdict:
    """The worst of the checks speaks. then: the next step of a PASS that its checks do not name."""
    checks = tuple(checks)
    assert checks, "a verdict without a check"
    level = max(check.level for check in checks)
    speaking = [check for check in checks if check.level == level]
    steps = dict.fromkeys(check.next_step for check in speaking if check.next_step)
    return Verdict(level, "; ".join(check.found for check in speaking), "; ".join(steps) or then, checks)
