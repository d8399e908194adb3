"""Ranges of labelled objects beside their labels, on real pictures and sweeps; and the cost of ranging and projecting.

The labels' 2-D boxes are taken for detections, so that nothing here depends on a detector. Truth: along the ground,
from the camera to the nearest point of the label's 3-D box that lies in the picture's field of view (of a truck that
reaches past the picture's edge, what is beside the camera is not visible to it). Costs are the thread's own CPU time,
since other programs slow the wall clock's.

    python -m benchmarks.objects                       # SENSORIUM_DATA, or ../shared/data
    python -m benchmarks.objects --overlay /tmp/objects
    python -m benchmarks.objects --detector auto       # or a file: its recall on the labelled boxes, and its cost
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline import assets
from pipeline.metrics import Metrics
from pipeline.perception.boxes import overlap
from pipeline.perception.model_loader import Engines
from pipeline.perception.objects.detections import Detection
from pipeline.perception.objects.detector import PINNED, Detector
from pipeline.perception.objects.object_finder import CameraView, ObjectFinder
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Pose, Rig
from pipeline.rig.rig_formats import read_kitti
from pipeline.rig.transforms import rigid

DEFAULT_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CAMERA, LIDAR = "camera_2", "lidar"
WITHIN_M, WITHIN_SHARE = 0.3, 0.03
EDGE_STEP_M = 0.01
POINTS = 120_000
PLAIN = "matrix product"
SAME_BOX = 0.5  # intersection over union
JITTER, DRAWS = 0.05, 20  # of a box's edges, in shares of its sides; how often


class Labelled(NamedTuple):
    """truth_m: along the ground, as described above."""

    label: str
    occluded: int  # KITTI: 0 fully visible, 1 partly, 2 largely hidden, 3 unknown
    box_px: tuple[float, float, float, float]
    truth_m: float


class Moment(NamedTuple):
    name: str
    image: np.ndarray
    points_m: np.ndarray  # (n, 3) float32 in the lidar's frame, which is the base frame here
    view: CameraView
    objects: list[Labelled]


def moments(data: Path) -> Iterator[Moment]:
    """Frame 7 of driving/kitti_sequence and the three of driving/kitti_labelled."""
    drive = data / "driving" / "kitti_sequence"
    yield _moment(
        "sequence/7",
        drive / "image_02/0000000007.png",
        drive / "velodyne/0000000007.bin",
        drive / "label_2/0000000007.txt",
        drive / "calib.txt",
    )
    folder = data / "driving" / "kitti_labelled"
    for label in sorted((folder / "label_2").glob("*.txt")):
        name = label.stem
        yield _moment(
            f"labelled/{int(name)}",
            folder / f"image_2/{name}.png",
            folder / f"velodyne/{name}.bin",
            label,
            folder / f"calib/{name}.txt",
        )


def _moment(name: str, picture: Path, sweep: Path, labels: Path, calib: Path) -> Moment:
    image = cv2.imread(str(picture))
    assert image is not None, picture
    size = (image.shape[1], image.shape[0])
    rig = read_kitti(calib, size=size, lidar=LIDAR)
    # Labels are in the frame of the rectified camera 0; camera 2 is beside it.
    camera_from_label = rig.transform(CAMERA, "camera_0") if "camera_0" in rig.frames else np.eye(4)
    rig = rig.with_pose(Pose("base", LIDAR, np.eye(4)))
    points = np.fromfile(sweep, np.float32).reshape(-1, 4)[:, :3]
    view = CameraView.of(rig, CAMERA)
    objects = []
    for line in labels.read_text().splitlines():
        words = line.split()
        if words[0] != "DontCare":
            left, top, right, bottom = map(float, words[4:8])
            truth_m = _nearest_m(np.array(words[8:15], float), camera_from_label, view.intrinsics)
            objects.append(Labelled(words[0], int(words[2]), (left, top, right - left, bottom - top), truth_m))
    return Moment(name, image, points, view, objects)


def _nearest_m(box: np.ndarray, camera_from_label: np.ndarray, lens: Intrinsics) -> float:
    """box: height, width, length, x, y, z of the middle of the bottom, turn about y: as KITTI's labels have them."""
    height, width, length, x, y, z, turn = box
    along = np.arange(-0.5, 0.5, EDGE_STEP_M / max(length, width))
    half = np.full_like(along, 0.5)
    edges = np.vstack(
        [np.column_stack(pair) for pair in ((along, half), (along, -half), (half, along), (-half, along))]
    )
    a, b = (edges * (length, width)).T
    middle = np.full_like(a, y - height / 2)
    outline = np.column_stack(
        [x + np.cos(turn) * a + np.sin(turn) * b, middle, z - np.sin(turn) * a + np.cos(turn) * b]
    )
    camera_m = outline @ camera_from_label[:3, :3].T + camera_from_label[:3, 3]
    column = lens.fx_px * camera_m[:, 0] / camera_m[:, 2] + lens.cx_px
    inside = (camera_m[:, 2] > 0) & (column >= -0.5) & (column < lens.width_px - 0.5)
    return float(np.hypot(camera_m[inside, 0], camera_m[inside, 2]).min())


