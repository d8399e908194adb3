"""Estimates a lens from the corners of many views, with the figures that say how far to trust it.

Robust fit; contradicting views rejected with their reason; the distortion model chosen by held-out views; the lenses of
two halves of the views compared. Pure: no files, no pictures. lens_verdict.py judges the result.

Example:
    estimate = estimate_lens(views, size=(640, 480))
    estimate.lens, estimate.holdout_px, estimate.rejected, lens_verdict(estimate)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from calibration.lens.bundle import Solution, rms, solve, start
from calibration.lens.lens_models import LENS_MODELS
from calibration.lens.observation import NamedObservation, Observation
from calibration.lens.uncertainty import difference_map, sigma_map
from pipeline.rig.intrinsics import Intrinsics

FOLDS = 5
MIN_VIEWS = 3  # of a plane: fewer do not determine focal length and centre
GOOD_VIEWS = 8
VIEW_LIMIT = 3.0  # times a usual view's RMS: sharp views of one board lie within a factor of 1.6 of each other
MIN_VIEW_LIMIT_PX = 0.05  # rendered views fit almost perfectly
CORNER_LIMIT, CORNER_LIMIT_PX = 8.0, 1.0  # times a coordinate's σ, and minimum in px
# A richer model must predict held-out views better by this share; less is chance (measured on 13 views of 54 corners).
WORTH = 0.99


View = TypeVar("View")  # one camera's observation, or several cameras'
Fitted = TypeVar("Fitted")


@dataclass(frozen=True)
class Estimate:
    """The result of estimate_lens().

    Attributes:
        model: A key of LENS_MODELS.
        views: Those used, without rejected views and dropped corners.
        rejected: View → reason.
        dropped_corners: View → number of corners left out.
        holdout_px: RMS over held-out views, which the lens was not fitted to; NaN with too few.
        tried: Model → hold-out RMS.
        halves_px: Worst difference between the lenses of the two halves of the views.
        halves_ratio: That difference relative to what their covariance predicts.
        start_holdout_px: RMS of the known lens over these views, if there was one.
        start_retained: The known lens predicts these views better, and replaces the estimate.
    """

    lens: Intrinsics
    model: str
    solution: Solution
    views: tuple[NamedObservation, ...]
    rejected: dict[str, str]
    dropped_corners: dict[str, int]
    holdout_px: float
    tried: dict[str, float]
    halves_px: float
    halves_ratio: float
    start_holdout_px: float | None = None
    start_retained: bool = False

    @property
    def rms_px(self) -> float:
        return self.solution.rms_px


def estimate_lens(
    views: Sequence[NamedObservation], size: tuple[int, int], *, model: str = "auto", first: Intrinsics | None = None
) -> Estimate:
    """Estimates one camera's lens.

    Args:
        views: At least MIN_VIEWS, else ValueError.
        size: (width, height) of the pictures in px.
        model: A key of LENS_MODELS, or "auto": the simplest one that predicts held-out views best.
        first: A known lens; the result predicts held-out views no worse than it does.
    """
    if len(views) < MIN_VIEWS:
        raise ValueError(f"{len(views)} views, and at least {MIN_VIEWS} are needed to determine a lens")
    starts = {}
    for kind in _families(model):
        screened = _screening(kind, model, len(views))
        first_fit = _fit(views, start([v.observation for v in views], size, kind), screened)
        starts[kind] = (float(np.median(first_fit.view_rms_px())), first_fit.lenses[0], screened)
    family = min(starts, key=lambda k: starts[k][0])
    agreeing, rejected, dropped = reject(views, starts[family][1], starts[family][2])
    known = {kind: lens for kind, (_, lens, _) in starts.items()}
    tried: dict[str, float] = {}
    for name in _candidates(model, len(agreeing)):
        kind = LENS_MODELS[name][0]
        fitted = _fit(agreeing, known.get(kind, known.get("radtan", starts[family][1])), name)
        known[kind] = fitted.lenses[0]
        # Held-out views are never predicted better than fitted ones: a model that does not fit better cannot win.
        if not tried or not fitted.rms_px > WORTH * min(tried.values()):
            tried[name] = holdout(agreeing, fitted.lenses[0], name)
    best = min((t for t in tried.values() if np.isfinite(t)), default=float("nan"))
    # In order of their number of free parameters: the first that is as good as any.
    chosen = next((n for n, t in tried.items() if not t * WORTH > best), next(iter(tried)))
    solution = _fit(agreeing, known[LENS_MODELS[chosen][0]], chosen)
    halves_px, ratio = halves(agreeing, solution.lenses[0], chosen)
    estimate = Estimate(
        solution.lenses[0], chosen, solution, tuple(agreeing), rejected, dropped, tried[chosen], tried, halves_px, ratio
    )
    return estimate if first is None else not_worse_than(estimate, first)


def not_worse_than(estimate: Estimate, first: Intrinsics) -> Estimate:
    """The estimate, or the known lens if that predicts the views better than the estimate predicts held-out views.

    The known lens was fitted to none of these views, so all of them are held out for it. With too few views to hold any
    out, it is retained.
    """
    by_first = _poses_only(estimate.views, first)
    if estimate.holdout_px < by_first.rms_px:
        return replace(estimate, start_holdout_px=by_first.rms_px)
    return replace(estimate, lens=first, solution=by_first, start_holdout_px=by_first.rms_px, start_retained=True)


def reject(
    views: Sequence[NamedObservation], lens: Intrinsics, model: str
) -> tuple[list[NamedObservation], dict[str, str], dict[str, int]]:
    """(agreeing views, the reason for each rejected one, the number of corners dropped from each agreeing view)."""
    agreeing = list(views)
    rejected: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for _ in range(6):
        solution = _fit(agreeing, lens, model)
        each = np.array([_trimmed_rms(row[0]) for row in solution.residuals if row[0] is not None])
        limit = view_limit_px(each)
        worst = float(each.max())
        if worst > limit:
            for view, own in zip(list(agreeing), each, strict=True):
                if own > limit and own > worst / 3:
                    rejected[view.name] = (
                        f"its corners disagree with the other views by {own:.2f} px (limit {limit:.2f} px)"
                    )
                    agreeing.remove(view)
            if len(agreeing) < MIN_VIEWS:
                break
            continue
        cleaned = []
        limit = max(CORNER_LIMIT * solution.sigma_px, CORNER_LIMIT_PX)
        for view, row in zip(agreeing, solution.residuals, strict=True):
            assert row[0] is not None
            good = np.hypot(*row[0].T) <= limit
            if not good.all():
                dropped[view.name] = dropped.get(view.name, 0) + int((~good).sum())
                view = NamedObservation(
                    view.name, Observation(view.observation.points_m[good], view.observation.pixels[good])
                )
            cleaned.append(view)
        if all(len(a.observation.pixels) == len(b.observation.pixels) for a, b in zip(cleaned, agreeing, strict=True)):
            break
        agreeing = cleaned
    return agreeing, rejected, dropped


def view_limit_px(rms_px: np.ndarray) -> float:
    """RMS beyond which a view is rejected, from the RMS of all views."""
    # The 40th percentile belongs to a good view even if half of the views are bad.
    return max(VIEW_LIMIT * float(np.percentile(rms_px, 40)), MIN_VIEW_LIMIT_PX)


def _trimmed_rms(residual: np.ndarray) -> float:
    """RMS without the worst tenth: single wrong corners are dropped later, and must not reject the view."""
    length = np.sort(np.hypot(*residual.T))
    return float(np.sqrt((length[: max(1, int(np.ceil(0.9 * len(length))))] ** 2).mean()))


def holdout(views: Sequence[NamedObservation], lens: Intrinsics, model: str) -> float:
    """RMS in px over held-out views, whose poses are estimated with the lens of the others."""
    return holdout_rms(
        views,
        fit=lambda others: _fit(others, lens, model).lenses[0],
        residuals=lambda fitted, held_out: [
            r for row in _poses_only(held_out, fitted).residuals for r in row if r is not None
        ],
    )


def holdout_rms(
    views: Sequence[View],
    *,
    fit: Callable[[Sequence[View]], Fitted],
    residuals: Callable[[Fitted, Sequence[View]], list[np.ndarray]],
) -> float:
    """RMS in px over held-out views: every view is held out once, in FOLDS folds. NaN with too few views."""
    if len(views) < MIN_VIEWS + 1:
        return float("nan")
    folds, held_out_residuals = min(FOLDS, len(views)), list[np.ndarray]()
    for fold in range(folds):
        fitted = fit([v for i, v in enumerate(views) if i % folds != fold])
        held_out_residuals += residuals(fitted, views[fold::folds])
    return rms(held_out_residuals)


def halves(views: Sequence[NamedObservation], lens: Intrinsics, model: str) -> tuple[float, float]:
    """(worst difference in px between the lenses of even and odd views, its RMS relative to the predicted one).

    Each half has twice the variance of the whole, their difference four times.
    """
    if len(views) < 2 * MIN_VIEWS:
        return float("nan"), float("nan")
    first, second = (_fit(views[k::2], lens, model).lenses[0] for k in (0, 1))
    off = difference_map(first, second)
    predicted = sigma_map(first) ** 2 + sigma_map(second) ** 2
    return float(np.nanmax(off)), float(np.sqrt(np.nanmean(off**2) / max(np.nanmean(predicted), 1e-12)))


def _fit(views: Sequence[NamedObservation], lens: Intrinsics, model: str) -> Solution:
    return solve([lens], [[v.observation] for v in views], [model])


def _poses_only(views: Sequence[NamedObservation], lens: Intrinsics) -> Solution:
    return solve([lens], [[v.observation] for v in views], [lens.model], fixed=True)


def _families(model: str) -> list[str]:
    if model == "auto":
        return ["radtan", "fisheye"]
    return ["fisheye" if LENS_MODELS[model][0] == "fisheye" else "radtan"]


def _candidates(model: str, views: int) -> list[str]:
    """Models to try: one with many coefficients needs many views to determine them."""
    if model != "auto":
        return [model]
    return list(LENS_MODELS) if views >= GOOD_VIEWS else ["radtan2", "radtan4", "fisheye"]


def _screening(kind: str, model: str, views: int) -> str:
    """The model for rejecting views: rich enough that distortion is not mistaken for a bad view."""
    return (
        kind
        if model == "auto" and (kind == "fisheye" or views >= GOOD_VIEWS)
        else ("radtan2" if model == "auto" else model)
    )
