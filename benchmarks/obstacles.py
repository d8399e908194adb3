"""Obstacles from points: accuracy on synthetic sweeps with exact truth and on labelled real ones, and time per sweep.

    python -m benchmarks.obstacles                 # the figures of docs/scene.md, about a minute
    python -m benchmarks.obstacles --only time # ms a part, one thread, beside a plain numpy pass over the same points

"ground": of points within 60 m. "place": |range of an obstacle − range of the true box's nearest point|, once it has
been followed for half a second; "speed": length of the velocity's error, once it is reported; both over boxes of which
8 points or more were seen. KITTI: labelled cars, vans and lorries within 40 m, found if an obstacle's nearest point
lies within 0.5 m of its box, and as far off as the box's own nearest point, to 0.5 m.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before numpy: a sweep's time is one core's
    os.environ.setdefault(name, "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.driving import KITTI_SEQUENCE, LIDAR_HEIGHT_M, VEHICLES, LabelledBox, kitti_labelled  # noqa: E402
from benchmarks.sweeps import DEPTH, GROUND, HDL64, VLP16, Lidar, Sweep, World, cast, room, street  # noqa: E402
from pipeline.clock import NS  # noqa: E402
from pipeline.frame import Frame  # noqa: E402
from pipeline.perception.obstacles.ground import GroundFinder  # noqa: E402
from pipeline.perception.obstacles.scene_model import SceneModel  # noqa: E402
from pipeline.preprocessing import timed_cloud  # noqa: E402
from pipeline.rig.transforms import rigid  # noqa: E402
from pipeline.scene_state import Obstacle  # noqa: E402

PERIOD_S = 0.1
MATCH_M, WITHIN_M = 0.5, 40.0
MIN_VISIBLE_POINTS = 8
SETTLED_SWEEPS = 5
KITTI_EGO_BOX_M = (-3.0, 2.5, -2.0, 2.0)  # the recording car model its lidar


class Errors(NamedTuple):
    place_m: np.ndarray
    speed_mps: np.ndarray
    lost: int  # times a box that was seen well had no obstacle within 2 m
    ids: int  # how often a box came under another id


def ground_figures(lidar: Lidar, world: World, *, seed: int = 0) -> tuple[float, float]:
    """(recall, precision) of the ground's points."""
    sweep = cast(lidar, world, seed=seed)
    is_ground = GroundFinder(range_m=60.0).find(sweep.points_m, sweep.origin_m).is_ground
    near = np.hypot(sweep.points_m[:, 0], sweep.points_m[:, 1]) < 60
    truth, is_ground = (sweep.hit == GROUND)[near], is_ground[near]
    return float((is_ground & truth).sum() / truth.sum()), float((is_ground & truth).sum() / is_ground.sum())


def follow(lidar: Lidar, world: World, model: SceneModel, *, sweeps: int = 20, seed: int = 0) -> Errors:
    """Errors of the world's vehicles and persons (not its walls), sweep by sweep."""
    place, speed, lost, ids = [], [], 0, defaultdict(set)
    for k in range(sweeps):
        sweep = cast(lidar, world, at_s=k * PERIOD_S, seed=seed + k)
        capture_ns, turn_ns = NS + round(k * PERIOD_S * NS), round(lidar.turn_s * NS)
        model.update(
            "lidar", sweep.points_m, capture_ns, duration_ns=turn_ns, seconds=sweep.seconds, origin_m=sweep.origin_m
        )
        state = model.state(capture_ns + turn_ns)
        at_s = k * PERIOD_S + lidar.turn_s
        for i, box in enumerate(world.boxes):
            if box.length_m > 10 or box.width_m > 5 or (sweep.hit == i).sum() < MIN_VISIBLE_POINTS:
                continue
            x, y = box.centre_m(at_s)
            near = [o for o in state.obstacles if np.hypot(o.centre_m[0] - x, o.centre_m[1] - y) < 2.5 and o.points]
            if not near:
                lost += k >= SETTLED_SWEEPS
                continue
            own = min(near, key=lambda o: abs(o.range_m - box.nearest_m(at_s)))
            ids[i].add(own.id)
            if k >= SETTLED_SWEEPS:
                place.append(abs(own.range_m - box.nearest_m(at_s)))
            if own.velocity_mps is not None:
                speed.append(float(np.hypot(*np.subtract(own.velocity_mps, box.velocity_mps))))
    return Errors(np.array(place), np.array(speed), lost, sum(map(len, ids.values())) - len(ids))