def ranged_objects(
    moment: Moment, random: np.random.Generator | None = None
) -> list[tuple[Labelled, float | None, int, str]]:
    """Each label with the range of its 2-D box, the number of its points, and why there is none. random: moves the
    edges of the boxes, as a detector's are not a label's."""
    finder, boxes = ObjectFinder(), []
    for o in moment.objects:
        (left, top, width, height), off = o.box_px, np.zeros(4) if random is None else random.normal(0, JITTER, 4)
        moved = (
            left + off[0] * width,
            top + off[1] * height,
            width * (1 + off[2] - off[0]),
            height * (1 + off[3] - off[1]),
        )
        boxes.append(Detection(o.label.lower(), 1.0, moved))
    finder.find(moment.image, moment.points_m, 0, moment.view, boxes=boxes)
    return [(o, r.range_m, r.points, r.reason) for o, r in zip(moment.objects, finder.ranged, strict=True)]


def right(range_m: float | None, truth_m: float) -> bool:
    return range_m is not None and abs(range_m - truth_m) <= max(WITHIN_M, WITHIN_SHARE * truth_m)


class Cost(NamedTuple):
    """ms of the thread's own CPU. least: without other programs in the cache."""

    median: float
    least: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.least:.1f})"


def costs_ms(acts: dict[str, Callable[[], object]], times: int = 25) -> dict[str, Cost]:
    """Of each, in turns, so that other load affects all of them alike."""
    took: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(times):
        for name, act in acts.items():
            start = time.process_time()
            act()
            took[name].append(1000 * (time.process_time() - start))
    return {name: Cost(float(np.median(ms)), min(ms)) for name, ms in took.items()}


def projecting() -> dict[str, Cost]:
    """ms for 120,000 points all around, float32 as frames carry them, beside the plain matrix product of the same
    points."""
    random = np.random.default_rng(0)
    bearing = np.sort(random.uniform(-np.pi, np.pi, POINTS))
    reach_m, height_m = random.uniform((2, -2), (60, 1), (POINTS, 2)).T
    sweep = np.column_stack([reach_m * np.cos(bearing), reach_m * np.sin(bearing), height_m]).astype(np.float32)
    camera_from_base = rigid(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]), (0, 1.6, -0.3))
    lenses = {
        "pinhole": Intrinsics("radtan", 1242, 375, 721.5, 721.5, 609.6, 172.9),
        "radtan": Intrinsics("radtan", 1920, 1208, 959.5, 960.2, 940.8, 600.7, (-0.28, 0.07, 0.001, -0.002, 0.05)),
        "fisheye": Intrinsics("fisheye", 1920, 1208, 959.5, 960.2, 940.8, 670.7, (-0.0978, 0.1414, -0.1484, 0.0559)),
    }
    exact = sweep.astype(np.float64)
    acts: dict[str, Callable[[], object]] = {
        PLAIN: lambda: exact @ camera_from_base[:3, :3].T + camera_from_base[:3, 3]
    }
    for name, lens in lenses.items():
        rig = Rig({"camera": lens}, (Pose("camera", "base", camera_from_base),))
        acts[name] = partial(rig.project, sweep, source="base", camera="camera")
    return costs_ms(acts)


