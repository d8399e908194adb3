"""Judges a lens: PASS, WARN or FAIL, with the reason and the next step. Checks a known lens against new views.

Example:
    lens_verdict(estimate)
    verdict, estimate = check_lens(rig.camera("camera"), views)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.lens.coverage import cells, empty_side, tilts_deg
from calibration.lens.estimate import GOOD_VIEWS, MIN_VIEWS, Estimate, estimate_lens
from calibration.lens.observation import NamedObservation
from calibration.lens.uncertainty import difference_map, sigma_map
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.rig.intrinsics import Intrinsics

MAX_REJECTED = 0.4  # of the views: beyond it one cannot decide which part is right
GOOD_RMS, BAD_RMS = 0.5, 1.5  # px at 640 px of width, growing with the root of the width: sensors, blur and pixels do
GOOD_SIGMA, BAD_SIGMA = 0.0015, 0.005  # of the picture's width, worst place in it: 1 and 3 px at 640
HALVES_LIMIT = 3.0  # times the covariance's prediction
COVERED = 0.55  # of an 8 × 6 grid of cells
TILT_DEG = 15.0
CHECK_GOOD, CHECK_BAD = 0.0008, 0.002  # of the width: 0.5 and 1.3 px at 640, when a lens is checked against new views


def lens_verdict(estimate: Estimate) -> Verdict:
    lens, views, width_px = estimate.lens, estimate.views, estimate.lens.width_px
    width_factor = float(np.sqrt(max(width_px / 640, 1)))
    checks = [_of_views(estimate)]
    if estimate.start_retained:
        than = f"than the lens in the rig does ({estimate.start_holdout_px:.2f} px), which therefore stays"
        finding = f"the estimate predicts held-out views no better ({estimate.holdout_px:.2f} px) {than}"
        if np.isnan(estimate.holdout_px):
            finding = (
                "there are too few views to show that the estimate is better than the lens in the rig, "
                "which therefore stays"
            )
        checks.append(Check(Level.WARN, finding, "take more and sharper views to improve on it"))
    level = level_of(estimate.rms_px, GOOD_RMS * width_factor, BAD_RMS * width_factor)
    step = (
        ""
        if level is Level.PASS
        else "check that the board is flat and stiff, hold it still, and look at the overlays in the report"
    )
    checks.append(Check(level, f"model and corners agree to {estimate.rms_px:.2f} px RMS", step))
    if np.isfinite(estimate.holdout_px) and not estimate.start_retained:
        over = estimate.holdout_px > 1.4 * estimate.rms_px + 0.02
        checks.append(
            Check(
                Level.WARN if over else Level.PASS,
                f"held-out views agree to {estimate.holdout_px:.2f} px",
                "take more views: the lens is overfitted to these" if over else "",
            )
        )
    if lens.covariance is not None:
        checks.append(_of_uncertainty(estimate, width_px))
    if estimate.halves_ratio > HALVES_LIMIT and estimate.halves_px > GOOD_SIGMA * width_px / 3:
        checks.append(
            Check(
                Level.WARN,
                f"the lenses of the two halves of the views differ by {estimate.halves_px:.1f} px, "
                f"{estimate.halves_ratio:.1f} times what their noise explains",
                "look for a bent board, a changed focus or zoom, or image stabilisation",
            )
        )
    filled = cells(views, lens.size) > 0
    if filled.mean() < COVERED:
        checks.append(
            Check(
                Level.WARN,
                f"corners cover {filled.mean():.0%} of the picture",
                f"hold the board {empty_side(filled)} as well",
            )
        )
    if (tilt := float(np.max(tilts_deg(estimate.solution), initial=0.0))) < TILT_DEG:
        checks.append(
            Check(
                Level.WARN,
                f"no view is tilted by more than {tilt:.0f}°, so the focal length is not determined",
                "tilt the board by 20 to 45°",
            )
        )
    if abs(lens.fx_px / lens.fy_px - 1) > 0.03:
        checks.append(
            Check(
                Level.WARN,
                f"pixels are {100 * (lens.fx_px / lens.fy_px - 1):+.1f} % wider than high, unlike those of any camera",
                "check that the board was printed without stretching, and that --board is right",
            )
        )
    off_x, off_y = abs(lens.cx_px / lens.width_px - 0.5), abs(lens.cy_px / lens.height_px - 0.5)
    if max(off_x, off_y) > 0.25:
        checks.append(
            Check(
                Level.FAIL,
                "the optical axis lies near the picture's edge",
                "use uncropped pictures, with the board tilted, and in all corners of the picture",
            )
        )
    return judge(checks, then="use the rig, and keep the report")


def _of_views(estimate: Estimate) -> Check:
    used, rejected = len(estimate.views), len(estimate.rejected)
    finding = f"{used} views used" + (f", {rejected} rejected" if rejected else "")
    if rejected > MAX_REJECTED * (used + rejected):
        return Check(
            Level.FAIL,
            f"{rejected} of {used + rejected} views contradict the others",
            "see their reasons in the report, and take new pictures",
        )
    if used < MIN_VIEWS:
        return Check(Level.FAIL, f"only {finding}", f"take {GOOD_VIEWS} or more")
    if used < GOOD_VIEWS:
        return Check(
            Level.WARN, f"only {finding}", f"take {GOOD_VIEWS} or more: with fewer, one bad view is not detected"
        )
    return Check(Level.PASS, finding)


def _of_uncertainty(estimate: Estimate, width_px: int) -> Check:
    worst = float(np.nanmax(sigma_map(estimate.lens)))
    level = level_of(worst, GOOD_SIGMA * width_px, BAD_SIGMA * width_px)
    finding = f"projection is known to ±{worst:.2f} px (1 σ) at the worst place of the picture"
    if level is Level.PASS:
        return Check(level, finding)
    filled = cells(estimate.views, estimate.lens.size) > 0
    where = f", {empty_side(filled)} above all" if not filled.all() else ""
    return Check(level, finding, f"take more views: tilted by 20 to 45° in different directions{where}")


def check_lens(lens: Intrinsics, views: Sequence[NamedObservation]) -> tuple[Verdict, Estimate]:
    """Compares a known lens with the one estimated from new views: their largest difference in px.

    The RMS does not show it: poses compensate for a focal length wrong by 1 % (0.200 instead of 0.186 px on OpenCV's
    pictures), although points are then projected 4 px off. Raises ValueError below MIN_VIEWS views.
    """
    estimate = estimate_lens(views, lens.size, model=_key(lens))
    off, sigma = difference_map(estimate.lens, lens), sigma_map(estimate.lens)
    worst, at = float(np.nanmax(off)), np.unravel_index(np.nanargmax(off), off.shape)
    uncertainty_px = 3 * float(sigma[at])
    good, bad = CHECK_GOOD * lens.width_px, CHECK_BAD * lens.width_px
    finding = (
        f"the lens differs by up to {worst:.1f} px from the one estimated from these views "
        f"(known to ±{sigma[at]:.2f} px there)"
    )
    if worst > max(bad, uncertainty_px):
        focal = 100 * (lens.fx_px / estimate.lens.fx_px - 1)
        check = Check(Level.FAIL, f"{finding}; its focal length is off by {focal:+.2f} %", "calibrate the camera again")
    elif worst > max(good, uncertainty_px):
        check = Check(Level.WARN, finding, "calibrate again if pixels matter")
    elif float(np.nanmax(sigma)) > bad:
        check = Check(
            Level.WARN, f"{finding}, which is not enough to decide", "take more views, tilted and in all corners"
        )
    else:
        check = Check(Level.PASS, finding)
    return judge(
        [_of_views(estimate), check] if len(estimate.views) < GOOD_VIEWS else [check], then="nothing to do"
    ), estimate


def _key(lens: Intrinsics) -> str:
    """The key of LENS_MODELS that can represent this lens."""
    if lens.model != "radtan":
        return lens.model
    _, _, p1, p2, k3 = lens.distortion
    return "radtan" if k3 else "radtan4" if p1 or p2 else "radtan2"


def level_of(value: float, good: float, bad: float) -> Level:
    return Level.PASS if value <= good else Level.WARN if value <= bad else Level.FAIL
