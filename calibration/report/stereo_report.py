"""The page about a stereo pair: the pose between the cameras, the residuals of each pair, then each camera alone.

Example:
    report(left, right, estimate, verdict, pose).write("stereo.html")
"""

from __future__ import annotations

import numpy as np

from calibration.lens.stereo import StereoEstimate
from calibration.lens.views import CameraViews
from calibration.report import camera_report, charts
from calibration.report.page import Report
from calibration.verdict import Verdict
from pipeline.rig.rig import Pose
from pipeline.rig.transforms import rotation_to_vector


def pose_text(pose: Pose) -> str:
    turn, move, sigma = (
        np.degrees(rotation_to_vector(pose.target_from_source[:3, :3])),
        1000 * pose.target_from_source[:3, 3],
        pose.sigma,
    )
    assert sigma is not None
    translation = ", ".join(f"{v:.2f} ± {1000 * s:.2f}" for v, s in zip(move, sigma[3:], strict=True))
    rotation = ", ".join(f"{v:.3f} ± {np.degrees(s):.3f}" for v, s in zip(turn, sigma[:3], strict=True))
    return f"{pose.target}_from_{pose.source}: translation {translation} mm; rotation vector {rotation} °"


def report(left: CameraViews, right: CameraViews, estimate: StereoEstimate, verdict: Verdict, pose: Pose) -> Report:
    page = Report("Stereo cameras", verdict)
    page.section("Pair", pose_text(pose))
    page.table(
        ("", "px"),
        [
            ("RMS over all corners of both cameras", f"{estimate.solution.rms_px:.3f}"),
            ("RMS over held-out pairs", f"{estimate.holdout_px:.3f}"),
        ],
    )
    page.chart(charts.bars(list(estimate.names), list(estimate.solution.view_rms_px()), unit="px"), "RMS of each pair.")
    apart = [(names, why) for names, why in estimate.rejected.items() if ", " in names]
    if apart:
        page.table(("pair not used", "why"), apart)
    page.text("The following sections are about each camera alone, before both were refined together.")
    camera_report.camera(page, left, estimate.first, "Left")
    camera_report.camera(page, right, estimate.second, "Right")
    camera_report.provenance(page, left, right)
    return page
