"""A grid of the ground from above: free, occupied, or unknown; and the known share by sectors.

A cell is free where a ray passed it lower than PASS_BELOW_M on its way to the ground, or to what it hit.
Everything else is unknown: behind obstacles, between far rings, in the blind ring around the sensor.

Example:
    grid = FreeSpaceMap(x_m=(-20.0, 40.0), y_m=(-20.0, 20.0), cell_m=0.4)
    cells = grid.draw(points_m, height_m, stands, origin_m)      # FreeSpace
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.scene_state import FREE, OCCUPIED, UNKNOWN, FreeSpace

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PASS_BELOW_M = 0.4  # a ray this low over a cell would have hit any relevant obstacle
AZIMUTHS = 720  # half a degree: a lidar at 20 turns a second still fills it
OCCUPIED_POINTS = 2  # one point alone may be rain or a mixed pixel: its cell is unknown, not free


class FreeSpaceMap:
    """x_m, y_m: from and to, in the base frame."""

    def __init__(self, *, x_m: tuple[float, float], y_m: tuple[float, float], cell_m: float) -> None:
        if not (0 < cell_m <= min(x_m[1] - x_m[0], y_m[1] - y_m[0])):
            raise ValueError(f"a grid of x {x_m} and y {y_m} m has no cells of {cell_m} m")
        self.cell_m, self.origin_m = cell_m, (x_m[0], y_m[0])
        self.shape = (round((x_m[1] - x_m[0]) / cell_m), round((y_m[1] - y_m[0]) / cell_m))
        i, j = np.mgrid[: self.shape[0], : self.shape[1]]
        self._x_m, self._y_m = x_m[0] + (i.ravel() + 0.5) * cell_m, y_m[0] + (j.ravel() + 0.5) * cell_m
        self._bearing_deg = np.degrees(np.arctan2(self._y_m, self._x_m))
        # Number of sectors → (each cell's sector, cells of each sector).
        self._sector: dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]] = {}
        # Sensor's position → (each cell's bin, number of rings).
        self._polar: dict[tuple[float, float], tuple[npt.NDArray[np.int32], int]] = {}

    def draw(
        self,
        points_m: Floats,
        height_m: Floats,
        stands: Mask,
        origin_m: tuple[float, float, float],
        *,
        ground_visible: bool = True,
    ) -> FreeSpace:
        """points_m: (n, 3) of one cloud, each with its height above the ground; stands: which of them are obstacles.
        ground_visible: False: no cell is free."""
        cells = np.full(self.shape[0] * self.shape[1], UNKNOWN, np.uint8)
        if ground_visible:
            passed = self._passed(points_m, height_m, stands, origin_m)
            bins, _ = self._bins(origin_m)
            cells[passed[bins]] = FREE
        blocked = self._count(points_m.take(np.flatnonzero(stands), axis=0))
        cells[blocked > 0] = UNKNOWN
        cells[blocked >= OCCUPIED_POINTS] = OCCUPIED
        return FreeSpace(cells.reshape(self.shape), self.cell_m, self.origin_m)

    def join(self, grids: Sequence[FreeSpace]) -> FreeSpace | None:
        """The known cells of all grids; occupied takes precedence over free."""
        if not grids:
            return None
        return (
            grids[0]
            if len(grids) == 1
            else FreeSpace(np.maximum.reduce([g.cells for g in grids]), self.cell_m, self.origin_m)
        )

    def visible_by_sector(self, grid: FreeSpace, count: int) -> npt.NDArray[np.float64]:
        """(count,) share of each sector's cells, from -180° on, that are not unknown."""
        if count not in self._sector:
            sector = np.clip(((self._bearing_deg + 180) * (count / 360)).astype(np.int32), 0, count - 1)
            self._sector[count] = sector, np.maximum(np.bincount(sector, minlength=count), 1)
        sector, cells = self._sector[count]
        share: npt.NDArray[np.float64] = np.bincount(sector, grid.cells.ravel() != UNKNOWN, count) / cells
        return share

    def _count(self, points_m: Floats) -> npt.NDArray[np.int64]:
        i = np.floor((points_m[:, 0] - np.float32(self.origin_m[0])) / np.float32(self.cell_m)).astype(np.int32)
        j = np.floor((points_m[:, 1] - np.float32(self.origin_m[1])) / np.float32(self.cell_m)).astype(np.int32)
        inside = (i >= 0) & (i < self.shape[0]) & (j >= 0) & (j < self.shape[1])
        return np.bincount((i * self.shape[1] + j)[inside], minlength=self.shape[0] * self.shape[1])

    def _bins(self, origin_m: tuple[float, float, float]) -> tuple[npt.NDArray[np.int32], int]:
        """Each cell's bin by azimuth and ring around the sensor, and the number of rings."""
        place = (origin_m[0], origin_m[1])
        if place not in self._polar:
            x, y = self._x_m - place[0], self._y_m - place[1]
            ring = (np.hypot(x, y) / self._ring_m).astype(np.int32)
            rings = int(ring.max()) + 2
            self._polar[place] = (_azimuth(x, y) * rings + ring).astype(np.int32), rings
        return self._polar[place]

    @property
    def _ring_m(self) -> float:
        return self.cell_m / 2

    def _passed(self, points_m: Floats, height_m: Floats, stands: Mask, origin_m: tuple[float, float, float]) -> Mask:
        """(azimuths · rings,) bool: whether some ray passed there, low, on the straight line from the sensor to its
        point."""
        rings = self._bins(origin_m)[1]
        low = np.flatnonzero((height_m < PASS_BELOW_M) & (height_m > -PASS_BELOW_M))
        points_m, height_m, stands = points_m.take(low, axis=0), height_m.take(low), stands.take(low)
        x, y = points_m[:, 0] - np.float32(origin_m[0]), points_m[:, 1] - np.float32(origin_m[1])
        range_m = np.sqrt(x * x + y * y)
        # The sensor's height above the ground is the same for all rays; a point's own height gives its ray's slope.
        ground_m = float(np.median((points_m[:, 2] - height_m)[:: len(low) // 256 + 1])) if len(low) else 0.0
        over_m = np.float32(origin_m[2] - ground_m)
        if over_m <= PASS_BELOW_M:
            begin_m = np.zeros_like(range_m)
        else:
            begin_m = range_m * (over_m - np.float32(PASS_BELOW_M)) / (over_m - height_m)
        begin = np.minimum((begin_m / np.float32(self._ring_m) + 0.5).astype(np.int32), rings - 1)
        end = (range_m / np.float32(self._ring_m)).astype(np.int32) + np.where(stands, 0, 1)
        end = np.clip(end, begin, rings - 1)
        row = _azimuth(x, y) * rings
        change = np.bincount(row + begin, minlength=AZIMUTHS * rings) - np.bincount(
            row + end, minlength=AZIMUTHS * rings
        )
        return np.asarray(np.cumsum(change.reshape(AZIMUTHS, rings), axis=1).ravel() > 0)


def _azimuth(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    turn = np.arctan2(y, x) * (AZIMUTHS / (2 * np.pi))
    return np.asarray(np.floor(turn).astype(np.int32) % AZIMUTHS, np.int32)
