"""The page about a camera's calibration: the lens, its uncertainty, residuals, views, overlays.

Example:
    camera_report.report(detected, estimate, verdict).write("report.html")
"""

from __future__ import annotations

import cv2
import numpy as np

from calibration.lens.coverage import cells, tilts_deg
from calibration.lens.estimate import Estimate
from calibration.lens.uncertainty import sigma_map
from calibration.lens.views import CameraViews
from calibration.report import charts
from calibration.report.page import Report
from calibration.verdict import Verdict

OVERLAYS = 6  # pictures in the report


def report(detected: CameraViews, estimate: Estimate, verdict: Verdict) -> Report:
    page = Report("Camera intrinsics", verdict)
    camera(page, detected, estimate)
    provenance(page, detected)
    return page


def provenance(page: Report, *cameras: CameraViews) -> None:
    board = cameras[0].board
    files = [path for detected in cameras for path in detected.files]
    page.provenance(files=files, notes=[("board", f"{board}, squares of {1000 * board.square_m:g} mm")])


def camera(page: Report, detected: CameraViews, estimate: Estimate, title: str = "") -> None:
    """All sections about one camera. title: prefix of the heading, if the page is about several cameras."""
    lens = estimate.lens
    if title:
        page.section(f"{title} camera")
    page.table(
        ("", "px"),
        [
            ("RMS over all corners", f"{estimate.rms_px:.3f}"),
            ("RMS over held-out views", f"{estimate.holdout_px:.3f}"),
            ("noise of one coordinate of one corner", f"{estimate.solution.sigma_px:.3f}"),
            ("worst difference between the lenses of two halves of the views", f"{estimate.halves_px:.2f}"),
        ],
    )
    page.section(
        "Lens",
        f"{detected.size[0]}×{detected.size[1]} pictures, distortion model {estimate.model}: "
        "the simplest one that predicts as well as any other.",
    )
    sigma = lens.sigma
    page.table(
        ("parameter", "value", "σ"),
        [
            (n, f"{v:.6g}", "unknown" if sigma is None else f"± {sigma[i]:.2g}" if sigma[i] else "fixed at 0")
            for i, (n, v) in enumerate(zip(lens.names, lens.parameters, strict=True))
        ],
    )
    page.table(("distortion model tried", "hold-out RMS, px"), [(n, f"{px:.4f}") for n, px in estimate.tried.items()])
    page.section(
        "Uncertainty of projection",
        "Due to noise in the corners, all over the picture, in px (1 σ), after the best rotation of the camera.",
    )
    if lens.covariance is not None:
        page.chart(charts.heat(sigma_map(lens), unit="px", size=lens.size), "Expected error of projection.")
    marks = np.concatenate([v.observation.pixels for v in estimate.views])
    page.chart(
        charts.heat(cells(estimate.views, lens.size), unit="corners", size=lens.size, marks=marks),
        "Coverage: corners in each part of the picture.",
    )
    page.section(
        "Residuals", "Measured minus projected corners. They should scatter around the origin in all directions."
    )
    residuals = [r for row in estimate.solution.residuals for r in row if r is not None]
    every = np.concatenate(residuals)
    group = np.concatenate([np.full(len(r), i) for i, r in enumerate(residuals)])
    reach = float(max(np.percentile(np.hypot(*every.T), 99), 1e-3))
    page.chart(
        charts.scatter(every[:, 0], every[:, 1], unit="px", reach=round(reach, 2) or reach, group=group),
        "Every corner, one colour per view.",
    )
    each = estimate.solution.view_rms_px()
    page.chart(charts.bars([v.name for v in estimate.views], list(each), unit="px"), "RMS of each view.")
    page.section("Views")
    tilts = tilts_deg(estimate.solution)
    distances = [
        float(np.linalg.norm((m @ (*detected.board.centre_m, 1))[:3])) for m in estimate.solution.camera_from_board
    ]
    page.table(
        ("view", "corners", "RMS, px", "tilt, °", "distance, m", "edge width, px", "corners left out"),
        [
            (
                v.name,
                len(v.observation.pixels),
                f"{px:.3f}",
                f"{t:.0f}",
                f"{d:.2f}",
                f"{detected.blurs.get(v.name, float('nan')):.1f}",
                str(estimate.dropped_corners.get(v.name, 0)),
            )
            for v, px, t, d in zip(estimate.views, each, tilts, distances, strict=True)
        ],
    )
    _overlays(page, detected, estimate)
    if estimate.rejected or detected.skipped:
        page.section("Not used")
        page.table(("picture", "why"), [*estimate.rejected.items(), *detected.skipped.items()])


def _overlays(page: Report, detected: CameraViews, estimate: Estimate) -> None:
    """The worst views first."""
    page.section(
        "Overlay",
        "Circles: detected corners. Lines: from there towards the projected corners, enlarged 20 times.",
    )
    order = np.argsort(-estimate.solution.view_rms_px())
    shown = [i for i in order if estimate.views[i].name in detected.grays][:OVERLAYS]
    for i in shown:
        view, residual = estimate.views[i], estimate.solution.residuals[i][0]
        assert residual is not None
        page.picture(overlay(detected.grays[view.name], view.observation.pixels, residual), f"{view.name}")
    for name in [n for n in estimate.rejected if n in detected.grays][:OVERLAYS]:
        page.picture(overlay(detected.grays[name], detected.views[name].pixels, None), f"{name}: rejected")


def overlay(gray: np.ndarray, pixels: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    image = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    thick = max(1, image.shape[1] // 640)
    for i, (u, v) in enumerate(pixels):
        centre = (round(u), round(v))
        cv2.circle(
            image, centre, 4 * thick, (60, 200, 60) if residual is not None else (60, 60, 230), thick, cv2.LINE_AA
        )
        if residual is not None:
            end = (round(u - 20 * residual[i, 0]), round(v - 20 * residual[i, 1]))
            cv2.line(image, centre, end, (40, 60, 255), thick, cv2.LINE_AA)
    return image


def failure(detected: CameraViews, verdict: Verdict) -> Report:
    """The page about pictures from which no lens could be estimated: what was detected in each."""
    page = Report("Camera intrinsics", verdict)
    page.section("Pictures")
    rows = [*((n, f"{len(c)} corners") for n, c in detected.views.items()), *detected.skipped.items()]
    page.table(("picture", "detected"), rows)
    page.provenance(files=detected.files)
    return page
