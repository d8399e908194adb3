"""Obstacles, free space and the way ahead from lidars and depth cameras: AlignedSet → Prediction.surroundings.

    obstacles: {use: infer, task: obstacles, inputs: [align], process: align, options: {rig: rig.yaml, width_m: 1.9}}

`label` is the way ahead. A prototype's eyes, not a safety function: it is wrong without saying so about glass, holes in
the ground, what is thinner than its beams, and what the sensors do not look at.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import POINTS, AlignedSet, Prediction
from pipeline.perception.obstacles.clouds import Clouds, check_own
from pipeline.perception.obstacles.ground import version
from pipeline.perception.obstacles.path_clearance import STATES, Corridor, one_hot
from pipeline.perception.obstacles.scene_model import UNUSABLE, Around, warm_up
from pipeline.rig.rig import load
from pipeline.task import Task


class Obstacles(Task):
    """rig: a rig file; without one the sensors stand height_m over the base frame's origin and look along x. streams: which
    to look at, all clouds of the set if empty. sensors: stream → its name in the rig. own_m: [x from, x to, y from, y to]
    of the rig itself. ground_z_m: of the ground in the base frame, where it is known.

    width_m, length_m, stop_m, front_m, blind_m: the corridor (ahead.Corridor); speed_mps instead of length_m and stop_m: as
    long as it takes to stop. max_age_ms: older evidence does not make the way clear; by the set's own time, or,
    by_arrival, by when its anchor arrived (as in the task scene). range_m, step_m, clearance_m, sectors, and grid_x_m,
    grid_y_m, cell_m of the free-space grid: around.Around. every_px: of a depth picture.
    """

    labels = STATES

    def __init__(
        self,
        *,
        rig: str | None = None,
        streams: list[str] | None = None,
        sensors: dict[str, str] | None = None,
        height_m: float = 1.7,
        own_m: list[float] | None = None,
        ground_z_m: float | None = None,
        width_m: float = 2.0,
        length_m: float = 20.0,
        stop_m: float = 6.0,
        front_m: float = 0.0,
        blind_m: float = 5.0,
        speed_mps: float | None = None,
        max_age_ms: float = 300.0,
        by_arrival: bool = False,
        range_m: float = 60.0,
        step_m: float = 0.2,
        clearance_m: float = 2.5,
        sectors: int = 36,
        grid_x_m: list[float] | None = None,
        grid_y_m: list[float] | None = None,
        cell_m: float = 0.4,
        every_px: int = 2,
    ) -> None:
        corridor = Corridor(width_m, length_m, stop_m, front_m, blind_m)
        if speed_mps is not None:
            corridor = Corridor.at_speed(speed_mps, width_m=width_m, front_m=front_m, blind_m=blind_m)
        self._around = Around(
            corridor=corridor,
            range_m=range_m,
            step_m=step_m,
            clearance_m=clearance_m,
            sectors=sectors,
            ground_z_m=ground_z_m,
            x_m=_pair(grid_x_m or [-20.0, 40.0], "grid_x_m"),
            y_m=_pair(grid_y_m or [-20.0, 20.0], "grid_y_m"),
            cell_m=cell_m,
            max_age_ns=round(max_age_ms * 1e6),
        )
        check_own(own_m or ())
        if every_px < 1 or max_age_ms <= 0:
            raise ValueError("every_px must be at least 1, max_age_ms above 0")
        self._by_arrival = by_arrival
        self._rig_path, self._sensors, self._wanted = rig, sensors or {}, set(streams or ())
        self._height_m, self._own_m, self._every_px = height_m, tuple(own_m or ()), every_px
        self._known: set[str] = set(self._wanted)  # streams that are clouds: what is missing of them is told

    def open(self, backend: str) -> None:
        self.model = f"patchwork++@{version()}"
        self.metrics.facts["corridor"] = str(self._around.corridor)
        rig = load(Path(self._rig_path)) if self._rig_path is not None else None
        for sensor in self._sensors.values():
            if rig is None:
                raise ConfigError("options of task 'obstacles': sensors: names in a rig, but no rig is given")
            rig.transform(rig.base, sensor)
        self._clouds = Clouds(
            rig,
            height_m=self._height_m,
            sensors=self._sensors,
            own_m=self._own_m,
            every_px=self._every_px,
            log=self.log,
        )
        warm_up()

    def predict(self, aligned: AlignedSet) -> Prediction:
        frames = [
            f
            for stream, many in aligned.frames.items()
            for f in many
            if f.encoding in POINTS and self._looks_at(stream)
        ]
        self._known.update(frame.stream for frame in frames)
        bad: dict[str, str] = {}
        for frame in sorted(frames, key=lambda f: f.capture_ns):
            try:
                cloud = self._clouds.read(frame)
            except ValueError as error:
                bad[frame.stream] = str(error)
                continue
            why = self._around.update(
                frame.stream,
                cloud.points_m,
                frame.capture_ns,
                duration_ns=frame.duration_ns,
                seconds=cloud.seconds,
                origin_m=cloud.origin_m,
            )
            if why in UNUSABLE:
                bad[frame.stream] = why
        absent = [f"{stream}: {why}" for stream, why in bad.items() if why not in UNUSABLE]
        absent += [f"no {stream} in this set" for stream in aligned.missing if stream in self._known]
        now_ns = aligned.arrival_ns if self._by_arrival else None
        surroundings = self._around.surroundings(aligned.anchor_ns, now_ns=now_ns, absent=absent)
        probs = one_hot(surroundings.ahead)
        used = tuple(dict.fromkeys(frame.stream for frame in frames))
        return msgspec.structs.replace(self.prediction(aligned, probs, used=used, bad=bad), surroundings=surroundings)

    def _looks_at(self, stream: str) -> bool:
        return not self._wanted or stream in self._wanted


def _pair(values: list[float], name: str) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"{name}: found {values}, expected [from, to]")
    return values[0], values[1]
