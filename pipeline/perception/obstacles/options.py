"""The options that every task with obstacles takes, described and checked once: sensors, ground, grid, corridor.

Example:
    options = SceneOptions(rig="rig.yaml", corridor=Corridor(width_m=1.2, length_m=10))
    clouds, model = options.clouds(options.load_rig(), log), options.model()
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.frame import AlignedSet
from pipeline.perception.obstacles.clouds import Clouds, check_ego_box
from pipeline.perception.obstacles.path_clearance import Corridor
from pipeline.perception.obstacles.scene_model import GridOptions, GroundOptions, SceneModel
from pipeline.rig.rig import Rig
from pipeline.rig.rig_file import load_rig

# Options of a task that are tables → the class that describes the table.
NESTED: Mapping[str, type] = {"ground": GroundOptions, "grid": GridOptions, "corridor": Corridor}

RIG_POLL_S = 0.05


@dataclass(frozen=True)
class SceneOptions:
    """See the constructors of tasks/scene.py and tasks/obstacles.py for what each option means."""

    rig: str = ""
    rig_wait_s: float = 0.0
    sensors: Mapping[str, str] = field(default_factory=dict)
    streams: Sequence[str] = ()
    height_m: float = 1.7
    ego_box_m: Sequence[float] = ()
    stride_px: int = 2
    range_m: float = 60.0
    ground: GroundOptions = field(default_factory=GroundOptions)
    grid: GridOptions = field(default_factory=GridOptions)
    corridor: Corridor = field(default_factory=Corridor)
    max_age_ms: float = 300.0
    by_arrival: bool = False

    def __post_init__(self) -> None:
        check_ego_box(self.ego_box_m)
        if self.stride_px < 1 or self.max_age_ms <= 0:
            raise ValueError("stride_px must be at least 1, max_age_ms above 0")

    def load_rig(self) -> Rig | None:
        """The rig of the file, which is waited for up to rig_wait_s; None without a file. Raises ConfigError."""
        if not self.rig:
            return None
        deadline_s = time.monotonic() + self.rig_wait_s
        while not Path(self.rig).exists() and time.monotonic() < deadline_s:
            time.sleep(RIG_POLL_S)
        return load_rig(self.rig)

    def clouds(self, rig: Rig | None, log: logging.Logger) -> Clouds:
        return Clouds(
            rig,
            height_m=self.height_m,
            sensors=self.sensors,
            ego_box_m=self.ego_box_m,
            stride_px=self.stride_px,
            log=log,
        )

    def model(self) -> SceneModel:
        """Raises ValueError for values that do not fit each other."""
        return SceneModel(
            corridor=self.corridor,
            ground=self.ground,
            grid=self.grid,
            range_m=self.range_m,
            max_age_ns=round(self.max_age_ms * 1e6),
        )

    def reads(self, stream: str) -> bool:
        return not self.streams or stream in self.streams

    def now_ns(self, aligned: AlignedSet) -> int | None:
        """The time that the age of evidence is measured at; None: the set's own time."""
        return aligned.arrival_ns if self.by_arrival else None
