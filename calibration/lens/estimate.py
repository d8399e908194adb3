"""From the corners of many views to a lens that can be trusted, with what says so: pure, no files, no pictures.

Robust fit, views rejected with their reason, distortion model chosen by views it has not seen, halves compared.

    estimate = estimate_lens(views, size=(640, 480))
    estimate.lens, estimate.holdout_px, estimate.rejected, judged(estimate)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.lens.bundle import FREE, Sight, Solution, rms, solve, start
from calibration.lens.uncertainty import difference_map, sigma_map
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.rig.intrinsics import Intrinsics

FOLDS = 5
MIN_VIEWS = 3  # of a plane: fewer leave focal length and centre open
GOOD_VIEWS = 8
MAX_REJECTED = 0.4  # of the views: beyond it nobody knows which part is right
VIEW_LIMIT = 3.0  # of the median view's RMS: sharp views of one board lie within a factor of 1.6 of each other
CORNER_LIMIT, CORNER_LIMIT_PX = 8.0, 1.0  # of a coordinate's σ, and at least in px
# A richer model must predict unseen views better by this share: less is chance (seen on 13 views of 54 corners).
WORTH = 0.99
GOOD_RMS, BAD_RMS = 0.5, 1.5  # px at 640 px of width, growing with the root of the width: sensors, blur and pixels do
GOOD_SIGMA, BAD_SIGMA = 0.0015, 0.005  # of the picture's width, worst place in it: 1 and 3 px at 640
HALVES_LIMIT = 3.0  # times what the covariance foretells
COVERED = 0.55  # of an 8 × 6 grid of cells
CELLS = (8, 6)
TILT_DEG = 15.0
AGAINST_GOOD, AGAINST_BAD = 0.0008, 0.002  # of the width: 0.5 and 1.3 px at 640, when a rig is held against new views


@dataclass(frozen=True, eq=False)
class NamedSight:
    name: str
    sight: Sight


@dataclass(frozen=True)
class Estimate:
    """holdout_px: RMS over views that the lens was not fitted to, NaN with too few. halves_px: worst difference of the
    lenses of the two halves; halves_ratio: against what their covariance foretells. tried: model → hold-out RMS.
    """

    lens: Intrinsics
    model: str  # of bundle.FREE
    solution: Solution
    views: tuple[NamedSight, ...]
    rejected: dict[str, str]
    dropped_corners: dict[str, int]
    holdout_px: float
    tried: dict[str, float]
    halves_px: float
    halves_ratio: float
    start_holdout_px: float | None = None
    kept_start: bool = False

    @property
    def rms_px(self) -> float:
        return self.solution.rms_px


def estimate_lens(
    views: Sequence[NamedSight], size: tuple[int, int], *, model: str = "auto", first: Intrinsics | None = None
) -> Estimate:
    """model: of bundle.FREE, or "auto". first: a lens that is known already; what comes back predicts views it was not
    fitted to no worse than that. Raises ValueError below MIN_VIEWS views.
    """
    if len(views) < MIN_VIEWS:
        raise ValueError(f"{len(views)} views, and {MIN_VIEWS} are the fewest that fix a lens")
    began = {}
    for kind in _families(model):
        screened = _screening(kind, model, len(views))
        first_fit = _fit(views, start([v.sight for v in views], size, kind), screened)
        began[kind] = (float(np.median(first_fit.view_rms_px())), first_fit.lenses[0], screened)
    family = min(began, key=lambda k: began[k][0])
    kept, rejected, dropped = reject(views, began[family][1], began[family][2])
    known = {kind: lens for kind, (_, lens, _) in began.items()}
    tried: dict[str, float] = {}
    for name in _candidates(model, len(kept)):
        kind = FREE[name][0]
        fitted = _fit(kept, known.get(kind, known.get("radtan", began[family][1])), name)
        known[kind] = fitted.lenses[0]
        # Views it was not fitted to are never predicted better than those it was: one that does not fit better is out.
        if not tried or not fitted.rms_px > WORTH * min(tried.values()):
            tried[name] = holdout(kept, fitted.lenses[0], name)
    best = min((t for t in tried.values() if np.isfinite(t)), default=float("nan"))
    # In the order of their freedom: the first that is as good as any.
    chosen = next((n for n, t in tried.items() if not t * WORTH > best), next(iter(tried)))
    solution = _fit(kept, known[FREE[chosen][0]], chosen)
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
    return replace(estimate, lens=first, solution=given, start_holdout_px=given.rms_px, kept_start=True)


def reject(
    views: Sequence[NamedSight], lens: Intrinsics, model: str
) -> tuple[list[NamedSight], dict[str, str], dict[str, int]]:
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
                view = NamedSight(view.name, Sight(view.sight.points_m[good], view.sight.pixels[good]))
            cleaned.append(view)
        if all(len(a.sight.pixels) == len(b.sight.pixels) for a, b in zip(cleaned, kept, strict=True)):
            break
        kept = cleaned
    return kept, rejected, dropped


def _trimmed_rms(residual: np.ndarray) -> float:
    """Of a view without its worst tenth: single wrong corners are left out, and do not cost the view."""
    length = np.sort(np.hypot(*residual.T))
    return float(np.sqrt((length[: max(1, int(np.ceil(0.9 * len(length))))] ** 2).mean()))


def holdout(views: Sequence[NamedSight], lens: Intrinsics, model: str, folds: int = FOLDS) -> float:
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


def halves(views: Sequence[NamedSight], lens: Intrinsics, model: str) -> tuple[float, float]:
    """(worst difference in px between the lenses of the even and the odd views, RMS of it over what the covariance says).

    Each half has twice the variance of the whole, their difference four times.
    """
    if len(views) < 2 * MIN_VIEWS:
        return float("nan"), float("nan")
    first, second = (_fit(views[k::2], lens, model).lenses[0] for k in (0, 1))
    off = difference_map(first, second)
    foretold = sigma_map(first) ** 2 + sigma_map(second) ** 2
    return float(np.nanmax(off)), float(np.sqrt(np.nanmean(off**2) / max(np.nanmean(foretold), 1e-12)))


def _fit(views: Sequence[NamedSight], lens: Intrinsics, model: str) -> Solution:
    return solve([lens], [[v.sight] for v in views], [model])


def _poses_only(views: Sequence[NamedSight], lens: Intrinsics) -> Solution:
    return solve([lens], [[v.sight] for v in views], [lens.model], fixed=True)


def _families(model: str) -> list[str]:
    if model == "auto":
        return ["radtan", "fisheye"]
    return ["fisheye" if FREE[model][0] == "fisheye" else "radtan"]


def _candidates(model: str, views: int) -> list[str]:
    """A model with many coefficients needs views to tell them apart."""
    if model != "auto":
        return [model]
    return list(FREE) if views >= GOOD_VIEWS else ["radtan2", "radtan4", "fisheye"]


def _screening(kind: str, model: str, views: int) -> str:
    """The model that views are screened with: rich enough that a bent lens does not look like a bad view."""
    return (
        kind
        if model == "auto" and (kind == "fisheye" or views >= GOOD_VIEWS)
        else ("radtan2" if model == "auto" else model)
    )


# --- judging ----------------------------------------------------------------------------------------------------------


def cells(views: Sequence[NamedSight], size: tuple[int, int]) -> np.ndarray:
    """(6, 8): how many corners fell into each cell of the picture."""
    pixels = np.concatenate([v.sight.pixels for v in views])
    bounds = [[-0.5, size[1] - 0.5], [-0.5, size[0] - 0.5]]
    return np.array(np.histogram2d(pixels[:, 1], pixels[:, 0], bins=(CELLS[1], CELLS[0]), range=bounds)[0])


def tilts_deg(solution: Solution) -> np.ndarray:
    """Of each view: the angle between the board's normal and the optical axis."""
    return np.array([np.degrees(np.arccos(np.clip(abs(m[2, 2]), 0, 1))) for m in solution.camera_from_board])


