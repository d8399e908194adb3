"""Lidar to camera, sound to picture, drift: against known truth where simulated, against repetition where real.

    python -m benchmarks.calibration_sensors [--trials 200] [--json out.json]

benchmarks/calibration.py prints these rows too, below those of the lenses. Simulated lidar: 16 beams, 2 cm of noise on
every range, corners to 0.15 px, 12 views of a 0.9 × 0.7 m board. Real: 20 chessboard poses
(calibration/camera_lidar_poses) and 10 frames of driving (driving/kitti_sequence), in SENSORIUM_DATA; left out if
missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration_scenes import CAMERA, LidarScene
from benchmarks.driving import KITTI_SEQUENCE, kitti_frames, kitti_rig
from benchmarks.time_scenes import DATA, flashes, talk, turning
from calibration.lidar_camera import posed_boards
from calibration.lidar_camera.drift import Drift
from calibration.lidar_camera.extrinsics import calibrate, pose_error
from calibration.pose import difference, turned
from calibration.time.claps import match
from calibration.time.mouth_voice import compare
from calibration.time.turning import turning_answer

Rows = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--trials", type=int, default=200)
    options = arguments.parse_args()
    figures: dict[str, Rows] = {}
    for name, rows in sensors(options.trials):
        figures[name] = rows
        print(name)
        for label, value in rows.items():
            print(f"  {label:<74}{value:>20}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def sensors(trials: int) -> itertools.chain[tuple[str, Rows]]:
    """(name, rows) of every part, as each is done."""
    parts = {
        "lidar to camera, simulated": lambda: lidar(trials),
        "sound to picture": lambda: sound(trials),
        "camera to lidar in time": lambda: turns(max(4, trials // 20)),
    }
    if (DATA / "calibration" / "camera_lidar_poses").is_dir():
        parts["lidar to camera, 20 real poses"] = lambda: real_poses(DATA)
    if (DATA / KITTI_SEQUENCE).is_dir():
        parts["drift on 10 real frames of driving"] = lambda: drift(DATA)
    return itertools.chain((name, part()) for name, part in parts.items())


def lidar(trials: int) -> Rows:
    off, inside, failed, good_rejected, rejected, times = [], [], 0, 0, 0, 0
    for seed in range(trials):
        scene = LidarScene(seed)
        result = calibrate(scene.views, scene.intrinsics, outline_m=scene.outline_m)
        off.append(difference(result.camera_from_lidar, scene.camera_from_lidar))
        scaled = pose_error(result.camera_from_lidar, scene.camera_from_lidar) / np.sqrt(np.diag(result.covariance))
        inside.append(np.abs(scaled) < 1.96)
        if seed % 10 == 0:
            times += 1
            for wrong in (0.99, 1.01):
                lens = dataclasses.replace(CAMERA, fx_px=CAMERA.fx_px * wrong, fy_px=CAMERA.fy_px * wrong)
                failed += calibrate(scene.views, lens, outline_m=scene.outline_m).verdict.failed
            bad, good = _corrupted(scene)
            rejected, good_rejected = rejected + bad, good_rejected + good
    deg, mm = np.array(off).T * np.array([[1], [1000]])
    by_number = 100 * np.mean(inside, axis=0)
    return {
        f"{trials} trials, median error, target 0.1° / 4 mm": f"{np.median(deg):.3f}° / {np.median(mm):.1f} mm",
        "p95, target 0.2° / 8 mm": f"{np.percentile(deg, 95):.3f}° / {np.percentile(mm, 95):.1f} mm",
        "95 % intervals hold (6 numbers), target 90 to 99 %": f"{by_number.min():.1f} to {by_number.max():.1f} %",
        "focal length wrong by 1 %: FAIL": f"{failed} of {2 * times}",
        "20 % of the views corrupted: of these rejected": f"{rejected} of {2 * times}",
        "· good views rejected with them": f"{good_rejected} of {10 * times}",
    }


def _corrupted(scene: LidarScene) -> tuple[int, int]:
    """(corrupted views rejected, good ones rejected): one has another's cloud, one a board that moved by 6 cm."""
    views = list(scene.views)
    views[2] = dataclasses.replace(views[2], points_m=views[5].points_m, edge_rays=views[5].edge_rays)
    towards = views[7].points_m.mean(0) / np.linalg.norm(views[7].points_m.mean(0))
    views[7] = dataclasses.replace(views[7], points_m=views[7].points_m + 0.06 * towards)
    rejected = set(calibrate(views, scene.intrinsics, outline_m=scene.outline_m).rejected)
    bad = {views[2].name, views[7].name}
    return len(rejected & bad), len(rejected - bad)


