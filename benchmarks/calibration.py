"""Camera calibration against known truth and real pictures: accuracy, coverage of its intervals, and what it rejects.

    python -m benchmarks.calibration [--json out.json] [--trials 200]

Real: OpenCV's chessboards from Debian's opencv-doc (left out if they are not installed). Rendered: ChArUco pictures
through a known lens. Simulated: corners with Gaussian noise of 0.2 px, 10 views per trial; an interval is right if the
truth is inside the stated 95 %.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.calibration_sensors import sensors
from calibration.board.board import Board
from calibration.board.detect import Corners, Detector
from calibration.lens import simulate
from calibration.lens.bundle import solve
from calibration.lens.estimate import estimate_lens
from calibration.lens.lens_verdict import check_lens
from calibration.lens.observation import NamedObservation, Observation
from calibration.lens.stereo import estimate_stereo
from calibration.lens.uncertainty import difference_map, sensitivity
from calibration.lens.views import detect_views
from pipeline.rig.intrinsics import Intrinsics

EXAMPLES = Path("/usr/share/doc/opencv-doc/examples/data")
LENS = Intrinsics("radtan", 640, 480, 520, 522, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
CHESS, CHARUCO = Board.parse("9x6", square_mm=25), Board.parse("charuco:9x7", square_mm=25)
MODEL = "radtan4"


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--trials", type=int, default=200)
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    if (EXAMPLES / "left01.jpg").exists():
        figures["real"] = real()
    figures["rendered"] = rendered()
    figures["intervals"] = intervals(options.trials)
    figures |= dict(sensors(options.trials))
    for name, rows in figures.items():
        print(name)
        for label, value in rows.items():
            print(f"  {label:<74}{value:>20}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def real() -> dict[str, Any]:
    """OpenCV's own calibration of these pictures: 0.195 (left), 0.207 (right) and 0.217 px (stereo)."""
    left, right = (detect_views([str(EXAMPLES / f"{side}[01]*.jpg")], CHESS) for side in ("left", "right"))
    pair = estimate_stereo(CHESS, left, right)
    first, second = pair.first, pair.second
    wrong = replace(first.lens, fx_px=first.lens.fx_px * 1.01, fy_px=first.lens.fy_px * 1.01)
    rng = np.random.default_rng(0)
    noisy = [
        NamedObservation(
            v.name,
            Observation(
                v.observation.points_m,
                v.observation.pixels + rng.normal(size=v.observation.pixels.shape) * (2.0 if i % 5 == 1 else 0),
            ),
        )
        for i, v in enumerate(first.views)
    ]
    return {
        "views used, left / right / pairs": f"{len(first.views)} / {len(second.views)} / {len(pair.names)}",
        "RMS, left / right / stereo, px": f"{first.rms_px:.3f} / {second.rms_px:.3f} / {pair.solution.rms_px:.3f}",
        "hold-out RMS, left / right / stereo, px": " / ".join(f"{e.holdout_px:.3f}" for e in (first, second, pair)),
        "model chosen, left / right": f"{first.model} / {second.model}",
        "a focal length wrong by 1 %": check_lens(wrong, first.views)[0].level.name,
        "of 3 views in 13 with 2 px of added noise: rejected": len(
            estimate_lens(noisy, first.lens.size, model=MODEL).rejected
        ),
    }


def rendered(count: int = 16) -> dict[str, Any]:
    rng, detector = np.random.default_rng(7), Detector(CHARUCO)
    renderer = simulate.Renderer(CHARUCO, LENS)
    errors, views = [], []
    for i, pose in enumerate(simulate.board_poses(CHARUCO, LENS, count, rng, whole=False)):
        corners, true = detector.find(renderer.render(pose, rng=rng)), simulate.true_corners(CHARUCO, LENS, pose)
        if isinstance(corners, Corners):
            _, at, there = np.intersect1d(corners.ids, true.ids, return_indices=True)
            errors.append(corners.pixels[at] - true.pixels[there])
            views.append(NamedObservation(f"{i}", Observation(CHARUCO.points_m[corners.ids], corners.pixels)))
    every, estimate = np.concatenate(errors), estimate_lens(views, LENS.size)
    sigma = estimate.lens.sigma
    assert sigma is not None
    return {
        "pictures with the board / corners": f"{len(views)} of {count} / {len(every)}",
        "corner, σ of a coordinate, px": f"{every.std():.3f}",
        "model chosen": estimate.model,
        "fx: error / stated σ, px": f"{estimate.lens.fx_px - LENS.fx_px:+.3f} / {sigma[0]:.3f}",
        "projection: largest difference to the truth, px": f"{np.nanmax(difference_map(LENS, estimate.lens)):.3f}",
    }


def intervals(trials: int, *, count: int = 10, noise_px: float = 0.2) -> dict[str, Any]:
    moved = sensitivity(LENS)
    held, held_px = [], []
    for seed in range(trials):
        rng = np.random.default_rng(1000 + seed)
        poses = simulate.board_poses(CHESS, LENS, count, rng)
        views = simulate.corner_views(CHESS, LENS, poses, noise_px=noise_px, rng=rng)
        lens = solve([replace(LENS, distortion=())], [[v.observation] for v in views], [MODEL]).lenses[0]
        assert lens.sigma is not None and lens.covariance is not None
        off = lens.parameters - LENS.parameters
        held.append((np.abs(off) <= 1.96 * lens.sigma)[:8])
        sigma_px = np.sqrt(np.einsum("ij,jk,ik->i", moved, lens.covariance, moved))
        held_px.append((np.abs(moved @ off) <= 1.96 * sigma_px).mean())
    each = np.mean(held, axis=0)
    return {
        "trials": trials,
        **{
            f"{name}: truth inside the stated 95 %, %": f"{100 * share:.1f}"
            for name, share in zip(LENS.names, each, strict=False)
        },
        "all parameters, %": f"{100 * each.mean():.1f}",
        "projection all over the picture, %": f"{100 * np.mean(held_px):.1f}",
    }


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