def judged(estimate: Estimate) -> Verdict:
    lens, views, width_px = estimate.lens, estimate.views, estimate.lens.width_px
    grown = float(np.sqrt(max(width_px / 640, 1)))
    checks = [_of_views(estimate)]
    if estimate.kept_start:
        than = f"than the rig it started from ({estimate.start_holdout_px:.2f} px), which therefore stays"
        told = f"the refinement predicts views it was not fitted to no better ({estimate.holdout_px:.2f} px) {than}"
        if np.isnan(estimate.holdout_px):
            told = "with so few views nothing shows that the refinement is better than the rig it started from, which therefore stays"
        checks.append(Check(Level.WARN, told, "take more and sharper views if you want to improve on it"))
    level = _level(estimate.rms_px, GOOD_RMS * grown, BAD_RMS * grown)
    step = (
        ""
        if level is Level.PASS
        else "check that the board is flat and stiff, hold it still, and see the overlay pictures in the report"
    )
    checks.append(Check(level, f"model and corners agree to {estimate.rms_px:.2f} px RMS", step))
    if np.isfinite(estimate.holdout_px) and not estimate.kept_start:
        over = estimate.holdout_px > 1.4 * estimate.rms_px + 0.02
        checks.append(
            Check(
                Level.WARN if over else Level.PASS,
                f"views it was not fitted to, to {estimate.holdout_px:.2f} px",
                "take more views: these fit themselves and little else" if over else "",
            )
        )
    if lens.covariance is not None:
        checks.append(_of_uncertainty(estimate, width_px))
    if estimate.halves_ratio > HALVES_LIMIT and estimate.halves_px > GOOD_SIGMA * width_px / 3:
        checks.append(
            Check(
                Level.WARN,
                f"the two halves of the views give lenses {estimate.halves_px:.1f} px apart, {estimate.halves_ratio:.1f} times what "
                "their noise explains",
                "look for a bent board, a focus or zoom that moved, or pictures that were stabilised",
            )
        )
    filled = cells(views, lens.size) > 0
    if filled.mean() < COVERED:
        checks.append(
            Check(
                Level.WARN,
                f"corners cover {filled.mean():.0%} of the picture",
                f"hold the board {_empty_side(filled)} as well",
            )
        )
    if (tilt := float(np.max(tilts_deg(estimate.solution), initial=0.0))) < TILT_DEG:
        checks.append(
            Check(
                Level.WARN,
                f"no view is tilted by more than {tilt:.0f}°, which leaves the focal length open",
                "tilt the board by 20 to 45°",
            )
        )
    if abs(lens.fx_px / lens.fy_px - 1) > 0.03:
        checks.append(
            Check(
                Level.WARN,
                f"pixels come out {100 * (lens.fx_px / lens.fy_px - 1):+.1f} % wider than high, which next to no camera has",
                "check that the board was printed without stretching, and that --board is right",
            )
        )
    off_x, off_y = abs(lens.cx_px / lens.width_px - 0.5), abs(lens.cy_px / lens.height_px - 0.5)
    if max(off_x, off_y) > 0.25:
        checks.append(
            Check(
                Level.FAIL,
                "the optical axis comes out near the picture's edge",
                "use uncropped pictures, with the board tilted and in all corners",
            )
        )
    return judge(checks, then="use the rig, and keep the report")


