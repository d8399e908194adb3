"""Logits → probabilities, once for the live tasks, the checks of engines and the training.

Example:
    probs = softmax(logits, temperature=manifest.temperature)     # sums to 1 over the last axis
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats, *, temperature: float = 1.0) -> Floats:
    """Probabilities over the last axis, in the precision of `logits` (float64 for integers).

    Args:
        logits: (..., n), of any scale: the largest is subtracted first, so that nothing overflows.
        temperature: The logits are divided by it, as calibrated on held-back data (> 0; above 1: less certain).
    """
    powers = np.exp(_scaled(logits, temperature))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def log_softmax(logits: Floats, *, temperature: float = 1.0) -> Floats:
    """The logarithms of `softmax`, exact also where a probability is too small for a float."""
    scaled = _scaled(logits, temperature)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True)))


def _scaled(logits: Floats, temperature: float) -> Floats:
    scaled = np.asarray(logits) / float(temperature)
    return np.asarray(scaled - scaled.max(axis=-1, keepdims=True))
