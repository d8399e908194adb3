"""calibrate ground: finds the ground in clouds and writes the base frame it defines into a rig.

Example:
    python run_pipeline.py calibrate ground clouds/0001.pcd --sensor lidar --out rig.yaml
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from calibration.clouds import read_points
from calibration.ground import UP, base_from_ground, find_ground
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_file import load_rig, save_rig

LOOSE_DEG, LOOSE_M = 0.5, 0.05  # beyond: WARN


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cloud", type=Path, nargs="+", help="clouds (.pcd, .bin, .npy, .csv) of open, level ground")
    parser.add_argument("--sensor", default="lidar", help="name of the sensor in the rig (default: lidar)")
    parser.add_argument(
        "--up",
        default="z",
        choices=tuple(UP),
        help="the sensor's axis that points up (default: z; for a depth camera: -y)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="the pose is written there; the rest of the file stays"
    )


def run(args: argparse.Namespace) -> Verdict:
    planes = [find_ground(read_points(path), up=UP[args.up]) for path in args.cloud]
    plane = min(planes, key=lambda p: abs(p.height_m - float(np.median([q.height_m for q in planes]))))
    pose, covariance = base_from_ground(plane)
    tilt_deg = math.degrees(math.acos(min(1.0, float(plane.normal @ np.array(UP[args.up])))))
    height, tilt = f"{plane.height_m:.3f} ± {plane.sigma_m:.3f} m", f"{tilt_deg:.2f} ± {plane.sigma_deg:.2f}°"
    print(f"  the sensor is {height} above the ground, tilted by {tilt} (1 σ)")
    checks = [Check(Level.PASS, f"{plane.points} points lie on the ground to {1000 * plane.rms_m:.0f} mm (RMS)")]
    if plane.sigma_deg > LOOSE_DEG:
        finding = f"the ground's tilt is only known to {plane.sigma_deg:.1f}°"
        checks.append(Check(Level.WARN, finding, "take the capture on more open, level ground"))
    apart_m = max(p.height_m for p in planes) - min(p.height_m for p in planes)
    if len(planes) > 1 and apart_m > LOOSE_M:
        finding = f"the ground's height differs by {1000 * apart_m:.0f} mm between the clouds"
        checks.append(Check(Level.WARN, finding, "do not move the sensor between clouds, and record on level ground"))
    verdict = judge(checks)
    if args.out:
        rig = load_rig(args.out) if args.out.exists() else Rig()
        provenance = f"ground in {args.cloud[0].name}, {plane.points} points, {1000 * plane.rms_m:.0f} mm RMS"
        save_rig(rig.with_pose(Pose(rig.base, args.sensor, pose, covariance), provenance), args.out)
        print(f"  rig: {args.out}")
    print(verdict)
    return verdict