def kitti_matches(data: Path) -> list[tuple[str, LabelledBox, float, Obstacle | None]]:
    """(sweep, label, how far the best obstacle's nearest point is off in metres, that obstacle) of each vehicle."""
    rows = []
    for name, sweep, boxes in kitti_labelled(data):
        model, cloud = SceneModel(), kitti_cloud(sweep)
        model.update("lidar", cloud, NS, duration_ns=NS // 10, origin_m=(0.0, 0.0, LIDAR_HEIGHT_M))
        obstacles = model.state(NS).obstacles
        for box in boxes:
            if box.kind in VEHICLES and box.range_m <= WITHIN_M:
                off = [(_off_m(o, box), o) for o in obstacles]
                rows.append((name, box, *min(off, key=lambda pair: pair[0], default=(np.inf, None))))
    return rows


def kitti_cloud(sweep: np.ndarray) -> np.ndarray:
    frame = Frame("lidar", 0, NS, "points_xyzi_f32", sweep.copy(), NS // 10)
    return timed_cloud(frame, rigid(np.eye(3), (0, 0, LIDAR_HEIGHT_M)), ego_box_m=KITTI_EGO_BOX_M)[0]


def _off_m(obstacle: Obstacle, box: LabelledBox) -> float:
    bearing = np.radians(obstacle.bearing_deg)
    nearest = (obstacle.range_m * float(np.cos(bearing)), obstacle.range_m * float(np.sin(bearing)))
    return max(box.distance_m(nearest), abs(obstacle.range_m - box.range_m))


# --- time -------------------------------------------------------------------------------------------------------------


class _Stopwatch:
    """Thread time of the parts, by wrapping them where they are called from."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)

    def wrap(self, owner: Any, attribute: str, name: str) -> Callable[[], None]:
        inner = getattr(owner, attribute)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return inner(*args, **options)
            finally:
                self.ms[name].append(1e3 * (time.thread_time() - begin))

        setattr(owner, attribute, timed)
        return lambda: setattr(owner, attribute, inner)


def times(clouds: list[tuple[np.ndarray, tuple[float, float, float]]], rounds: int = 3) -> dict[str, float]:
    """Median ms of one thread per sweep, by part. clouds: raw "points_xyzi_f32" rows with their sensor's place."""
    from pipeline.perception.obstacles import scene_model as module
    from pipeline.perception.obstacles.free_space import FreeSpaceMap
    from pipeline.perception.obstacles.tracking import Tracker

    watch, model = _Stopwatch(), SceneModel()
    parts = (
        (GroundFinder, "find", "ground"),
        (module, "find_clusters", "clusters"),
        (FreeSpaceMap, "draw", "free space"),
        (Tracker, "update", "tracks"),
        (SceneModel, "state", "sectors, way ahead"),
    )
    undo = [watch.wrap(*part) for part in parts]
    try:
        for k in range(rounds * len(clouds)):
            rows, origin_m = clouds[k % len(clouds)]
            capture_ns = NS + k * NS // 10
            _reference(rows, watch)
            begin = time.thread_time()
            frame = Frame("lidar", k, capture_ns, "points_xyzi_f32", rows, NS // 10)
            points_m, seconds = timed_cloud(frame, rigid(np.eye(3), origin_m))
            watch.ms["cloud"].append(1e3 * (time.thread_time() - begin))
            model.update("lidar", points_m, capture_ns, duration_ns=NS // 10, seconds=seconds, origin_m=origin_m)
            model.state(capture_ns)
            watch.ms["all"].append(1e3 * (time.thread_time() - begin))
    finally:
        for each in undo:
            each()
    return {name: float(np.median(values[len(values) // 4 :])) for name, values in watch.ms.items()} | {
        "all, best": float(min(watch.ms["all"]))
    }


def _reference(rows: np.ndarray, watch: _Stopwatch) -> None:
    """A plain pass over the points: what a loaded machine does to this, it does to the rest."""
    begin = time.thread_time()
    x, y, z = rows[:, 0], rows[:, 1], rows[:, 2]
    range_m = np.sqrt(x * x + y * y + z * z)
    np.argsort(range_m)
    watch.ms["reference"].append(1e3 * (time.thread_time() - begin))


def _rows(sweep: Sweep) -> tuple[np.ndarray, tuple[float, float, float]]:
    rows = np.zeros((len(sweep.points_m), 4), np.float32)
    rows[:, :3] = sweep.points_m - np.array(sweep.origin_m, np.float32)
    return rows, sweep.origin_m


# --- the tables -------------------------------------------------------------------------------------------------------


def _print_ground() -> dict[str, Any]:
    print(f"{'ground':36}{'recall':>9}{'precision':>11}")
    rows = {}
    for name, lidar in (("64 beams", HDL64), ("16 beams", VLP16), ("depth camera", DEPTH)):
        for kind, world in (("flat", World), ("slope 8 %, 3 %", None), ("bumps ± 8 cm", None)):
            slope, bump_m = {"flat": ((0.0, 0.0), 0.0), "slope 8 %, 3 %": ((0.08, -0.03), 0.0)}.get(
                kind, ((0.0, 0.0), 0.08)
            )
            base = room() if lidar is DEPTH else street()
            del world
            figures = ground_figures(lidar, World(base.boxes, slope, bump_m if lidar is not DEPTH else bump_m / 4, 9.0))
            rows[f"{name}, {kind}"] = figures
            print(f"{name + ', ' + kind:36}{figures[0]:9.4f}{figures[1]:11.4f}")
    return rows


def _print_tracks(seeds: int) -> dict[str, Any]:
    print(f"\n{'tracks':36}{'place p50, p95 m':>20}{'speed p50, p95 m/s':>20}{'lost':>6}{'new ids':>9}")
    rows = {}
    worlds = (
        ("64 beams", HDL64, street()),
        ("64 beams, rig at 5 m/s", HDL64, street(5.0)),
        ("16 beams", VLP16, street()),
        ("16 beams, rig at 5 m/s", VLP16, street(5.0)),
        ("depth camera", DEPTH, room()),
    )
    for name, lidar, world in worlds:
        all_errors = [follow(lidar, world, SceneModel(), seed=1000 * seed) for seed in range(seeds)]
        place, speed = (np.concatenate(c) for c in zip(*((e.place_m, e.speed_mps) for e in all_errors), strict=True))
        lost, ids = sum(e.lost for e in all_errors), sum(e.ids for e in all_errors)
        p, s = np.percentile(place, (50, 95)), np.percentile(speed, (50, 95))
        rows[name] = {"place_m": p.tolist(), "speed_mps": s.tolist(), "lost": lost, "new_ids": ids}
        print(f"{name:36}{p[0]:12.3f}{p[1]:8.3f}{s[0]:12.2f}{s[1]:8.2f}{lost:6}{ids:9}")
    return rows


def _print_kitti(data: Path) -> dict[str, Any]:
    rows = kitti_matches(data)
    matches = sum(off <= MATCH_M for _, _, off, _ in rows)
    print(f"\nKITTI, vehicles within {WITHIN_M:.0f} m: {matches} of {len(rows)} found within {MATCH_M} m")
    for name, box, off, _ in rows:
        print(f"  {name} {box.kind:6} at {box.range_m:5.2f} m: off by {off:5.2f} m")
    return {"found": matches, "of": len(rows), "off_m": [off for *_, off, _ in rows]}


def _print_times(data: Path | None) -> dict[str, Any]:
    table = {"64 beams, rendered": times([_rows(cast(HDL64, street(), at_s=k * PERIOD_S, seed=k)) for k in range(5)])}
    if data is not None:
        files = sorted((data / KITTI_SEQUENCE / "velodyne").glob("*.bin"))
        place = (0.0, 0.0, LIDAR_HEIGHT_M)
        table["KITTI sequence"] = times([(np.fromfile(f, np.float32).reshape(-1, 4), place) for f in files])
    print("\nms of one thread a sweep" + "".join(f"{name:>22}" for name in table))
    for part in next(iter(table.values())):
        print(f"{part:24}" + "".join(f"{column[part]:22.2f}" for column in table.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("ground", "tracks", "kitti", "time"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    folder = Path(os.environ.get("SENSORIUM_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    data = folder if (folder / KITTI_SEQUENCE).is_dir() else None
    if data is None:
        print(f"no KITTI sweeps at {folder}: set SENSORIUM_DATA")
    figures: dict[str, Any] = {}
    if arguments.only in (None, "ground"):
        figures["ground"] = _print_ground()
    if arguments.only in (None, "tracks"):
        figures["tracks"] = _print_tracks(arguments.seeds)
    if data is not None and arguments.only in (None, "kitti"):
        figures["kitti"] = _print_kitti(data)
    if arguments.only in (None, "time"):
        figures["time"] = _print_times(data)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