def detecting(option: str, all_moments: list[Moment]) -> None:
    """How many of the labelled boxes a detector finds, whatever it calls them, and what a picture costs."""
    log = logging.getLogger("objects")
    engines = Engines("onnxruntime", precision="fp32", threads=1, log=log, metrics=Metrics())
    detector = Detector.load(option, engines, log)
    if detector is None:
        print(f"no detector here: {assets.PULL} {PINNED}")
        return
    hits = total = 0
    for moment in all_moments:
        boxes = [np.array(d.box_px, np.float32) for d in detector.find(moment.image)]
        overlaps = [
            max((overlap(np.array(o.box_px, np.float32), box) for box in boxes), default=0.0) for o in moment.objects
        ]
        hits, total = hits + sum(share >= SAME_BOX for share in overlaps), total + len(overlaps)
    cost = costs_ms({"find": partial(detector.find, all_moments[0].image)})["find"]
    print(f"{detector.name} ({detector.layout}): {hits} of {total} labelled boxes found, {cost} ms of CPU a picture")
    engines.close()


def drawn_over(moment: Moment, folder: Path) -> Path:
    from calibration.report.overlay import draw_points

    drawn = draw_points(
        moment.image, moment.points_m.astype(np.float64), moment.view.intrinsics, moment.view.camera_from_base
    )
    for (label, _, box, truth_m), range_m, *_ in ranged_objects(moment):
        left, top, width, height = map(round, box)
        cv2.rectangle(drawn, (left, top), (left + width, top + height), (255, 255, 255), 1)
        text = f"{label} {'?' if range_m is None else f'{range_m:.1f}'} ({truth_m:.1f})"
        cv2.putText(drawn, text, (left + 2, top + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{moment.name.replace('/', '-')}.png"
    cv2.imwrite(str(path), drawn)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SENSORIUM_DATA") or DEFAULT_DATA))
    parser.add_argument("--overlay", type=Path, help="a folder for pictures with points and ranges drawn in")
    parser.add_argument("--detector", help="auto, the name of an asset, or an ONNX file")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    if (args.data / "driving").is_dir():
        print(f"{'moment':<12} {'label':<11} {'hidden':>6} {'truth m':>8} {'found m':>8} {'error m':>8} {'points':>6}")
        for moment in moments(args.data):
            for o, range_m, points, reason in ranged_objects(moment):
                error_m = None if range_m is None else range_m - o.truth_m
                rows.append(
                    {
                        "moment": moment.name,
                        "label": o.label,
                        "occluded": o.occluded,
                        "truth_m": round(o.truth_m, 3),
                        "range_m": range_m and round(range_m, 3),
                        "points": points,
                        "right": right(range_m, o.truth_m),
                        "reason": reason,
                    }
                )
                numbers = f"{'-':>8} {'-':>8}" if error_m is None else f"{range_m:8.2f} {error_m:+8.2f}"
                mark = "" if right(range_m, o.truth_m) else reason or "  off by more than 3 % and 0.3 m"
                print(f"{moment.name:<12} {o.label:<11} {o.occluded:>6} {o.truth_m:8.2f} {numbers} {points:>6} {mark}")
            if args.overlay:
                print(f"             {drawn_over(moment, args.overlay)}")
        print(f"within 3 % or 0.3 m: {sum(bool(r['right']) for r in rows)} of {len(rows)}")
        all_moments, random = list(moments(args.data)), np.random.default_rng(0)
        hits = [
            right(range_m, o.truth_m)
            for _ in range(DRAWS)
            for m in all_moments
            for o, range_m, *_ in ranged_objects(m, random)
        ]
        print(
            f"the same with each edge of a box moved at random by {JITTER:.0%} of its side, {DRAWS} draws: "
            f"{np.mean(hits):.0%}"
        )
        first = all_moments[0]
        boxes = [Detection(o.label.lower(), 1.0, o.box_px) for o in first.objects]
        finder = ObjectFinder()
        act = partial(finder.find, first.image, first.points_m, 0, first.view, boxes=boxes)
        ranging = costs_ms({"ranging": act})["ranging"]
        print(
            f"ranging {len(boxes)} boxes by {len(first.points_m)} points, projection included, ms of CPU, "
            f"median (least): {ranging}"
        )
        if args.detector:
            detecting(args.detector, all_moments)
    else:
        ranging = None
        print(f"no driving/ in {args.data}: set SENSORIUM_DATA for the ranges of labelled objects")
    took = projecting()
    costs = ", ".join(f"{name} {cost}" for name, cost in took.items())
    print(f"projecting {POINTS} points, ms of CPU, median (least): {costs}")
    if args.json:
        args.json.write_text(json.dumps({"objects": rows, "ranging_ms": ranging, "projecting_ms": took}, indent=2))


if __name__ == "__main__":
    main()
