"""From the corners of many views to a lens that can be trusted, with what says so: pure, no files, no pictures.

Robust fit, views rejected with their reason, distortion model chosen by views it has not seen, halves compared.

    estimate = estimate_lens(views, size=(640, 480))
    estimate.lens, estimate.holdout_px, estimate.rejected, judged(estimate)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.lens.bundle import Solution, rms, solve, start
from calibration.lens.lens_models import LENS_MODELS
from calibration.lens.observation import NamedObservation, Observation
from calibration.lens.uncertainty import difference_map, sigma_map
from pipeline.rig.intrinsics import Intrinsics

FOLDS = 5
MIN_VIEWS = 3  # of a plane: fewer leave focal length and centre open
GOOD_VIEWS = 8
VIEW_LIMIT = 3.0  # of the median view's RMS: sharp views of one board lie within a factor of 1.6 of each other
CORNER_LIMIT, CORNER_LIMIT_PX = 8.0, 1.0  # of a coordinate's σ, and at least in px
# A richer model must predict unseen views better by this share: less is chance (seen on 13 views of 54 corners).
WORTH = 0.99


@dataclass(frozen=True)
class Estimate:
    """holdout_px: RMS over views that the lens was not fitted to, NaN with too few. halves_px: worst difference of the
    lenses of the two halves; halves_ratio: against what their covariance foretells. tried: model → hold-out RMS.
    """

    lens: Intrinsics
    model: str  # of bundle.LENS_MODELS
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
    """model: of bundle.LENS_MODELS, or "auto". first: a lens that is known already; what comes back predicts views it was not
    fitted to no worse than that. Raises ValueError below MIN_VIEWS views.
    """
    if len(views) < MIN_VIEWS:
        raise ValueError(f"{len(views)} views, and {MIN_VIEWS} are the fewest that fix a lens")
    began = {}
    for kind in _families(model):
        screened = _screening(kind, model, len(views))
        first_fit = _fit(views, start([v.observation for v in views], size, kind), screened)
        began[kind] = (float(np.median(first_fit.view_rms_px())), first_fit.lenses[0], screened)
    family = min(began, key=lambda k: began[k][0])
    kept, rejected, dropped = reject(views, began[family][1], began[family][2])
    known = {kind: lens for kind, (_, lens, _) in began.items()}
    tried: dict[str, float] = {}
    for name in _candidates(model, len(kept)):
        kind = LENS_MODELS[name][0]
        fitted = _fit(kept, known.get(kind, known.get("radtan", began[family][1])), name)
        known[kind] = fitted.lenses[0]
        # Views it was not fitted to are never predicted better than those it was: one that does not fit better is out.
        if not tried or not fitted.rms_px > WORTH * min(tried.values()):
            tried[name] = holdout(kept, fitted.lenses[0], name)
    best = min((t for t in tried.values() if np.isfinite(t)), default=float("nan"))
    # In the order of their freedom: the first that is as good as any.
    chosen = next((n for n, t in tried.items() if not t * WORTH > best), next(iter(tried)))
    solution = _fit(kept, known[LENS_MODELS[chosen][0]], chosen)
    halves_px, ratio = halves(kept, solution.lenses[0], chosen)
    estimate = Estimate(
        solution.lenses[0], chosen, solution, tuple(kept), rejected, dropped, tried[chosen], tried, halves_px, ratio
    )
    return estimate if first is None else not_worse_than(estimate, first)


def not_worse_than(estimate: Estimate, first: Intrinsics) -> Estimate:
    """The estimate, or its start where that predicts the views better than the estimate predicts views it was not fitted to.

    The start has seen none of these views, so all of them are held out for it. With too few to hold any out, it stays.
    """
    given = _poses_only(estimate.views, first)
    if estimate.holdout_px < given.rms_px:
        return replace(estimate, start_holdout_px=given.rms_px)
    return replace(estimate, lens=first, solution=given, start_holdout_px=given.rms_px, start_retained=True)


def reject(
    views: Sequence[NamedObservation], lens: Intrinsics, model: str
) -> tuple[list[NamedObservation], dict[str, str], dict[str, int]]:
    """(views that agree, why each other one does not, corners left out of each view that stays)."""
    kept = list(views)
    rejected: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for _ in range(6):
        solution = _fit(kept, lens, model)
        each = np.array([_trimmed_rms(row[0]) for row in solution.residuals if row[0] is not None])
        # Not the median: it is an honest view's even where half of the views are not.
        usual = float(np.percentile(each, 40))
        limit = max(VIEW_LIMIT * usual, 0.05)
        worst = float(each.max())
        if worst > limit:
            for view, own in zip(list(kept), each, strict=True):
                if own > limit and own > worst / 3:
                    rejected[view.name] = (
                        f"its corners disagree with the other views by {own:.2f} px (theirs: {usual:.2f} px)"
                    )
                    kept.remove(view)
            if len(kept) < MIN_VIEWS:
                break
            continue
        cleaned = []
        limit = max(CORNER_LIMIT * solution.sigma_px, CORNER_LIMIT_PX)
        for view, row in zip(kept, solution.residuals, strict=True):
            assert row[0] is not None
            good = np.hypot(*row[0].T) <= limit
            if not good.all():
                dropped[view.name] = dropped.get(view.name, 0) + int((~good).sum())
                view = NamedObservation(
                    view.name, Observation(view.observation.points_m[good], view.observation.pixels[good])
                )
            cleaned.append(view)
        if all(len(a.observation.pixels) == len(b.observation.pixels) for a, b in zip(cleaned, kept, strict=True)):
            break
        kept = cleaned
    return kept, rejected, dropped


def _trimmed_rms(residual: np.ndarray) -> float:
    """Of a view without its worst tenth: single wrong corners are left out, and do not cost the view."""
    length = np.sort(np.hypot(*residual.T))
    return float(np.sqrt((length[: max(1, int(np.ceil(0.9 * len(length))))] ** 2).mean()))


def holdout(views: Sequence[NamedObservation], lens: Intrinsics, model: str, folds: int = FOLDS) -> float:
    """RMS in px over views that the lens was not fitted to (their poses were): every view is held out once."""
    folds = min(folds, len(views))
    if len(views) < MIN_VIEWS + 1:
        return float("nan")
    residuals = []
    for fold in range(folds):
        others = [v for i, v in enumerate(views) if i % folds != fold]
        if len(others) < MIN_VIEWS:
            return float("nan")
        fitted = _fit(others, lens, model).lenses[0]
        residuals += [r for row in _poses_only(views[fold::folds], fitted).residuals for r in row if r is not None]
    return rms(residuals)


def halves(views: Sequence[NamedObservation], lens: Intrinsics, model: str) -> tuple[float, float]:
    """(worst difference in px between the lenses of the even and the odd views, RMS of it over what the covariance says).

    Each half has twice the variance of the whole, their difference four times.
    """
    if len(views) < 2 * MIN_VIEWS:
        return float("nan"), float("nan")
    first, second = (_fit(views[k::2], lens, model).lenses[0] for k in (0, 1))
    off = difference_map(first, second)
    foretold = sigma_map(first) ** 2 + sigma_map(second) ** 2
    return float(np.nanmax(off)), float(np.sqrt(np.nanmean(off**2) / max(np.nanmean(foretold), 1e-12)))


def _fit(views: Sequence[NamedObservation], lens: Intrinsics, model: str) -> Solution:
    return solve([lens], [[v.observation] for v in views], [model])


def _poses_only(views: Sequence[NamedObservation], lens: Intrinsics) -> Solution:
    return solve([lens], [[v.observation] for v in views], [lens.model], fixed=True)


def _families(model: str) -> list[str]:
    if model == "auto":
        return ["radtan", "fisheye"]
    return ["fisheye" if LENS_MODELS[model][0] == "fisheye" else "radtan"]


def _candidates(model: str, views: int) -> list[str]:
    """A model with many coefficients needs views to tell them apart."""
    if model != "auto":
        return [model]
    return list(LENS_MODELS) if views >= GOOD_VIEWS else ["radtan2", "radtan4", "fisheye"]


def _screening(kind: str, model: str, views: int) -> str:
    """The model that views are screened with: rich enough that a bent lens does not look like a bad view."""
    return (
        kind
        if model == "auto" and (kind == "fisheye" or views >= GOOD_VIEWS)
        else ("radtan2" if model == "auto" else model)
    )
