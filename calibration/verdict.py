"""PASS, WARN or FAIL with the reason and the next step: the result of every calibration.

A calibration is judged by checks. The verdict is the worst of them, and its reason names every check of that level, so
that nobody has to interpret a number.

Example:
    checks = [Check(Level.PASS, "13 views agree to 0.2 px"),
              Check(Level.WARN, "no view reaches the left edge", "hold the board there")]
    print(judge(checks))          # WARN: no view reaches the left edge. Next: hold the board there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.IntEnum):
    PASS = 0
    WARN = 1  # usable, with the stated doubt
    FAIL = 2  # not usable; nothing is written


@dataclass(frozen=True)
class Check:
    """finding: a clause without a full stop, with its figure and unit. next_step: what the user should do about it."""

    level: Level
    finding: str
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
    """The verdict is the worst of the checks. then: the next step of a PASS whose checks name none."""
    checks = tuple(checks)
    assert checks, "a verdict without a check"
    level = max(check.level for check in checks)
    worst = [check for check in checks if check.level == level]
    steps = dict.fromkeys(check.next_step for check in worst if check.next_step)
    return Verdict(level, "; ".join(check.finding for check in worst), "; ".join(steps) or then, checks)
