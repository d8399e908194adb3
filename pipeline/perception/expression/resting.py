"""This session's neutral: what a person's resting face or voice looks like to the network is taken off what follows.

Some faces rest with the corners of the mouth down, some voices are always loud; to a network they are a little sad or angry
all day. The first seconds in which a person is seen (or heard) are taken for rest; from then on, each answer is moved by
how far that rest lay from the average person's, whose figures are in the manifests: `neutral_<label>` in the face model's,
`neutral_voice_<label>` in the fusion's, which met the voice on speakers it was not trained on.

    resting = Resting(average_neutral(manifest), seconds=3.0)
    log_probs = resting.update(log_probs, frame.capture_ns)      # moved, once three seconds have been seen
    resting.known                                                # True from then on
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.inference.manifest import Manifest

Floats = npt.NDArray[np.float32]

# How much of the difference is taken off, chosen on other actors than those it is judged on (evaluate baseline).
STRENGTH = 0.5
MAX_NS = NS // 2  # between two answers that belong together: what lies between them was not seen


class Resting:
    """average: (labels,) mean log-probabilities of people at rest. seconds: how much of a person's rest is looked at."""

    def __init__(self, average: Floats, *, seconds: float, strength: float = STRENGTH) -> None:
        self._average, self._wanted_ns, self._strength = average, round(seconds * NS), strength
        self._seen = np.zeros(len(average), np.float64)
        self._seen_ns, self._last_ns = 0, -1

    @property
    def known(self) -> bool:
        return self._seen_ns >= self._wanted_ns

    def update(self, log_probs: Floats, capture_ns: int) -> Floats:
        """(labels,) -> (labels,), normalised again. The same or an earlier moment adds nothing to the rest."""
        if not self.known and capture_ns > self._last_ns:
            elapsed_ns = (
                capture_ns - self._last_ns if 0 <= capture_ns - self._last_ns <= MAX_NS and self._last_ns >= 0 else 0
            )
            self._seen += log_probs.astype(np.float64) * elapsed_ns
            self._seen_ns += elapsed_ns
            self._last_ns = capture_ns
        return (
            moved(log_probs, np.asarray(self._seen / self._seen_ns), self._average, self._strength)
            if self.known
            else log_probs
        )


def moved(
    log_probs: npt.NDArray[np.floating],
    rest: npt.NDArray[np.floating],
    average: npt.NDArray[np.floating],
    strength: float,
) -> Floats:
    """log_probs: (..., labels); rest, average: (..., labels). Returns log-probabilities."""
    shifted = log_probs - strength * (rest - average)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)


def average_neutral(manifest: Manifest, which: str = "") -> Floats | None:
    """(labels,) of the model's own neutral, or None where its manifest does not tell it. which: "voice_" in a fusion's."""
    told = [manifest.metrics.get(f"neutral_{which}{label}") for label in manifest.labels]
    return None if None in told else np.array(told, np.float32)
