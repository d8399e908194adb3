"""Obstacles, free space and the clearance of the path ahead, from lidars and depth cameras: AlignedSet → Prediction.

Example:
    obstacles: {use: infer, task: obstacles, inputs: [align], options: {rig: rig.yaml, corridor: {width_m: 1.9}}}

`label` is the state of the path ahead, `surroundings` the rest. A prototype's eyes, not a safety function: it misses,
without saying so, glass, holes in the ground, what is thinner than its beams, and what is outside its sensors' view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pipeline.errors import ConfigError
from pipeline.frame import POINTS, AlignedSet, Prediction
from pipeline.perception.obstacles.ground import version
from pipeline.perception.obstacles.options import NESTED, SceneOptions
from pipeline.perception.obstacles.path_clearance import STATES, Corridor, one_hot
from pipeline.perception.obstacles.scene_model import UNUSABLE, GridOptions, GroundOptions, warm_up
from pipeline.task import Task


class Obstacles(Task):
    """Every frame of points or depth in a set is used, in the order of capture."""

    labels = STATES

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        return NESTED.items()

    def __init__(
        self,
        *,
        rig: str = "",
        rig_wait_s: float = 0.0,
        sensors: dict[str, str] | None = None,
        streams: list[str] | None = None,
        height_m: float = 1.7,
        ego_box_m: list[float] | None = None,
        stride_px: int = 2,
        range_m: float = 60.0,
        ground: dict[str, Any] | None = None,
        grid: dict[str, Any] | None = None,
        corridor: dict[str, Any] | None = None,
        max_age_ms: float = 300.0,
        by_arrival: bool = False,
    ) -> None:
        """
        Args:
            rig: A rig file. Without one the sensors stand height_m above the base frame's origin and look along x.
            rig_wait_s: How long to wait at the start for the rig file (s), where a node of this run writes it
                (`save_rig` of depth). Default 0: the file exists.
            sensors: Stream → its name in the rig, where that is not the stream's name.
            streams: The streams to use. Default: every stream of points or depth.
            height_m: Height of the sensors above the ground (m), without a rig file. Default 1.7: a lidar on a car's
                roof.
            ego_box_m: [x from, x to, y from, y to] of the rig itself in the base frame (m): points in it are left out.
            stride_px: Use every n-th pixel of a depth picture in both directions (px, ≥ 1). Default 2: a quarter of the
                points, which are still denser than the clusters' cells.
            range_m: Obstacles farther than this are not tracked (m, > 1). Default 60: beyond, a car has few points.
            ground: {z_m, max_step_m, clearance_m}: the ground, and what can be driven over and under (GroundOptions).
            grid: {x_m, y_m, cell_m, sectors}: the free-space grid and the sectors (GridOptions).
            corridor: {width_m, length_m, stop_m, front_m, min_range_m, speed_mps}: the path ahead (Corridor).
            max_age_ms: Older evidence does not make the path clear (ms, > 0). Default 300: three sweeps at 10 Hz.
            by_arrival: Measure the age of evidence at the arrival of the set's anchor instead of at the set's own time,
                for sensors that may all be late together. A replay gives the same answer; the time until the set was
                sent, at most max_wait_ms, is not counted.
        """
        self._options = SceneOptions(
            rig=rig,
            rig_wait_s=rig_wait_s,
            sensors=sensors or {},
            streams=tuple(streams or ()),
            height_m=height_m,
            ego_box_m=tuple(ego_box_m or ()),
            stride_px=stride_px,
            range_m=range_m,
            ground=GroundOptions(**(ground or {})),
            grid=GridOptions(**(grid or {})),
            corridor=Corridor(**(corridor or {})),
            max_age_ms=max_age_ms,
            by_arrival=by_arrival,
        )
        self._model = self._options.model()
        self._known: set[str] = set(self._options.streams)  # streams of points: their absence is reported

    def open(self, backend: str) -> None:
        self.model = f"patchwork++@{version()}"
        self.metrics.facts["corridor"] = str(self._model.corridor)
        rig = self._options.load_rig()
        for sensor in self._options.sensors.values():
            if rig is None:
                raise ConfigError("options of task 'obstacles': sensors: names in a rig, but no rig is set")
            rig.transform(rig.base, sensor)
        self._clouds = self._options.clouds(rig, self.log)
        warm_up()

    def predict(self, aligned: AlignedSet) -> Prediction:
        frames = [
            f
            for stream, many in aligned.frames.items()
            for f in many
            if f.encoding in POINTS and self._options.reads(stream)
        ]
        self._known.update(frame.stream for frame in frames)
        bad: dict[str, str] = {}
        for frame in sorted(frames, key=lambda f: f.capture_ns):
            try:
                cloud = self._clouds.read(frame)
            except ValueError as error:
                bad[frame.stream] = str(error)
                continue
            why = self._model.update(
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
        state = self._model.state(aligned.anchor_ns, now_ns=self._options.now_ns(aligned), absent=absent)
        used = tuple(dict.fromkeys(frame.stream for frame in frames))
        prediction = self.prediction(aligned, one_hot(state.ahead), used=used, bad=bad)
        return msgspec.structs.replace(prediction, surroundings=state)