def _of_views(estimate: Estimate) -> Check:
    kept, out = len(estimate.views), len(estimate.rejected)
    told = f"{kept} views used" + (f", {out} rejected" if out else "")
    if out > MAX_REJECTED * (kept + out):
        return Check(
            Level.FAIL,
            f"{out} of {kept + out} views contradict the others",
            "see their reasons in the report, and take new pictures",
        )
    if kept < MIN_VIEWS:
        return Check(Level.FAIL, f"only {told}", f"take {GOOD_VIEWS} or more")
    if kept < GOOD_VIEWS:
        return Check(Level.WARN, f"only {told}", f"take {GOOD_VIEWS} or more: with fewer, one bad view goes unnoticed")
    return Check(Level.PASS, told)


def _of_uncertainty(estimate: Estimate, width_px: int) -> Check:
    worst = float(np.nanmax(sigma_map(estimate.lens)))
    level = _level(worst, GOOD_SIGMA * width_px, BAD_SIGMA * width_px)
    told = f"projection is known to ±{worst:.2f} px (1 σ) at the worst place of the picture"
    if level is Level.PASS:
        return Check(level, told)
    filled = cells(estimate.views, estimate.lens.size) > 0
    where = f", {_empty_side(filled)} above all" if not filled.all() else ""
    return Check(level, told, f"take more views: tilted by 20 to 45° in different directions{where}")


def against(lens: Intrinsics, views: Sequence[NamedSight]) -> tuple[Verdict, Estimate]:
    """A lens that is known already against new views: how far the lens that they ask for is from it, in px.

    The RMS would not tell: poses make up for a focal length wrong by 1 % (0.200 instead of 0.186 px on OpenCV's pictures),
    although it puts things 4 px beside where they are. Raises ValueError below MIN_VIEWS views.
    """
    estimate = estimate_lens(views, lens.size, model=_key(lens))
    off, sigma = difference_map(estimate.lens, lens), sigma_map(estimate.lens)
    worst, at = float(np.nanmax(off)), np.unravel_index(np.nanargmax(off), off.shape)
    doubt = 3 * float(sigma[at])
    good, bad = AGAINST_GOOD * lens.width_px, AGAINST_BAD * lens.width_px
    told = f"the lens is up to {worst:.1f} px from what these views ask for (they know it to ±{sigma[at]:.2f} px there)"
    if worst > max(bad, doubt):
        focal = 100 * (lens.fx_px / estimate.lens.fx_px - 1)
        check = Check(Level.FAIL, f"{told}; its focal length is off by {focal:+.2f} %", "calibrate the camera again")
    elif worst > max(good, doubt):
        check = Check(Level.WARN, told, "calibrate again if pixels matter")
    elif float(np.nanmax(sigma)) > bad:
        check = Check(Level.WARN, f"{told}, which is too little to tell", "take more views, tilted and in all corners")
    else:
        check = Check(Level.PASS, told)
    return judge(
        [_of_views(estimate), check] if len(estimate.views) < GOOD_VIEWS else [check], then="nothing to do"
    ), estimate


def _key(lens: Intrinsics) -> str:
    """The key of FREE with which this lens was, or could have been, estimated."""
    if lens.model != "radtan":
        return lens.model
    _, _, p1, p2, k3 = lens.distortion
    return "radtan" if k3 else "radtan4" if p1 or p2 else "radtan2"


def _level(value: float, good: float, bad: float) -> Level:
    return Level.PASS if value <= good else Level.WARN if value <= bad else Level.FAIL


def _empty_side(filled: np.ndarray) -> str:
    """Where most is missing, in words, from the side of who looks at the picture."""
    rows, columns = filled.shape
    sides = {
        "at the left edge": filled[:, : columns // 4],
        "at the right edge": filled[:, -(columns // 4) :],
        "at the top edge": filled[: rows // 3],
        "at the bottom edge": filled[-(rows // 3) :],
    }
    return min(sides, key=lambda side: sides[side].mean())
