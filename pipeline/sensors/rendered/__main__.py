"""Writes the rig of the rendered drive, a picture of it, or the time that rendering takes; without a graph.

Example:
    python -m pipeline.sensors.rendered --rig configs/rigs/rendered.yaml
    python -m pipeline.sensors.rendered --picture street.png --at 12.5     # the camera's picture at that second
    python -m pipeline.sensors.rendered --time                             # ms per picture, sweep and depth picture
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pipeline.clock import NS
from pipeline.rig.rig_file import save_rig
from pipeline.sensors.rendered.drive import BEAMS, Drive, rig


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.sensors.rendered", description="The rendered drive.")
    parser.add_argument("--rig", type=Path, metavar="FILE.yaml", help="write the rig")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="write the camera's picture")
    parser.add_argument("--at", type=float, default=0.0, metavar="SECONDS", help="of the drive (default: 0)")
    parser.add_argument("--width", type=int, default=640, metavar="PX")
    parser.add_argument("--height", type=int, default=360, metavar="PX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", action="store_true", help="measure what each sensor takes, on one core")
    args = parser.parse_args()
    if args.rig:
        save_rig(rig(width_px=args.width, height_px=args.height), args.rig)
    if args.picture:
        drive = Drive(seed=args.seed, width_px=args.width, height_px=args.height)
        cv2.imwrite(str(args.picture), drive.camera(round(args.at * NS)))
    if args.time:
        cv2.setNumThreads(1)
        for beams in BEAMS:
            drive = Drive(seed=args.seed, beams=beams, width_px=args.width, height_px=args.height)
            points = len(drive.sweep(0))
            print(f"sweep of {beams} beams, {points} points: {cpu_ms(drive.sweep)}")
        print(f"picture of {args.width}×{args.height}: {cpu_ms(drive.camera)}")
        print(f"depth picture of 320×180: {cpu_ms(drive.depth)}")
    if not (args.rig or args.picture or args.time):
        parser.print_help()


def cpu_ms(take: Callable[[int], np.ndarray]) -> str:
    """Processor time, which other programs change little, at 40 times of the loop."""
    spent = []
    for k in range(40):
        begin = time.process_time()
        take(k * NS)
        spent.append((time.process_time() - begin) * 1e3)
    return f"{np.median(spent):.1f} ms of processor time (95 %: below {np.percentile(spent, 95):.1f} ms)"


if __name__ == "__main__":
    main()