def real_poses(data: Path) -> Rows:
    boards = posed_boards.read_poses(data / "calibration" / "camera_lidar_poses" / "poses.csv")
    draw, errors, apart = np.random.default_rng(0), [], []
    for _ in range(50):
        order = draw.permutation(len(boards))
        first, second = ([boards[i] for i in half] for half in (order[:10], order[10:]))
        a, b = posed_boards.calibrate(first), posed_boards.calibrate(second)
        for by, others in ((a, second), (b, first)):
            errors.append(1000 * posed_boards.centre_rms_m(by.camera_from_lidar, others))
        apart.append(difference(a.camera_from_lidar, b.camera_from_lidar))
    deg, mm = np.array(apart).T * np.array([[1], [1000]])
    return {
        "10 of 20 solve: RMS of the others' centres, median, target 13 mm": f"{np.median(errors):.1f} mm",
        "· p95 of 100 choices": f"{np.percentile(errors, 95):.1f} mm",
        "two disjoint halves differ by, median, target 0.45° / 13 mm": (
            f"{np.median(deg):.2f}° / {np.median(mm):.1f} mm"
        ),
        "· p95 of 50 choices": f"{np.percentile(deg, 95):.2f}° / {np.percentile(mm, 95):.1f} mm",
    }


def sound(trials: int) -> Rows:
    rows: Rows = {}
    for hands in (False, True):
        errors, inside, unknown = [], [], 0
        for seed in range(trials if not hands else max(10, trials // 4)):
            pictures, microphone, true_ms = flashes(seed, hands=hands)
            offset = match(pictures.events(), microphone.events())
            if offset.unknown:
                unknown += 1
                continue
            errors.append(abs(offset.offset_ms - true_ms))
            inside.append(offset.interval_ms[0] <= true_ms <= offset.interval_ms[1])
        what = "hands drawn, 20 claps" if hands else "20 flashes at 30 fps"
        target = "" if hands else ", target 3 ms"
        rows[f"{what}: p95 of the error{target}"] = f"{np.percentile(errors, 95):.1f} ms"
        rows["· 95 % intervals hold; unknown"] = f"{100 * np.mean(inside):.0f} %; {unknown}"
    errors, unknown, wrong = [], 0, 0
    talks = max(5, trials // 10)
    for seed in range(talks):
        lag, true_ms = _talk(seed)
        unknown += bool(lag.unknown)
        errors += [] if lag.unknown else [abs(lag.offset_ms - true_ms)]
        wrong += not _talk(seed, unrelated=True)[0].unknown
    rows["drawn mouth, real voice, 20 s: largest error, target 40 ms"] = f"{max(errors, default=float('nan')):.0f} ms"
    rows["· unknown"] = f"{unknown} of {talks}"
    rows["another person's voice: accepted as the own one"] = f"{wrong} of {talks}"
    return rows


def _talk(seed: int, *, unrelated: bool = False) -> tuple[Any, float]:
    mouth, voice, true_ms = talk(seed, unrelated=unrelated)
    return compare(mouth, voice), true_ms


def turns(trials: int) -> Rows:
    errors, unknown = [], 0
    for seed in range(trials):
        camera, lidar, true_ms = turning(seed)
        answer = turning_answer(camera, lidar)
        unknown += bool(answer.unknown)
        errors += [] if answer.unknown else [abs(answer.offset_ms - true_ms)]
    largest_ms = max(errors, default=float("nan"))
    return {"a turning rig, 20 s: largest error; unknown": f"{largest_ms:.1f} ms; {unknown} of {trials}"}


def drift(data: Path) -> Rows:
    rig, frames = kitti_rig(data), kitti_frames(data)
    lens, pose = rig.camera("camera"), rig.transform("camera", "lidar")

    def state(rotation_deg: Any, chosen: Any) -> str:
        monitor = Drift(lens, turned(pose, np.radians(rotation_deg)))
        for index in chosen:
            monitor.add(*frames[index])
        return monitor.answer().state

    everything = range(len(frames))
    states = [state(sign * np.eye(3)[axis], everything) for axis in range(3) for sign in (1, -1)]
    # Right poses: the published one, seen through every choice of 8 of the 10 frames.
    right = [state(np.zeros(3), chosen) for chosen in itertools.combinations(everything, 8)]
    return {
        "rotated by 1° about one of three axes, either way: detected": f"{states.count('drifted')} of {len(states)}",
        "published pose, all choices of 8 frames: false alarms": f"{right.count('drifted')} of {len(right)}",
        "· aligned / unknown": f"{right.count('aligned')} / {right.count('unknown')}",
    }


if __name__ == "__main__":
    main()
