"""The offset between two sensors' timestamps: a signed number with its interval, or "unknown" with the reason.

Positive means that sounds are timestamped before the pictures they belong to, so the sound leads, as in ITU-R BT.1359.
"""

from __future__ import annotations

from typing import NamedTuple

from calibration.verdict import Check, Level

# ITU-R BT.1359-1: ms by which sound may lead (+) or lag (−) the picture before people notice, and before they object.
NOTICED_MS = (-125.0, 45.0)
ACCEPTED_MS = (-185.0, 90.0)
HINT = "clap ten times in view of the camera, not in a regular beat; or let one person talk for 20 s, facing the camera"


class Answer(NamedTuple):
    offset_ms: float
    sigma_ms: float
    interval_ms: tuple[float, float]  # 95 %
    how: str  # "20 claps or flashes", "a mouth and its voice"
    unknown: str = ""  # the reason; the numbers must then not be used

    def __str__(self) -> str:
        if self.unknown:
            return f"unknown: {self.unknown}"
        low, high = self.interval_ms
        return f"{self.offset_ms:+.1f} ms ({low:+.1f} to {high:+.1f}, 95 %) by {self.how}: {self.meaning}"

    @property
    def meaning(self) -> str:
        """What the number means for a viewer."""
        lead = f"the sound {'leads' if self.offset_ms > 0 else 'lags'} the picture by {abs(self.offset_ms):.0f} ms"
        low, high = NOTICED_MS
        if low <= self.offset_ms <= high:
            return f"{lead}; people do not notice that (ITU-R BT.1359: from {low:+.0f} to {high:+.0f} ms)"
        if ACCEPTED_MS[0] <= self.offset_ms <= ACCEPTED_MS[1]:
            return (
                f"{lead}; people notice that (ITU-R BT.1359: beyond {low:+.0f} and {high:+.0f} ms) but mostly accept it"
            )
        return (
            f"{lead}; people object to that (ITU-R BT.1359: beyond {ACCEPTED_MS[0]:+.0f} and {ACCEPTED_MS[1]:+.0f} ms)"
        )

    def check(self) -> Check:
        if self.unknown:
            return Check(Level.FAIL, f"the offset is unknown: {self.unknown}", HINT)
        return Check(Level.PASS, str(self))
