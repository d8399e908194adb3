"""When a view or board of 6 degrees of freedom is an outlier, in terms of its chi-square misfit.

A view is rejected if its misfit exceeds CHANCE_1_IN_10000 times the usual misfit, because real boards bend and lidars
have
biases: the usual misfit is the median, but at least that of pure noise.
"""

from __future__ import annotations

import numpy as np

from calibration.pose import Floats

CHANCE_1_IN_10000 = 27.9  # with 6 degrees of freedom, chance exceeds this in one of 10,000 cases
MEDIAN_OF_SIX = 5.35  # median with 6 degrees of freedom


def usual_misfit(misfits: Floats) -> float:
    """Median misfit relative to that of pure noise, at least 1."""
    return max(1.0, float(np.median(misfits)) / MEDIAN_OF_SIX)
