"""What is around a rig: obstacles, free space, sounds and the clearance of the path ahead, as a Prediction carries it.

Owns the meaning of every field; knows nothing of how it is estimated. Positions are in the rig's base frame: x forward,
y left, z up, in metres; bearings in degrees from straight ahead, to the left positive; velocities relative to the rig.
A prototype for experiments, not a safety function.

Example:
    for obstacle in prediction.surroundings.obstacles: print(obstacle.range_m, obstacle.bearing_deg, obstacle.ttc_s)
    prediction.surroundings.free_space.at(5.0, 0.0)     # FREE
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

UNKNOWN, FREE, OCCUPIED = 0, 1, 2  # a cell of FreeSpace
CELL_LETTERS = "?.#"  # the same in JSON

ClearanceState = Literal["clear", "caution", "blocked", "unknown"]


class Obstacle(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that stands above the ground, tracked from sweep to sweep."""

    id: int  # stable while the obstacle is tracked
    centre_m: tuple[float, float, float]  # x, y, z of the middle of its box
    size_m: tuple[float, float, float]  # length along yaw, width, height of its visible part
    yaw_rad: float  # of its length, from x towards y
    range_m: float  # horizontal, from the base frame's origin to its nearest point
    bearing_deg: float  # of that point
    velocity_mps: tuple[float, float] | None = None  # x, y; None: not known yet
    velocity_sigma_mps: float | None = None  # standard deviation of either
    ttc_s: float | None = None  # time to contact at constant velocity; None: it does not approach
    points: int = 0  # in the newest sweep; 0: predicted from earlier sweeps
    label: str = ""  # its class, from the camera; "": unknown
    score: float = 0.0  # of that class, 0 to 1


class Sector(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The directions from one bearing to the next."""

    from_deg: float  # bearing, 0 ahead, positive to the left
    to_deg: float  # the bearing at which the next sector begins
    nearest_m: float | None  # of anything above the ground; None: nothing was measured
    ttc_s: float | None = None  # the smallest of its obstacles
    observed: float = 0.0  # share of its cells that are known to be free or occupied, 0 to 1


class FreeSpace(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """A grid from above. cells[i, j] covers x from origin_m[0] + i·cell_m and y from origin_m[1] + j·cell_m on."""

    cells: np.ndarray  # (rows, columns) uint8: UNKNOWN, FREE or OCCUPIED
    cell_m: float  # side of a cell
    origin_m: tuple[float, float]  # x, y of the outer corner of cells[0, 0]: the rearmost on the right

    def __post_init__(self) -> None:
        self.cells.setflags(write=False)

    def at(self, x_m: float, y_m: float) -> int:
        """UNKNOWN, FREE or OCCUPIED; UNKNOWN outside the grid."""
        i, j = int((x_m - self.origin_m[0]) // self.cell_m), int((y_m - self.origin_m[1]) // self.cell_m)
        inside = 0 <= i < self.cells.shape[0] and 0 <= j < self.cells.shape[1]
        return int(self.cells[i, j]) if inside else UNKNOWN


class Sound(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One kind of sound event with its present probability."""

    label: str  # "dog_bark"
    prob: float  # 0 to 1


class PathClearance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Whether the path ahead is clear: that needs fresh evidence that it is free; else the state is "unknown"."""

    state: ClearanceState = "unknown"  # of the corridor ahead
    because: tuple[str, ...] = ()  # for people: "obstacle 7 at 4.2 m, closing at 3.1 m/s", "no lidar for 0.7 s"
    nearest_m: float | None = None  # in the corridor; None: nothing in it, or unknown
    ttc_s: float | None = None  # the smallest of the obstacles in the corridor; None: none approaches


class SceneState(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """All of it, at one moment."""

    ahead: PathClearance = PathClearance()  # whether the path ahead is clear
    obstacles: tuple[Obstacle, ...] = ()  # nearest first
    sectors: tuple[Sector, ...] = ()  # from the right (-180°) to the left
    free_space: FreeSpace | None = None  # None: the task does not send it
    sounds: tuple[Sound, ...] = ()  # most probable first; empty: no sound was classified

    def record(self) -> dict[str, Any]:
        """The JSON object of docs/prediction.schema.json. A grid is a list of strings: a letter a cell."""
        plain = {
            "ahead": msgspec.structs.asdict(self.ahead),
            "obstacles": [_rounded(o) for o in self.obstacles],
            "sectors": [_sector_record(s) for s in self.sectors],
            "sounds": [_rounded(s) for s in self.sounds],
        }
        if (grid := self.free_space) is not None:
            letters = np.frombuffer(CELL_LETTERS.encode(), np.uint8)[grid.cells]
            rows = [row.tobytes().decode() for row in letters]
            plain["free_space"] = {"cell_m": grid.cell_m, "origin_m": list(grid.origin_m), "rows": rows}
        return plain


def _sector_record(sector: Sector) -> dict[str, Any]:
    record = _rounded(sector)
    return record | {"seen": record.pop("observed")}  # the key in JSON since the first version


def _rounded(part: msgspec.Struct) -> dict[str, Any]:
    """To three decimals: finer than any of these values is measured."""

    def short(value: Any) -> Any:
        if isinstance(value, tuple):
            return [short(v) for v in value]
        return round(value, 3) if isinstance(value, float) else value

    return {name: short(value) for name, value in msgspec.structs.asdict(part).items()}
